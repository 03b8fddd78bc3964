"""The pruning potential of a network: its quality against the pruned share."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from snello.errors import ConfigError
from snello.graph import evaluation
from snello.neurons import (
    LayerFilter,
    count_parameters,
    dead_neurons,
    neuron_count,
    weighted_layers,
)
from snello.wrappers import copied

from ._amount import Ratio
from ._importance import Granularity, Importance
from ._limits import LayerLimits
from ._normalise import Normalise
from ._pruner import Pruner, Scope


@dataclass(frozen=True)
class PotentialPoint:
    """One point of a curve.

    Attributes:
        method: name of the curve.
        ratio: the requested share of units.
        pruned: share of all the model's parameters that are exactly zero.
        dead_neurons: share of the neurons of Linear and convolution layers whose weights are all
            zero.
        value: the measured quality, such as the accuracy.
    """

    method: str
    ratio: float
    pruned: float
    dead_neurons: float
    value: float


def pruning_potential(
    model: nn.Module,
    measure: Callable[[nn.Module], float],
    importances: Mapping[str, str | Importance],
    ratios: Sequence[float] = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99),
    *,
    granularity: Granularity = "weight",
    scope: Scope = "global",
    normalise: Normalise | Literal["auto"] | None = "auto",
    exclude: LayerFilter | None = None,
    limits: LayerLimits | None = None,
    finetune: Callable[[nn.Module, Pruner], object] | None = None,
) -> tuple[PotentialPoint, ...]:
    """Prune copies of a trained network in one shot, by several importances and to several ratios.

    Args:
        model: the trained network; it is not changed.
        measure: returns the quality of a model, such as the accuracy on test data; called in
            evaluation mode without gradients.
        importances: name of a curve -> importance, as in `Pruner(importance=...)`.
        ratios: shares of the weights or neurons to prune, each starting from the dense network.
        granularity: as for [`Pruner`][snello.pruning.Pruner].
        scope: as for [`Pruner`][snello.pruning.Pruner].
        normalise: as for [`Pruner`][snello.pruning.Pruner].
        exclude: as for [`Pruner`][snello.pruning.Pruner].
        limits: as for [`Pruner`][snello.pruning.Pruner]; a ratio above them is reduced to what they
            allow.
        finetune: function that trains the pruned copy before it is measured. Call
            `pruner.attach(optimizer)` in it, so that its optimizer is checked.

    Returns:
        One point for every importance and ratio, in this order.

    Raises:
        ConfigError: for ratios outside [0, 1], and as [`Pruner`][snello.pruning.Pruner].
    """
    if not importances or not ratios:
        raise ConfigError("a pruning potential needs at least one importance and one ratio")
    points = []
    for method, importance in importances.items():
        for ratio in ratios:
            twin = copied(model)
            pruner = Pruner(
                twin, None, granularity=granularity, scope=scope, importance=importance, normalise=normalise,
                amount=Ratio(ratio), exclude=exclude, limits=limits,
            )  # fmt: skip
            with warnings.catch_warnings():
                # A curve goes on to ratios at which layers are nearly empty.
                warnings.filterwarnings("ignore", "Pruner: .* would lose more than")
                pruner.prune()
            if finetune is not None:
                finetune(twin, pruner)
            pruner.remove()
            points.append(potential_point(twin, method, ratio, measure))
    return tuple(points)


def potential_point(
    model: nn.Module, method: str, ratio: float, measure: Callable[[nn.Module], float]
) -> PotentialPoint:
    """Measure one point of a curve on the present model, for curves in your own training loop."""
    with evaluation(model):
        value = float(measure(model))
    total, nonzero = count_parameters(model)
    layers = weighted_layers(model).values()
    neurons = sum(map(neuron_count, layers))
    dead = sum(int(dead_neurons(layer).sum()) for layer in layers)
    return PotentialPoint(
        method, ratio, 1 - nonzero / total, dead / neurons if neurons else math.nan, value
    )
