"""From a model to a plan, and from a plan to a verified lean model: the sequence of the passes."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from snello.errors import ConfigError, ModelError
from snello.graph import Graph, as_inputs, capture

from . import runtime as runtime  # registers the rules of modules inside lean networks
from .cost import CostModel, cost_model
from .ir.plan import SimplificationPlan
from .passes.constants import constants
from .passes.facts import Arrangement, Facts
from .passes.layout import layout
from .passes.liveness import liveness
from .passes.lower import Decision, lower
from .passes.match import match
from .passes.overwrite import overwritable
from .passes.refused import RuleError
from .passes.report import left_alone
from .passes.widen import round_up, widen
from .rewrite import apply, plan_of, rebind, sharing_parameters, write_values
from .verify import verify


def simplify(
    model: nn.Module,
    example_inputs: Tensor | tuple[Tensor, ...],
    *,
    optimizer: torch.optim.Optimizer | None = None,
    prefer: str | CostModel = "bytes",
    round_to: int = 1,
) -> nn.Module:
    """Remove every dead neuron that can be removed; the outputs in evaluation mode stay the same.

    The result is verified in float64 on the example inputs, and at another batch size and resolution where
    the model takes them, before it is returned.

    Args:
        model: a model that torch.fx can trace; it is not changed.
        example_inputs: inputs of the real shape, batch first.
        optimizer: an optimizer of the model's parameters: its groups are rebound to the lean parameters,
            and its state (momentum, Adam's moments) is cut to the rows and columns that are kept, so that
            training goes on. It is changed only once everything else has succeeded.
        prefer: "bytes" removes every dead neuron; "latency" leaves those where they are whose removal
            would cost more time in index operations and tables than it saves; "plain" leaves those whose
            removal would need any of these, for int8 runtimes and compilers, whose fused graphs they
            break apart. Or a :class:`CostModel`: ``Latency(timings)`` with the timings of another machine.
        round_to: keep dead neurons until the channel counts of linear layers and ungrouped convolutions
            are multiples of this, for hardware that likes such counts.

    Returns:
        A new module with the original layer names. ``plan_of(lean)`` lists the removals. Where there is
        nothing to remove, it computes what the original computes, operation by operation.

    Raises:
        ModelError: if the model cannot be traced or does not run on the example inputs.
        ConfigError: for another preference, a ``round_to`` below 1, or an optimizer that holds parameters
            which are not the model's.
        SimplifyError: if the outputs differ, naming the first layer that does. The model is untouched.
    """
    inputs = as_inputs(example_inputs)
    source = sharing_parameters(model).eval()
    analysis = _analyse(source, inputs, prefer, round_to)
    plan, values = analysis.decision.plan, analysis.decision.values

    def build(original: nn.Module) -> nn.Module:
        lean = apply(plan, original)
        write_values(lean, values)
        return lean

    # Folded constants are rounded to the model's dtype: exactness is shown on a float64 twin.
    reference = source if _is_double(source) else copy.deepcopy(source).double()
    layouts, axes = analysis.arrangement.layouts, analysis.facts.axes
    verify(reference, build(reference), layouts, axes, inputs)
    lean = build(source)
    if _stored(lean) > _stored(source):  # a constant or two can take more than a tiny neuron
        plan = _left_as_it_is(plan)
        lean = apply(plan, source)
    lean.train(model.training)
    if optimizer is not None:
        rebind(optimizer, model, lean, plan)
    return lean


def make_plan(
    model: nn.Module,
    example_inputs: Tensor | tuple[Tensor, ...],
    *,
    prefer: str | CostModel = "bytes",
    round_to: int = 1,
) -> SimplificationPlan:
    """Return the plan of :func:`simplify` without applying it. Arguments and errors as there."""
    source = sharing_parameters(model).eval()
    return _analyse(source, as_inputs(example_inputs), prefer, round_to).decision.plan


@dataclass(frozen=True)
class _Analysis:
    """Results of all passes."""

    facts: Facts
    arrangement: Arrangement
    decision: Decision


def _analyse(
    model: nn.Module, inputs: tuple[Tensor, ...], prefer: str | CostModel, round_to: int
) -> _Analysis:
    cost = cost_model(prefer)
    if round_to < 1:
        raise ConfigError(f"round_to must be at least 1, not {round_to}")
    graph = capture(model, inputs)
    refused: dict[fx.Node, str] = {}
    while True:
        try:
            return _passes(model, graph, inputs, refused, cost, round_to)
        except RuleError as failed:
            _refuse(refused, failed)


def _refuse(refused: dict[fx.Node, str], failed: RuleError) -> None:
    """Leave a node alone whose rule has failed; the passes start again without it."""
    refused[failed.node] = failed.reason


def _passes(
    model: nn.Module,
    graph: Graph,
    inputs: tuple[Tensor, ...],
    refused: dict[fx.Node, str],
    cost: CostModel,
    round_to: int,
) -> _Analysis:
    facts = liveness(constants(match(graph, refused)), cost)
    arrangement = widen(facts, round_up(facts, layout(facts), round_to), cost)
    draft = SimplificationPlan(
        input_shapes=tuple(tuple(int(n) for n in x.shape) for x in inputs),
        left_alone=left_alone(model, facts, arrangement),
        base=plan_of(model),
        constants=_checked(facts.graph.constants),
    )
    decision = lower(facts, arrangement, overwritable(facts, arrangement), draft)
    return _Analysis(facts, arrangement, decision)


_PLAIN = (bool, int, float, str, type(None))


def _checked(constants: Mapping[str, Any]) -> dict[str, Any]:
    """Return fixed arguments of the forward if a plan can hold them as JSON."""
    for name, value in constants.items():
        if not isinstance(value, _PLAIN) and value not in ((), {}):
            raise ModelError(
                f"the forward's argument {name!r} has the value {value!r}, which decides the path through "
                "the model and cannot be written into a plan; use None, a number, a text or a boolean"
            )
    return dict(constants)


def _left_as_it_is(plan: SimplificationPlan) -> SimplificationPlan:
    return SimplificationPlan(
        plan.input_shapes,
        left_alone={"the model": "it would only have grown"},
        base=plan.base,
        constants=plan.constants,
    )


def _is_double(model: nn.Module) -> bool:
    tensors = (*model.parameters(), *model.buffers())
    return all(x.dtype is torch.float64 for x in tensors if x.is_floating_point())


def _stored(model: nn.Module) -> int:
    """Number of numbers in the model's file."""
    return sum(value.numel() for value in model.state_dict().values())
