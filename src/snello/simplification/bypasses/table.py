"""Bypass by a table: channels that depend on the position alone, up to a pointwise convolution.

On a constant input, a convolution that pads with zeros has one output value in the interior and
others at the border, which depend only on the number of taps cut off on each side. Norms and
activations map each of these few values, and a pointwise convolution sums them over channels. The
sums are therefore stored in a small table, with one column per border pattern, which is valid at
every resolution; the channels themselves are no longer computed. In MobileNets these are the
depthwise filters whose input is dead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from snello.simplification.ir.borders import taps_inside
from snello.simplification.ir.channels import Layout, Signal
from snello.simplification.ir.edits import BorderPattern
from snello.simplification.ir.folds import TableFold
from snello.simplification.ops.layers import Weighted, pads_with_zeros
from snello.simplification.ops.norms import Affine
from snello.simplification.ops.operation import Edit, FoldedIn, Operation, signal_of
from snello.simplification.work import Saving, Work

from .bypass import Bypass, Found, Skipped, columns_of, finder, positions

Path = tuple[Weighted, tuple[Operation, ...]]
"""A convolution that pads with zeros, and the elementwise operations behind it."""


@dataclass(frozen=True, eq=False)
class TableBypass(Bypass):
    """A padding convolution, elementwise operations, and the pointwise convolution after them.

    Attributes:
        source: the convolution that pads.
        steps: the operations behind it.
        channels: boolean, shape (C,): the channels that depend on the position alone.
        values: float64, shape (border patterns, C): the reader's input in those channels; else 0.
    """

    source: Weighted
    steps: tuple[Operation, ...]
    channels: Tensor
    values: Tensor

    def skips(self, read: Tensor) -> Tensor:
        return read & self.channels

    def saving(self, neurons: int, channels: int) -> Saving:
        taps = self.source.taps[0, 0].numel()
        norms = sum(4 for step in self.steps if isinstance(step, Affine))
        read, written = positions(self.source.operands[0]), positions(self.reader.node)
        # Without a table, the constants of the source are inserted, too: one more operation.
        computed = Work(
            calls=1, macs=channels * written * (taps + neurons), elementwise=channels * written,
            moved=channels * read,
        )  # fmt: skip
        added = Work(calls=2, moved=neurons * written)  # the border patterns, and the sum
        return Saving(
            channels * (taps + norms + neurons), neurons * len(self.values), computed, added
        )

    def received(self, layout: Layout) -> Layout:
        # Absent channels differ from position to position, so that the layout has no value for
        # them: the table adds it.
        return Layout(layout.order, layout.absent.masked_fill(self.channels, 0))

    def lower(self, layouts: Mapping[fx.Node, Layout]) -> Skipped | None:
        received, produced = layouts[self.reader.operands[0]], layouts[self.reader.node]
        absent = self.channels & ~received.present & self.reader.connected[0].any(0)
        if produced.is_empty or not absent.any():
            return None
        columns = absent.nonzero().flatten()
        table = columns_of(self.reader, produced, columns) @ self.values[:, columns].T
        record = BorderPattern(
            **vars(self.source.geometry), name="", operand=self.source.operands[0].name,
            reader=self.reader.node.name,
        )  # fmt: skip
        fold = FoldedIn(TableFold(len(self.values)), len(columns), table)
        return Skipped(fold, (Edit(record),))


@finder
def table_bypass(reader: Weighted, found: Found) -> TableBypass | None:
    """Find a padding convolution whose outputs only reach the given pointwise convolution."""
    (operand,) = reader.operands
    path = path_to(operand, found.operations) if len(operand.users) == 1 else None
    if path is None:
        return None
    channels, values = position_dependent(*path, found.signals)
    return TableBypass(reader, *path, channels, values) if channels.any() else None


def path_to(node: fx.Node, operations: Mapping[fx.Node, Operation]) -> Path | None:
    """Find the padding convolution that feeds only this node, through elementwise operations."""
    steps: list[Operation] = []
    while (step := operations.get(node)) is not None and step.is_step:
        steps.insert(0, step)
        (node,) = step.operands
        if len(node.users) != 1:
            return None
    return (step, tuple(steps)) if isinstance(step, Weighted) and _is_source(step) else None


def position_dependent(
    source: Weighted, steps: Sequence[Operation], signals: Mapping[fx.Node, Signal]
) -> tuple[Tensor, Tensor]:
    """Find the channels after a convolution and some steps that depend on the position alone.

    Returns:
        The channels, boolean, shape (C,); and their values, float64, shape (border patterns, C),
        0 in the other channels.
    """
    signal = signal_of(signals, source.operands[0], 1)
    groups, _, fan_in, _ = source.taps.shape
    fed = (source.connected & ~signal.constant.reshape(groups, 1, fan_in)).any(2).flatten()
    inside = taps_inside(source.geometry).double()
    values = inside @ source.contribution(signal.value).T + source.bias
    for step in steps:
        values = step.map_values(values)
    channels = ~fed & ~signals[source.node].constant & values.isfinite().all(0)
    return channels, torch.where(channels, values, 0)


def _is_source(operation: Weighted) -> bool:
    """True for a zero-padding convolution whose kernel always overlaps the input."""
    conv = operation.module
    if isinstance(conv, _ConvTransposeNd) or not isinstance(conv, _ConvNd):
        return False
    # A layer with a border kernel already adds values at the border.
    return (
        "border" not in operation.folded and pads_with_zeros(conv) and operation.geometry.is_partial
    )
