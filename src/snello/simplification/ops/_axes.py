"""Axes in the arguments of a call: permutations, reductions, indices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from .call import argument, one_by_one, sizes

PERMUTES = {
    "permute", torch.permute, "transpose", torch.transpose, "swapaxes", torch.swapaxes, "movedim",
    torch.movedim,
}  # fmt: skip


def permutation(node: fx.Node) -> list[int] | None:
    """Return the input axis of each output axis of a permutation; None if it is computed."""
    rank = len(sizes(node))
    dims = one_by_one(node.args[1:] or list(node.kwargs.values()))
    if not all(isinstance(d, int) for d in dims):
        return None
    numbers = [int(d) % rank for d in dims]
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


def reduced_axes(node: fx.Node, position: int = 1) -> list[int] | None:
    """Return the axes of a reduction, its argument at a position or by name; None if they are
    computed, or if it reduces all axes.
    """
    dims = argument(node, position, "dim")
    over = [dims] if isinstance(dims, int) else dims
    if not isinstance(over, (tuple, list)) or not all(isinstance(d, int) for d in over):
        return None
    return [int(d) for d in over]


def turned_axes(node: fx.Node) -> list[int] | None:
    """Return the axes of a flip or a roll; None if they are computed or missing."""
    flip = node.target in ("flip", torch.flip)
    dims = one_by_one(node.args[1:] if flip else (argument(node, 2, "dims"),))
    if not dims or not all(isinstance(d, int) for d in dims):
        return None
    rank = len(sizes(node))
    return [d % rank for d in dims]


@dataclass(frozen=True)
class Indexed:
    """`x[...]` with slices, numbers, None and an ellipsis.

    Attributes:
        part: the slice on the channel axis.
        axis: axis of the channels in the output.
        alone: whether all other axes are indexed by `:` alone.
    """

    part: slice
    axis: int
    alone: bool


def indexed(node: fx.Node, rank: int, axis: int) -> Indexed | None:
    """Read the index of a getitem; None if it selects a single channel, or is computed.

    Args:
        node: the call of getitem.
        rank: number of axes of the operand.
        axis: axis of its channels.
    """
    index: Any = node.args[1]
    parts = list(index) if isinstance(index, tuple) else [index]
    if not all(p is None or p is Ellipsis or isinstance(p, (int, slice)) for p in parts):
        return None
    consumed = sum(p is not None and p is not Ellipsis for p in parts)
    rest = [slice(None)] * (rank - consumed)
    if Ellipsis in parts:
        at = parts.index(Ellipsis)
        parts[at : at + 1] = rest
    else:
        parts += rest
    own, out = 0, 0
    for part in parts:
        if part is not None and own == axis:
            if not isinstance(part, slice):
                return None
            alone = all(p == slice(None) for p in parts if p is not part)
            return Indexed(part, out, alone)
        own += part is not None
        out += not isinstance(part, int)
    return None
