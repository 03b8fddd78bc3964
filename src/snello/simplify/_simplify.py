"""From a model to a plan, and from a plan to a verified lean model."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from snello.graph import Graph, as_inputs, trace
from snello.neurons import is_weighted

from ._fold import folded_bias, folded_border, set_constants
from ._liveness import Layout, Liveness, analyse, operands
from ._plan import Adapter, LayerPlan, SimplificationPlan
from ._rewrite import apply
from ._rules import Add, BatchNorm, Layer, PadChannels
from ._verify import verify


def simplify(model: nn.Module, example_inputs: Tensor | tuple[Tensor, ...]) -> nn.Module:
    """Remove every dead neuron that can be removed; the outputs in evaluation mode stay the same.

    The result is verified in float64 on the example inputs, and at another batch size, before it is returned.

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
    graph = trace(source, inputs)
    liveness = analyse(graph)
    plan = _plan(graph, liveness, inputs)

    def build(original: nn.Module) -> nn.Module:
        lean = apply(plan, original)
        set_constants(lean, graph, liveness, plan)
        return lean

    # Folded constants are rounded to the model's dtype: exactness is shown on a float64 twin.
    reference = copy.deepcopy(source).double()
    verify(reference, build(reference), liveness, inputs)
    return build(source).train(model.training)


def make_plan(model: nn.Module, example_inputs: Tensor | tuple[Tensor, ...]) -> SimplificationPlan:
    """What :func:`simplify` would do, without doing it. Arguments and errors as there."""
    inputs = as_inputs(example_inputs)
    graph = trace(copy.deepcopy(model).eval(), inputs)
    return _plan(graph, analyse(graph), inputs)


def _plan(graph: Graph, liveness: Liveness, inputs: tuple[Tensor, ...]) -> SimplificationPlan:
    shapes = tuple(tuple(int(n) for n in x.shape) for x in inputs)
    layers = {
        str(node.target): _layer_plan(rule, liveness.layouts[operands(node)[0]], liveness.layouts[node])
        for node, rule in liveness.rules.items()
        if isinstance(rule, Layer)
    }
    left_alone = _left_alone(graph, liveness)
    if all(len(layer.kept_outputs) == layer.outputs for layer in layers.values()):
        # Nothing is dead: the model stays as it is, its own way of padding channels included.
        return SimplificationPlan(shapes, layers, {}, (), (), left_alone)
    norms = {
        str(node.target): tuple(liveness.layouts[node].kept.tolist())
        for node, rule in liveness.rules.items()
        if isinstance(rule, BatchNorm)
    }
    removed = tuple(node.name for node, rule in liveness.rules.items() if isinstance(rule, PadChannels))
    return SimplificationPlan(shapes, layers, norms, removed, _adapters(graph, liveness), left_alone)


def _layer_plan(rule: Layer, received: Layout, produced: Layout) -> LayerPlan:
    border = folded_border(rule, received, produced) is not None
    had_bias = isinstance(rule.module.bias, Tensor)
    return LayerPlan(
        outputs=produced.width,
        inputs=received.width,
        kept_outputs=tuple(produced.kept.tolist()),
        kept_inputs=tuple(received.kept.tolist()),
        bias=had_bias or bool((folded_bias(rule, received, produced) != 0).any()),
        border=border,
    )


def _adapters(graph: Graph, liveness: Liveness) -> tuple[Adapter, ...]:
    adapters = []
    for node in graph.nodes:
        rule = liveness.rules[node]
        if rule is not None and not isinstance(rule, Add):
            continue
        for operand in node.all_input_nodes:
            layout = liveness.layouts.get(operand)
            if layout is None:
                continue
            expected = liveness.layouts[node].kept if rule else torch.arange(layout.width)
            if not torch.equal(layout.kept, expected):
                adapters.append(_adapter(node, operand, layout, expected))
    # An operand of a sum of which nothing exists, under a result of which nothing exists, needs nothing.
    return tuple(adapter for adapter in adapters if adapter.width)


def _adapter(reader: fx.Node, operand: fx.Node, layout: Layout, expected: Tensor) -> Adapter:
    position = torch.full((layout.width,), -1)
    position[layout.kept] = torch.arange(len(layout.kept))
    return Adapter(
        reader=reader.name,
        operand=operand.name,
        index=tuple(position[expected].tolist()) if len(layout.kept) else None,
        width=len(expected),
        constant=bool((layout.fill[expected] != 0).any()),
    )


def _left_alone(graph: Graph, liveness: Liveness) -> dict[str, str]:
    reasons = {}
    for node in graph.nodes:
        module = graph.layer(node)
        if module is not None and is_weighted(module) and liveness.rules[node] is None:
            reasons[str(node.target)] = _why(graph, node, module)
        elif liveness.rules[node] is None and node.op not in ("placeholder", "output"):
            narrowed = [a for a in node.all_input_nodes if a in liveness.layouts]
            if any(not liveness.layouts[a].is_whole for a in narrowed):
                reasons[node.name] = (
                    f"no rule for {node._pretty_print_target(node.target)}: given at full width"
                )
    return reasons


def _why(graph: Graph, node: fx.Node, module: nn.Module) -> str:
    if graph.is_shared(str(node.target)):
        return "called more than once, or its parameters are tied"
    if isinstance(module, _ConvTransposeNd):
        return "transposed convolution"
    if isinstance(module, _ConvNd) and module.groups > 1:
        return "grouped convolution"
    return "channels are not on axis 1"
