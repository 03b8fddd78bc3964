"""Distance of a network's outputs from the dense network's, on calibration inputs."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from snello.graph import Example, Inputs, evaluation
from snello.pruning.recovery import recalibrate
from snello.wrappers import copied

from .rate import distance, float_tensors


class OutputDistance:
    """Smooth stand-in for the drop of the quality: it needs no labels and few samples.

    Kullback-Leibler divergence of the class probabilities for outputs of shape (B, C), mean squared
    difference over variance for others; the mean over batches and outputs.

    Args:
        dense: the reference; it is not changed.
        batches: inputs without targets.
    """

    def __init__(self, dense: nn.Module, batches: Sequence[Example]) -> None:
        self._batches = [Inputs.of(batch) for batch in batches]
        self._dense = [_outputs(dense, batch) for batch in self._batches]
        # With statistics of the same inputs as every other network: else the noise of statistics of
        # a few hundred inputs would be a part of every distance, and no small step would pay.
        reference = copied(dense)
        recalibrate(reference, self._batches)
        self._recalibrated = [_outputs(reference, batch) for batch in self._batches]

    def __call__(self, model: nn.Module) -> float:
        """The distance of a network; BatchNorm statistics are estimated again first, in place."""
        recalibrate(model, self._batches)
        return self._between(model, self._recalibrated)

    def recovered(self, model: nn.Module) -> nn.Module:
        """A network with BatchNorm statistics estimated again, if its outputs are nearer with them.

        They repair a network that lost much. To one that lost little, the statistics of a few
        inputs without the augmentation of its training may do more harm.
        """
        other = copied(model)
        recalibrate(other, self._batches)
        nearer = self._between(other, self._dense) < self._between(model, self._dense)
        return other if nearer else model

    def _between(self, model: nn.Module, reference: Sequence[Sequence[Tensor]]) -> float:
        pairs = [
            distance(a, b)
            for batch, outputs in zip(self._batches, reference, strict=True)
            for a, b in zip(outputs, _outputs(model, batch), strict=True)
        ]
        total = math.fsum(pairs) / max(len(pairs), 1)
        return total if math.isfinite(total) else 1e30  # JSON has no infinity


def _outputs(model: nn.Module, batch: Inputs) -> list[Tensor]:
    with evaluation(model):
        return float_tensors(batch.call(model))
