"""A uniform view of the calls in a graph (functions, methods, modules) and of their arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from snello.graph import Graph, shape_of


def argument(node: fx.Node, position: int, name: str, default: object = None) -> Any:
    """Return an argument of a call that may be given by position or by name."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def one_by_one(arguments: Sequence[Any]) -> tuple[Any, ...]:
    """Return sizes or axes as a tuple, for both `view(2, 3)` and `view((2, 3))`."""
    nested = len(arguments) == 1 and isinstance(arguments[0], (tuple, list))
    return tuple(arguments[0] if nested else arguments)


UNFLATTENS = {"unflatten", torch.unflatten}
CONVOLUTIONS = {F.conv1d, F.conv2d, F.conv3d}
CONVOLUTION_OPTIONS = (("stride", 1), ("padding", 0), ("dilation", 1), ("groups", 1))
"""Arguments of a functional convolution behind input, weight and bias, with their defaults."""


def size_arguments(node: fx.Node) -> tuple[Any, ...]:
    """Return the sizes that a view of a tensor, or the making of a tensor, is called with.

    Of a functional convolution, all arguments but the input, in order.
    """
    if node.target in UNFLATTENS:  # x.unflatten(dim, sizes)
        return tuple(argument(node, 2, "sizes"))
    if node.target in CONVOLUTIONS:  # the last one is a number of channels, if there are groups
        names = (("weight", None), ("bias", None), *CONVOLUTION_OPTIONS)
        return tuple(argument(node, 1 + i, *option) for i, option in enumerate(names))
    return one_by_one(node.args[isinstance(node.args[0], fx.Node) :])


def sizes(node: fx.Node) -> tuple[int, ...]:
    """Shape of a node's output; empty where it is not one tensor."""
    return shape_of(node) or ()


@dataclass(frozen=True)
class Call:
    """A node, with the channel axes of the nodes before it.

    Attributes:
        graph: the graph, with shapes.
        node: the call.
        axes: node -> the axis of its channels, for the nodes whose channels are known.
        splits: number of axes into which a view splits a channel axis -> index of the one that is
            the channel axis afterwards.
    """

    graph: Graph
    node: fx.Node
    axes: Mapping[fx.Node, int]
    splits: Mapping[int, int] = field(default_factory=dict)

    def split_axis(self, parts: int) -> int:
        """Return which part of a split channel axis is the channel axis afterwards (default 0)."""
        return self.splits.get(parts, 0)

    def at(self, node: fx.Node) -> Call:
        """Return the call of another node of the same graph."""
        return replace(self, node=node)

    @property
    def module(self) -> nn.Module | None:
        """The module that is called; None for a function or a method."""
        return self.graph.layer(self.node)

    @property
    def name(self) -> str:
        """Qualified name of the module that is called."""
        return str(self.node.target)

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Shape of the output; None where it is not one tensor."""
        return shape_of(self.node)

    def argument(self, position: int, name: str, default: object = None) -> Any:
        """Return an argument that may be given by position or by name."""
        return argument(self.node, position, name, default)

    def operand(self, axis: int) -> fx.Node | None:
        """Return the first argument if its channels are, or may be, on this axis.

        It is also returned if its channels are unknown: that of a network input, or of an operation
        without a rule.
        """
        operand = self.argument(0, "input")
        if not isinstance(operand, fx.Node):
            return None
        shape = sizes(operand)
        if len(shape) < 2 or self.shape is None:
            return None
        axis = axis % len(shape)
        return operand if self.axes.get(operand, axis) == axis else None

    def known_operand(self, axis: int) -> fx.Node | None:
        """Return the first argument if its channels are known to be on this axis."""
        operand = self.operand(axis)
        return operand if operand in self.axes else None

    def moving_operand(self) -> tuple[fx.Node, int] | None:
        """Return the first argument with the axis of its channels; None if it is not known."""
        operand = self.argument(0, "input")
        if not isinstance(operand, fx.Node) or operand not in self.axes or not sizes(operand):
            return None
        return operand, self.axes[operand]
