"""Hugging Face's Trainer: a callback for sensitivity, pruning and selective updates, and a subclass
for dynamic subsets of the data.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from weakref import ref

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from snello.equilibrium import SelectiveUpdate
from snello.errors import ConfigError, check_count, require
from snello.graph import scores_of
from snello.pruning import Pruner
from snello.sensitivity import Sensitivity
from snello.store import archives
from snello.wrappers import OwnHook

from ._agree import zeros_expected
from ._curated_trainer import curated_trainer as curated_trainer


def huggingface_callback(
    *,
    sensitivity: Callable[[nn.Module], Sensitivity] | None = None,
    pruner: Callable[[nn.Module, torch.optim.Optimizer], Pruner] | None = None,
    updates: Callable[[nn.Module, torch.optim.Optimizer], SelectiveUpdate] | None = None,
    every: int | None = None,
    monitor: str = "eval_loss",
    resume_from: str | Path | bool = True,
) -> Any:
    """Build a callback for transformers: `Trainer(callbacks=[huggingface_callback(...)])`.

    The sensitivity observes every training forward pass and decays weights after every optimizer
    step; the pruner steps after every evaluation of the training, `updates` at the end of every epoch, or after
    `every` optimizer steps. Their
    state is saved with the Trainer's checkpoints; a second `train()` of the same model continues
    from the first. The masks stay in force after training.

    Args:
        sensitivity: function that builds the sensitivity, such as
            `lambda model: SeReNe(model, 1e-4)`.
        pruner: function that builds the pruner, such as
            `lambda model, optimizer: Pruner(model, optimizer, validation_loss)`.
        updates: function that builds the selective update, such as
            `lambda model, optimizer: NEq(model, optimizer, probe)`.
        every: number of optimizer steps between decisions of `updates`, for fine-tunings of few
            epochs; None: at the end of every epoch.
        monitor: name of the evaluation loss that is passed to the pruner.
        resume_from: the checkpoint that a training continues from, as given to
            `train(resume_from_checkpoint=)`, if it lies elsewhere than in `output_dir`. False to
            continue a checkpoint that was saved without this callback.

    Raises:
        ConfigError: if all three are None, or for `every` below 1; during training, if an
            evaluation lacks the metric, or a continued checkpoint has no state of this callback.
        MissingExtraError: without transformers.
    """
    if sensitivity is None and pruner is None and updates is None:
        raise ConfigError("huggingface_callback: pass a sensitivity, a pruner or updates")
    if every is not None:
        check_count("every", every, "; it is a number of optimizer steps")
    base: Any = require("transformers", "huggingface", "the Trainer's callback").TrainerCallback

    class SnelloCallback(base):  # type: ignore[misc]
        def __init__(self) -> None:
            self.parts: dict[str, Any] = {}
            self.hook: RemovableHandle | None = None
            self.last: tuple[ref[nn.Module], dict[str, Any]] | None = None
            self.ended = 0  # epochs

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            model, optimizer = kwargs["model"], kwargs["optimizer"]
            optimizer = getattr(optimizer, "optimizer", optimizer)  # accelerate's wrapper
            self.take_down()  # a training that was interrupted has not
            if "pruner" in self.parts:
                self.parts["pruner"].remove()  # the new pruner takes over its masks
            with zeros_expected(bool(state.global_step and resume_from)):
                built = {
                    "sensitivity": sensitivity and sensitivity(model),
                    "pruner": pruner and pruner(model, optimizer),
                    "updates": updates and updates(model, optimizer),
                }
            self.parts = {name: part for name, part in built.items() if part is not None}
            now = self.ended = int(state.epoch or 0)
            for name, part_state in self.before(model, args.output_dir, state.global_step).items():
                self.parts[name].load_state_dict(part_state)
            if self.ended < now:
                self.make_up(args.eval_strategy == "epoch")
            self.hook = model.register_forward_hook(OwnHook(self.look))

        def make_up(self, evaluates: bool) -> None:
            """End the epoch whose last step wrote the checkpoint: the Trainer begins the next one."""
            if "updates" in self.parts and every is None:
                self.parts["updates"].step()
            if "pruner" in self.parts and evaluates:
                self.parts["pruner"].step()

        def before(self, model: nn.Module, folder: str, step: int) -> dict[str, Any]:
            """The states to continue from: of the checkpoint, or of this model's last training."""
            again = self.last[1] if self.last is not None and self.last[0]() is model else None
            if step and resume_from:
                own = Path(folder, f"checkpoint-{step}")
                saved = (own if resume_from is True else Path(resume_from)) / "snello.pt"
                if saved.is_file():
                    content = archives.load(saved)
                    self.ended = content.pop("epochs_ended", self.ended)
                    return _of(self.parts, content, saved)
                if again is None:
                    raise ConfigError(
                        f"training goes on at step {step}, but there is no {saved}: without it pruned weights would "
                        "be revived. Give huggingface_callback(resume_from=CHECKPOINT) the folder that "
                        "resume_from_checkpoint names, or resume_from=False if it was saved without this callback"
                    )
            return again or {}

        def look(self, model: nn.Module, inputs: Any, outputs: Any) -> None:
            if "sensitivity" in self.parts and model.training and torch.is_grad_enabled():
                self.parts["sensitivity"].observe(scores_of(outputs))

        def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if "sensitivity" in self.parts:  # gradients are still there
                self.parts["sensitivity"].step()

        def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            metrics = kwargs.get("metrics") or {}
            if "pruner" in self.parts and self.hook is not None:  # not of a trained model
                if monitor not in metrics:
                    raise ConfigError(
                        f"the evaluation has no metric {monitor!r}; choose one of: "
                        f"{', '.join(metrics)}"
                    )
                self.parts["pruner"].step(float(metrics[monitor]))

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if "updates" in self.parts and every is not None and state.global_step % every == 0:
                self.parts["updates"].step()

        def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.ended = int(state.epoch)
            if "updates" in self.parts and every is None:
                self.parts["updates"].step()

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            folder = Path(args.output_dir, f"checkpoint-{state.global_step}")
            if state.is_world_process_zero and folder.is_dir():
                states = {name: part.state_dict() for name, part in self.parts.items()}
                archives.save(folder / "snello.pt", {"epochs_ended": self.ended, **states})

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.last = (
                ref(kwargs["model"]),
                {name: p.state_dict() for name, p in self.parts.items()},
            )
            self.take_down()

        def take_down(self) -> None:
            """Remove every hook; the masks stay in force."""
            if self.hook is not None:
                self.hook.remove()
                self.hook = None
            for name, part in self.parts.items():
                if name != "pruner":  # its hooks keep pruned weights at zero after training
                    part.remove()

    return SnelloCallback()


def _of(parts: dict[str, Any], saved: dict[str, Any], path: Path) -> dict[str, Any]:
    """The saved states of the parts.

    Raises:
        ConfigError: if one is missing.
    """
    if missing := [name for name in parts if name not in saved]:
        raise ConfigError(f"{path} has no state of {missing[0]}, only of: {', '.join(saved)}")
    return {name: saved[name] for name in parts}
