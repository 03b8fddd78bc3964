"""Distance of a network's outputs from the dense network's, on calibration inputs."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from snello.graph import Example, Inputs, evaluation
from snello.pruning.recovery import recalibrate
from snello.search.rate import distance, float_tensors
from snello.wrappers import copied


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
        # With statistics of the same inputs as every other network: else the noise of statistics of
        # a few hundred inputs would be a part of every distance, and no small step would pay.
        reference = copied(dense)
        recalibrate(reference, self._batches)
        self._reference = [_outputs(reference, batch) for batch in self._batches]

    def __call__(self, model: nn.Module) -> float:
        """The distance of a network; BatchNorm statistics are estimated again first, in place."""
        recalibrate(model, self._batches)
        pairs = [
            distance(a, b)
            for batch, reference in zip(self._batches, self._reference, strict=True)
            for a, b in zip(reference, _outputs(model, batch), strict=True)
        ]
        total = math.fsum(pairs) / max(len(pairs), 1)
        return total if math.isfinite(total) else 1e30  # JSON has no infinity


def _outputs(model: nn.Module, batch: Inputs) -> list[Tensor]:
    with evaluation(model):
        return float_tensors(batch.call(model))
