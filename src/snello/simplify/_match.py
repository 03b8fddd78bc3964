"""Which rule an operation of the graph follows, if any."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd

from snello.graph import Graph, known_shape, shape_of
from snello.neurons import is_batchnorm

from . import _attention as attention
from . import _lean_rules as lean_rules
from . import _match_elementwise as elementwise
from . import _match_shapes as shapes
from ._calls import argument
from ._rule import PerChannel, Rule
from ._structure import Channels, Concat, SideBySide, Whole
from ._weighted import Affine, EmbeddingColumns, Weighted, affine_of, is_plain

Axes = dict[fx.Node, int]

_POOLS = (
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d,
    nn.AdaptiveMaxPool3d, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.Upsample, nn.ReflectionPad1d,
    nn.ReflectionPad2d, nn.ReflectionPad3d, nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d,
)  # fmt: skip
"""Modules that make of one constant the same constant, channel by channel, on axis 1."""
_POOL_FUNCTIONS = {
    F.max_pool1d, F.max_pool2d, F.max_pool3d, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d,
    F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d, F.interpolate, torch.max_pool1d,
    torch.max_pool2d, torch.max_pool3d, torch.adaptive_avg_pool1d,
}  # fmt: skip
_AVERAGES = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
_AVERAGE_FUNCTIONS = {
    F.avg_pool1d: nn.AvgPool1d, F.avg_pool2d: nn.AvgPool2d, F.avg_pool3d: nn.AvgPool3d
}  # fmt: skip


def match(graph: Graph) -> tuple[dict[fx.Node, Rule], Axes]:
    """Rules, and the axis of the channels, for the nodes of a graph with shapes."""
    rules: dict[fx.Node, Rule] = dict(shapes.shuffles(graph))
    axes: Axes = {}
    for node in graph.nodes:
        known = rules.get(node)
        rule = known if known is not None and _fits(known, axes) else _rule(graph, node, axes)
        if rule is None:
            if known is not None:  # a shuffle of something that is not on its axis: its steps are themselves
                del rules[node]
            continue
        rules[node] = rule
        if rule.axis is not None:
            axes[node] = rule.axis
    _forget_partial_shuffles(rules)
    return rules, axes


def _fits(rule: Rule, axes: Axes) -> bool:
    return all(axes.get(a) == axis for a, axis in zip(rule.operands, rule.axes, strict=True))


def _forget_partial_shuffles(rules: dict[fx.Node, Rule]) -> None:
    """Steps of a shuffle stand for nothing if the shuffle itself has no rule."""
    standing = {step for rule in rules.values() if isinstance(rule, shapes.Shuffle) for step in rule.steps}
    for node, rule in list(rules.items()):
        if isinstance(rule, shapes.ShuffleStep) and node not in standing:
            del rules[node]


def _rule(graph: Graph, node: fx.Node, axes: Axes) -> Rule | None:
    if node.op == "call_module":
        module = graph.layer(node)
        assert module is not None
        if attention.is_attention(module):
            return attention.rule(graph, node, axes)
        return _module_rule(graph, node, module, axes)
    if node.op in ("call_function", "call_method"):
        return _function_rule(graph, node, axes)
    return None


def single_operand(node: fx.Node, axes: Axes, axis: int) -> fx.Node | None:
    """The node's first argument, if it is a tensor that has, or may have, its channels on this axis."""
    operand = argument(node, 0, "input")
    if not isinstance(operand, fx.Node) or (shape := shape_of(operand)) is None or len(shape) < 2:
        return None
    axis = axis % len(shape)
    return operand if axes.get(operand, axis) == axis else None


def _module_rule(graph: Graph, node: fx.Node, module: nn.Module, axes: Axes) -> Rule | None:
    has_state = next(module.parameters(), None) is not None
    if has_state and (graph.is_shared(str(node.target)) or not is_plain(module)):
        return None  # a layer called twice cannot be narrowed two ways, nor a weight that is computed at all
    if isinstance(module, lean_rules.INSERTED):
        return lean_rules.rule(node, module, axes)
    if shape_of(node) is None:
        return None
    if elementwise.is_elementwise_module(module):
        return elementwise.rule(graph, node, axes)
    if isinstance(module, (nn.Flatten, nn.Unflatten)):
        return shapes.rule(graph, node, axes)
    if isinstance(module, (nn.Linear, _ConvNd, nn.Embedding)):
        return _weighted_rule(node, module, axes)
    if isinstance(module, nn.LayerNorm):
        return _layer_norm_rule(node, module, axes)
    operand = single_operand(node, axes, 1)
    if operand is None:
        return None
    if is_batchnorm(module) or isinstance(module, nn.PReLU):
        return _affine_rule(node, operand, module)
    if operand not in axes:
        return None  # nothing is known, and nothing will be
    arguments = (node, (operand,), (1,), 1)
    if isinstance(module, nn.ChannelShuffle):
        return _shuffle_rule(node, operand, module.groups)
    if isinstance(module, _POOLS):
        return PerChannel(*arguments)
    if isinstance(module, _AVERAGES):
        return _average_rule(node, operand, module)
    if isinstance(module, (nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d)):  # ZeroPad too
        return PerChannel(*arguments, only=float(module.value))
    return None


def _weighted_rule(node: fx.Node, module: nn.Module, axes: Axes) -> Rule | None:
    name, shape = str(node.target), known_shape(node)
    if isinstance(module, nn.Embedding):
        fixed = module.max_norm is None and not module.sparse
        return EmbeddingColumns(node, (), (), len(shape) - 1, name, module) if fixed else None
    weight: Tensor = module.weight  # type: ignore[assignment]
    axis = len(shape) - 1 if isinstance(module, nn.Linear) else 1
    if isinstance(module, _ConvNd) and (len(shape) != weight.dim() or len(node.args) > 1):
        return None  # an unbatched input, or an output size
    operand = single_operand(node, axes, axis)
    if operand is None:
        return None
    operands = (operand, *(a for a in (node.kwargs.get("gate"),) if isinstance(a, fx.Node)))
    return Weighted(node, operands, (axis,) * len(operands), axis, name, module)


def _affine_rule(node: fx.Node, operand: fx.Node, module: nn.Module) -> Rule | None:
    arguments = (node, (operand,), (1,), 1)
    if isinstance(module, nn.PReLU):
        slope = module.weight.detach().cpu().double()

        def function(value: Tensor) -> Tensor:
            return torch.where(value > 0, value, slope * value)

        if len(slope) == 1:
            return PerChannel(*arguments, function, pointwise=True)
        return Affine(*arguments, function, pointwise=True, name=str(node.target))
    if module.running_mean is None:
        return None
    scale, shift = affine_of(module)

    def affine(value: Tensor) -> Tensor:
        return value * scale + shift

    return Affine(*arguments, affine, pointwise=True, name=str(node.target), scale=scale)


def _layer_norm_rule(node: fx.Node, module: nn.LayerNorm, axes: Axes) -> Rule | None:
    operand = single_operand(node, axes, -1)
    if operand is None or operand not in axes or len(module.normalized_shape) != 1:
        return None
    axis = len(known_shape(node)) - 1
    return Whole(node, (operand,), (axis,), axis, str(node.target) if module.elementwise_affine else None)


def _average_rule(node: fx.Node, operand: fx.Node, pool: nn.Module) -> Rule | None:
    padding = pool.padding if isinstance(pool.padding, tuple) else (pool.padding,)
    counted = any(padding) and bool(pool.count_include_pad)
    # A divisor of its own makes another constant, and at a padded or a cut window yet another one.
    odd = counted or getattr(pool, "divisor_override", None) is not None
    return PerChannel(node, (operand,), (1,), 1, only=0.0 if odd else None)


def _shuffle_rule(node: fx.Node, operand: fx.Node, groups: int) -> Rule:
    width = known_shape(operand)[1]
    return Channels(node, (operand,), (1,), 1, width, shapes.shuffled(width, groups), free=True)


def _function_rule(graph: Graph, node: fx.Node, axes: Axes) -> Rule | None:
    for family in (attention.rule, shapes.rule, elementwise.rule):
        if (rule := family(graph, node, axes)) is not None:
            return rule
    target: Any = node.target
    if target is torch.cat or target is torch.concat or target is torch.concatenate:
        return _concat_rule(node, axes)
    operand = single_operand(node, axes, 1)
    if operand is None or operand not in axes or shape_of(node) is None:
        return None
    arguments = (node, (operand,), (1,), 1)
    if target is F.channel_shuffle or target is torch.channel_shuffle:
        return _shuffle_rule(node, operand, int(node.args[1]))  # type: ignore[arg-type]
    if target in _POOL_FUNCTIONS:
        return PerChannel(*arguments)
    if target in _AVERAGE_FUNCTIONS:
        pool = _built(_AVERAGE_FUNCTIONS[target], node)
        return None if pool is None else _average_rule(node, operand, pool)
    if target is F.pad:
        return shapes.pad_rule(node, operand, axes[operand])
    return None


def _built(kind: Callable[..., nn.Module], node: fx.Node) -> nn.Module | None:
    """The module that a pooling function stands for, up to the size of its windows, which may be computed."""
    options = {
        name: value for name, value in node.kwargs.items() if name not in ("input", "kernel_size", "stride")
    }
    given = [1 if position < 2 else value for position, value in enumerate(node.args[1:])]
    if any(isinstance(value, fx.Node) for value in (*given, *options.values())):
        return None
    return kind(*(given or [1]), **options)


def _concat_rule(node: fx.Node, axes: Axes) -> Rule | None:
    tensors, dim = argument(node, 0, "tensors"), argument(node, 1, "dim", 0)
    shape = shape_of(node)
    if not isinstance(tensors, (list, tuple)) or not isinstance(dim, int) or shape is None:
        return None
    if not all(isinstance(a, fx.Node) and len(shape_of(a) or ()) == len(shape) for a in tensors):
        return None
    found = {axes[a] for a in tensors if a in axes}  # type: ignore[index]
    if len(found) != 1:
        return None
    axis = found.pop()
    operands: tuple[fx.Node, ...] = tuple(tensors)  # type: ignore[arg-type]
    axes_of = (axis,) * len(operands)
    if dim % len(shape) == axis:
        return Concat(node, operands, axes_of, axis, [known_shape(a)[axis] for a in operands])
    return SideBySide(node, operands, axes_of, axis)
