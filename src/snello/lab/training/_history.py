"""Metrics of each epoch, kept in checkpoints, and timing of backward passes."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from snello.curation import DynamicSubset
from snello.equilibrium import backward_flops, time_backward
from snello.integrations.lightning import SelectiveUpdateCallback, monitored
from snello.neurons import count_parameters
from snello.timing import now

PROFILE_REPEATS = 3
"""Number of interleaved dense and sparse backward passes timed per epoch, for their median."""


@dataclass(frozen=True)
class EpochRecord:
    """Metrics of one epoch, with the masks that were in force during it.

    Attributes:
        epoch: counted from 1.
        seconds: wall-clock time of the epoch, validation included.
        train_loss, val_loss, val_accuracy: means over the images of each part; `val_accuracy` is
            the mean intersection over union for segmentation.
        pruned: share of all parameters that are exactly zero.
        updated: share of the watched neurons that were updated; 1 without NEq.
        backward_ms: median time of `loss.backward()` in the epoch's own steps.
        executed_flops: executed FLOPs of the backward pass per sample, from torch's FLOP counter.
        paper_flops, paper_dense_flops: backward FLOPs per sample in the NEq paper's convention,
            with the epoch's frozen neurons and with none. Zero without NEq.
        dense_ms, sparse_ms: median times of the dense and of the sparse backward pass on the same
            batch, interleaved, with the masks at the end of the epoch. Zero without NEq and with
            several processes.
        kept: share of the training images that the epoch trained on; 1 without curation.
    """

    epoch: int
    seconds: float
    train_loss: float
    val_loss: float
    val_accuracy: float
    pruned: float
    updated: float
    backward_ms: float
    executed_flops: float
    paper_flops: float
    paper_dense_flops: float
    dense_ms: float
    sparse_ms: float
    kept: float = 1.0


class EpochSeed(L.Callback):
    """Seed every epoch from (seed, epoch, rank), so that a resumed run repeats it exactly."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Seed torch's global generators; each rank gets its own dropout masks."""
        torch.manual_seed(
            self._seed * 1_000_003 + trainer.current_epoch + (trainer.global_rank << 40)
        )


class BackwardTimer(L.Callback):
    """Time every `loss.backward()`.

    It must be the trainer's last callback, so that other callbacks are not part of the time.
    """

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Discard the times of the previous epoch."""
        self.times = []

    def on_before_backward(
        self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor
    ) -> None:
        """Start the clock."""
        self._start = now(loss.device)

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop it."""
        self.times.append((now(pl_module.device) - self._start) * 1e3)

    @property
    def median_ms(self) -> float:
        """Median of the current epoch in milliseconds; 0 before its first step."""
        return statistics.median(self.times) if self.times else 0.0


class History(L.Callback):
    """Keep an [`EpochRecord`][snello.lab.training.EpochRecord] per epoch.

    It must precede the methods' callbacks, which change masks at the end of an epoch.

    Args:
        timer: the trainer's backward timer.
        sample: images and labels of one training batch, on which backward passes are profiled.
        neq: the callback that skips updates, such as NEq's; None without one.
        metric: name of the logged metric to store as `val_accuracy`.
        report: called with each record as soon as it is complete.
        keep: the dynamic subset of the training images, if there is one.
    """

    def __init__(
        self,
        timer: BackwardTimer,
        sample: tuple[Tensor, Tensor],
        neq: SelectiveUpdateCallback | None = None,
        report: Callable[[EpochRecord], None] | None = None,
        metric: str = "val_accuracy",
        keep: DynamicSubset | None = None,
    ) -> None:
        self._timer, self._sample, self._neq, self._report = timer, sample, neq, report
        self._metric, self._keep = metric, keep
        self.records: list[EpochRecord] = []

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the epoch's clock."""
        self._start = now()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Complete the record, before any method changes its masks for the next epoch."""
        seconds = now() - self._start
        model: nn.Module = pl_module.model  # type: ignore[assignment]
        total, nonzero = count_parameters(model)
        record = EpochRecord(
            epoch=trainer.current_epoch + 1,
            seconds=seconds,
            **{name: monitored(trainer, name) for name in ("train_loss", "val_loss")},
            val_accuracy=monitored(trainer, self._metric),
            pruned=1 - nonzero / total,
            backward_ms=self._timer.median_ms,
            executed_flops=self._executed(pl_module),
            kept=1.0 if self._keep is None else self._keep.share,
            **self._equilibrium(trainer, pl_module),
        )
        self.records.append(record)
        # The task logs loss and accuracy; the shares are known here only.
        for name in ("pruned", "updated"):
            pl_module.log(name, getattr(record, name), prog_bar=True, rank_zero_only=True)
        if self._report is not None:
            self._report(record)

    def _batch(self, module: L.LightningModule) -> tuple[Tensor, Tensor]:
        images, labels = (part.to(module.device) for part in self._sample)
        return images.to(
            memory_format=getattr(module, "memory_format", torch.contiguous_format)
        ), labels

    def _executed(self, module: L.LightningModule) -> float:
        images, labels = self._batch(module)
        few, wanted = images[:8], labels[:8]
        model: nn.Module = module.model  # type: ignore[assignment]
        model.train()
        loss: Callable[[Any, Any], Tensor] = module.loss  # type: ignore[assignment]
        return backward_flops(model, few, lambda outputs: loss(outputs, wanted)).total / len(few)

    def _equilibrium(self, trainer: L.Trainer, module: L.LightningModule) -> dict[str, float]:
        if self._neq is None or self._neq.neq is None:
            return {"updated": 1.0, **dict.fromkeys(_EQUILIBRIUM[1:], 0.0)}
        images, labels = self._batch(module)
        loss: Callable[[Any, Any], Tensor] = module.loss  # type: ignore[assignment]
        if trainer.world_size > 1:
            # An additional backward pass would run DistributedDataParallel's gradient hooks and
            # leave its reducer waiting for gradients that the next step does not produce.
            return dict(zip(_EQUILIBRIUM, (*self._neq.spent(), 0.0, 0.0), strict=True))
        with trainer.precision_plugin.forward_context():
            timing = time_backward(self._neq.neq, images, labels, loss, PROFILE_REPEATS)
        values = (*self._neq.spent(), timing.dense_ms, timing.sparse_ms)
        return dict(zip(_EQUILIBRIUM, values, strict=True))

    def state_dict(self) -> dict[str, Any]:
        """The records of all epochs, for Lightning's checkpoint."""
        return {"records": [asdict(record) for record in self.records]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the records from Lightning's checkpoint."""
        self.records = [EpochRecord(**record) for record in state_dict["records"]]


_EQUILIBRIUM = ("updated", "paper_flops", "paper_dense_flops", "dense_ms", "sparse_ms")
