"""Distributions that a training ends with, small enough for its JSON file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from snello.integrations.lightning import SelectiveUpdateCallback, SensitivityPruning

BINS = 50


@dataclass(frozen=True)
class Distribution:
    """A histogram of positive values over their decimal logarithm.

    Attributes:
        edges: edges of the intervals, log10 of the values, one more than counts.
        counts: numbers of values.
        zeros: number of values that are exactly zero, which have no logarithm.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    zeros: int


class LastDistributions(Callback):
    """Distributions of sensitivity and velocity at the end of the last epoch.

    They are read before the decay, the pruner and the probe act, while the last gradients exist.

    Attributes:
        found: name -> distribution; empty before the end.
    """

    def __init__(
        self, pruning: SensitivityPruning | None, update: SelectiveUpdateCallback | None
    ) -> None:
        self.found: dict[str, Distribution] = {}
        self._pruning, self._update = pruning, update

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *arguments: Any
    ) -> None:
        """Read both after the last batch."""
        if trainer.current_epoch + 1 != trainer.max_epochs or not trainer.is_last_batch:
            return
        sensitivity = None if self._pruning is None else self._pruning.sensitivity
        neq = None if self._update is None else self._update.neq
        values: dict[str, dict[str, Tensor]] = {
            "sensitivity": {} if sensitivity is None else sensitivity.sensitivity(),
            "velocity": {} if neq is None else getattr(neq.selection, "velocity", {}),
        }
        for name, tensors in values.items():
            if (one := distribution(tensors.values())) is not None:
                self.found[name] = one

    def state_dict(self) -> dict[str, Any]:
        """For Lightning's checkpoint: a run stopped after its last epoch has them when resumed."""
        return {name: asdict(one) for name, one in self.found.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From Lightning's checkpoint."""
        self.found = {name: Distribution(**one) for name, one in state_dict.items()}


def distribution(tensors: Iterable[Tensor]) -> Distribution | None:
    """Count the magnitudes of all values; None if there are no finite ones other than zero."""
    parts = [tensor.detach().float().abs().flatten().cpu() for tensor in tensors]
    values = torch.cat(parts) if parts else torch.empty(0)
    values = values[values.isfinite()]
    positive = values[values > 0]
    if not len(positive):
        return None
    counts, edges = torch.histogram(positive.log10(), BINS)
    return Distribution(
        tuple(round(edge, 4) for edge in edges.tolist()),
        tuple(int(count) for count in counts),
        len(values) - len(positive),
    )
