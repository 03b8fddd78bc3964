"""Measured cost of quantising one tensor at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snello.codec import CodecSettings, quantised
from snello.errors import ConfigError
from snello.graph import Example, Inputs, evaluation, joined
from snello.wrappers import copied

from ._trial import coded_tensors, fill

MOST_INPUTS = 256
"""Number of calibration inputs that probes and corrections use; the first ones, as one batch."""


def first_inputs(batches: Sequence[Example]) -> Inputs:
    """The first `MOST_INPUTS` inputs of some batches, concatenated."""
    return joined([Inputs.of(batch) for batch in batches]).map(lambda x: x[:MOST_INPUTS])


class Probe:
    """Distance between the outputs of a model before and after a change of some tensors.

    The distance is the Kullback-Leibler divergence of the class probabilities for outputs of shape
    `(B, C)`, C > 1, and the mean squared difference divided by the variance of the reference for
    all others. It needs no labels, and on a few hundred inputs it is less noisy than a loss.

    Args:
        model: the reference, which is copied.
        batches: calibration inputs; each a tensor, a tuple of positional arguments or a mapping of
            keyword arguments. See `MOST_INPUTS`.

    Attributes:
        runs: number of forward passes over the calibration inputs.

    Raises:
        ConfigError: without a batch, or if the model returns no floating-point tensor.
    """

    def __init__(self, model: nn.Module, batches: Sequence[Example]) -> None:
        if not batches:
            raise ConfigError(
                "calibration: there is no batch of inputs; pass at least one, or None"
            )
        self._model = copied(model)
        self._inputs = first_inputs(batches)
        self._tensors = {name: value.clone() for name, value in coded_tensors(self._model).items()}
        self.runs = 0
        self._reference = self._outputs()

    def cost(self, changed: Mapping[str, Tensor]) -> float:
        """Distance with these tensors changed; infinite if an output is NaN or infinite."""
        try:
            fill(self._model, dict(changed))
            pairs = zip(self._reference, self._outputs(), strict=True)
            total = math.fsum(distance(a, b) for a, b in pairs) / len(self._reference)
        finally:
            fill(self._model, {name: self._tensors[name] for name in changed})
        return total if math.isfinite(total) else math.inf

    def quantisation_cost(self, names: Sequence[str], qp: int, settings: CodecSettings) -> float:
        """Distance with only the named tensors quantised, all at one quantisation parameter."""
        chosen = replace(settings, qp_of=dict.fromkeys(names, qp))
        return self.cost(quantised({name: self._tensors[name] for name in names}, chosen))

    def _outputs(self) -> list[Tensor]:
        self.runs += 1
        device = next((value.device for value in self._tensors.values()), torch.device("cpu"))
        with evaluation(self._model):
            found = float_tensors(self._inputs.map(lambda x: x.to(device)).call(self._model))
        if not found:
            raise ConfigError(
                f"calibration: {type(self._model).__name__} returned no floating-point tensor to "
                "compare; return a tensor, or tuples, lists and mappings of tensors"
            )
        return found


def distance(reference: Tensor, output: Tensor) -> float:
    """The distance of `Probe`, computed in float64."""
    a, b = reference.double(), output.double()
    if a.dim() == 2 and a.shape[1] > 1:
        divergence = F.kl_div(
            b.log_softmax(1), a.log_softmax(1), reduction="batchmean", log_target=True
        )
        return max(float(divergence), 0.0) if torch.isfinite(divergence) else math.inf
    return float(
        (a - b).square().mean() / a.var(correction=0).clamp_min(torch.finfo(torch.float64).tiny)
    )


def float_tensors(output: object) -> list[Tensor]:
    """Floating-point tensors in nested tuples, lists and mappings, in order."""
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    if isinstance(output, Mapping):
        output = list(output.values())
    return (
        [t for item in output for t in float_tensors(item)]
        if isinstance(output, (list, tuple))
        else []
    )
