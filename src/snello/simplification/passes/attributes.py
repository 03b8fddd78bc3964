"""Pass 10: find the attributes of modules that hold widths, such as the number of heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import getitem

import torch.nn.functional as F
from torch import fx, nn

from snello.graph import known_shape
from snello.graph.coupled.run import is_count
from snello.neurons import qualified
from snello.simplification.ir.edits import Pick, SetNumber
from snello.simplification.ir.plan import SimplificationPlan
from snello.simplification.ops.call import argument, size_arguments
from snello.simplification.ops.heads import ZerosByHead
from snello.simplification.ops.selection import Selection
from snello.simplification.ops.splitting import SplitChannels

from .facts import Facts

_WIDTHS = ("dim", "size", "width", "channel", "feature", "inner")


Values = dict[str, int | tuple[int, ...]]
"""Qualified name of an attribute -> its new value."""


def attributes(model: nn.Module, facts: Facts, plan: SimplificationPlan) -> Values | None:
    """Find the attributes, such as `num_heads`, that a model's own forward takes its sizes from.

    With new values in them, the model can keep its class: no literal is written into a graph.

    1. A number of the plan is an argument of a view, a split or `F.group_norm` in the forward of
       some module. The integer attributes of that module which have the number's old value, and
       a name that fits, take the new one.
    2. A name fits that speaks of a count (`num_heads`) where channels become heads or groups, and
       of a width (`dim`) elsewhere.
    3. Consecutive channels that the plan picks are a slice or a part of a split in the forward. The
       attributes with the old ends of the slice, or the old widths of the parts, take the new ones.

    This is a guess by value and name: verification of the narrowed model shows whether it holds.

    Requires:
        `operations` and `axes`.

    Ensures:
        Qualified name -> new value; None if the plan has other edits, no number has an attribute, a
        slice or part has none, or one attribute would need two values.
    """
    nodes = {node.name: node for node in facts.graph.nodes}
    picks = {edit.node: edit for edit in plan.edits_of(Pick)}
    found: Values = {}
    for edit in plan.edits:
        wanted: Values | None = None
        if isinstance(edit, SetNumber):
            wanted = _of_number(model, facts, nodes[edit.node], edit)
        elif isinstance(edit, Pick):
            wanted = _of_pick(model, facts, nodes[edit.node], picks)
        if wanted is None or any(found.get(name, value) != value for name, value in wanted.items()):
            return None
        found.update(wanted)
    return found if found or not plan.edits_of(SetNumber) else None


def _of_number(model: nn.Module, facts: Facts, node: fx.Node, edit: SetNumber) -> Values:
    """The attributes that the number of an edit may come from."""
    if edit.position < 0:  # no argument, but a size that the forward reads
        return {}
    old = size_arguments(node)[edit.position]
    if type(old) is not int:  # computed in the graph: its value is the measured width
        old = known_shape(node)[facts.axes[node]]
    counts = isinstance(facts.operations[node], (SplitChannels, ZerosByHead))
    counts = counts or node.target is F.group_norm
    owner, held = _held(model, facts, node)
    names = [
        name for name, value in held.items() if type(value) is int and value == old and _fits(name, counts)
    ]  # fmt: skip
    return {qualified(owner, name): edit.value for name in names}


def _of_pick(
    model: nn.Module, facts: Facts, node: fx.Node, picks: Mapping[str, Pick]
) -> Values | None:
    """The attributes that the ends of a slice, or the widths of the parts of a split, come from."""
    operation = facts.operations[node]
    index = picks[node.name].index
    if not isinstance(operation, Selection) or operation.free or node.target is not getitem:
        return None
    source = operation.source.tolist()
    if not all(map(_consecutive, (source, index or ()))):
        return None
    parts = node.args[0]
    assert isinstance(parts, fx.Node)
    if isinstance(node.args[1], int):
        return _of_parts(model, facts, parts, picks)
    if index is None:  # a slice beyond the end is no error
        return {}
    owner, held = _held(model, facts, node)
    pairs = ((source[0], index[0]), (source[-1] + 1, index[-1] + 1))
    return _mirrored(owner, held, [p for p in pairs if p[0] not in (0, operation.width)])


def _of_parts(
    model: nn.Module, facts: Facts, split: fx.Node, picks: Mapping[str, Pick]
) -> Values | None:
    """The attributes with the widths of the parts of a split: one with all of them, or one each."""
    sections = argument(split, 1, "split_size_or_sections")
    if not isinstance(sections, (tuple, list)):
        return None
    new = [0] * len(sections)
    for part in split.users:
        if part.name in picks:
            new[part.args[1]] = len(picks[part.name].index or ())  # type: ignore[index]
    owner, held = _held(model, facts, split)
    whole = [
        name for name, value in held.items() if isinstance(value, (tuple, list)) and list(value) == list(sections)
    ]  # fmt: skip
    if whole:
        return {qualified(owner, name): tuple(new) for name in whole}
    return _mirrored(owner, held, list(zip(sections, new, strict=True)))


def _mirrored(
    owner: str, held: Mapping[str, object], pairs: Sequence[tuple[int, int]]
) -> Values | None:
    """The attributes with the old values of some pairs, and their new ones; None if one is missing."""
    found: Values = {}
    for old, new in pairs:
        names = [name for name, value in held.items() if type(value) is int and value == old]
        if not names and old != new:
            return None
        if any(found.setdefault(qualified(owner, name), new) != new for name in names):
            return None
    return found


def _held(model: nn.Module, facts: Facts, node: fx.Node) -> tuple[str, dict[str, object]]:
    """Name and attributes of the module whose forward has an operation."""
    owner = facts.graph.owner(node)
    return owner, vars(model.get_submodule(owner))


def _consecutive(indices: Sequence[int]) -> bool:
    return list(indices) == list(range(indices[0], indices[0] + len(indices))) if indices else True


def is_width(name: str) -> bool:
    """True of names of widths, such as `in_channels`."""
    return any(part in name for part in _WIDTHS)


def _fits(name: str, counts: bool) -> bool:
    """True of names of counts, or else of widths. A `head_dim` is a width."""
    return is_count(name) if counts else is_width(name)
