"""Hugging Face's Trainer on a dynamic subset of the training data."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from snello.curation import DynamicSubset
from snello.errors import ConfigError, check_option, require
from snello.graph import scores_of
from snello.store import archives

INDEX = "snello_index"
"""Key of the samples' indices in a batch."""

STATE = "curation.pt"
"""File in a checkpoint with the state of the subset."""

Losses = Callable[[Any, Mapping[str, Any]], Tensor]
"""The losses of a batch, shape (B,), from the model's outputs and the inputs, labels included."""


def curated_trainer(base: Any = None) -> Any:
    """Make a Trainer class whose epochs leave out samples that teach little.

    `curated_trainer()(model, arguments, keep=InfoBatch(dataset, ratio=0.5, epochs=3), ...)` takes the
    arguments of the Trainer and, in place of `train_dataset`, `keep`, an object of
    [`snello.curation`][]. Its epochs have the real number of steps, the learning rate follows
    `keep.moment`, so that the schedule ends with the training, and checkpoints contain its state.

    The loss of each sample of a classifier (logits (B, C), labels (B,)) is computed from its
    logits, if the loss of `base` and of the model is the cross-entropy; the first batch shows that.
    For other losses `losses=`, a function of the outputs and the inputs, returns one loss per
    sample, shape (B,); without it the mean loss of the batch takes its place (Fu et al., 2026,
    arXiv:2604.04681).

    Several processes get equal batches without a common sample, dealt out by `keep`.

    Args:
        base: a subclass of `transformers.Trainer`; None for the Trainer itself.

    Returns:
        A subclass of `base`.

    Raises:
        ConfigError: for a `base` that is no Trainer of transformers 5.8 or later; when it is built,
            without `keep`, or for epochs of another number than `keep` counts on; when it trains, for
            a `keep` of another training, or a checkpoint without the state.
        MissingExtraError: without transformers.
    """
    transformers: Any = require("transformers", "huggingface", "a curated Trainer")
    base = transformers.Trainer if base is None else base
    if not (inspect.isclass(base) and issubclass(base, transformers.Trainer)):
        raise ConfigError(f"curated_trainer: {base!r} is no subclass of transformers.Trainer")
    if not hasattr(base, "_run_epoch"):
        raise ConfigError("curated_trainer needs transformers 5.8 or later")

    class Keeper(transformers.TrainerCallback):  # type: ignore[misc]
        """Ends the epochs of the subset and saves its state."""

        def __init__(self, keep: DynamicSubset) -> None:
            self.keep = keep

        def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if not control.should_training_stop:
                self.keep.finish()

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            content = self.keep.state_dict()  # every process has to call it
            folder = Path(args.output_dir, f"checkpoint-{state.global_step}")
            if state.is_world_process_zero and folder.is_dir():
                archives.save(folder / STATE, content)

    class CuratedTrainer(base):  # type: ignore[misc, valid-type]
        """The Trainer, on a dynamic subset."""

        def __init__(
            self, *args: Any, keep: DynamicSubset | None = None, losses: Losses | None = None,
            **kwargs: Any,
        ) -> None:  # fmt: skip
            if not isinstance(keep, DynamicSubset) or kwargs.get("train_dataset") is not None:
                raise ConfigError(
                    "a curated Trainer takes keep=, a DynamicSubset around the training data such as "
                    "InfoBatch(dataset, ratio=0.5, epochs=3), and no train_dataset"
                )
            self.keep, self._losses = keep, losses
            self._plain: bool | None = None
            super().__init__(*args, train_dataset=keep, **kwargs)
            _check_epochs(keep, self.args)
            # The loss is a mean over the batch, which the Trainer has to divide among accumulated ones.
            self.model_accepts_loss_kwargs = self.loss_is_scaled_for_ga = False
            self.add_callback(Keeper(keep))

        def get_train_dataloader(self) -> DataLoader[Any]:
            """A loader of this process's share, which Accelerate must not split once more."""
            collate = self.keep.collate(self._get_collator_with_removed_columns(self.data_collator))
            arguments = self.args
            return DataLoader(
                self.keep,
                batch_size=self._train_batch_size,
                sampler=self.keep.sampler(),
                collate_fn=_Indexed(collate),
                num_workers=arguments.dataloader_num_workers,
                pin_memory=arguments.dataloader_pin_memory and torch.cuda.is_available(),
                persistent_workers=arguments.dataloader_persistent_workers,
                prefetch_factor=arguments.dataloader_prefetch_factor,
                drop_last=arguments.dataloader_drop_last,
            )

        def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
            """The Trainer's schedule, at the share of the training that is really done."""
            made = self.lr_scheduler is None
            scheduler = super().create_scheduler(num_training_steps, optimizer)
            if made and isinstance(scheduler, LambdaLR):
                scheduler.lr_lambdas = [
                    self._followed(factor, num_training_steps) for factor in scheduler.lr_lambdas
                ]
            return scheduler

        def _followed(self, factor: Callable[[Any], float], steps: int) -> Callable[[int], float]:
            end = self.args.num_train_epochs
            return lambda _: factor(min(self.keep.moment / end, 1.0) * steps)

        def _init_training_state(
            self, max_steps: int, steps: int, epochs: int, resume_from_checkpoint: Any, trial: Any
        ) -> tuple[int, int]:
            found: tuple[int, int] = super()._init_training_state(
                max_steps, steps, epochs, resume_from_checkpoint, trial
            )
            if resume_from_checkpoint is None:
                check_option(
                    self.keep.moment == 0,
                    f"keep has been trained on for {self.keep.moment:g} epochs, so that the learning rate would go on "
                    "from there: make a new one, or give resume_from_checkpoint",
                )
                return found
            path = Path(resume_from_checkpoint, STATE)
            if not path.is_file():
                raise ConfigError(
                    f"{resume_from_checkpoint} has no {STATE}: it was not written by a curated Trainer"
                )
            self.keep.load_state_dict(archives.load(path))
            if not self._coming():  # of the epoch an incomplete batch is left, which is dropped
                self.keep.finish()
            # The sampler goes on behind what was trained on: no batch is to be skipped.
            return math.floor(self.keep.moment), 0

        def _run_epoch(self, **given: Any) -> None:
            batches = self._coming()  # epochs differ in length
            given["steps_in_epoch"] = batches
            given["num_update_steps_per_epoch"] = math.ceil(
                batches / self.args.gradient_accumulation_steps
            )
            super()._run_epoch(**given)

        def _coming(self) -> int:
            """Batches of the epoch, or of what is left of one that was restored."""
            samples, size = self.keep.coming(rest=True), int(self._train_batch_size)
            return samples // size if self.args.dataloader_drop_last else -(-samples // size)

        def compute_loss(
            self,
            model: Any,
            inputs: Any,
            return_outputs: bool = False,
            num_items_in_batch: Any = None,
        ) -> Any:
            """The weighted mean of the losses in training; the Trainer's loss in an evaluation."""
            inputs = dict(inputs)
            index = inputs.pop(INDEX, None)
            if index is None:
                return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            mean, outputs = super().compute_loss(model, dict(inputs), return_outputs=True)
            if self._losses is not None:
                found = self._losses(outputs, inputs)
            else:
                found = self._of_samples(outputs, inputs, mean)
            loss = self.keep.weigh(found, index)
            return (loss, outputs) if return_outputs else loss

        def _of_samples(self, outputs: Any, inputs: Mapping[str, Any], mean: Tensor) -> Tensor:
            """The losses of a classifier's samples, (B,); the mean where the loss is another one."""
            found = _of_classifier(outputs, inputs, self.args.label_smoothing_factor)
            if found is None:
                return mean
            if self._plain is None and bool(mean.isfinite().all()):
                # Class weights, a focal loss, an own compute_loss: their gradient must not be lost.
                self._plain = bool(torch.isclose(found.mean(), mean.float().mean(), rtol=0.01))
            return mean if self._plain is False else found

    return CuratedTrainer


class _Indexed:
    """Puts the indices of the samples into their batch; a class, so that workers can get it."""

    def __init__(self, collate: Callable[[list[Any]], tuple[Any, Tensor]]) -> None:
        self._collate = collate

    def __call__(self, samples: list[Any]) -> dict[str, Any]:
        batch, index = self._collate(samples)
        return {**batch, INDEX: index}


def _of_classifier(outputs: Any, inputs: Mapping[str, Any], smoothing: float) -> Tensor | None:
    """Cross-entropies of a classifier's samples, (B,); None for any other model."""
    labels = inputs.get("labels")
    try:
        logits = scores_of(outputs)
    except ConfigError:
        return None
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.dim() != 1:
        return None
    if logits.dim() != 2 or len(logits) != len(labels):
        return None
    return F.cross_entropy(logits.float(), labels, reduction="none", label_smoothing=smoothing)


def _check_epochs(keep: DynamicSubset, arguments: Any) -> None:
    epochs = getattr(keep, "epochs", None)
    if epochs is not None and epochs != arguments.num_train_epochs:
        raise ConfigError(
            f"keep counts on {epochs} epochs and the Trainer on {arguments.num_train_epochs}: give both the same number"
        )
    if arguments.max_steps > 0:
        raise ConfigError(
            "a curated Trainer counts epochs, whose steps are not known before: leave max_steps out"
        )
