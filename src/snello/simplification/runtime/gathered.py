"""The operation of fills and picks of an earlier simplification."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from snello.graph import known_shape
from snello.simplification.ir.channels import Layout, Signal
from snello.simplification.ir.edits import Pick
from snello.simplification.ops.operation import (
    Edit,
    Lowered,
    Operation,
    Placement,
    Wanted,
    positions,
)


@dataclass(frozen=True, eq=False)
class Gathered(Operation):
    """Channels of the operand and constants, in some order.

    The constants are not inserted again: the output is a selection of present channels, and its
    readers insert the constants that they need.

    Attributes:
        constants: float64, shape (appended,).
        source: for each channel of the output, an index into the operand's channels followed by the
            constants.
    """

    constants: Tensor
    source: Tensor

    def _from(self, operand: Tensor, constants: Tensor) -> Tensor:
        return torch.cat([operand, constants])[self.source]

    def propagate(self, *signals: Signal) -> Signal:
        (signal,) = signals
        constant = self._from(signal.constant, torch.ones(len(self.constants), dtype=torch.bool))
        return Signal(constant, self._from(signal.value, self.constants))

    def live_inputs(self, useful: Tensor, signal: Signal, *signals: Signal) -> list[Tensor]:
        return self.sources(useful)

    def sources(self, channels: Tensor) -> list[Tensor]:
        own = known_shape(self.operands[0])[self.axes[0]]
        read = torch.zeros(own + len(self.constants), dtype=torch.bool)
        read[self.source[channels]] = True
        return [read[:own]]

    def arrange(
        self, signal: Signal, useful: Tensor, *received: Layout, forced: Tensor | None = None
    ) -> Wanted:
        (layout,) = received
        places = self._places(layout)
        order = torch.argsort(places, stable=True)
        return [layout], Layout(
            order[places[order] >= 0], self._from(layout.absent, self.constants)
        )

    def _places(self, layout: Layout) -> Tensor:
        """Position of each channel of the output in the lean operand, or -1."""
        return self._from(layout.positions(), torch.full((len(self.constants),), -1))

    def lower(self, placement: Placement) -> Lowered:
        (layout,), produced = placement.received, placement.produced
        if produced.is_empty:
            return Lowered()
        index = positions(self._places(layout)[produced.order], len(layout.order))
        record = Pick("", self.node.name, self.operands[0].name, self.axes[0], index)
        return Lowered(edits=(Edit(record),))
