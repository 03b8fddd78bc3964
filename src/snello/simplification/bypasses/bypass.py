"""Base class of bypasses, and the values that they exchange with the passes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from snello.graph import Graph, known_shape
from snello.simplification.ir.channels import Layout, Signal
from snello.simplification.ops.layers import Weighted
from snello.simplification.ops.operation import Edit, FoldedIn, Operation
from snello.simplification.work import Saving


@dataclass(frozen=True)
class Found:
    """Facts that a search for bypasses may use.

    Attributes:
        graph: with shapes.
        operations: node -> its operation.
        signals: node -> the constant channels of its output.
    """

    graph: Graph
    operations: Mapping[fx.Node, Operation]
    signals: Mapping[fx.Node, Signal]


@dataclass(frozen=True)
class Skipped:
    """Records of the plan for a bypass.

    Attributes:
        fold: the constants that the reader adds in place of the channels.
        edits: the changes to the graph that give the reader further operands for it.
    """

    fold: FoldedIn
    edits: tuple[Edit, ...]


@dataclass(frozen=True, eq=False)
class Bypass:
    """A way to skip input channels of a pointwise convolution that are not constant.

    Attributes:
        reader: the convolution.
    """

    reader: Weighted

    @property
    def choices(self) -> Sequence[Bypass]:
        """Variants, best first; the first one that the cost model accepts is used."""
        return (self,)

    def skips(self, read: Tensor) -> Tensor:
        """Return which of the channels that the reader would read it can skip.

        Args:
            read: boolean, shape (C,).

        Returns:
            Boolean, shape (C,).
        """
        raise NotImplementedError

    def saving(self, neurons: int, channels: int) -> Saving:
        """Return the effect of the bypass.

        Args:
            neurons: number of the reader's neurons that are computed.
            channels: number of channels that it skips.
        """
        raise NotImplementedError

    def accepted(self, skipped: Tensor) -> Accepted:
        """Return everything that changes once the reader skips some channels.

        Args:
            skipped: boolean, shape (C,).
        """
        return Accepted(self)

    def received(self, layout: Layout) -> Layout:
        """Return the layout that reaches the reader, given that of its operand."""
        return layout

    def lower(self, layouts: Mapping[fx.Node, Layout]) -> Skipped | None:
        """Return the records of the plan; None if there is nothing to record."""
        return None


@dataclass(frozen=True, eq=False)
class Accepted:
    """Effects of a bypass that is used.

    Attributes:
        bypass: the bypass, restricted to the channels that are skipped.
        follows: a second bypass that it requires, of a layer further up the graph.
        read: node -> channels that are read because of the bypass, boolean, shape (C,).
        unmade: node of a product -> channels that are no longer computed, boolean, shape (C,).
    """

    bypass: Bypass
    follows: Bypass | None = None
    read: Mapping[fx.Node, Tensor] = field(default_factory=dict)
    unmade: Mapping[fx.Node, Tensor] = field(default_factory=dict)


Finder = Callable[[Weighted, Found], Bypass | None]

_finders: list[Finder] = []


def finder(search: Finder) -> Finder:
    """Register a search, which returns a bypass for a pointwise convolution, or None."""
    _finders.append(search)
    return search


def candidates(found: Found) -> Iterator[Bypass]:
    """The bypasses that pointwise convolutions may use, at most one for each convolution."""
    for operation in found.operations.values():
        if isinstance(operation, Weighted) and operation.is_pointwise:
            bypasses = (search(operation, found) for search in _finders)
            first = next((bypass for bypass in bypasses if bypass is not None), None)
            if first is not None:
                yield first


def positions(node: fx.Node, axis: int = 1) -> int:
    """Number of positions per channel, for one example."""
    shape = known_shape(node)
    return math.prod(shape[1:]) // shape[axis] if axis else math.prod(shape[1:])


def columns_of(reader: Weighted, neurons: Layout, channels: Tensor) -> Tensor:
    """Columns of a pointwise convolution's weight, in float64: shape (neurons, channels).

    Args:
        reader: the convolution.
        neurons: layout of its output: rows are its kept neurons, in order.
        channels: indices of input channels, an integer tensor.
    """
    return reader.taps[0, :, :, 0][neurons.order][:, channels].to(torch.float64)
