"""Pass 4: decide, from the first node to the last, the present channels and their order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from snello.errors import SimplifyError
from snello.graph import known_shape
from snello.simplification.ir.channels import Layout
from snello.simplification.ops.operation import Operation, Wanted

from .facts import Arrangement, Facts
from .refused import rule_of


def layout(facts: Facts, forced: Mapping[fx.Node, Tensor] | None = None) -> Arrangement:
    """Lay out the channels of every tensor of the lean network.

    1. A producer keeps the neurons that are useful and not constant, or those in `forced`.
    2. Any other operation arranges its operands, which determines the layout of its output.
    3. The reader of a bypass receives the layout that the bypass returns.
    4. A tensor that is needed (for its values or only for its shape) but has no channel left is
       *unmaterialised*: one neuron of a producer upstream is forced to stay, and the pass is
       repeated.

    Args:
        facts: facts about the model.
        forced: producer -> the neurons that it must keep, in order, instead of the live ones.

    Requires:
        All attributes of `facts`.

    Ensures:
        Every operand that is read has at least one channel. `forced` of the result contains the
        given producers and those of case 4.

    Raises:
        SimplifyError: if a neuron that was forced to stay does not materialise the tensor.
    """
    needed = dict(forced or {})
    while True:
        draft = _Draft(facts, needed)
        unmaterialised = draft.fill_in()
        if unmaterialised is None:
            return Arrangement(draft.layouts, draft.received, draft.wanted, needed)
        producer, channel = _producer(facts, unmaterialised)
        kept = draft.layouts[producer].order
        if channel in kept:
            raise SimplifyError(
                f"{unmaterialised.name!r} needs a channel that {producer.name!r} cannot give it"
            )
        needed[producer] = torch.cat([kept, torch.tensor([channel])]).sort().values


@dataclass
class _Draft:
    """Layouts of one run of the pass, node by node."""

    facts: Facts
    forced: Mapping[fx.Node, Tensor]
    layouts: dict[fx.Node, Layout] = field(default_factory=dict)
    received: dict[fx.Node, list[Layout]] = field(default_factory=dict)
    wanted: dict[fx.Node, list[Layout]] = field(default_factory=dict)

    def fill_in(self) -> fx.Node | None:
        """Lay out all nodes; stop at an unmaterialised tensor and return it."""
        for node in self.facts.graph.nodes:
            operation = self.facts.operations.get(node)
            missing = self._read_whole(node) if operation is None else self._lay_out(operation)
            if missing is not None:
                return missing
        return None

    def _read_whole(self, node: fx.Node) -> fx.Node | None:
        """Return an unmaterialised operand of a node without an operation."""
        operands = (a for a in node.all_input_nodes if a in self.layouts)
        return next((a for a in operands if self.layouts[a].is_empty), None)

    def _lay_out(self, operation: Operation) -> fx.Node | None:
        """Note the layouts around an operation; return an unmaterialised operand, if any."""
        node = operation.node
        operands = zip(operation.operands, operation.axes, strict=True)
        received = [self._layout_of(operand, axis) for operand, axis in operands]
        if (bypass := self.facts.bypasses.get(node)) is not None:
            received = [bypass.received(received[0])]
        wanted = received
        if node in self.facts.axes:
            wanted, self.layouts[node] = self._arrange(operation, received)
        for operand, has, wants in zip(operation.operands, received, wanted, strict=True):
            if has.is_empty and (operation.reads_shape_alone or not wants.is_empty):
                return operand
        self.received[node], self.wanted[node] = received, wanted
        return None

    def _layout_of(self, node: fx.Node, axis: int) -> Layout:
        return self.layouts.get(node) or Layout.whole(known_shape(node)[axis])

    def _arrange(self, operation: Operation, received: list[Layout]) -> Wanted:
        node = operation.node
        signal, useful = self.facts.signals[node], self.facts.useful[node]
        with rule_of(node):
            return operation.arrange(signal, useful, *received, forced=self.forced.get(node))


def _producer(facts: Facts, node: fx.Node) -> tuple[fx.Node, int]:
    """Find a producer upstream of a node, and one of its neurons that the node depends on."""
    channels = torch.ones_like(facts.useful[node])
    while not (operation := facts.operations[node]).produces:
        sources = zip(operation.operands, operation.sources(channels), strict=True)
        node, channels = next((a, c) for a, c in sources if a in facts.axes and c.any())
    return node, int(channels.nonzero()[0])
