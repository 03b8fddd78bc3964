"""Kinds of constants that a lean layer adds to its output besides its bias."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .records import TaggedRecord


@dataclass(frozen=True)
class Fold(TaggedRecord):
    """Something folded into a layer, kept in a buffer of the lean layer that is called like the
    tag.

    The buffer has one row per neuron, on the axis of the weight's neurons.
    """

    place: ClassVar[str] = ""
    """Description of the place that the constants went to, for people."""


@dataclass(frozen=True)
class BorderFold(Fold):
    """Constants that zero padding cuts off at the border: a kernel, convolved with ones.

    The kernel is the layer's own, summed over the constant inputs, weighted by their values.
    """

    tag = "border"
    place = "border kernel"


@dataclass(frozen=True)
class TableFold(Fold):
    """Inputs that depend on the position alone: a table with a column for each border pattern.

    Attributes:
        patterns: number of columns; see :class:`BorderPattern`.
    """

    tag = "table"
    place = "table and the bias"

    patterns: int


@dataclass(frozen=True)
class GateFold(Fold):
    """Constants that a gate multiplies: columns that read the gate itself.

    Attributes:
        channels: number of channels of the gate that the layer reads.
    """

    tag = "gated"
    place = "gate and the bias"

    channels: int
