"""From a model to a plan, and from a plan to a verified lean model."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, fx, nn

from snello.graph import Graph, as_inputs, trace
from snello.neurons import is_norm, is_weighted

from ._analysis import Analysis, Arrangement, analyse, arrange, whole_readers
from ._draft import Draft
from ._match import is_plain
from ._overwrite import overwritable
from ._plan import SimplificationPlan
from ._rewrite import apply
from ._signal import Layout, same_order
from ._verify import verify


def simplify(model: nn.Module, example_inputs: Tensor | tuple[Tensor, ...]) -> nn.Module:
    """Remove every dead neuron that can be removed; the outputs in evaluation mode stay the same.

    The result is verified in float64 on the example inputs, and at another batch size and resolution where
    the model takes them, before it is returned.

    Args:
        model: a model that torch.fx can trace; it is not changed.
        example_inputs: inputs of the real shape, batch first.

    Returns:
        A new module with the original layer names. ``plan_of(lean)`` tells what was done. Where there is
        nothing to remove, it computes what the original computes, operation by operation.

    Raises:
        ModelError: if the model cannot be traced or does not run on the example inputs.
        SimplifyError: if the outputs differ, naming the first layer that does. The model is untouched.
    """
    inputs = as_inputs(example_inputs)
    source = copy.deepcopy(model).eval()
    analysis, arrangement, plan, values = _decide(source, inputs)

    def build(original: nn.Module) -> nn.Module:
        lean = apply(plan, original)
        set_constants(lean, values)
        return lean

    # Folded constants are rounded to the model's dtype: exactness is shown on a float64 twin.
    reference = copy.deepcopy(source).double()
    verify(reference, build(reference), arrangement.layouts, analysis.axes, inputs)
    return build(source).train(model.training)


def make_plan(model: nn.Module, example_inputs: Tensor | tuple[Tensor, ...]) -> SimplificationPlan:
    """What :func:`simplify` would do, without doing it. Arguments and errors as there."""
    return _decide(copy.deepcopy(model).eval(), as_inputs(example_inputs))[2]


Decision = tuple[Analysis, Arrangement, SimplificationPlan, dict[str, Tensor]]


def _decide(model: nn.Module, inputs: tuple[Tensor, ...]) -> Decision:
    analysis = analyse(trace(model, inputs))
    arrangement = arrange(analysis, {})
    shapes = tuple(tuple(int(n) for n in x.shape) for x in inputs)
    draft = Draft(shapes, overwritable(analysis, arrangement))
    for node, rule in analysis.rules.items():
        produced = arrangement.layouts.get(node, Layout.whole(0))
        rule.emit(draft, arrangement.received[node], arrangement.wanted[node], produced)
    for reader, operand in whole_readers(analysis):
        layout = arrangement.layouts[operand]
        if not layout.is_natural:
            draft.fill(operand, reader, analysis.axes[operand], layout, Layout.whole(layout.width))
    plan = draft.plan(_left_alone(analysis, arrangement))
    return analysis, arrangement, plan, draft.values


def set_constants(lean: nn.Module, values: dict[str, Tensor]) -> None:
    """Write folded biases, border kernels and fills into a lean model that the plan has shaped."""
    state = lean.state_dict(keep_vars=True)
    with torch.no_grad():
        for name, value in values.items():
            if name in state:
                state[name].copy_(value)


def _left_alone(analysis: Analysis, arrangement: Arrangement) -> dict[str, str]:
    graph, reasons = analysis.graph, {}
    for node in graph.nodes:
        module = graph.layer(node)
        if node in analysis.rules or node.op in ("placeholder", "output", "get_attr"):
            continue
        if module is not None and (is_weighted(module) or is_norm(module)):
            reasons[str(node.target)] = _why(graph, node, module)
            continue
        narrowed = [a for a in node.all_input_nodes if a in arrangement.layouts]
        if any(not arrangement.layouts[a].is_natural for a in narrowed):
            target = node._pretty_print_target(node.target)
            name = str(node.target) if module is not None else node.name
            reasons[name] = f"no rule for {type(module).__name__ if module else target}: given at full width"
    return reasons


def _why(graph: Graph, node: fx.Node, module: nn.Module) -> str:
    if graph.is_shared(str(node.target)):
        return "called more than once, or its parameters are tied"
    if is_weighted(module) and not is_plain(module):
        return "its weight is not a plain parameter (a parametrisation, or a mask of torch.nn.utils.prune)"
    if is_norm(module):
        return "its channels are coupled: given at full width"
    return "its input has its channels on another axis"


__all__ = ["make_plan", "same_order", "simplify"]
