"""Kinds of constants that a lean layer adds to its output besides its bias."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .records import TaggedRecord


@dataclass(frozen=True)
class Fold(TaggedRecord):
    """Constants folded into a layer, stored in a buffer of the lean layer named like the tag.

    The buffer has one row per neuron, on the axis of the weight's neurons.
    """

    place: ClassVar[str] = ""
    """Description of the place of the constants, for the printed plan."""


@dataclass(frozen=True)
class BorderFold(Fold):
    """Constant inputs of a convolution that pads with zeros: a kernel that is convolved with ones.

    The kernel is the sum over the constant inputs of the layer's kernel times the constant. A bias
    would be wrong at the border, where the padding replaces the constants by zero.
    """

    tag = "border"
    place = "border kernel"


@dataclass(frozen=True)
class TableFold(Fold):
    """Inputs that depend on the position alone: a table with a column for each border pattern.

    Attributes:
        patterns: number of columns; see `BorderPattern`.
    """

    tag = "table"
    place = "table and the bias"

    patterns: int


@dataclass(frozen=True)
class GateFold(Fold):
    """Constants that a gate multiplies: columns of weights that are applied to the gate.

    Attributes:
        channels: number of channels of the gate that the layer reads.
    """

    tag = "gated"
    place = "gate and the bias"

    channels: int
