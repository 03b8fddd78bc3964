"""Appliers of edits: one function per kind of record, registered by type."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, TypeVar

from torch import fx, nn

from snello.simplification.ir.edits import (
    BorderPattern,
    DropOperands,
    Fill,
    GateInput,
    GraphEdit,
    IndexedSum,
    Pick,
    PositionDependent,
    SetNumber,
)
from snello.simplification.ops.call import CONVOLUTIONS, UNFLATTENS, argument, size_arguments
from snello.simplification.runtime.border_pattern import BorderPatterns
from snello.simplification.runtime.fill import ChannelFill
from snello.simplification.runtime.indexed_sum import ChannelSum
from snello.simplification.runtime.pick import ChannelPick
from snello.simplification.runtime.position_dependent import (
    AppendedMeans,
    PositionDependentChannels,
)

from .builder import Builder

Applier = Callable[[Builder, Any], None]
AnyApplier = TypeVar("AnyApplier", bound=Applier)

_appliers: dict[type[GraphEdit], Applier] = {}


def applies(kind: type[GraphEdit]) -> Callable[[AnyApplier], AnyApplier]:
    """Register the function that applies edits of a kind."""

    def register(applier: AnyApplier) -> AnyApplier:
        _appliers[kind] = applier
        return applier

    return register


def apply_edit(builder: Builder, edit: GraphEdit) -> None:
    """Apply one edit to the graph; the node names in other edits stay valid."""
    _appliers[type(edit)](builder, edit)


@applies(SetNumber)
def _set_number(builder: Builder, edit: SetNumber) -> None:
    node = builder.node(edit.node)
    if edit.position >= 0:
        sizes = list(size_arguments(node))
        sizes[edit.position] = edit.value
        if node.target in UNFLATTENS:
            node.args = (node.args[0], argument(node, 1, "dim"), tuple(sizes))
            node.kwargs = {}
            return
        if node.target in CONVOLUTIONS:
            node.args, node.kwargs = (node.args[0], *sizes), {}
            return
        operand = node.args[: isinstance(node.args[0], fx.Node)]
        nested = isinstance(node.args[len(operand)], (tuple, list))
        node.args = (*operand, tuple(sizes)) if nested else (*operand, *sizes)
        return
    for reader in list(node.users):
        swap = lambda a: edit.value if a is node else a  # noqa: E731
        reader.args = fx.map_arg(reader.args, swap)
        reader.kwargs = fx.map_arg(reader.kwargs, swap)


@applies(GateInput)
def _give_gate(builder: Builder, edit: GateInput) -> None:
    builder.give(builder.node(edit.reader), gate=builder.node(edit.operand))


@applies(Fill)
def _fill(builder: Builder, edit: Fill) -> None:
    operand = builder.node(edit.operand)
    inserted = builder.insert(edit.name, ChannelFill(edit), operand, (operand,))
    for reader in edit.readers:
        builder.node(reader).replace_input_with(operand, inserted)


@applies(DropOperands)
def _drop(builder: Builder, edit: DropOperands) -> None:
    node = builder.node(edit.node)
    left = [a for i, a in enumerate(argument(node, 0, "tensors")) if i not in edit.positions]
    if node.args:
        node.args = (left, *node.args[1:])
    else:
        node.kwargs = {**node.kwargs, "tensors": left}


@applies(IndexedSum)
def _sum(builder: Builder, edit: IndexedSum) -> None:
    node = builder.node(edit.node)
    indexed = edit.index is not None
    given = (node.args[edit.base], node.args[1 - edit.base]) if indexed else (node.args[edit.base],)
    operands = [a for a in given if isinstance(a, fx.Node)]
    if not indexed and not edit.constants:
        builder.replace(edit.node, operands[0])
    else:
        builder.replace(edit.node, builder.insert(edit.name, ChannelSum(edit), node, operands))


@applies(Pick)
def _pick(builder: Builder, edit: Pick) -> None:
    node, operand = builder.node(edit.node), builder.node(edit.operand)
    if edit.index is not None:
        operand = builder.insert(edit.name, ChannelPick(edit.axis, edit.index), node, (operand,))
    builder.replace(edit.node, operand)


@applies(BorderPattern)
def _give_pattern(builder: Builder, edit: BorderPattern) -> None:
    operand = builder.node(edit.operand)
    pattern = builder.insert(edit.name, BorderPatterns(edit), operand, (operand,))
    builder.give(builder.node(edit.reader), pattern=pattern)


@applies(PositionDependent)
def _give_position_dependent(builder: Builder, edit: PositionDependent) -> None:
    activations = [copy.deepcopy(builder.lean.get_submodule(name)) for name in edit.activations]
    operand = builder.node(edit.operand)
    module = PositionDependentChannels(edit, nn.Sequential(*activations))
    static = builder.insert(edit.name, module, operand, (operand,))
    builder.give(builder.node(edit.reader), static=static)
    if edit.averaged:
        average, squeeze = builder.node(edit.average), builder.node(edit.squeeze)
        name = f"{edit.name}_means"
        appended = builder.insert(name, AppendedMeans(), average, (average, static))
        squeeze.replace_input_with(average, appended)
