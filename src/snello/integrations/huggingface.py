"""Hugging Face's Trainer: sensitivity, pruning and selective updates as one callback."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from weakref import ref

import torch
from torch import nn

from snello.equilibrium import SelectiveUpdate
from snello.errors import ConfigError, require
from snello.pruning import Pruner
from snello.sensitivity import Sensitivity
from snello.store import archives
from snello.wrappers import OwnHook

from ._combined import frozen_rows_held
from ._scores import scores_of


def huggingface_callback(
    *,
    sensitivity: Callable[[nn.Module], Sensitivity] | None = None,
    pruner: Callable[[nn.Module, torch.optim.Optimizer], Pruner] | None = None,
    updates: Callable[[nn.Module, torch.optim.Optimizer], SelectiveUpdate] | None = None,
    monitor: str = "eval_loss",
) -> Any:
    """Build a callback of transformers: ``Trainer(callbacks=[huggingface_callback(...)])``.

    The sensitivity observes every training forward and decays after every step of the optimizer;
    the pruner is asked after every evaluation, ``updates`` at the end of every epoch. State lies in
    the Trainer's checkpoints; a second ``train()`` of the same model goes on from the first. The
    masks stay in force after training.

    Args:
        sensitivity: ``lambda model: SeReNe(model, 1e-4)``.
        pruner: ``lambda model, optimizer: Pruner(model, optimizer, validation_loss)``.
        updates: ``lambda model, optimizer: NEq(model, optimizer, probe)``.
        monitor: the metric of an evaluation that the pruner looks at; it is a loss.

    Raises:
        ConfigError: when nothing is asked for; while training, if an evaluation lacks the metric.
        MissingExtraError: without transformers.
    """
    if sensitivity is None and pruner is None and updates is None:
        raise ConfigError("huggingface_callback: give a sensitivity, a pruner or updates")
    base: Any = require("transformers", "huggingface", "the Trainer's callback").TrainerCallback

    class SnelloCallback(base):  # type: ignore[misc]
        parts: dict[str, Any]
        last: tuple[ref[nn.Module], dict[str, Any]] | None = None

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            model, optimizer = kwargs["model"], kwargs["optimizer"]
            optimizer = getattr(optimizer, "optimizer", optimizer)  # accelerate's wrapper
            if "pruner" in getattr(self, "parts", {}):
                self.parts["pruner"].remove()  # the new one begins with its masks
            built = {
                "sensitivity": sensitivity and sensitivity(model),
                "pruner": pruner and pruner(model, optimizer),
                "updates": updates and updates(model, optimizer),
            }
            self.parts = {name: part for name, part in built.items() if part is not None}
            self.hook = model.register_forward_hook(OwnHook(self.look))
            if (
                saved := Path(args.output_dir, f"checkpoint-{state.global_step}", "snello.pt")
            ).is_file():
                found = archives.load(saved)
                for name, part in self.parts.items():
                    part.load_state_dict(found[name])
            elif self.last is not None and self.last[0]() is model:  # trained once more
                for name, part in self.parts.items():
                    part.load_state_dict(self.last[1][name])

        def look(self, model: nn.Module, inputs: Any, outputs: Any) -> None:
            if "sensitivity" in self.parts and model.training and torch.is_grad_enabled():
                self.parts["sensitivity"].observe(scores_of(outputs))

        def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if "sensitivity" in self.parts:  # gradients are still there
                decay = self.parts["sensitivity"]
                with frozen_rows_held(self.parts.get("updates") if decay.by_gradient else None):
                    decay.step()

        def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            metrics = kwargs.get("metrics") or {}
            if "pruner" in getattr(self, "parts", {}):
                if monitor not in metrics:
                    raise ConfigError(
                        f"no metric {monitor!r} in the evaluation; there are: {', '.join(metrics)}"
                    )
                self.parts["pruner"].step(float(metrics[monitor]))

        def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if "updates" in self.parts:
                self.parts["updates"].step()

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            folder = Path(args.output_dir, f"checkpoint-{state.global_step}")
            if state.is_world_process_zero and folder.is_dir():
                archives.save(
                    folder / "snello.pt", {name: p.state_dict() for name, p in self.parts.items()}
                )

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.hook.remove()
            self.last = (
                ref(kwargs["model"]),
                {name: p.state_dict() for name, p in self.parts.items()},
            )
            for name, part in self.parts.items():
                if name != "pruner":  # what is pruned stays pruned
                    part.remove()

    return SnelloCallback()
