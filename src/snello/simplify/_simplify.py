"""From a model to a plan, and from a plan to a verified lean model."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor, fx, nn

from snello.errors import ConfigError
from snello.graph import Graph, as_inputs, capture
from snello.neurons import is_norm, is_weighted

from ._analysis import Analysis, Arrangement, analyse, arrange, whole_readers
from ._attention import is_attention, why_not
from ._cost import prefer_plain, prefer_speed, round_up, saves_bytes, saves_time
from ._draft import Draft
from ._fixed import checked_constants
from ._optimizer import rebind
from ._overwrite import overwritable
from ._plan import SimplificationPlan
from ._relief import Worth
from ._rewrite import apply, plan_of, sharing_parameters
from ._signal import Layout
from ._verify import verify
from ._weighted import Producer, is_plain

RELIEVED: dict[str, Worth] = {
    "bytes": saves_bytes, "latency": saves_time, "plain": lambda *_: False
}  # fmt: skip
"""Preference -> when to relieve a pointwise convolution of channels."""
PREFERENCES = tuple(RELIEVED)


def simplify(
    model: nn.Module,
    example_inputs: Tensor | tuple[Tensor, ...],
    *,
    optimizer: torch.optim.Optimizer | None = None,
    prefer: str = "bytes",
    round_to: int = 1,
) -> nn.Module:
    """Remove every dead neuron that can be removed; the outputs in evaluation mode stay the same.

    The result is verified in float64 on the example inputs, and at another batch size and resolution where
    the model takes them, before it is returned.

    Args:
        model: a model that torch.fx can trace; it is not changed.
        example_inputs: inputs of the real shape, batch first.
        optimizer: an optimizer of the model's parameters: its groups are rebound to the lean parameters, and
            its state (momentum, Adam's moments) is cut to the rows and columns that are kept, so that
            training goes on. It is changed only once everything else has succeeded.
        prefer: "bytes" removes every dead neuron; "latency" leaves those where they are whose removal would
            cost more time in index operations and tables than it saves; "plain" leaves those whose removal
            would need any of these, for int8 runtimes and compilers, whose fused graphs they break apart.
        round_to: keep dead neurons until the channel counts of linear layers and ungrouped convolutions are
            multiples of this, for hardware that likes such counts.

    Returns:
        A new module with the original layer names. ``plan_of(lean)`` tells what was done. Where there is
        nothing to remove, it computes what the original computes, operation by operation.

    Raises:
        ModelError: if the model cannot be traced or does not run on the example inputs.
        ConfigError: for another preference, a ``round_to`` below 1, or an optimizer that holds parameters
            which are not the model's.
        SimplifyError: if the outputs differ, naming the first layer that does. The model is untouched.
    """
    inputs = as_inputs(example_inputs)
    source = sharing_parameters(model).eval()
    analysis, arrangement, plan, values = _decide(source, inputs, prefer, round_to)

    def build(original: nn.Module) -> nn.Module:
        lean = apply(plan, original)
        set_constants(lean, values)
        return lean

    # Folded constants are rounded to the model's dtype: exactness is shown on a float64 twin.
    reference = source if _is_double(source) else copy.deepcopy(source).double()
    verify(reference, build(reference), arrangement.layouts, analysis.axes, inputs)
    lean = build(source)
    if _stored(lean) > _stored(source):  # a constant or two can be more than a tiny neuron
        grown = {"the model": "it would only have grown"}
        plan = SimplificationPlan(
            plan.input_shapes, left_alone=grown, base=plan.base, constants=plan.constants
        )
        lean = apply(plan, source)
    lean.train(model.training)
    if optimizer is not None:
        rebind(optimizer, model, lean, plan)
    return lean


def _is_double(model: nn.Module) -> bool:
    tensors = (*model.parameters(), *model.buffers())
    return all(x.dtype is torch.float64 for x in tensors if x.is_floating_point())


def _stored(model: nn.Module) -> int:
    """How many numbers the model's file holds."""
    return sum(value.numel() for value in model.state_dict().values())


def make_plan(
    model: nn.Module,
    example_inputs: Tensor | tuple[Tensor, ...],
    *,
    prefer: str = "bytes",
    round_to: int = 1,
) -> SimplificationPlan:
    """What :func:`simplify` would do, without doing it. Arguments and errors as there."""
    return _decide(sharing_parameters(model).eval(), as_inputs(example_inputs), prefer, round_to)[2]


Decision = tuple[Analysis, Arrangement, SimplificationPlan, dict[str, Tensor]]


def _decide(model: nn.Module, inputs: tuple[Tensor, ...], prefer: str, round_to: int) -> Decision:
    if prefer not in PREFERENCES:
        raise ConfigError(f"prefer must be one of {', '.join(PREFERENCES)}, not {prefer!r}")
    if round_to < 1:
        raise ConfigError(f"round_to must be at least 1, not {round_to}")
    analysis = analyse(capture(model, inputs), worth=RELIEVED[prefer])
    kept_alive: dict[fx.Node, Tensor] = {}
    arrangement = arrange(analysis, kept_alive)
    if round_to > 1:
        kept_alive.update(round_up(analysis, arrangement, round_to))
        arrangement = arrange(analysis, kept_alive)
    if prefer != "bytes":
        arrangement = (prefer_speed if prefer == "latency" else prefer_plain)(analysis, kept_alive)
    shapes = tuple(tuple(int(n) for n in x.shape) for x in inputs)
    draft = Draft(shapes, overwritable(analysis, arrangement), plan_of(model))
    for node, rule in analysis.rules.items():
        produced = arrangement.layouts.get(node, Layout.whole(0))
        rule.emit(draft, arrangement.received[node], arrangement.wanted[node], produced)
    removes = bool(draft.attentions) or any(
        isinstance(rule, Producer) and len(arrangement.layouts[node].order) < arrangement.layouts[node].width
        for node, rule in analysis.rules.items()
    )
    for relief in analysis.reliefs.values() if removes else ():
        relief.emit(draft, arrangement.layouts)
    for reader, operand in whole_readers(analysis):
        layout = arrangement.layouts[operand]
        if not layout.is_natural:
            draft.fill(operand, reader, analysis.axes[operand], layout, Layout.whole(layout.width))
    plan = draft.plan(_left_alone(model, analysis, arrangement), removes=removes)
    plan = replace(plan, constants=checked_constants(analysis.graph.constants))
    return analysis, arrangement, plan, draft.values


def set_constants(lean: nn.Module, values: dict[str, Tensor]) -> None:
    """Write folded biases, border kernels and fills into a lean model that the plan has shaped."""
    state = lean.state_dict(keep_vars=True)
    with torch.no_grad():
        for name, value in values.items():
            if name in state:
                state[name].copy_(value)


def _left_alone(model: nn.Module, analysis: Analysis, arrangement: Arrangement) -> dict[str, str]:
    graph = analysis.graph
    reasons = dict.fromkeys(_unreached(model, graph), "not reached in evaluation mode: it goes")
    for node in graph.nodes:
        module = graph.layer(node)
        if node in analysis.rules or node.op in ("placeholder", "output", "get_attr"):
            continue
        if module is not None and is_attention(module):
            reason = why_not(graph, node, module)
            reasons[str(node.target)] = reason or "its input has its channels on another axis"
            continue
        if module is not None and (is_weighted(module) or is_norm(module) or not is_plain(module)):
            reasons[str(node.target)] = _why(graph, node, module)
            continue
        narrowed = [a for a in node.all_input_nodes if a in arrangement.layouts]
        if any(not arrangement.layouts[a].is_natural for a in narrowed):
            target = node._pretty_print_target(node.target)
            name = str(node.target) if module is not None else node.name
            reasons[name] = f"no rule for {type(module).__name__ if module else target}: given at full width"
    return reasons


def _unreached(model: nn.Module, graph: Graph) -> list[str]:
    """Outermost modules with parameters that the evaluation graph never touches (training's auxiliary heads)."""
    reached = set(dict(graph.module.named_modules()))
    found: list[str] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if name and name not in reached and not inside and next(module.parameters(), None) is not None:
            found.append(name)
    return found


def _why(graph: Graph, node: fx.Node, module: nn.Module) -> str:
    if graph.is_shared(str(node.target)):
        return "called more than once, or its parameters are tied"
    if not is_plain(module):
        return "its weight is not a plain parameter (a parametrisation, or a mask of torch.nn.utils.prune)"
    if is_norm(module):
        return "its channels are coupled: given at full width"
    return "its input has its channels on another axis"
