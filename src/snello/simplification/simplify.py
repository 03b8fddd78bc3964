"""The sequence of the passes: from a model to a plan, and to a verified lean model."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import fx, nn

from snello.errors import ConfigError, ModelError
from snello.graph import Example, Graph, Inputs, at_place, capture, shape_of
from snello.graph.coupled import Coupling
from snello.neurons import check_finite
from snello.optimizers import Optimizers, optimizers_of
from snello.wrappers import double, doubled, unwrapped

from . import runtime as runtime  # registers the rules of modules inside lean networks
from .agreement import Agreement, agreement
from .candidate import Candidate, has_dead_neurons, holds, not_verifiable, stored
from .cost import CostModel, PlainCost, cost_model
from .ir.edits import Pick, SetNumber
from .ir.plan import SimplificationPlan
from .passes.attributes import Values, attributes
from .passes.constants import constants
from .passes.coupled import coupled_plan, zero_channels
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
from .rewrite import apply, in_modes_of, plan_of, rebind, sharing_parameters


def simplify(
    model: nn.Module,
    example_inputs: Example,
    *,
    optimizer: Optimizers = None,
    prefer: str | CostModel = "bytes",
    round_to: int = 1,
    keep_class: bool = False,
) -> nn.Module:
    """Remove every dead neuron that can be removed; the outputs in evaluation mode stay the same.

    The result is verified in float64 on the example inputs, and at another batch size and
    resolution if the model accepts them, before it is returned.

    Args:
        model: a model that runs on the example inputs; it is not changed.
        example_inputs: inputs of the real shape, batch first: a tensor, a tuple of positional
            arguments, a mapping of keyword arguments, or [`snello.graph.Inputs`][]; of any
            nesting.
        optimizer: an optimizer of the model's parameters, or a list of several: its groups are
            rebound to the lean parameters, and its state (momentum, Adam's moments) is narrowed to
            the kept rows and columns, so that training can continue. It is changed only after
            everything else has succeeded.
        prefer: "bytes" removes every dead neuron; "latency" keeps dead neurons whose removal would
            cost more time in index operations and tables than it saves; "plain" keeps those whose
            removal would need any of these, for int8 runtimes and compilers, because index
            operations prevent the fusion of operations. Or a
            [`CostModel`][snello.simplification.CostModel], such as `LatencyCost(timings)` with the
            timings of another machine.
        round_to: keep dead neurons until the channel counts of linear layers and ungrouped
            convolutions are multiples of this number, for hardware that is faster at multiples.
        keep_class: keep dead neurons wherever their removal would change more than layers, so that
            the result is of the model's own class, with its own forward. Implies the choices of
            "plain"; `prefer` is then only checked.

    Returns:
        A new module with the original layer names. `plan_of(lean)` lists the removals. If
        narrowing layers is enough, it is of the model's own class; this is always so with
        `keep_class`, and if torch.fx cannot trace the model. Else it is a captured graph with
        index operations; see `plan_of(lean).representation`. If there is nothing to remove, it
        computes the same operations as the original.

    Raises:
        ModelError: if the model does not run on the example inputs, has an output that cannot be
            verified, or contains a NaN.
        ConfigError: for another preference, a `round_to` below 1, or an optimizer that holds
            parameters which are not the model's.
        SimplifyError: if the outputs differ, naming the first layer that does. The model is
            untouched.
    """
    model = _checked_model(model, "simplify")
    inputs = Inputs.of(example_inputs)
    source = sharing_parameters(model).eval()
    optimizers = optimizers_of(optimizer, "simplify")
    # Folded constants are rounded to the model's dtype; exactness is checked on a copy in float64.
    # A copy even if the model is in float64: some models store values for the size of an input.
    reference = sharing_parameters(source) if _is_double(source) else doubled(source)
    candidates = _candidates(source, inputs, cost_model(prefer), round_to, keep_class)
    chosen = next((c for c in candidates if holds(c, reference, inputs)), None)
    if chosen is None:
        raise not_verifiable(reference, inputs)
    lean = chosen.build(source)
    plan = chosen.plan
    if stored(lean) > stored(source):  # folded constants can take more than small neurons
        plan = _left_as_it_is(plan, "it would only have grown")
        lean = apply(plan, source)
    rebind(optimizers, model, lean, plan)
    return in_modes_of(model, lean)


def make_plan(
    model: nn.Module,
    example_inputs: Example,
    *,
    prefer: str | CostModel = "bytes",
    round_to: int = 1,
    keep_class: bool = False,
) -> SimplificationPlan:
    """Return the plan of `simplify` without applying it. Arguments and errors as there."""
    model = _checked_model(model, "make_plan")
    source, inputs = sharing_parameters(model).eval(), Inputs.of(example_inputs)
    return next(_candidates(source, inputs, cost_model(prefer), round_to, keep_class)).plan


def _checked_model(model: nn.Module, what: str) -> nn.Module:
    """Unwrap a model.

    Raises:
        ModelError: for a sharded or scripted model, or a NaN among its weights.
    """
    model = unwrapped(model, what)
    check_finite(model, type(model).__name__)
    return model


def _candidates(
    model: nn.Module, inputs: Inputs, cost: CostModel, round_to: int, keep_class: bool
) -> Iterator[Candidate]:
    """Ways to simplify a model, best first.

    The last one has the outputs of the original for every model that can be verified.

    Raises:
        ConfigError: for a `round_to` below 1.
    """
    if round_to < 1:
        raise ConfigError(f"round_to must be at least 1, not {round_to}")
    graph = capture(model, inputs)
    agreed = agreement(model, graph, inputs)
    own = keep_class or not graph.runnable or agreed.fault is not None
    recorded = replace(graph, runnable=False)
    if own:
        graph = recorded
    run = _Passes(model, graph, inputs, PlainCost() if own else cost, round_to, own, agreed)
    if own:
        why = "keep_class asks for it" if keep_class else agreed.fault or graph.reason
        own_class = _of_own_class(run)
        first = next(own_class)
        yield from _narrower(run, first)
        for candidate in itertools.chain([first], own_class):
            yield _because(candidate, f"the model's own forward stays: {why}")
        return
    arrangement, decision = run.decide()
    other = _Passes(model, recorded, inputs, PlainCost(), round_to, True, agreed)
    if any(node.target in _OF_BATCHES for node in graph.nodes):
        for candidate in _of_own_class(other):
            if candidate.plan.layers and _kept(candidate.plan) < _kept(decision.plan):
                yield _because(candidate, "its heads are merged with the batch")
    if not run.unreached:
        mirrored = attributes(model, run.facts, decision.plan)
        if mirrored is not None:
            narrow = _as_module(decision, mirrored)
            if has_dead_neurons(narrow, model):
                yield from _narrower(run, narrow)
            for candidate in run.with_narrower_heads(narrow):
                yield _because(candidate, "narrower layers are all that changes")
    lean = Candidate(decision.plan, decision.values, arrangement.layouts, run.facts.axes)
    yield from _narrower(run, lean, equal=True)
    yield _because(lean, run.why_graph(decision.plan))
    for candidate in _of_own_class(other):
        yield _because(candidate, "the lean graph does not run at every size that the model takes")


def _narrower(run: _Passes, other: Candidate, *, equal: bool = False) -> Iterator[Candidate]:
    """The model's own class without the coupled channels that are zero, if it is the smaller one.

    Args:
        run: the passes on the model.
        other: the candidate to compare it with.
        equal: whether one of the same size is a candidate, too.
    """
    if (
        run.refused
        or run.round_to > 1
        or (run.base is not None and run.base.representation == "graph")
    ):
        return
    try:
        groups, removed = run.zero_channels
        if not removed:
            return
        plan = coupled_plan(run.model, groups, removed, run.inputs, run.base)
    except (ModelError, ConfigError):  # the coupling has no rule, or all of an axis would go
        return
    plan = replace(plan, domain=run.domain, constants=_checked(run.graph.constants))
    found = _because(Candidate(plan, {}), "coupled channels are zero in all that uses them")
    try:
        sizes = [stored(candidate.build(run.model)) for candidate in (found, other)]
    except Exception:  # as in `holds`
        return
    if sizes[0] < sizes[1] or (equal and sizes[0] == sizes[1]):
        yield found


_ATTEMPTS = 8
"""Largest number of plans that are made to find the modules whose forward refuses narrower tensors."""

_OF_BATCHES = {torch.bmm, "bmm", torch.baddbmm, "baddbmm"}
"""Products of matrices that attention merges its heads with the batch for, which a graph with
indices of heads cannot follow.
"""


def _kept(plan: SimplificationPlan) -> int:
    """Products of the widths of all layers."""
    return sum(len(x.kept_outputs) * len(x.kept_inputs) for x in plan.layers.values())


def _because(candidate: Candidate, reason: str) -> Candidate:
    return replace(candidate, plan=replace(candidate.plan, reason=reason))


def _of_own_class(run: _Passes) -> Iterator[Candidate]:
    """Ways to simplify a model without a change to its forward."""
    # A recorded graph has literal sizes where the code may compute them. First assume that it does;
    # verification shows whether that is right.
    _, decision = run.without_edits(numbers=False, picks=False)
    if decision.plan.edits_of(Pick):
        mirrored = attributes(run.model, run.facts, decision.plan)
        if mirrored is not None:
            yield from run.with_narrower_heads(_as_module(decision, mirrored))
        _, decision = run.without_edits(numbers=False)
    if all(isinstance(edit, SetNumber) for edit in decision.plan.edits):
        if mirrored := attributes(run.model, run.facts, decision.plan):
            yield from run.with_narrower_heads(_as_module(decision, mirrored))
        yield from run.with_narrower_heads(_as_module(decision))
    yield from run.mended()
    _, decision = run.without_edits(numbers=True)
    if not decision.plan.edits:
        yield from run.with_narrower_heads(_as_module(decision))
    whole = _left_as_it_is(decision.plan, "its forward does not take narrower layers")
    yield Candidate(replace(whole, representation="module"), {})


def _as_module(decision: Decision, attributes: Values | None = None) -> Candidate:
    plan = replace(decision.plan, edits=(), representation="module", attributes=attributes or {})
    return Candidate(plan, decision.values)


class _Passes:
    """The passes in order, on one captured model.

    If a rule fails, its node is marked as refused and all passes are repeated without the rule.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: Graph,
        inputs: Inputs,
        cost: CostModel,
        round_to: int,
        own_class: bool,
        agreed: Agreement,
    ) -> None:
        self.model, self.graph, self.inputs = model, graph, inputs
        self.cost, self.round_to, self.own_class = cost, round_to, own_class
        self.domain = agreed.domain
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
            candidate = _as_module(decision, {**known, **mirrored})
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
            constants=_checked(self.graph.constants),
        )
        return lower(self.facts, arrangement, overwritable(self.facts, arrangement), draft)


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


def _checked(constants: Mapping[str, Any]) -> dict[str, Any]:
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


def _left_as_it_is(plan: SimplificationPlan, reason: str) -> SimplificationPlan:
    return SimplificationPlan(
        plan.input_shapes,
        left_alone={"the model": reason},
        base=plan.base,
        representation=plan.representation,
        constants=plan.constants,
        reason=plan.reason,
        domain=plan.domain,
    )


def _is_double(model: nn.Module) -> bool:
    return all(double(x) is x for x in (*model.parameters(), *model.buffers()))
