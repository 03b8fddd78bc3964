"""Bypass by the gate: squeeze-and-excitation of dead channels, up to a pointwise convolution.

A gate is one number per example and channel. Where it multiplies a constant channel, the product is
the same at every position, so that the feature map is not needed. The pointwise convolution after
the product reads the gate instead, with its columns multiplied by the constants, and adds the
result at every position.

The channel may also depend on the position alone (see `table`). It then has few distinct
values, which are computed once per resolution: the pointwise convolution reads the gate times each
of these, and the first layer of the squeeze-and-excitation is given the averages of the channel.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx, nn

from snello.graph import known_shape
from snello.simplification.ir.channels import Layout, same_order
from snello.simplification.ir.edits import GateInput, PositionDependent
from snello.simplification.ir.folds import GateFold
from snello.simplification.ops.channelwise import PerChannel
from snello.simplification.ops.elementwise import Elementwise
from snello.simplification.ops.layers import Weighted
from snello.simplification.ops.norms import Affine
from snello.simplification.ops.operation import Edit, FoldedIn, Operation, adapter, signal_of
from snello.simplification.work import Saving, Work

from .bypass import Accepted, Bypass, Found, Skipped, columns_of, finder, positions
from .table import path_to, position_dependent

_AVERAGES = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)


@dataclass(frozen=True, eq=False)
class Padded:
    """Channels between a padding convolution and a gate that depend on the position alone.

    Attributes:
        source: the convolution.
        average: the node that averages over the positions.
        squeeze: the pointwise convolution that is the only reader of the average.
        activations: names of the activation modules after the convolution and its norms.
        channels: boolean, shape (C,).
        taps: float64, shape (C, kernel positions + 1): the sum of weight times constant input for
            each kernel position, and the bias in the last column, with the norms folded in.
    """

    source: Weighted
    average: fx.Node
    squeeze: Weighted
    activations: tuple[str, ...]
    channels: Tensor
    taps: Tensor


@dataclass(frozen=True, eq=False)
class GateBypass(Bypass):
    """The product of a feature map and a gate, and the pointwise convolution that alone reads it.

    Attributes:
        product: the multiplication.
        gate: node of the gate.
        channels: boolean, shape (C,): the channels in which only the gate depends on the input.
        varying: boolean, shape (C,): the channels in which the map depends on the input.
        values: float64, shape (C,): the constant that the gate multiplies; 1 where it depends on
            the position.
        padded: the part of `channels` that depends on the position; None if there is none.
    """

    product: Elementwise
    gate: fx.Node
    channels: Tensor
    varying: Tensor
    values: Tensor
    padded: Padded | None

    @property
    def choices(self) -> tuple[GateBypass, ...]:
        """With the channels that depend on the position, and without."""
        if self.padded is None:
            return (self,)
        moved = self.channels & self.padded.channels
        return (
            self,
            replace(
                self, channels=self.channels & ~moved, varying=self.varying | moved, padded=None
            ),
        )

    def skips(self, read: Tensor) -> Tensor:
        # Nothing is skipped if no channel would remain: a convolution needs at least one input.
        return read & self.channels & (read & self.varying).any()

    def saving(self, neurons: int, channels: int) -> Saving:
        written = positions(self.reader.node)
        # Without the bypass, the constant channels are inserted into the map, multiplied and read.
        before = Work(
            calls=1, macs=channels * written * neurons, elementwise=channels * written,
            moved=channels * written,
        )  # fmt: skip
        if self.padded is None:
            # Channels of the gate are selected and multiplied by columns; the result is added.
            after = Work(calls=3, macs=channels * neurons, moved=neurons * written)
        else:
            taps, padded = self.padded.source.taps.shape[3], int(self.padded.channels.sum())
            before += Work(calls=1, macs=padded * written * taps, elementwise=padded * written)
            # An upper bound of the values per channel: one per tap. The results are selected by
            # position and added.
            values = min(taps, written)
            after = Work(
                calls=6, macs=neurons * values * (channels + written), moved=2 * neurons * written
            )
        # The columns are still stored; the constants (or filters and norms) of the channels and
        # their columns in the convolution are not.
        return Saving(channels * (neurons + 1), channels * neurons, before, after)

    def accepted(self, skipped: Tensor) -> Accepted:
        padded = self.padded and replace(self.padded, channels=self.padded.channels & skipped)
        if padded is not None and not padded.channels.any():
            padded = None
        return Accepted(
            replace(self, channels=skipped, padded=padded),
            follows=None if padded is None else AverageBypass(padded.squeeze, padded),
            read={self.gate: skipped},
            unmade={self.product.node: skipped},
        )

    def lower(self, layouts: Mapping[fx.Node, Layout]) -> Skipped:
        produced, given = layouts[self.reader.node], layouts[self.gate]
        padded = torch.zeros_like(self.channels) if self.padded is None else self.padded.channels
        constant = (self.channels & ~padded & given.present).nonzero().flatten()
        columns = torch.cat([constant, padded.nonzero().flatten()])
        weight = columns_of(self.reader, produced, columns) * self.values[columns]
        kernel: tuple[int, ...] = self.reader.module.kernel_size  # type: ignore[assignment]
        fold = FoldedIn(GateFold(len(columns)), len(columns), weight.view(*weight.shape, *kernel))
        edits = [Edit(GateInput(self.gate.name, self.reader.node.name))]
        if not same_order(given, wanted := given.arranged(columns)):
            edits.append(adapter(self.gate, self.reader.node, 1, given, wanted))
        if self.padded is not None:
            absent = ~layouts[self.padded.average].present[self.padded.channels]
            edits.append(self._position_dependent(self.padded, len(constant), absent))
        return Skipped(fold, tuple(edits))

    def _position_dependent(self, padded: Padded, constants: int, absent: Tensor) -> Edit:
        record = PositionDependent(
            **vars(padded.source.geometry), name="", operand=padded.source.operands[0].name,
            reader=self.reader.node.name, average=padded.average.name, squeeze=padded.squeeze.node.name,
            activations=padded.activations, channels=len(absent), constants=constants,
            averaged=tuple(absent.nonzero().flatten().tolist()),
        )  # fmt: skip
        return Edit(record, {"taps": padded.taps[padded.channels]})


@dataclass(frozen=True, eq=False)
class AverageBypass(Bypass):
    """The squeeze layer of a gate, which is given the averages of channels that are not computed.

    It follows from a `GateBypass`, which also records it in the plan.

    Attributes:
        padded: the channels that are not computed.
    """

    padded: Padded

    def skips(self, read: Tensor) -> Tensor:
        return read & self.padded.channels

    def received(self, layout: Layout) -> Layout:
        # The averages are appended.
        known = self.padded.channels
        return Layout(layout.order, layout.absent.masked_fill(known, 0)).extended(known)


@finder
def gate_bypass(reader: Weighted, found: Found) -> GateBypass | None:
    """Find a product of a gate and constant channels that only a pointwise convolution reads."""
    (product,) = reader.operands
    operation = found.operations.get(product)
    # The reader must follow the product directly, so that no in-place operation can overwrite the
    # gate in between.
    if (
        not isinstance(operation, Elementwise)
        or not _is_gated(operation)
        or product.next is not reader.node
    ):
        return None
    gate, gated = sorted(operation.operands, key=_spatial)
    if _spatial(gate) > 1 or _spatial(gated) == 1 or not {gate, gated} <= found.signals.keys():
        return None
    needed, constant = ~found.signals[product].constant, found.signals[gated].constant
    padded = _padded(gate, gated, found)
    known = constant if padded is None else constant | padded.channels
    channels = needed & known
    if not channels.any():
        return None
    values = torch.where(constant, found.signals[gated].value, 1)
    return GateBypass(reader, operation, gate, channels, needed & ~known, values, padded)


def _is_gated(operation: Elementwise) -> bool:
    """True for a product of two tensors that only one node reads."""
    alone = operation.product and not (
        operation.unknown or operation.parameters or operation.shared
    )
    return (
        alone
        and len(operation.operands) == 2
        and len(operation.node.users) == 1
        and operation.axes == (1, 1)
    )


def _spatial(node: fx.Node) -> int:
    """Number of positions of a feature map; 1 for a gate."""
    return math.prod(known_shape(node)[2:])


def _padded(gate: fx.Node, gated: fx.Node, found: Found) -> Padded | None:
    """Find the channels of a gated map that depend on the position alone; None if there are none.

    The gate has to be computed from the averages of the map, which is then read by nothing else.
    """
    squeeze, path = _squeeze(gate, gated, found), path_to(gated, found.operations)
    if squeeze is None or path is None:
        return None
    source, steps = path
    followed = _taps_behind(source, steps, found)
    if followed is None:
        return None
    taps, activations = followed
    channels = position_dependent(source, steps, found.signals)[0] & ~found.signals[gated].constant
    has_shift = source.module.bias is not None or any(isinstance(step, Affine) for step in steps)
    # Without bias and norm, the taps would take more numbers than the filters that they replace.
    if not channels.any() or not has_shift:
        return None
    return Padded(source, squeeze.operands[0], squeeze, activations, channels, taps)


def _taps_behind(
    source: Weighted, steps: tuple[Operation, ...], found: Found
) -> tuple[Tensor, tuple[str, ...]] | None:
    """Taps of a convolution with its norms folded in, and names of the activations after it.

    None if a step is neither a norm before the activations nor an activation module: for example a
    functional call, or a norm after an activation.
    """
    signal = signal_of(found.signals, source.operands[0], 1)
    taps = torch.cat([source.contribution(signal.value), source.bias[:, None]], 1)
    activations: list[str] = []
    for step in steps:
        if isinstance(step, Affine) and step.scale is not None and not activations:
            shift = step.map_values(torch.zeros_like(step.scale))
            taps = taps * step.scale[:, None]
            taps[:, -1] += shift
        elif isinstance(step, Elementwise) and found.graph.layer(step.node) is not None:
            activations.append(str(step.node.target))
        elif not isinstance(step, PerChannel) or step.function is not None:
            return None
    return taps, tuple(activations)


def _squeeze(gate: fx.Node, gated: fx.Node, found: Found) -> Weighted | None:
    """Find the first layer after the average over a map from which its gate is computed.

    None if the gate is computed in another way.
    """
    node, layer = gate, None
    while len(node.users) == 1 and (operation := found.operations.get(node)) is not None:
        if isinstance(pool := found.graph.layer(node), _AVERAGES):
            sizes = pool.output_size if isinstance(pool.output_size, tuple) else (pool.output_size,)
            whole = set(sizes) == {1} and operation.operands[0] is gated and len(gated.users) == 2
            return layer if whole and layer is not None and layer.operands[0] is node else None
        if isinstance(operation, Weighted) and operation.is_pointwise:
            layer = operation
        elif not operation.is_step:
            return None
        (node,) = operation.operands
    return None
