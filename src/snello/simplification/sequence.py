"""The passes in order: from a captured model to a plan."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

from torch import fx, nn

from snello.errors import ModelError
from snello.graph import Graph, Inputs, at_place, shape_of
from snello.graph.coupled import Coupling

from .candidate import Candidate
from .cost import CostModel
from .ir.domain import Domain
from .ir.edits import Pick, SetNumber
from .ir.plan import SimplificationPlan
from .passes.attributes import Values, attributes
from .passes.constants import constants
from .passes.coupled import zero_channels
from .passes.facts import Arrangement
from .passes.faults import fault, mirrored_widths
from .passes.head_dimensions import head_dimensions
from .passes.layout import layout
from .passes.liveness import liveness
from .passes.lower import Decision, lower
from .passes.match import match
from .passes.overwrite import overwritable
from .passes.refused import RuleError
from .passes.report import left_alone, unreached
from .passes.widen import round_up, widen
from .passes.without_edits import without_edits
from .rewrite import plan_of

_ATTEMPTS = 8
"""Largest number of plans that are made to find the modules whose forward refuses narrower tensors."""


class Passes:
    """The passes in order, on one captured model.

    If a rule fails, its node is marked as refused and all passes are repeated without the rule.

    Args:
        model: the model.
        graph: what was captured of it.
        inputs: its example inputs.
        cost: what removals cost.
        round_to: number of which widths are multiples.
        domain: the inputs that the plan is checked for.
        own_class: whether the model keeps its own forward.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: Graph,
        inputs: Inputs,
        cost: CostModel,
        round_to: int,
        domain: Domain,
        *,
        own_class: bool,
    ) -> None:
        self.model, self.graph, self.inputs = model, graph, inputs
        self.cost, self.round_to, self.own_class = cost, round_to, own_class
        self.domain = domain
        self.base = plan_of(model)
        self.refused: dict[fx.Node, str] = {}

    @cached_property
    def zero_channels(self) -> tuple[Coupling, dict[str, list[int]]]:
        """The coupling of the model, and its channels that are zero."""
        return zero_channels(self.model, self.inputs)

    def decide(self) -> tuple[Arrangement, Decision]:
        """Make the plan."""
        return self._repeated(lambda arrangement: (arrangement, self._lower(arrangement)))

    def without_edits(self, *, numbers: bool, picks: bool = True) -> tuple[Arrangement, Decision]:
        """Make a plan that edits no graph; see the pass of that name."""
        kinds = (SetNumber,) * (not numbers) + (Pick,) * (not picks)
        return self._repeated(
            lambda arrangement: without_edits(self.facts, arrangement, self._lower, kinds)
        )

    def with_narrower_heads(self, candidate: Candidate) -> Iterator[Candidate]:
        """A candidate of the model's own class, after the same with narrower heads of attention."""
        found = head_dimensions(
            self.model, self.facts, self.inputs, candidate.plan, candidate.values
        )
        if found is not None:
            yield replace(candidate, plan=found[0], values=found[1])
        yield candidate

    def mended(self) -> Iterator[Candidate]:
        """A candidate of the model's own class whose forward runs, if it did not do so before.

        Attributes of the module at fault take the width that it is given. If that does not help,
        its operations are left alone from then on, and the passes start again.
        """
        mirrored: Values = {}
        before = dict(self.refused)
        for attempt in range(_ATTEMPTS):
            arrangement, decision = self.without_edits(numbers=False)
            if not all(isinstance(edit, SetNumber) for edit in decision.plan.edits):
                break
            known = attributes(self.model, self.facts, decision.plan) or {}
            candidate = as_module(decision, {**known, **mirrored})
            found = fault(candidate.build(self.model), self.inputs)
            if found is None:
                if attempt:
                    yield from self.with_narrower_heads(candidate)
                break
            more = mirrored_widths(self.model, self.facts, arrangement, found.modules)
            nodes = found.nodes(self.facts)
            if more.items() - mirrored.items():
                mirrored.update(more)
            elif set(nodes) - set(self.refused):
                self.refused.update(dict.fromkeys(nodes, found.reason))
            else:
                break
        self.refused = before

    @property
    def unreached(self) -> bool:
        """True if modules are removed because they are not called in evaluation mode."""
        return bool(unreached(self.model, self.graph))

    def why_graph(self, plan: SimplificationPlan) -> str:
        """The first change of a plan that the model's own forward cannot express, as a reason."""
        changed = [edit for edit in plan.edits if not isinstance(edit, SetNumber)]
        for edit, what in (
            *((edit, "channels are put in place for {!r}") for edit in changed),
            *((edit, "a number of channels is written into {!r}") for edit in plan.edits),
        ):
            name = edit.nodes[-1]
            node = next(node for node in self.graph.nodes if node.name == name)
            return what.format(name) + at_place(node)
        gone = unreached(self.model, self.graph)
        return f"evaluation mode never calls {gone[0]!r}" if gone else "its forward is captured"

    def _repeated(
        self, finish: Callable[[Arrangement], tuple[Arrangement, Decision]]
    ) -> tuple[Arrangement, Decision]:
        while True:
            try:
                self.facts = liveness(constants(match(self.graph, self.refused)), self.cost)
                rounded = round_up(self.facts, layout(self.facts), self.round_to)
                return finish(widen(self.facts, rounded, self.cost))
            except RuleError as error:
                _refuse(self.refused, error)

    def _lower(self, arrangement: Arrangement) -> Decision:
        draft = SimplificationPlan(
            input_shapes=self.inputs.shapes,
            left_alone=left_alone(self.model, self.facts, arrangement, own_class=self.own_class),
            base=self.base,
            domain=self.domain,
            constants=checked_constants(self.graph.constants),
        )
        return lower(self.facts, arrangement, overwritable(self.facts, arrangement), draft)


def as_module(decision: Decision, attributes: Values | None = None) -> Candidate:
    """A candidate of the model's own class: the layers of a decision, without its edits."""
    plan = replace(decision.plan, edits=(), representation="module", attributes=attributes or {})
    return Candidate(plan, decision.values)


def _refuse(refused: dict[fx.Node, str], error: RuleError) -> None:
    """Leave a node alone whose rule has failed; the passes start again without it.

    Of an operation with several results, each part goes with the others.
    """
    node = error.node
    source = node.args[0] if node.target is operator.getitem else node
    whole = source if isinstance(source, fx.Node) and shape_of(source) is None else node
    parts = (user for user in whole.users if user.target is operator.getitem)
    refused.update(
        dict.fromkeys((node, whole, *(parts if shape_of(whole) is None else ())), error.reason)
    )


_PLAIN = (bool, int, float, str, type(None))


def checked_constants(constants: Mapping[str, Any]) -> dict[str, Any]:
    """Return fixed arguments of the forward.

    Raises:
        ModelError: for a value that cannot be written into a plan as JSON.
    """
    for name, value in constants.items():
        if not isinstance(value, _PLAIN) and value not in ((), {}):
            raise ModelError(
                f"the forward's argument {name!r} has the value {value!r}, which decides the path through "
                "the model and cannot be written into a plan; use None, a number, a text or a boolean"
            )
    return dict(constants)
