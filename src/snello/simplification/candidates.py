"""The ways to simplify a model, best first."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import nn

from snello.errors import ConfigError, ModelError, check_count
from snello.graph import Inputs, capture

from .agreement import agreement
from .candidate import Candidate, has_dead_neurons, stored
from .cost import CostModel, PlainCost
from .ir.edits import Pick, SetNumber
from .ir.plan import SimplificationPlan
from .passes.attributes import attributes
from .passes.coupled import coupled_plan
from .sequence import Passes, as_module, checked_constants

_OF_BATCHES = {torch.bmm, "bmm", torch.baddbmm, "baddbmm"}
"""Products of matrices that attention merges its heads with the batch for, which a graph with
indices of heads cannot follow.
"""


def candidates_of(
    model: nn.Module, inputs: Inputs, cost: CostModel, round_to: int, keep_class: bool
) -> Iterator[Candidate]:
    """Ways to simplify a model, best first.

    The last one has the outputs of the original for every model that can be verified.

    Raises:
        ConfigError: for a `round_to` that is no whole number, or below 1.
    """
    check_count("round_to", round_to)
    graph = capture(model, inputs)
    agreed = agreement(model, graph, inputs)
    own = Passes(
        model, replace(graph, runnable=False), inputs, PlainCost(), round_to, agreed.domain,
        own_class=True,
    )  # fmt: skip
    if keep_class or not graph.runnable or agreed.fault is not None:
        why = "keep_class asks for it" if keep_class else agreed.fault or graph.reason
        return _with_own_forward(own, f"the model's own forward stays: {why}")
    run = Passes(model, graph, inputs, cost, round_to, agreed.domain, own_class=False)
    return _with_graph(run, own)


def _with_own_forward(own: Passes, why: str) -> Iterator[Candidate]:
    """Candidates of a model whose forward stays as it is."""
    others = _of_own_class(own)
    first = next(others)
    yield from _narrower(own, first)
    for candidate in itertools.chain([first], others):
        yield _because(candidate, why)


def _with_graph(run: Passes, own: Passes) -> Iterator[Candidate]:
    """Candidates of a model whose forward can be replaced by a graph.

    Its own forward comes first where it gives up nothing; then the graph; and the own forward again
    for what the graph cannot run.
    """
    model, (arrangement, decision) = run.model, run.decide()
    if any(node.target in _OF_BATCHES for node in run.graph.nodes):
        for candidate in _of_own_class(own):
            if candidate.plan.layers and _kept(candidate.plan) < _kept(decision.plan):
                yield _because(candidate, "its heads are merged with the batch")
    if not run.unreached:
        mirrored = attributes(model, run.facts, decision.plan)
        if mirrored is not None:
            narrow = as_module(decision, mirrored)
            if has_dead_neurons(narrow, model):
                yield from _narrower(run, narrow)
            for candidate in run.with_narrower_heads(narrow):
                yield _because(candidate, "narrower layers are all that changes")
    lean = Candidate(decision.plan, decision.values, arrangement.layouts, run.facts.axes)
    yield from _narrower(run, lean, equal=True)
    yield _because(lean, run.why_graph(decision.plan))
    for candidate in _of_own_class(own):
        yield _because(candidate, "the lean graph does not run at every size that the model takes")


def _of_own_class(run: Passes) -> Iterator[Candidate]:
    """Ways to simplify a model without a change to its forward."""
    # A recorded graph has literal sizes where the code may compute them. First assume that it does;
    # verification shows whether that is right.
    _, decision = run.without_edits(numbers=False, picks=False)
    if decision.plan.edits_of(Pick):
        mirrored = attributes(run.model, run.facts, decision.plan)
        if mirrored is not None:
            yield from run.with_narrower_heads(as_module(decision, mirrored))
        _, decision = run.without_edits(numbers=False)
    if all(isinstance(edit, SetNumber) for edit in decision.plan.edits):
        if mirrored := attributes(run.model, run.facts, decision.plan):
            yield from run.with_narrower_heads(as_module(decision, mirrored))
        yield from run.with_narrower_heads(as_module(decision))
    yield from run.mended()
    _, decision = run.without_edits(numbers=True)
    if not decision.plan.edits:
        yield from run.with_narrower_heads(as_module(decision))
    whole = left_as_it_is(decision.plan, "its forward does not take narrower layers")
    yield Candidate(replace(whole, representation="module"), {})


def _narrower(run: Passes, other: Candidate, *, equal: bool = False) -> Iterator[Candidate]:
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
    plan = replace(plan, domain=run.domain, constants=checked_constants(run.graph.constants))
    found = _because(Candidate(plan, {}), "coupled channels are zero in all that uses them")
    try:
        sizes = [stored(candidate.build(run.model)) for candidate in (found, other)]
    except Exception:  # as in `holds`
        return
    if sizes[0] < sizes[1] or (equal and sizes[0] == sizes[1]):
        yield found


def left_as_it_is(plan: SimplificationPlan, reason: str) -> SimplificationPlan:
    """A plan that removes nothing, for the same inputs."""
    return SimplificationPlan(
        plan.input_shapes,
        left_alone={"the model": reason},
        base=plan.base,
        representation=plan.representation,
        constants=plan.constants,
        reason=plan.reason,
        domain=plan.domain,
    )


def _kept(plan: SimplificationPlan) -> int:
    """Products of the widths of all layers."""
    return sum(len(x.kept_outputs) * len(x.kept_inputs) for x in plan.layers.values())


def _because(candidate: Candidate, reason: str) -> Candidate:
    return replace(candidate, plan=replace(candidate.plan, reason=reason))
