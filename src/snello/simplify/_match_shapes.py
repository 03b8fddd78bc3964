"""Operations that move, merge, reduce or choose axes and channels."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from snello.graph import Graph, shape_of

from ._calls import argument, one_by_one
from ._match_views import SIZED, shape_or_empty, size_argument, sizes_rule, view_rule
from ._rule import PerChannel, Rule, View
from ._structure import Absorbed, Channels, ExpandAs, PadChannels

_VIEWS = {"view", "reshape", "flatten", torch.reshape, torch.flatten, "unflatten", torch.unflatten}
_PERMUTES = {
    "permute", torch.permute, "transpose", torch.transpose, "swapaxes", torch.swapaxes, "movedim", torch.movedim
}  # fmt: skip
_UNIT_AXES = {"unsqueeze", torch.unsqueeze, "squeeze", torch.squeeze}
_MEANS = {"mean", torch.mean, "amax", torch.amax, "amin", torch.amin}
_SUMS = {"sum", torch.sum}
_EXTREMES = {"max", torch.max, "min", torch.min}
_TURNS = {"flip", torch.flip, "roll", torch.roll}
_CHUNKS = {"chunk", torch.chunk, "split", torch.split, "tensor_split", torch.tensor_split}


@dataclass(frozen=True, eq=False)
class Shuffle(Channels):
    """A channel shuffle written as view, transpose, view.

    Attributes:
        steps: the nodes before the last one.
    """

    steps: tuple[fx.Node, ...] = ()


class ShuffleStep(Absorbed):
    """A step of a shuffle before its last one."""


def shuffled(channels: int, groups: int) -> Tensor:
    """For each output channel of a channel shuffle, the input channel that it is."""
    return torch.arange(channels).reshape(groups, -1).T.flatten()


def shuffles(graph: Graph) -> Iterator[tuple[fx.Node, Rule]]:
    """Channel shuffles of (N, C, *): view as (N, g, C/g, *), transpose, view as (N, C, *)."""
    for first in graph.nodes:
        steps = [first]
        while len(steps) < 4 and len(steps[-1].users) == 1:
            reader = next(iter(steps[-1].users))
            if reader.target in _VIEWS or not reader.args or reader.args[0] is not steps[-1]:
                break
            steps.append(reader)
        last = next(iter(steps[-1].users)) if len(steps[-1].users) == 1 else None
        if last is None or len(steps) < 2 or first.target not in SIZED or last.target not in _VIEWS:
            continue
        if (rule := _shuffle(steps, last)) is not None:
            yield from ((step, ShuffleStep(step, (), (), None)) for step in steps)
            yield last, rule


def _shuffle(steps: list[fx.Node], last: fx.Node) -> Shuffle | None:
    source = steps[0].args[0]
    if not isinstance(source, fx.Node) or [s.target for s in steps[2:]] not in ([], ["contiguous"]):
        return None
    before, split, swapped = (shape_or_empty(node) for node in (source, steps[0], steps[1]))
    if len(before) < 2 or len(split) != len(before) + 1 or before != shape_or_empty(last):
        return None
    if steps[1].target not in _PERMUTES or _permutation(steps[1]) != [0, 2, 1, *range(3, len(split))]:
        return None
    groups = split[1]
    if split[0] != before[0] or groups * split[2] != before[1] or len(swapped) != len(split):
        return None
    order = shuffled(before[1], groups)
    return Shuffle(last, (source,), (1,), 1, before[1], order, free=True, steps=tuple(steps))


def rule(graph: Graph, node: fx.Node, axes: dict[fx.Node, int]) -> Rule | None:
    """The rule of a shape operation; None for another one."""
    operand = argument(node, 0, "input")
    if not isinstance(operand, fx.Node):
        return None
    target: Any = node.target
    if target is operator.getitem and operand.target in _CHUNKS:
        return _chunk_rule(node, operand, axes)
    if target is operator.getitem and operand.target in _EXTREMES:
        return _extreme_rule(node, operand, axes)
    axis = axes.get(operand)
    if axis is None or not shape_or_empty(operand):
        return None
    if target == "size" or (target is getattr and node.args[1:] == ("shape",)) or target == "dim":
        return sizes_rule(node, operand, axis)
    if target in _CHUNKS:
        return _chunks_rule(node, operand, axis)
    if target in _EXTREMES and (over := _over(node)) is not None:
        if axis in {d % len(shape_or_empty(operand)) for d in over}:
            return None
        read = all(u.target is operator.getitem and u.args[1] == 0 for u in node.users)
        return Absorbed(node, (), (), None) if read else None
    if shape_of(node) is None:
        return None
    if target is operator.getitem:
        return _index_rule(node, operand, axis)
    if target in ("narrow", torch.narrow):
        return _narrow_rule(node, operand, axis)
    if target in _VIEWS or isinstance(graph.layer(node), (nn.Flatten, nn.Unflatten)):
        return view_rule(graph, node, operand, axis)
    moved = _moved(node, axis)
    if moved is not None:
        return PerChannel(node, (operand,), (axis,), moved)
    if target in _MEANS or target in _SUMS:
        return _reduction_rule(node, operand, axis, node)
    if target in ("expand_as", "expand"):
        return _expand_rule(node, operand, axes, axis)
    if target in _TURNS:
        return _turn_rule(node, operand, axis)
    if target == "to" and len(node.args) == 1 and set(node.kwargs) == {"memory_format"}:
        return PerChannel(node, (operand,), (axis,), axis)
    return None


def _expand_rule(node: fx.Node, operand: fx.Node, axes: dict[fx.Node, int], axis: int) -> Rule | None:
    shape, out = shape_or_empty(operand), shape_or_empty(node)
    if len(shape) != len(out) or shape[axis] != out[axis]:
        return None
    if node.target == "expand_as":
        model = node.args[1]
        if not isinstance(model, fx.Node) or axes.get(model, axis) != axis:
            return None
        return ExpandAs(node, (operand, model), (axis, axis), axis)
    if len(node.args) < 2:
        return None
    return View(node, (operand,), (axis,), axis, argument=size_argument(node, axis))


def _turn_rule(node: fx.Node, operand: fx.Node, axis: int) -> Rule | None:
    """Flips and rolls along other axes; a flip of the channels is another order of them."""
    flip = node.target in ("flip", torch.flip)
    dims = one_by_one(node.args[1:] if flip else (argument(node, 2, "dims"),))
    if not dims or not all(isinstance(d, int) for d in dims):
        return None
    shape = shape_or_empty(operand)
    if axis not in {d % len(shape) for d in dims}:
        return PerChannel(node, (operand,), (axis,), axis)
    if not flip or len(dims) > 1:
        return None
    width = shape[axis]
    return Channels(node, (operand,), (axis,), axis, width, torch.arange(width).flip(0), free=True)


def _over(node: fx.Node) -> list[int] | None:
    """Axes that a reduction goes over; None if they are computed, or if it goes over all."""
    dims = argument(node, 1, "dim")
    over = [dims] if isinstance(dims, int) else dims
    if not isinstance(over, (tuple, list)) or not all(isinstance(d, int) for d in over):
        return None
    return [int(d) for d in over]


def _extreme_rule(node: fx.Node, extreme: fx.Node, axes: dict[fx.Node, int]) -> Rule | None:
    """The values of a maximum or minimum with its indices."""
    operand = extreme.args[0]
    if not isinstance(operand, fx.Node) or operand not in axes or node.args[1] != 0 or _over(extreme) is None:
        return None
    return _reduction_rule(node, operand, axes[operand], extreme)


def _permutation(node: fx.Node) -> list[int] | None:
    """For each output axis of a permutation, the input axis that it is; None if it is computed."""
    rank = len(shape_or_empty(node))
    dims = one_by_one(node.args[1:] or list(node.kwargs.values()))
    if not all(isinstance(d, int) for d in dims):
        return None
    numbers = [int(d) % rank for d in dims if isinstance(d, int)]
    if node.target in ("permute", torch.permute):
        return numbers
    if len(numbers) != 2:
        return None
    order = list(range(rank))
    if node.target in ("movedim", torch.movedim):
        order.insert(numbers[1], order.pop(numbers[0]))
    else:
        order[numbers[0]], order[numbers[1]] = order[numbers[1]], order[numbers[0]]
    return order


def _moved(node: fx.Node, axis: int) -> int | None:
    """Where the channel axis lies after a permutation, or after a unit axis came or went."""
    if node.target in _PERMUTES:
        order = _permutation(node)
        return None if order is None else order.index(axis)
    if node.target not in _UNIT_AXES:
        return None
    dim, rank = argument(node, 1, "dim"), len(shape_or_empty(node))
    if not isinstance(dim, int):
        return None
    added = node.target in ("unsqueeze", torch.unsqueeze)
    dim = dim % (rank if added else len(shape_or_empty(node.all_input_nodes[0])))
    if added:
        return axis + (dim <= axis)
    if dim == axis:
        return None
    gone = len(shape_or_empty(node.all_input_nodes[0])) > rank
    return axis - (gone and dim < axis)


def _reduction_rule(node: fx.Node, operand: fx.Node, axis: int, call: fx.Node) -> Rule | None:
    """Mean, maximum or sum over axes other than the channels', which ``call`` names."""
    over, rank = _over(call), len(shape_or_empty(operand))
    if over is None or axis in (reduced := {d % rank for d in over}):
        return None
    keep = argument(call, 2, "keepdim", False)
    out = axis if keep else axis - sum(d < axis for d in reduced)
    # A sum over positions counts them: of a constant other than zero it is another one at another resolution.
    return PerChannel(node, (operand,), (axis,), out, only=0.0 if node.target in _SUMS else None)


def _index_rule(node: fx.Node, operand: fx.Node, axis: int) -> Rule | None:
    """``x[...]`` with whole slices, numbers and None; on the channel axis a slice with known ends."""
    index = node.args[1]
    parts = list(index) if isinstance(index, tuple) else [index]
    if not all(p is None or p is Ellipsis or isinstance(p, (int, slice)) for p in parts):
        return None
    rank, consumed = len(shape_or_empty(operand)), sum(p is not None and p is not Ellipsis for p in parts)
    if Ellipsis in parts:
        at = parts.index(Ellipsis)
        parts[at : at + 1] = [slice(None)] * (rank - consumed)
    else:
        parts += [slice(None)] * (rank - consumed)
    own, out, own_part = 0, 0, None
    for part in parts:
        if part is not None:
            if own == axis:
                own_part = part
                break
            own += 1
        out += not isinstance(part, int)
    if not isinstance(own_part, slice):
        return None
    if own_part == slice(None):
        return PerChannel(node, (operand,), (axis,), out)
    ends = (own_part.start, own_part.stop, own_part.step)
    alone = all(p == slice(None) for p in parts if p is not own_part)
    if any(isinstance(end, fx.Node) for end in ends) or not alone:
        return None
    width = shape_or_empty(operand)[axis]
    return Channels(node, (operand,), (axis,), axis, width, torch.arange(width)[own_part])


def _narrow_rule(node: fx.Node, operand: fx.Node, axis: int) -> Rule | None:
    dim, start, length = (argument(node, i, n) for i, n in ((1, "dim"), (2, "start"), (3, "length")))
    if not all(isinstance(n, int) for n in (dim, start, length)):
        return None
    shape = shape_or_empty(operand)
    if dim % len(shape) != axis:
        return PerChannel(node, (operand,), (axis,), axis)
    width = shape[axis]
    return Channels(node, (operand,), (axis,), axis, width, torch.arange(width).narrow(0, start, length))


def _chunks_rule(node: fx.Node, operand: fx.Node, axis: int) -> Rule | None:
    """The parts are the rules' nodes; the chunking itself stands for nothing."""
    picked = all(u.target is operator.getitem and isinstance(u.args[1], int) for u in node.users)
    known = isinstance(_chunk_dim(node), int) and not isinstance(argument(node, 1, "chunks"), fx.Node)
    return Absorbed(node, (), (), None) if picked and known else None


def _chunk_dim(node: fx.Node) -> Any:
    return argument(node, 2, "dim", 0)


def _chunk_rule(node: fx.Node, chunks: fx.Node, axes: dict[fx.Node, int]) -> Rule | None:
    operand = chunks.args[0]
    if not isinstance(operand, fx.Node) or operand not in axes or shape_of(node) is None:
        return None
    axis, shape = axes[operand], shape_or_empty(operand)
    if _chunks_rule(chunks, operand, axis) is None:
        return None
    if _chunk_dim(chunks) % len(shape) != axis:
        return PerChannel(node, (operand,), (axis,), axis)
    channels = torch.arange(shape[axis])
    args = (channels, *chunks.args[1:2])
    options = {k: v for k, v in chunks.kwargs.items() if k != "dim"}
    name = chunks.target if isinstance(chunks.target, str) else chunks.target.__name__
    parts: Sequence[Tensor] = getattr(torch, name)(*args, **options)
    return Channels(node, (operand,), (axis,), axis, shape[axis], parts[node.args[1]])  # type: ignore[index]


def pad_rule(node: fx.Node, operand: fx.Node, axis: int) -> Rule | None:
    """``F.pad``: positions, with the mode's effect on constants; or channels, with zeros."""
    pad, mode, value = (
        argument(node, 1, "pad"),
        argument(node, 2, "mode", "constant"),
        argument(node, 3, "value"),
    )
    rank = len(shape_or_empty(operand))
    if not isinstance(pad, (tuple, list)) or isinstance(value, fx.Node):
        return None
    before, after = 2 * (rank - 1 - axis), 2 * (rank - 1 - axis) + 1
    own = (pad[before], pad[after]) if len(pad) > after else (0, 0)
    if own == (0, 0):
        return PerChannel(
            node, (operand,), (axis,), axis, only=float(value or 0) if mode == "constant" else None
        )
    others = [p for i, p in enumerate(pad) if i not in (before, after)]
    if mode != "constant" or value or any(isinstance(p, fx.Node) or p for p in others):
        return None
    if not all(isinstance(p, int) and p >= 0 for p in own):
        return None
    return PadChannels(node, (operand,), (axis,), axis, int(own[0]), int(own[1]))
