"""Groups of the search: order of channels, widths to choose from, and their distances."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from snello.errors import ConfigError
from snello.graph import Example, Inputs, evaluation
from snello.graph.coupled import Coupling, cut
from snello.neurons import apply_masks, qualified, weighted_layers
from snello.pruning.channels import ChannelImportance, group_fisher, importance_of, measured_scores
from snello.search.output_distance import OutputDistance
from snello.search.prune import Branch, without
from snello.search.rate import float_tensors
from snello.wrappers import copied

from ._costs import SPARSITY, Cost
from ._log import Log
from ._point import Group, Point
from ._shapes import branch_name

SPARSITIES = (0.0, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Shares of zero weights to choose from."""

FALL = 0.005
"""Share of its part of the latency that a narrower width must save, to be a step."""

CHUNK = 8
"""Inputs per backward pass of the default importance."""

Orders = Mapping[str, Sequence[int]]
"""Dimension -> its indices, the least important first."""


def orders(
    model: nn.Module,
    coupling: Coupling,
    importance: str | ChannelImportance | None,
    batches: Sequence[Example],
    exclude: Collection[str] = (),
) -> dict[str, list[int]]:
    """Order the channels of every dimension that may get narrower.

    Raises:
        ConfigError: for an unknown importance.
    """
    if not coupling.free:
        return {}
    measure = _default(model, batches) if importance is None else importance_of(importance)
    scores = measured_scores(measure, model, coupling)
    return {
        d.name: scores[d.name].argsort(stable=True).tolist()
        for d in coupling.free
        if d.name in scores and d.width > 1 and d.name not in exclude
    }


def removed_by(point: Point, order: Orders) -> dict[str, tuple[int, ...]]:
    """The indices that a point removes."""
    return {
        name: tuple(sorted(order[name][: len(order[name]) - width]))
        for name, width in point.widths.items()
        if name in order
    }


def widths_of(width: int, round_to: int | None, staircase: bool) -> tuple[int, ...]:
    """Widths to choose from, the whole one first.

    Args:
        width: the whole width.
        round_to: number of which they are multiples; None for eighths of the width, or for
            multiples of eight if runtimes compute in blocks.
        staircase: true if the cost is a latency.
    """
    step = round_to or (8 if staircase and width >= 16 else max(1, round(width / 8)))
    return (width, *(n for n in range(width - 1, 0, -1) if n % step == 0))


def steps_of(name: str, widths: tuple[int, ...], cost: Cost) -> tuple[int, ...]:
    """The widths at which the predicted latency really falls, with all else dense."""
    kept, last = [widths[0]], cost.near(name, Point())
    for width in widths[1:]:
        now = cost.near(name, Point({name: width}))
        if now < last * (1 - FALL):
            kept.append(width)
            last = now
    return tuple(kept)


def channel_groups(
    model: nn.Module,
    coupling: Coupling,
    order: Orders,
    levels: Mapping[str, tuple[int, ...]],
    distance: OutputDistance,
    log: Log,
) -> list[Group]:
    """Measure the distance at each width of each dimension, with all others dense.

    The least important channels are cut out, which is what masking them computes, at less expense.
    """

    def curve(name: str) -> dict[str, Any]:
        found = []
        for width in levels[name][1:]:
            gone = removed_by(Point({name: width}), order)
            found.append(distance(cut(model, coupling, gone)))
        return {"widths": list(levels[name]), "distances": [0.0, *found]}

    jobs = {f"sensitivity-{name}": lambda name=name: curve(name) for name in levels}
    curves = log.results(jobs)
    found = []
    for name in levels:
        entry = curves[f"sensitivity-{name}"]
        if tuple(entry["widths"]) != levels[name]:
            raise ConfigError(
                f"the log has {entry['widths']} as widths of {name!r}, this search {list(levels[name])}: "
                "choose another folder"
            )  # fmt: skip
        found.append(Group(name, levels[name], _monotone(entry["distances"])))
    return found


def branch_groups(
    model: nn.Module, branches: Sequence[Branch], distance: OutputDistance, log: Log
) -> list[Group]:
    """Measure the distance without each residual branch, with all else dense."""

    def curve(branch: Branch) -> dict[str, Any]:
        return {"distances": [0.0, distance(without(model, branch.zeroed))]}

    jobs = {f"sensitivity-{branch_name(b)}": lambda branch=b: curve(branch) for b in branches}
    found = log.results(jobs)
    return [
        Group(
            branch_name(b), (1, 0), _monotone(found[f"sensitivity-{branch_name(b)}"]["distances"])
        )
        for b in branches
    ]


def chosen_levels(group: Group, levels: Sequence[int]) -> Group:
    """The group with some of its levels."""
    kept = [i for i, level in enumerate(group.levels) if level in levels]
    return Group(
        group.name, tuple(group.levels[i] for i in kept), tuple(group.drops[i] for i in kept)
    )


def weight_group(model: nn.Module, distance: OutputDistance, log: Log) -> Group:
    """Measure the distance at each share of zero weights."""

    def curve() -> dict[str, Any]:
        found = []
        for share in SPARSITIES[1:]:
            masked = copied(model)
            apply_masks(masked, magnitude_masks(masked, share))
            found.append(distance(masked))
        return {"distances": [0.0, *found]}

    return Group(
        # Not "sensitivity-weights": a layer may be called weights.
        SPARSITY,
        SPARSITIES,
        _monotone(log.result(f"sensitivity-{SPARSITY}", curve)["distances"]),
    )


def magnitude_masks(model: nn.Module, share: float) -> dict[str, Tensor]:
    """Masks that drop a share of the weights of layers, those of least magnitude.

    Magnitudes are relative to the root mean square of their tensor, so that a wide layer, whose
    weights are small, is not emptied first.
    """
    weights = {
        qualified(name, "weight"): layer.weight.detach()
        for name, layer in weighted_layers(model).items()
        if isinstance(layer.weight, nn.Parameter)
    }
    scaled = {n: w.abs() / w.square().mean().sqrt().clamp_min(1e-30) for n, w in weights.items()}
    ranked = torch.cat([value.flatten().cpu() for value in scaled.values()]).sort().values
    count = int(share * len(ranked))
    if not count:
        return {name: torch.ones_like(w, dtype=torch.bool) for name, w in weights.items()}
    threshold = ranked[count - 1]
    return {name: value > threshold.to(value.device) for name, value in scaled.items()}


def _monotone(distances: Sequence[float]) -> tuple[float, ...]:
    """Distances that never fall: a narrower network that is nearer by chance is no gain."""
    found: list[float] = []
    for value in distances:
        found.append(max(value, found[-1] if found else 0.0))
    return tuple(found)


def _default(model: nn.Module, batches: Sequence[Example]) -> ChannelImportance:
    """Fisher information with classes drawn from the network's own answers; else magnitude."""
    pairs = []
    generator = torch.Generator().manual_seed(0)
    for batch in batches:
        inputs = Inputs.of(batch)
        with evaluation(model):
            outputs = float_tensors(inputs.call(model))
        if len(outputs) != 1 or outputs[0].dim() != 2 or outputs[0].shape[1] < 2:
            return importance_of("l2")
        drawn = torch.multinomial(outputs[0].double().softmax(1).cpu(), 1, generator=generator)
        for start in range(0, len(drawn), CHUNK):
            part = slice(start, start + CHUNK)
            pairs.append((_part(inputs, part), drawn[part].flatten()))
    return group_fisher(pairs, _cross_entropy) if pairs else importance_of("l2")


def _cross_entropy(outputs: Any, targets: Tensor) -> Tensor:
    # The one tensor of the output, in whichever structure the model returns it.
    return nn.functional.cross_entropy(float_tensors(outputs)[0], targets)


def _part(inputs: Inputs, part: slice) -> Inputs:
    return inputs.map(lambda x: x[part])
