"""The plan of a removal of channels."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from snello.errors import ConfigError, check_count, is_number
from snello.graph import Example
from snello.graph.coupled import Coupling, coupling, cut, zeroed
from snello.neurons import is_within
from snello.pruning._limits import HEAVY, LayerLimits
from snello.pruning._normalise import Normalise, comparable, normalise_of
from snello.wrappers import unwrapped

from ._size import Size, SizeModel
from .importances import ChannelImportance, importance_of, measured_scores


@dataclass(frozen=True)
class Keep:
    """Upper bounds on the size of a network after pruning, as shares of its present size.

    If several bounds are given, all of them hold.

    Attributes:
        macs: share of the multiply-accumulates, in (0, 1].
        parameters: share of the parameters, in (0, 1].
        channels: share of the channels of all dimensions, in (0, 1].

    Raises:
        ConfigError: for a share outside (0, 1], and if none is given.
    """

    macs: float | None = None
    parameters: float | None = None
    channels: float | None = None

    def __post_init__(self) -> None:
        given = {k: v for k, v in vars(self).items() if v is not None}
        for name, share in given.items():
            if not is_number(share) or not 0 < share <= 1:
                raise ConfigError(f"Keep({name}={share!r}): a share to keep, in (0, 1]")
        if not given:
            raise ConfigError("Keep(): give macs=, parameters= or channels=, a share in (0, 1]")

    def __str__(self) -> str:
        given = ", ".join(f"{k}={v:g}" for k, v in vars(self).items() if v is not None)
        return f"Keep({given})"

    def after(self, share_of_way: float) -> Keep:
        """The bounds of an earlier step, in a geometric sequence from 1 to the final shares.

        Args:
            share_of_way: in [0, 1]; 1 for the final bounds.
        """
        return Keep(**{k: None if v is None else v**share_of_way for k, v in vars(self).items()})

    def holds(self, size: Size, dense: Size, channels: float) -> bool:
        """Return True if a size is within the bounds.

        Args:
            size: size of the pruned network.
            dense: size of the network before pruning.
            channels: share of the channels that is kept.
        """
        return (
            (self.macs is None or size.macs <= self.macs * dense.macs)
            and (self.parameters is None or size.parameters <= self.parameters * dense.parameters)
            and (self.channels is None or channels <= self.channels + 1e-9)
        )


@dataclass(frozen=True)
class ChannelPlan:
    """Channels to remove.

    Attributes:
        coupling: the dimensions of the network.
        removed: dimension -> indices to remove, sorted.
        before, after: estimated sizes.
        warnings: one line for each dimension that loses nearly all of its channels.
    """

    coupling: Coupling
    removed: Mapping[str, tuple[int, ...]]
    before: Size
    after: Size
    warnings: tuple[str, ...] = ()

    @property
    def widths(self) -> dict[str, tuple[int, int]]:
        """Dimension -> width before and after."""
        return {
            d.name: (d.width, d.width - len(self.removed.get(d.name, ())))
            for d in self.coupling.dimensions
        }

    def cut(self, model: nn.Module, example: Example | None = None) -> nn.Module:
        """Remove the channels from a copy of the model; see [`snello.graph.coupled.cut`][]."""
        return cut(model, self.coupling, self.removed, example)

    def zeroed(self, model: nn.Module) -> nn.Module:
        """A copy of the model with all slices of the removed channels set to zero."""
        return zeroed(model, self.coupling, self.removed)

    def __str__(self) -> str:
        rows = [("dimension", "width", "kept", "")]
        for d in self.coupling.dimensions:
            before, after = self.widths[d.name]
            rows.append((d.name, str(before), str(after), d.pinned or ""))
        sizes = [max(len(row[i]) for row in rows) for i in range(3)]
        lines = [
            "  ".join(
                [row[0].ljust(sizes[0]), row[1].rjust(sizes[1]), row[2].rjust(sizes[2]), row[3]]
            ).rstrip()
            for row in rows
        ]
        lines.append(
            f"{self.after.macs / max(self.before.macs, 1):.3f} of the MACs, "
            f"{self.after.parameters / self.before.parameters:.3f} of the parameters left"
        )
        return "\n".join([*lines, *self.warnings])


def plan_channels(
    model: nn.Module,
    example: Example,
    keep: Keep,
    *,
    importance: str | ChannelImportance = "l2",
    normalise: Normalise | Literal["auto", "saving"] | None = "auto",
    limits: LayerLimits | None = None,
    round_to: int = 1,
    exclude: Collection[str] = (),
    groups: Coupling | None = None,
    widths: Mapping[str, int] | None = None,
) -> ChannelPlan:
    """Choose the channels with the lowest scores, as few as the bounds on the size need.

    Args:
        model: a trained network; it is not changed.
        example: example inputs.
        keep: bounds on the size.
        importance: importance of the channels: "l1", "l2", "norm-scale", "random", or a function
            such as those that [`group_taylor`][snello.pruning.channels.group_taylor] and
            [`group_fisher`][snello.pruning.channels.group_fisher] return.
        normalise: normalisation of the scores across dimensions: "mean", "max", "standard", "rank",
            or None; "saving" divides each score by what the channel saves of the bounded sizes, so
            that the loss per saved operation decides. "auto" is "saving" for scores in one unit,
            such as those of gradients, else "mean".
        limits: lower limits on the width of each dimension; default: a tenth is kept.
        round_to: widths are rounded to multiples of this number, for hardware that is faster at
            multiples; the bounds hold after rounding. Narrower dimensions keep their width.
        exclude: names of dimensions that keep their width, or of modules: all dimensions that the
            module writes, scales or reads.
        groups: the coupling of the model if it is known already; else it is computed.
        widths: dimension -> width before any pruning, which the shares in `limits` and of
            `Keep(channels=...)` refer to; default: the present widths.

    Returns:
        The plan.

    Raises:
        ConfigError: for unknown names, numbers outside their range, and a bound that cannot be
            kept within the limits, with what can be reached.
        ModelError: if the model has no parameters, or does not run on the example inputs.
    """
    if not isinstance(keep, Keep):
        raise ConfigError(f"keep is a share to keep, such as Keep(macs=0.5), not {keep!r}")
    model = unwrapped(model, "plan_channels")
    found = groups or coupling(model, example)
    size = SizeModel(model, found, example)
    dense = size({})
    own = LayerLimits() if limits is None else limits
    if not isinstance(own, LayerLimits):
        raise ConfigError(
            f"limits is an object such as LayerLimits(keep_at_least=0.2), not {limits!r}"
        )
    scores = checked_scores(model, found, importance, own, round_to, exclude)
    measure = importance_of(importance)
    if normalise == "saving" or (
        normalise == "auto" and normalise_of("auto", measure) is None  # scores in one unit
    ):
        scores = {n: score / _saving(keep, dense, size({n: (0,)})) for n, score in scores.items()}
    else:
        scores = comparable(scores, normalise_of(normalise, measure))
    scores = {name: found[name].protected(score) for name, score in scores.items()}
    choice = _Choice(scores, own, round_to, widths or {})

    def holds(count: int) -> bool:
        removed = choice.removed(count)
        return keep.holds(size(removed), dense, choice.share_left(removed))

    if not holds(choice.most):
        least = size(choice.removed(choice.most))
        raise ConfigError(
            f"{keep} cannot be reached: with a least width of every dimension there stay "
            f"{least.macs / max(dense.macs, 1):.3f} of the MACs and "
            f"{least.parameters / dense.parameters:.3f} of the parameters; keep more, or lower "
            f"{'round_to or ' if round_to > 1 else ''}keep_at_least (limits=LayerLimits(...), --keep-at-least)"
        )
    low, high = 0, choice.most  # bisection for the smallest count that is within the bounds
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    removed = choice.removed(high)
    heavy = tuple(
        f"{name} loses {len(gone)} of {len(scores[name])} channels"
        for name, gone in removed.items()
        if len(gone) > HEAVY["neuron"] * len(scores[name])
    )
    return ChannelPlan(found, removed, dense, size(removed), heavy)


def checked_scores(
    model: nn.Module,
    groups: Coupling,
    importance: str | ChannelImportance,
    limits: LayerLimits,
    round_to: int,
    exclude: Collection[str],
) -> dict[str, Tensor]:
    """Scores of the channels of every dimension that may be narrowed, positive, as measured.

    Args:
        model, importance, limits, round_to, exclude: as in `plan_channels`; they are checked.
        groups: the coupling of the model.

    Raises:
        ConfigError: as `plan_channels`.
    """
    check_count("round_to", round_to)
    exclude = (exclude,) if isinstance(exclude, str) else exclude
    scores = measured_scores(importance_of(importance), model, groups)
    _check_names(groups, exclude)
    scores = {name: score for name, score in scores.items() if not _excluded(groups, name, exclude)}
    if not scores:
        raise ConfigError(
            f"{type(model).__name__} has no dimension to prune: "
            f"{len(groups.dimensions)} found, {len(groups.free)} free, and none of them has scores"
        )
    limits.check_names(scores)
    return scores


def _saving(keep: Keep, dense: Size, smaller: Size) -> float:
    """Share of the bounded sizes that one channel saves; 1 if only channels are counted.

    With scores that add up to the change of the loss, the removal of those with the lowest score
    per saving is the greedy solution of the knapsack problem that the bounds state.
    """
    savings = {
        "macs": 1 - smaller.macs / max(dense.macs, 1),
        "parameters": 1 - smaller.parameters / dense.parameters,
    }
    bounded = [share for name, share in savings.items() if getattr(keep, name) is not None]
    # Not zero: what saves nothing comes last.
    return max(sum(bounded), 1e-12) if bounded else 1.0


def least_width(limits: LayerLimits, name: str, score: Tensor, widths: Mapping[str, int]) -> int:
    """Number of channels of a dimension that stay: of those with infinite scores, all.

    Args:
        limits, widths: as in `plan_channels`.
        name, score: the dimension, and the scores of its channels.
    """
    least = limits.least(name, widths.get(name, len(score)), "neuron")
    return max(least, int(score.isinf().sum()))


class _Choice:
    """The channels of all dimensions in the order of their removal, within the limits.

    Args:
        scores: dimension -> positive scores; infinite for channels that stay.
        limits: lower limits on the widths.
        round_to: number of which widths are multiples.
        widths: dimension -> width that the limits refer to, if it is not the number of scores.
    """

    def __init__(
        self,
        scores: Mapping[str, Tensor],
        limits: LayerLimits,
        round_to: int,
        widths: Mapping[str, int],
    ) -> None:
        self._order = {n: s.argsort(stable=True).tolist() for n, s in scores.items()}
        self._round_to = round_to
        self._may_go = {
            name: len(score) - self._up(least_width(limits, name, score, widths), len(score))
            for name, score in scores.items()
        }
        ranked = [
            torch.stack([score[self._order[name][i]] for i in range(self._may_go[name])])
            for name, score in scores.items()
            if self._may_go[name]
        ]
        owners = [
            torch.full((self._may_go[name],), i, dtype=torch.long)
            for i, name in enumerate(scores)
            if self._may_go[name]
        ]
        self._names = list(scores)
        values = torch.cat(ranked) if ranked else torch.empty(0)
        owner = torch.cat(owners) if owners else torch.empty(0, dtype=torch.long)
        self._turns = owner[values.argsort(stable=True)]
        self._present = sum(len(score) for score in scores.values())
        self._dense = sum(widths.get(name, len(score)) for name, score in scores.items())

    @property
    def most(self) -> int:
        """The largest number of channels that may be removed."""
        return len(self._turns)

    def removed(self, count: int) -> dict[str, tuple[int, ...]]:
        """The `count` channels with the lowest scores, before widths are rounded."""
        each = torch.bincount(self._turns[:count], minlength=len(self._names)).tolist()
        found = {}
        for name, gone in zip(self._names, each, strict=True):
            width = len(self._order[name])
            kept = min(width, max(width - self._may_go[name], self._near(width - gone, width)))
            if kept < width:
                found[name] = tuple(sorted(self._order[name][: width - kept]))
        return found

    def share_left(self, removed: Mapping[str, tuple[int, ...]]) -> float:
        """Share of all channels before any pruning that is kept."""
        return (self._present - sum(map(len, removed.values()))) / self._dense

    def _up(self, width: int, whole: int) -> int:
        """A least width, rounded up to a multiple."""
        return min(whole, math.ceil(width / self._round_to) * self._round_to)

    def _near(self, width: int, whole: int) -> int:
        """A width, rounded to the nearest multiple; narrow dimensions keep their whole width."""
        if whole <= self._round_to:
            return whole if self._round_to > 1 else width
        return max(self._round_to, round(width / self._round_to) * self._round_to)


def _excluded(found: Coupling, name: str, exclude: Collection[str]) -> bool:
    """True if a dimension is excluded by its name, or by a module or parameter of its members."""
    members = [member.name for member in found[name].members]
    return any(item == name or any(is_within(m, item) for m in members) for item in exclude)


def _check_names(found: Coupling, exclude: Collection[str]) -> None:
    known = {d.name for d in found.dimensions}
    for item in exclude:
        if item not in known and not any(_excluded(found, name, [item]) for name in known):
            raise ConfigError(
                f"exclude: no dimension or module is called {item!r}; the dimensions are: "
                f"{', '.join(sorted(known))}"
            )
