"""Views that keep or merge the channel axis, and readers of shapes."""

from __future__ import annotations

import math
import operator

import torch
import torch.nn.functional as F
from torch import fx, nn

from snello.graph import Graph, shape_of

from ._calls import argument, one_by_one
from ._rule import Rule, View
from ._structure import Sizes

SIZED = {"view", "reshape", torch.reshape}
"""Views whose sizes are written out."""


def shape_or_empty(node: fx.Node) -> tuple[int, ...]:
    return shape_of(node) or ()


def view_rule(graph: Graph, node: fx.Node, operand: fx.Node, axis: int) -> Rule | None:
    before, after = shape_or_empty(operand), shape_or_empty(node)
    prefix = [math.prod(after[:i]) for i in range(len(after) + 1)]
    start = math.prod(before[:axis])
    if not _sizes_are_written_out(node):
        return None
    for out, size in enumerate(after):
        if prefix[out] == start and size == before[axis]:
            return View(node, (operand,), (axis,), out, argument=size_argument(node, out))
    for first in range(axis, -1, -1):  # merged with the axes first..last, the batch apart
        for last in range(axis, len(before)):
            merged = math.prod(before[first : last + 1])
            for out in range(1, len(after)):
                if first and prefix[out] == math.prod(before[:first]) and after[out] == merged:
                    if not _read_by_layers(graph, node):
                        return None
                    return View(
                        node, (operand,), (axis,), out,
                        before=math.prod(before[first:axis]), after=math.prod(before[axis + 1 : last + 1]),
                        argument=size_argument(node, out),
                    )  # fmt: skip
    return None


def _sizes_are_written_out(node: fx.Node) -> bool:
    """Whether a view names its sizes one by one: a whole shape taken from elsewhere cannot be rewritten."""
    if node.target not in SIZED:
        return True
    sizes = one_by_one(node.args[1:])
    return len(sizes) == len(shape_or_empty(node)) and not any(_is_shape(size) for size in sizes)


def _is_shape(size: object) -> bool:
    """Whether a size argument is a whole shape, not one number."""
    if not isinstance(size, fx.Node):
        return False
    whole = size.target == "size" and len(size.args) == 1 and not size.kwargs
    return whole or size.target is getattr or shape_of(size) is not None


def size_argument(node: fx.Node, out: int) -> int | None:
    """Position of the size of an output axis among a view's arguments; None where it is not written out."""
    if node.target not in SIZED and node.target != "expand":
        return None
    sizes = one_by_one(node.args[1:])
    return None if out >= len(sizes) or sizes[out] == -1 else out


def _read_by_layers(graph: Graph, node: fx.Node) -> bool:
    """Whether merged features end in layers, which fix their number, so that an index may do so too."""
    for reader in node.users:
        module = graph.layer(reader)
        if isinstance(module, (nn.Linear, nn.BatchNorm1d)):
            continue
        single = (
            module is not None
            and next(module.parameters(), None) is None
            and shape_or_empty(reader) == shape_or_empty(node)
        )
        functional = reader.target in (F.relu, F.dropout, torch.relu) or (
            reader.target in (torch.cat, torch.concat) and len(shape_or_empty(reader)) == 2
        )
        if not (single or functional) or not _read_by_layers(graph, reader):
            return False
    return bool(node.users)


def sizes_rule(node: fx.Node, operand: fx.Node, axis: int) -> Rule | None:
    shape = shape_or_empty(operand)
    if node.target == "dim":
        return Sizes(node, (operand,), (axis,), None)
    if node.target == "size" and (len(node.args) > 1 or node.kwargs):
        dim = argument(node, 1, "dim")
        if not isinstance(dim, int):
            return None
        numbers = ((node, shape[axis]),) if dim % len(shape) == axis else ()
        return Sizes(node, (operand,), (axis,), None, numbers)
    counts = _counts(node, list(range(len(shape))), axis)
    if counts is None:
        return None  # the number of channels goes somewhere where it cannot be followed
    return Sizes(node, (operand,), (axis,), None, tuple((count, shape[axis]) for count in counts))


def _counts(node: fx.Node, shown: list[int], axis: int) -> list[fx.Node] | None:
    """Nodes that take the number of channels out of a shape; None if it goes on as part of one.

    Args:
        node: a shape, or a slice of one.
        shown: which axis each of its entries is of.
        axis: of the channels.
    """
    found: list[fx.Node] = []
    for reader in node.users:
        index = reader.args[1] if reader.target is operator.getitem else None
        if isinstance(index, int):
            found += [reader] if shown[index] == axis else []
        elif isinstance(index, slice) and axis in shown[index]:
            inner = _counts(reader, shown[index], axis)
            if inner is None:
                return None
            found += inner
        elif not isinstance(index, slice):
            return None
    return found
