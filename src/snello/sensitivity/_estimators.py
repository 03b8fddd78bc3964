"""Four estimators of the sensitivity of the outputs to a neuron.

Each is a pair of functions. `tap` maps a layer's pre-activation, in the forward pass, to the data
that `measure` needs of it; `measure` maps the scores of the outputs and the taps to one value
per neuron, for each call of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from snello.neurons import neuron_count

from ._observed import check_reached
from ._outputs import wide

Tap = tuple[nn.Module, Any]
Measure = Callable[[Tensor, Sequence[Tap], Callable[[], Tensor], int], list[Tensor]]
"""(scores (B, C), taps, a function that draws one class per example (B, 1), classes per pass) ->
per tap, the mean over examples and positions, shape `(neurons,)`."""


@dataclass(frozen=True)
class Estimator:
    """A way to measure the sensitivity of neurons.

    Attributes:
        tap: maps a pre-activation to the data that is kept until the outputs are known.
        measure: maps scores and taps to values; see `Measure`.
        finish: maps the mean over all observations to the sensitivity.
        needs_graph: true if the pre-activation must be attached to a graph.
    """

    tap: Callable[[nn.Module, Tensor], Any]
    measure: Measure
    finish: Callable[[Tensor], Tensor] = lambda mean: mean
    needs_graph: bool = True


def _edge(module: nn.Module, output: Tensor) -> Any:
    # The edge, not the tensor, because an in-place activation changes the tensor's edge.
    return get_gradient_edge(output)


def _gradients(
    target: Tensor, taps: Sequence[Tap], seeds: Tensor | None = None
) -> list[Tensor | None]:
    edges = [edge for _, edge in taps]
    gradients = torch.autograd.grad(
        target,
        edges,
        seeds,
        retain_graph=True,
        allow_unused=True,
        is_grads_batched=seeds is not None,
    )
    check_reached(gradients, "SeReNe")
    return list(gradients)


def _magnitudes(taps: Sequence[Tap], gradients: Sequence[Tensor | None]) -> list[Tensor]:
    return [_mean_magnitude(module, g) for (module, _), g in zip(taps, gradients, strict=True)]


def _sampled(
    scores: Tensor, taps: Sequence[Tap], draw: Callable[[], Tensor], _: int
) -> list[Tensor]:
    # The sum over examples needs one pass, and its gradient still has one row per example.
    drawn = scores.gather(1, draw().to(scores.device))
    return _magnitudes(taps, _gradients(drawn.sum(), taps))


def _lower_bound(
    scores: Tensor, taps: Sequence[Tap], _: Callable[[], Tensor], __: int
) -> list[Tensor]:
    classes = scores.shape[1]
    # The magnitude of a sum is at most the sum of magnitudes, hence a lower bound.
    return [value / classes for value in _magnitudes(taps, _gradients(scores.sum(), taps))]


def _full(scores: Tensor, taps: Sequence[Tap], _: Callable[[], Tensor], chunk: int) -> list[Tensor]:
    batch, classes = scores.shape
    sums: list[Tensor] | None = None
    for first in range(0, classes, chunk):
        # One pass serves several classes: seed j is 1 on class first + j of every example.
        eye = torch.eye(classes, dtype=scores.dtype, device=scores.device)[first : first + chunk]
        if len(eye) == 1:
            values = _magnitudes(taps, _gradients(scores[:, first].sum(), taps))
        else:
            seeds = eye.unsqueeze(1).expand(-1, batch, -1)
            gradients = _gradients(scores, taps, seeds)
            # Dimension 0 holds the classes; their mean times their number is their sum.
            values = [v * len(eye) for v in _magnitudes(taps, gradients)]
        sums = values if sums is None else [s + v for s, v in zip(sums, values, strict=True)]
    return [value / classes for value in sums or []]


def _mean_value(module: nn.Module, output: Tensor) -> Tensor:
    return output.detach().mean(_other_axes(module, output), dtype=wide(output))


def _local(_: Tensor, taps: Sequence[Tap], __: Callable[[], Tensor], ___: int) -> list[Tensor]:
    return [value for _, value in taps]


ESTIMATORS = {
    "sampled": Estimator(_edge, _sampled),
    "full": Estimator(_edge, _full),
    "lower-bound": Estimator(_edge, _lower_bound),
    "local": Estimator(
        _mean_value, _local, lambda mean: (mean > 0).to(mean.dtype), needs_graph=False
    ),
}


def _mean_magnitude(module: nn.Module, gradient: Tensor | None) -> Tensor:
    """Mean of `|gradient|` per neuron; zero for a call that does not reach the outputs."""
    if gradient is None:
        weight: Tensor = module.weight  # type: ignore[assignment]
        return weight.new_zeros(neuron_count(module), dtype=wide(weight))
    axes = _other_axes(module, gradient)
    # The 1-norm sums over examples and positions without a tensor of magnitudes.
    total: Tensor = torch.linalg.vector_norm(gradient, 1, axes, dtype=wide(gradient))
    return total * (len(total) / gradient.numel())


def _other_axes(module: nn.Module, tensor: Tensor) -> list[int]:
    """All dimensions except that of the neurons."""
    # Counted from the end, because a dimension of classes may be added and the batch be missing.
    behind = 0 if isinstance(module, nn.Linear) else len(module.kernel_size)  # type: ignore[arg-type]
    axis = tensor.dim() - 1 - behind
    return [d for d in range(tensor.dim()) if d != axis]
