"""Rewrite: apply a plan to a model, or to a freshly built one before its lean weights are loaded."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from snello.errors import ModelError
from snello.graph import capture

from ._calls import DROPOUTS, argument, one_by_one
from ._code import reach_directly
from ._fixed import erase_arguments
from ._lean_attention import dense, is_attention
from ._lean_gate import AppendedMeans, StaticChannels, add_gate
from ._lean_position import Overhangs, add_table
from ._lean_windows import lean_attention
from ._plan import AttentionPlan, LayerPlan, SimplificationPlan, Slice, Statics
from ._primitives import (
    ChannelFill,
    ChannelPick,
    ChannelSum,
    RaggedConv,
    add_border,
    is_even,
)


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
    if plan.base is not None and plan_of(model) is None:
        model = apply(plan.base, model)
    # In evaluation mode: tracing freezes functional dropout, and takes one side of ``if self.training``.
    copied = sharing_parameters(model).eval()
    lean = capture(copied, constants=plan.constants).module
    _check(plan, lean)
    _wake_dropout(copied, lean, plan.constants)
    _Rewriter(lean).edit(plan)
    lean.graph.eliminate_dead_code()
    erase_arguments(lean.graph, plan.constants)
    lean.delete_all_unused_submodules()
    # Only what is still called is narrowed: a dead branch has gone with its layers.
    present = dict(lean.named_modules())
    for name, layer in plan.layers.items():
        if name in present:
            narrow_layer(lean, name, layer)
    for name, attention in plan.attentions.items():
        if name in present:
            lean.set_submodule(name, lean_attention(present[name], attention))
    for name, kept in plan.norms.items():
        if name in present:
            _narrow_norm(present[name], kept)
    for name, part in plan.parameters.items():
        _narrow_parameter(lean, name, part)
    _own_parameters(lean, model)
    # Tensors written in the forward are made again when a fresh model is traced: no part of the weights.
    lean._non_persistent_buffers_set |= {
        name for name in lean._buffers if name.startswith("_tensor_constant")
    }
    lean.graph.on_generate_code(lambda _: reach_directly)
    lean.recompile()
    lean.meta["snello_plan"] = plan.to_json()
    lean.__class__.__name__ = type(model).__name__
    return lean.train(training)


def sharing_parameters(model: nn.Module) -> nn.Module:
    """A copy that has the parameters themselves: of the largest models memory has no room for many copies."""
    return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})


def _own_parameters(lean: nn.Module, model: nn.Module) -> None:
    """Copy what nothing was cut from, and the lean model would share."""
    shared = {id(parameter) for parameter in model.parameters()}
    # What was cut is new already. One memo for all: what is tied stays tied.
    memo: dict[int, object] = {id(p): p for p in lean.parameters() if id(p) not in shared}
    for parent in list(lean.modules()):
        for name, module in parent._modules.items():
            # Whole modules: some know their parameters by other names, too (the flat weights of recurrent layers).
            if module is not None and any(id(p) in shared for p in module._parameters.values()):
                parent._modules[name] = copy.deepcopy(module, memo)
    for name, parameter in lean._parameters.items():
        lean._parameters[name] = copy.deepcopy(parameter, memo)


def plan_of(lean: nn.Module) -> SimplificationPlan | None:
    """The plan that made a lean model; None for a model that was not simplified."""
    text = getattr(lean, "meta", {}).get("snello_plan")
    return SimplificationPlan.from_json(text) if text else None


def weight_widths(weight: Tensor, module: nn.Module) -> tuple[int, int]:
    """Outputs and inputs of a layer with weights."""
    if isinstance(module, _ConvNd):
        return module.out_channels, module.in_channels
    return int(weight.shape[0]), int(weight.shape[1])


def _check(plan: SimplificationPlan, lean: fx.GraphModule) -> None:
    modules, nodes = dict(lean.named_modules()), {node.name for node in lean.graph.nodes}
    for name, layer in plan.layers.items():
        weight = getattr(modules.get(name), "weight", None)
        found = weight_widths(weight, modules[name]) if isinstance(weight, Tensor) else "no such layer"
        if found != (layer.outputs, layer.inputs):
            raise ModelError(
                f"the plan was made for another model: layer {name!r} should be "
                f"{(layer.outputs, layer.inputs)} (outputs, inputs), found {found}"
            )
    for name, attention in plan.attentions.items():
        _check_attention(name, attention, modules.get(name))
    named = [node for fill in plan.fills for node in (fill.operand, *fill.readers)]
    named += [*(x.node for x in plan.sums), *(x.node for x in plan.drops), *(x.node for x in plan.numbers)]
    named += [node for pick in plan.picks for node in (pick.operand, pick.node)]
    named += [node for overhang in plan.overhangs for node in (overhang.operand, overhang.reader)]
    named += [node for gate in plan.gates for node in (gate.operand, gate.reader)]
    named += [node for x in plan.statics for node in (x.operand, x.reader, x.average, x.squeeze)]
    parameters = {name for name, _ in (*lean.named_parameters(), *lean.named_buffers())}
    missing = [name for name in plan.norms if name not in modules]
    missing += [name for x in plan.statics for name in x.activations if name not in modules]
    missing += [name for name in named if name not in nodes]
    missing += [name for name in plan.parameters if name not in parameters]
    if missing:
        raise ModelError(f"the plan was made for another model: there is no {missing[0]!r}")


def _check_attention(name: str, plan: AttentionPlan, module: nn.Module | None) -> None:
    found: object = "no such attention"
    if is_attention(module) and getattr(module, "in_proj_weight", module) is not None:
        own = dense(module)
        found = (len(own.out_weight), own.weight.shape[1], own.heads, len(own.weight) // (3 * own.heads))
    if found != (expected := (plan.outputs, plan.inputs, plan.heads, plan.width)):
        raise ModelError(
            f"the plan was made for another model: attention {name!r} should be {expected} "
            f"(outputs, inputs, heads, width of a head), found {found}"
        )


def _wake_dropout(model: nn.Module, lean: fx.GraphModule, constants: Mapping[str, Any]) -> None:
    """Functional dropout whose ``training`` follows the model's mode becomes a module, which follows it too."""
    if not any(node.target in DROPOUTS for node in lean.graph.nodes):
        return
    try:
        traced = capture(model.train(), constants=constants).module
        in_training = {node.name: node for node in traced.graph.nodes}
    finally:
        model.eval()
    for node in list(lean.graph.nodes):
        twin = in_training.get(node.name)
        if node.target not in DROPOUTS or twin is None or twin.target is not node.target:
            continue
        if _is_training(twin) and not _is_training(node):
            name = f"snello_{node.name}"
            lean.add_submodule(name, DROPOUTS[node.target](argument(node, 1, "p", 0.5)))
            node.op, node.target, node.args, node.kwargs = "call_module", name, (node.args[0],), {}


def _is_training(node: fx.Node) -> bool:
    return bool(argument(node, 2, "training", True))


class _Rewriter:
    """Edits a traced graph; the plan speaks of its nodes by the names that they had when it was traced."""

    def __init__(self, lean: fx.GraphModule) -> None:
        self.lean = lean
        self.nodes = {node.name: node for node in lean.graph.nodes}
        parameter = next(lean.parameters(), None)
        self.like = torch.zeros(0) if parameter is None else parameter

    def edit(self, plan: SimplificationPlan) -> None:
        """All changes to the graph, each of which leaves the names of the others valid."""
        for number in plan.numbers:
            self._write_number(self.nodes[number.node], number.position, number.value)
        for gate in plan.gates:
            _give(self.nodes[gate.reader], gate=self.nodes[gate.operand])
        for fill in plan.fills:
            operand = self.nodes[fill.operand]
            inserted = self._insert(fill.name, ChannelFill(fill), operand, (operand,))
            for reader in fill.readers:
                self.nodes[reader].replace_input_with(operand, inserted)
        for drop in plan.drops:
            node = self.nodes[drop.node]
            left = [a for i, a in enumerate(argument(node, 0, "tensors")) if i not in drop.positions]
            if node.args:
                node.args = (left, *node.args[1:])
            else:
                node.kwargs = {**node.kwargs, "tensors": left}
        for sum_ in plan.sums:
            self._replace_sum(sum_.node, sum_.base, sum_.index is not None, ChannelSum(sum_), sum_.name)
        for pick in plan.picks:
            node, operand = self.nodes[pick.node], self.nodes[pick.operand]
            if pick.index is not None:
                module = ChannelPick(pick.axis, pick.index)
                operand = self._insert(pick.name, module, node, (operand,))
            self._replace(pick.node, operand)
        for overhang in plan.overhangs:
            operand, reader = self.nodes[overhang.operand], self.nodes[overhang.reader]
            _give(reader, ways=self._insert(overhang.name, Overhangs(overhang), operand, (operand,)))
        for static in plan.statics:
            self._insert_static(static)

    def _insert_static(self, plan: Statics) -> None:
        activations = [copy.deepcopy(self.lean.get_submodule(name)) for name in plan.activations]
        operand, reader = self.nodes[plan.operand], self.nodes[plan.reader]
        module = StaticChannels(plan, nn.Sequential(*activations))
        static = self._insert(plan.name, module, operand, (operand,))
        _give(reader, static=static)
        if plan.averaged:
            average, squeeze = self.nodes[plan.average], self.nodes[plan.squeeze]
            appended = self._insert(f"{plan.name}_means", AppendedMeans(), average, (average, static))
            squeeze.replace_input_with(average, appended)

    def _insert(self, name: str, module: nn.Module, after: fx.Node, operands: Sequence[fx.Node]) -> fx.Node:
        module.to(device=self.like.device, dtype=self.like.dtype if self.like.is_floating_point() else None)
        self.lean.add_submodule(name, module)
        with self.lean.graph.inserting_after(after):
            return self.lean.graph.call_module(name, tuple(operands))

    def _replace(self, name: str, by: fx.Node) -> None:
        node = self.nodes[name]
        node.replace_all_uses_with(by)
        self.nodes = {key: by if value is node else value for key, value in self.nodes.items()}

    def _replace_sum(self, name: str, base: int, indexed: bool, module: ChannelSum, key: str) -> None:
        node = self.nodes[name]
        given = (node.args[base], node.args[1 - base]) if indexed else (node.args[base],)
        operands = [a for a in given if isinstance(a, fx.Node)]
        if not indexed and module.constant is None:
            self._replace(name, operands[0])
        else:
            self._replace(name, self._insert(key, module, node, operands))

    def _write_number(self, node: fx.Node, position: int, value: int) -> None:
        if position >= 0:
            sizes = list(one_by_one(node.args[1:]))
            sizes[position] = value
            nested = isinstance(node.args[1], (tuple, list))
            node.args = (node.args[0], tuple(sizes)) if nested else (node.args[0], *sizes)
            return
        for reader in list(node.users):
            swap = lambda a: value if a is node else a  # noqa: E731
            reader.args, reader.kwargs = fx.map_arg(reader.args, swap), fx.map_arg(reader.kwargs, swap)


def _give(reader: fx.Node, **operands: fx.Node) -> None:
    """Give a layer more to read."""
    reader.kwargs = {**reader.kwargs, **operands}


def _replace_parameter(module: nn.Module, name: str, value: Tensor) -> None:
    requires_grad = getattr(module, name).requires_grad
    setattr(module, name, nn.Parameter(value, requires_grad=requires_grad))


def narrow_layer(lean: nn.Module, name: str, plan: LayerPlan) -> None:
    """Cut a layer of the lean model to its kept rows and columns."""
    module = lean.get_submodule(name)
    grouped = plan.groups > 1 and not isinstance(module, _ConvTransposeNd)
    if grouped and isinstance(module, _ConvNd) and not is_even(plan):
        lean.set_submodule(name, RaggedConv(module, plan))
        return
    weight: Tensor = module.weight.detach()  # type: ignore[union-attr, operator, assignment]
    outputs, inputs = (
        torch.tensor(x, device=weight.device).long() for x in (plan.kept_outputs, plan.kept_inputs)
    )
    _replace_parameter(module, "weight", sliced_weight(module, weight, plan))
    bias = module.bias
    if isinstance(bias, Tensor):
        _replace_parameter(module, "bias", bias.detach()[outputs])
    elif plan.bias:
        module.bias = nn.Parameter(weight.new_zeros(len(outputs)))
    if isinstance(module, _ConvNd):
        module.out_channels, module.in_channels = len(outputs), len(inputs)
        if plan.groups > 1:
            module.groups = len(torch.unique(outputs // (plan.outputs // plan.groups)))
        if plan.border:
            add_border(module, outputs)
        if plan.table:
            add_table(module, outputs, plan.table)
        if plan.gated:
            add_gate(module, outputs, plan.gated)
    else:
        module.out_features, module.in_features = len(outputs), len(inputs)  # type: ignore[assignment]


def sliced_weight(module: nn.Module, weight: Tensor, plan: LayerPlan) -> Tensor:
    """The kept rows and columns of a weight, or of whatever has its shape (a gradient, a moment)."""
    # Indexing leaves strides of its own, on which layers are slow; channels_last stays channels_last.
    channels_last = weight.dim() == 4 and not weight.is_contiguous()
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return _sliced(module, weight, plan).clone(memory_format=memory_format)


def _sliced(module: nn.Module, weight: Tensor, plan: LayerPlan) -> Tensor:
    outputs, inputs = (
        torch.tensor(x, device=weight.device).long() for x in (plan.kept_outputs, plan.kept_inputs)
    )
    transposed = isinstance(module, _ConvTransposeNd)
    if plan.groups == 1:
        rows, columns = (inputs, outputs) if transposed else (outputs, inputs)
        return weight.index_select(0, rows).index_select(1, columns)
    fan_out, fan_in = plan.outputs // plan.groups, plan.inputs // plan.groups
    # Rows are kept outputs (inputs, if transposed); the columns of each are those of its own group.
    rows, columns, own, fan = (
        (inputs, outputs, inputs // fan_in, fan_out)
        if transposed
        else (outputs, inputs, outputs // fan_out, fan_in)
    )
    members = {int(g): columns[columns // fan == g] % fan for g in torch.unique(own)}
    return weight[rows[:, None], torch.stack([members[int(g)] for g in own])]


def _narrow_norm(module: nn.Module, kept: Sequence[int]) -> None:
    index = torch.tensor(kept, dtype=torch.long)
    for name in ("weight", "bias"):
        if isinstance(parameter := getattr(module, name, None), Tensor):
            _replace_parameter(module, name, parameter.detach()[index.to(parameter.device)])
    for name in ("running_mean", "running_var"):
        if isinstance(buffer := getattr(module, name, None), Tensor):
            setattr(module, name, buffer[index.to(buffer.device)].clone())
    for name in ("num_features", "num_parameters"):
        if hasattr(module, name):
            setattr(module, name, len(kept))


def _narrow_parameter(lean: nn.Module, name: str, part: Slice) -> None:
    owner, _, attribute = name.rpartition(".")
    try:
        module = lean.get_submodule(owner)
    except AttributeError:
        return  # it belonged to a branch that has gone
    tensor: Tensor = getattr(module, attribute)
    kept = tensor.detach().index_select(part.axis, torch.tensor(part.kept, device=tensor.device))
    if isinstance(tensor, nn.Parameter):
        _replace_parameter(module, attribute, kept)
    else:
        setattr(module, attribute, kept)
    if isinstance(module, nn.Embedding):
        module.embedding_dim = len(part.kept)
