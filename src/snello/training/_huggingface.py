"""Hugging Face's Trainer: sensitivity, pruning and selective updates as one callback."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from snello import archives
from snello.equilibrium import SelectiveUpdate
from snello.errors import ConfigError, require
from snello.pruning import Pruner
from snello.sensitivity import Lobster, Sensitivity

from ._callbacks import scores_of
from ._combined import frozen_rows_held


def huggingface_callback(
    *,
    sensitivity: Callable[[nn.Module], Sensitivity] | None = None,
    pruner: Callable[[nn.Module, torch.optim.Optimizer], Pruner] | None = None,
    updates: Callable[[nn.Module, torch.optim.Optimizer], SelectiveUpdate] | None = None,
    monitor: str = "eval_loss",
) -> Any:
    """A ``transformers.TrainerCallback`` over the public API: ``Trainer(callbacks=[huggingface_callback(...)])``.

    The sensitivity observes every training forward and decays after every step of the optimizer; the pruner is
    asked after every evaluation, ``updates`` at the end of every epoch. State lies in the Trainer's checkpoints.

    Args:
        sensitivity: ``lambda model: SeReNe(model, 1e-4)``.
        pruner: ``lambda model, optimizer: Pruner(model, optimizer, validation_loss, twt=0.05)``.
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

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            # The optimizer may be wrapped, as accelerate does: hooks belong on the one that steps.
            model, optimizer = kwargs["model"], kwargs["optimizer"]
            optimizer = getattr(optimizer, "optimizer", optimizer)
            built = {
                "sensitivity": sensitivity and sensitivity(model),
                "pruner": pruner and pruner(model, optimizer),
                "updates": updates and updates(model, optimizer),
            }
            self.parts = {name: part for name, part in built.items() if part is not None}
            self.hook = model.register_forward_hook(self.look)
            if (saved := Path(args.output_dir, f"checkpoint-{state.global_step}", "snello.pt")).is_file():
                found = archives.load(saved)
                for name, part in self.parts.items():
                    part.load_state_dict(found[name])

        def look(self, model: nn.Module, inputs: Any, outputs: Any) -> None:
            if "sensitivity" in self.parts and model.training and torch.is_grad_enabled():
                self.parts["sensitivity"].observe(scores_of(outputs))

        def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if "sensitivity" in self.parts:  # gradients are still there
                by_gradient = isinstance(self.parts["sensitivity"], Lobster)
                with frozen_rows_held(self.parts.get("updates") if by_gradient else None):
                    self.parts["sensitivity"].step()

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
                archives.save(folder / "snello.pt", {name: p.state_dict() for name, p in self.parts.items()})

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.hook.remove()
            for part in self.parts.values():
                part.remove()

    return SnelloCallback()
