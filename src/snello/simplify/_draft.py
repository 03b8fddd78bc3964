"""A plan in the making, with the values that the lean model's new constants take."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, fx

from ._plan import (
    AttentionPlan,
    Drop,
    Fill,
    Gating,
    LayerPlan,
    Number,
    Overhang,
    Pick,
    SimplificationPlan,
    Slice,
    Statics,
    Sum,
)
from ._signal import Layout


class Draft:
    """Collects what the rules decide; :meth:`plan` freezes it.

    Attributes:
        values: key in the lean model's ``state_dict`` -> float64 value, for everything that is folded.
    """

    def __init__(
        self,
        input_shapes: tuple[tuple[int, ...], ...],
        overwritable: frozenset[fx.Node],
        base: SimplificationPlan | None,
    ) -> None:
        self.input_shapes = input_shapes
        self.overwritable = overwritable
        self.base = base
        # What is inserted into a model that is lean already must not take the names of what is there.
        self.prefix = "snello" if base is None else f"snello_{base.generation}"
        self.values: dict[str, Tensor] = {}
        self.layers: dict[str, LayerPlan] = {}
        self.attentions: dict[str, AttentionPlan] = {}
        self.norms: dict[str, tuple[int, ...]] = {}
        self.parameters: dict[str, Slice] = {}
        self._fills: dict[tuple[str, int, bytes], Fill] = {}
        self._sums: list[Sum] = []
        self._picks: list[Pick] = []
        self._drops: list[Drop] = []
        self._numbers: list[Number] = []
        self._overhangs: list[Overhang] = []
        self._gates: list[Gating] = []
        self._statics: list[Statics] = []

    def plan(self, left_alone: dict[str, str], *, removes: bool) -> SimplificationPlan:
        """The plan, frozen. Where no neuron goes, nothing is changed at all, not even the order of channels."""
        if not removes:
            self.values.clear()
            layers = {name: _untouched(layer) for name, layer in self.layers.items()}
            return SimplificationPlan(self.input_shapes, layers, left_alone=left_alone, base=self.base)
        return SimplificationPlan(
            self.input_shapes, dict(self.layers), dict(self.attentions), dict(self.norms), dict(self.parameters),
            tuple(self._fills.values()), tuple(self._sums), tuple(self._picks), tuple(self._drops),
            tuple(self._numbers), tuple(self._overhangs), tuple(self._gates), tuple(self._statics), left_alone,
            self.base,
        )  # fmt: skip

    def fill(self, operand: fx.Node, reader: fx.Node, axis: int, received: Layout, wanted: Layout) -> None:
        """Bring an operand into the layout that a reader wants. Readers that want the same share it."""
        key = (operand.name, axis, wanted.order.numpy().tobytes())
        if (fill := self._fills.get(key)) is not None:
            if reader.name not in fill.readers:
                self._fills[key] = Fill(**{**vars(fill), "readers": (*fill.readers, reader.name)})
            return
        missing = wanted.order[~received.present[wanted.order]]
        joined = torch.cat([received.order, missing])
        index = received.arranged(joined).positions()[wanted.order]
        constant = received.fill[missing]
        name = f"{self.prefix}_fill_{len(self._fills)}"
        self._fills[key] = Fill(
            name=name, operand=operand.name, readers=(reader.name,), axis=axis, appended=len(missing),
            zero=not bool((constant != 0).any()), index=_index(index, len(joined)),
        )  # fmt: skip
        if not self._fills[key].zero:
            self.values[f"{name}.constant"] = constant

    def sum(
        self,
        node: fx.Node,
        axis: int,
        base: int,
        layouts: tuple[Layout, Layout],
        produced: Layout,
        *,
        in_place: bool,
    ) -> None:
        """Add two operands that carry different channels; ``base`` says which one is added to."""
        receiver, other = layouts[base], layouts[1 - base]
        constant = (receiver.fill + other.fill)[produced.order]
        # What is absent from both is not in the result; what is present in one has a fill of 0 there.
        where = (constant != 0).nonzero().flatten()
        name = f"{self.prefix}_sum_{len(self._sums)}"
        index = produced.positions()[other.order]
        self._sums.append(
            Sum(
                name=name, node=node.name, base=base, axis=axis,
                grown=len(produced.order) - len(receiver.order), width=len(produced.order),
                index=tuple(index.tolist()) if len(index) else None,
                constants=tuple(where.tolist()), in_place=in_place,
            )
        )  # fmt: skip
        if len(where):
            self.values[f"{name}.constant"] = constant[where]

    def pick(self, node: fx.Node, operand: fx.Node, axis: int, index: Tensor | None, present: int) -> None:
        """Replace a node by some channels of an operand, given by their positions."""
        name = f"{self.prefix}_pick_{len(self._picks)}"
        positions = None if index is None else _index(index, present)
        self._picks.append(Pick(name, node.name, operand.name, axis, positions))

    def slice(self, parameter: str, axis: int, order: Tensor) -> None:
        """Keep some channels of a bare parameter or buffer."""
        self.parameters[parameter] = Slice(axis, tuple(order.tolist()))

    def drop(self, node: fx.Node, positions: list[int]) -> None:
        """Take operands out of a concatenation."""
        self._drops.append(Drop(node.name, tuple(positions)))

    def number(self, node: fx.Node, value: int, position: int = -1) -> None:
        """Write a number into the graph."""
        self._numbers.append(Number(node.name, position, value))

    def overhang(self, operand: fx.Node, reader: fx.Node, geometry: Overhang) -> None:
        """Tell a layer with a table how a kernel hangs over that reads the operand."""
        name = f"{self.prefix}_overhang_{len(self._overhangs)}"
        self._overhangs.append(replace(geometry, name=name, operand=operand.name, reader=reader.name))

    def gate(self, operand: fx.Node, reader: fx.Node) -> None:
        """Give a layer a gate to read."""
        self._gates.append(Gating(operand.name, reader.name))

    def statics(self, record: Statics, taps: Tensor) -> None:
        """Work out channels that depend on the position alone; ``taps``: shape (channels, kernel positions + 1)."""
        name = f"{self.prefix}_static_{len(self._statics)}"
        self._statics.append(replace(record, name=name))
        self.values[f"{name}.taps"] = taps


def _untouched(layer: LayerPlan) -> LayerPlan:
    return replace(layer, kept_outputs=tuple(range(layer.outputs)), kept_inputs=tuple(range(layer.inputs)))


def _index(index: Tensor, available: int) -> tuple[int, ...] | None:
    """Positions to select; None if they are all of those available, in order."""
    everything = len(index) == available and torch.equal(index, torch.arange(available))
    return None if everything else tuple(index.tolist())
