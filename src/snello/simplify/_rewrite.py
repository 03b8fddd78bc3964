"""Rewrite: apply a plan to a model, or to a freshly built one before its lean weights are loaded."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd

from snello.errors import ModelError
from snello.graph import trace

from ._layers import ChannelConstant, ChannelFill, with_border
from ._plan import Adapter, LayerPlan, SimplificationPlan


def apply(plan: SimplificationPlan, model: nn.Module) -> nn.Module:
    """A lean copy of the model, as the plan says. Rows and columns are sliced; constants are left at zero.

    To load a lean model: build the original architecture, apply the plan, load the lean ``state_dict``.

    Args:
        plan: from :func:`snello.simplify.make_plan`, or read from JSON.
        model: the architecture that the plan was made for; it is not changed.

    Raises:
        ModelError: if the plan was made for another architecture, naming the layer.
    """
    training = model.training
    graph = trace(copy.deepcopy(model).eval())  # in evaluation mode: tracing freezes functional dropout
    lean = graph.module
    nodes = {node.name: node for node in lean.graph.nodes}
    _check(plan, lean, nodes)
    for name, layer in plan.layers.items():
        _narrow_layer(lean.get_submodule(name), layer)
    for name, kept in plan.norms.items():
        _narrow_norm(lean.get_submodule(name), kept)
    _insert_adapters(lean, nodes, plan.adapters)
    _remove_nodes(nodes, plan.removed)
    lean.graph.eliminate_dead_code()
    lean.delete_all_unused_submodules()
    lean.recompile()
    lean.meta["snello_plan"] = plan.to_json()
    lean.__class__.__name__ = type(model).__name__
    return lean.train(training)


def plan_of(lean: nn.Module) -> SimplificationPlan | None:
    """The plan that made a lean model; None for a model that was not simplified."""
    text = getattr(lean, "meta", {}).get("snello_plan")
    return SimplificationPlan.from_json(text) if text else None


def _check(plan: SimplificationPlan, lean: fx.GraphModule, nodes: dict[str, fx.Node]) -> None:
    modules = dict(lean.named_modules())
    for name, layer in plan.layers.items():
        weight = getattr(modules.get(name), "weight", None)
        if not isinstance(weight, Tensor) or tuple(weight.shape[:2]) != (layer.outputs, layer.inputs):
            found = tuple(weight.shape[:2]) if isinstance(weight, Tensor) else "no such layer"
            raise ModelError(
                f"the plan was made for another model: layer {name!r} should be "
                f"{(layer.outputs, layer.inputs)} (outputs, inputs), found {found}"
            )
    named = [*plan.norms, *plan.removed, *(n for a in plan.adapters for n in (a.reader, a.operand))]
    if missing := [name for name in named if name not in modules and name not in nodes]:
        raise ModelError(f"the plan was made for another model: there is no {missing[0]!r}")


def _narrow_layer(module: nn.Module, plan: LayerPlan) -> None:
    rows, columns = torch.tensor(plan.kept_outputs), torch.tensor(plan.kept_inputs)
    weight: Tensor = module.weight.detach()  # type: ignore[union-attr, operator, assignment]
    rows, columns = rows.long().to(weight.device), columns.long().to(weight.device)
    _replace(module, "weight", weight[rows][:, columns])
    bias = module.bias
    if isinstance(bias, Tensor):
        _replace(module, "bias", bias.detach()[rows])
    elif plan.bias:
        module.bias = nn.Parameter(weight.new_zeros(len(rows)))
    if isinstance(module, _ConvNd):
        module.out_channels, module.in_channels = len(rows), len(columns)
        if plan.border:
            with_border(module)
    else:
        module.out_features, module.in_features = len(rows), len(columns)  # type: ignore[assignment]


def _narrow_norm(module: nn.Module, kept: Sequence[int]) -> None:
    index = torch.tensor(kept, dtype=torch.long)
    for name in ("weight", "bias"):
        if isinstance(parameter := getattr(module, name), Tensor):
            _replace(module, name, parameter.detach()[index.to(parameter.device)])
    for name in ("running_mean", "running_var"):
        buffer: Tensor = getattr(module, name)
        setattr(module, name, buffer[index.to(buffer.device)].clone())
    module.num_features = len(kept)  # type: ignore[assignment]


def _replace(module: nn.Module, name: str, value: Tensor) -> None:
    requires_grad = getattr(module, name).requires_grad
    # Contiguous in the memory format that the slice inherits (channels_last stays channels_last).
    setattr(module, name, nn.Parameter(value.clone(), requires_grad=requires_grad))


def adapter_name(number: int) -> str:
    """Name of the module that the plan's n-th adapter becomes in the lean model."""
    return f"snello_adapter_{number}"


def _insert_adapters(lean: fx.GraphModule, nodes: dict[str, fx.Node], adapters: Sequence[Adapter]) -> None:
    for number, adapter in enumerate(adapters):
        if adapter.index is not None:
            fill = ChannelFill(adapter.index, adapter.constant)
            reader, operand = nodes[adapter.reader], nodes[adapter.operand]
            reader.replace_input_with(operand, _call(lean, adapter_name(number), fill, reader, operand))
    # Only now may a sum vanish: what was inserted to read it follows its replacement.
    for number, adapter in enumerate(adapters):
        if adapter.index is None:
            _replace_sum(lean, nodes, adapter, adapter_name(number))


def _call(lean: fx.GraphModule, name: str, module: nn.Module, before: fx.Node, operand: fx.Node) -> fx.Node:
    _like_the_model(module, lean)
    lean.add_submodule(name, module)
    with lean.graph.inserting_before(before):
        return lean.graph.call_module(name, (operand,))


def _like_the_model(module: nn.Module, lean: nn.Module) -> None:
    """Device and dtype of the model's parameters, for a module that was made without any."""
    parameter = next(lean.parameters(), None)
    if parameter is not None:
        module.to(device=parameter.device, dtype=parameter.dtype)


def _replace_sum(lean: fx.GraphModule, nodes: dict[str, fx.Node], adapter: Adapter, name: str) -> None:
    """A sum of which one operand has no present channel: the other operand, plus constants if any."""
    reader, operand = nodes[adapter.reader], nodes[adapter.operand]
    other = next(a for a in reader.all_input_nodes if a is not operand)
    if adapter.constant:
        other = _call(lean, name, ChannelConstant(adapter.width), reader, other)
    reader.replace_all_uses_with(other)


def _remove_nodes(nodes: dict[str, fx.Node], removed: Sequence[str]) -> None:
    """Nodes that only pass on what they receive: their readers read their operand instead."""
    for name in removed:
        node = nodes[name]
        node.replace_all_uses_with(node.all_input_nodes[0])
