"""Operations that move the channel axis, or that reduce or select positions."""

from __future__ import annotations

import operator

import torch
from torch import fx

from ._axes import PERMUTES, indexed, permutation, reduced_axes, turned_axes
from .call import Call, argument, sizes
from .channelwise import PerChannel
from .operation import Absorbed, Operation
from .registry import rule_for

_NORMS = {"norm", torch.norm, torch.linalg.vector_norm}
_SUMS = {"sum", torch.sum, *_NORMS}
_MEANS = {"mean", torch.mean, "amax", torch.amax, "amin", torch.amin}
_EXTREMES = {"max", torch.max, "min", torch.min}


@rule_for(*PERMUTES)
def permute(call: Call) -> Operation | None:
    """Permutations of axes, the channel axis included."""
    moving = call.moving_operand()
    if moving is None or call.shape is None or (order := permutation(call.node)) is None:
        return None
    return PerChannel.of(call, moving[0], axis=order.index(moving[1]))


@rule_for("unsqueeze", torch.unsqueeze)
def unsqueeze(call: Call) -> Operation | None:
    """Insertion of an axis of size 1."""
    moving, dim = call.moving_operand(), argument(call.node, 1, "dim")
    if moving is None or call.shape is None or not isinstance(dim, int):
        return None
    operand, axis = moving
    return PerChannel.of(call, operand, axis=axis + (dim % len(call.shape) <= axis))


@rule_for("squeeze", torch.squeeze)
def squeeze(call: Call) -> Operation | None:
    """Removal of an axis of size 1 other than the channels'; the identity for other sizes."""
    moving, dim = call.moving_operand(), argument(call.node, 1, "dim")
    if moving is None or call.shape is None or not isinstance(dim, int):
        return None
    operand, axis = moving
    rank = len(sizes(operand))
    if dim % rank == axis:
        return None
    gone = rank > len(call.shape) and dim % rank < axis
    return PerChannel.of(call, operand, axis=axis - gone)


@rule_for(*_MEANS, *_SUMS)
def reduction(call: Call) -> Operation | None:
    """Mean, maximum, minimum, sum or norm over axes other than the channels'."""
    moving = call.moving_operand()
    return None if moving is None else _reduced(call, call.node, *moving)


@rule_for(*_EXTREMES)
def extreme(call: Call) -> Operation | None:
    """Maximum or minimum along an axis whose indices are not read.

    The call is absorbed; the `getitem` of its values is the operation.
    """
    moving, over = call.moving_operand(), reduced_axes(call.node)
    if moving is None or over is None:
        return None
    operand, axis = moving
    if axis in {d % len(sizes(operand)) for d in over}:
        return None
    values_alone = all(u.target is operator.getitem and u.args[1] == 0 for u in call.node.users)
    return Absorbed.of(call.node) if values_alone else None


@rule_for(operator.getitem)
def extreme_values(call: Call) -> Operation | None:
    """The values of a maximum or minimum with indices."""
    source = call.node.args[0]
    if not isinstance(source, fx.Node) or source.target not in _EXTREMES or call.node.args[1] != 0:
        return None
    moving = call.at(source).moving_operand()
    return None if moving is None else _reduced(call, source, *moving)


def _reduced(call: Call, reduction: fx.Node, operand: fx.Node, axis: int) -> Operation | None:
    """A reduction over axes other than the channels'.

    Args:
        call: the call whose output is the result.
        reduction: the node with the arguments: the call, or the maximum before its getitem.
        operand: the tensor that is reduced.
        axis: axis of its channels.
    """
    at = 2 if reduction.target in _NORMS else 1  # behind the order of a norm
    over, rank = reduced_axes(reduction, at), len(sizes(operand))
    if over is None or call.shape is None or axis in (reduced := {d % rank for d in over}):
        return None
    keep = argument(reduction, at + 1, "keepdim", False)
    out = axis if keep else axis - sum(d < axis for d in reduced)
    # The sum or norm of a constant changes with the resolution; only zero stays constant.
    only = 0.0 if call.node.target in _SUMS else None
    return PerChannel(call.node, (operand,), (axis,), out, only=only)


@rule_for(operator.getitem)
def position_index(call: Call) -> Operation | None:
    """`x[...]` with slices, numbers and None, all channels kept."""
    moving = call.moving_operand()
    if moving is None or call.shape is None:
        return None
    operand, axis = moving
    found = indexed(call.node, len(sizes(operand)), axis)
    if found is None or found.part != slice(None):
        return None
    return PerChannel.of(call, operand, axis=found.axis)


@rule_for("flip", torch.flip, "roll", torch.roll)
def turn(call: Call) -> Operation | None:
    """Flips and rolls along other axes than the channels'."""
    moving = call.moving_operand()
    if moving is None or call.shape is None:
        return None
    dims = turned_axes(call.node)
    if dims is None or moving[1] in dims:
        return None
    return PerChannel.of(call, moving[0])
