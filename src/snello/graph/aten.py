"""Operations of exported graphs, in the words of torch.fx: functions, methods and operators of
torch.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

Written = tuple[str, Any, tuple[Any, ...], dict[str, Any]]
"""Kind of node, its target, its arguments."""

aten = torch.ops.aten

_OPERATORS: dict[Any, Any] = {
    aten.add: operator.add, aten.add_: operator.iadd, aten.sub: operator.sub, aten.sub_: operator.isub,
    aten.mul: operator.mul, aten.mul_: operator.imul, aten.div: operator.truediv,
    aten.div_: operator.itruediv, aten.neg: operator.neg,
}  # fmt: skip
"""Arithmetic of two operands; with ``alpha`` or a rounding mode it stays as it is."""

_FUNCTIONS: dict[Any, Any] = {
    aten.linear: F.linear, aten.conv1d: F.conv1d, aten.conv2d: F.conv2d, aten.conv3d: F.conv3d,
    aten.rms_norm: F.rms_norm,
    aten.relu: F.relu, aten.relu_: F.relu_, aten.gelu: F.gelu, aten.silu: F.silu, aten.sigmoid: torch.sigmoid,
    aten.tanh: torch.tanh, aten.hardswish: F.hardswish, aten.hardsigmoid: F.hardsigmoid, aten.hardtanh: F.hardtanh,
    aten.elu: F.elu, aten.mish: F.mish, aten.softplus: F.softplus, aten.leaky_relu: F.leaky_relu, aten.relu6: F.relu6,
    aten.glu: F.glu, aten.exp: torch.exp, aten.abs: torch.abs, aten.sqrt: torch.sqrt, aten.rsqrt: torch.rsqrt,
    aten.square: torch.square, aten.log: torch.log, aten.sin: torch.sin, aten.cos: torch.cos,
    aten.erf: torch.erf, aten.clamp: torch.clamp, aten.pow: torch.pow,
    aten.maximum: torch.maximum, aten.minimum: torch.minimum,
    aten.matmul: torch.matmul, aten.bmm: torch.bmm, aten.dropout: F.dropout, aten.pad: F.pad,
    aten.scaled_dot_product_attention: F.scaled_dot_product_attention, aten.embedding: aten.embedding.default,
    aten.cat: torch.cat, aten.stack: torch.stack, aten.flip: torch.flip, aten.roll: torch.roll,
    aten.max_pool1d: F.max_pool1d, aten.max_pool2d: F.max_pool2d, aten.max_pool3d: F.max_pool3d,
    aten.adaptive_avg_pool1d: F.adaptive_avg_pool1d, aten.adaptive_avg_pool2d: F.adaptive_avg_pool2d,
    aten.adaptive_avg_pool3d: F.adaptive_avg_pool3d, aten.avg_pool2d: F.avg_pool2d,
    aten.channel_shuffle: F.channel_shuffle, aten.pixel_shuffle: F.pixel_shuffle,
    aten.where: torch.where, aten.clone: torch.clone,
}  # fmt: skip
"""Functions with the arguments of the operation."""

_METHODS: dict[Any, str] = {
    aten.transpose: "transpose", aten.unsqueeze: "unsqueeze", aten.squeeze: "squeeze", aten.flatten: "flatten",
    aten.unflatten: "unflatten", aten.chunk: "chunk", aten.split: "split", aten.split_with_sizes: "split",
    aten.unbind: "unbind", aten.mean: "mean", aten.sum: "sum", aten.amax: "amax", aten.amin: "amin",
    aten.softmax: "softmax", aten.narrow: "narrow", aten.contiguous: "contiguous", aten.detach: "detach",
    aten.sym_size: "size", aten.expand_as: "expand_as", aten.type_as: "type_as",
    aten.view_as: "view_as",
}  # fmt: skip

_SIZED: dict[Any, str] = {
    aten.view: "view", aten.reshape: "reshape", aten._unsafe_view: "view", aten.expand: "expand",
    aten.permute: "permute",
}  # fmt: skip
"""Methods whose sizes or axes are written one by one."""


def written(node: fx.Node) -> Written:
    """Return a node of an exported graph as torch.fx would have written it.

    An operation that has no other name here stays the operation of ATen.
    """
    args: tuple[Any, ...] = tuple(node.args)
    kwargs = dict(node.kwargs)
    packet = getattr(node.target, "overloadpacket", None)
    if packet in _OPERATORS and not kwargs and len(args) <= 2:
        return "call_function", _OPERATORS[packet], args, {}
    if packet in _SPECIAL:
        return _SPECIAL[packet](args, kwargs)
    if packet in _FUNCTIONS:
        return "call_function", _FUNCTIONS[packet], args, kwargs
    if packet in _METHODS:
        return "call_method", _METHODS[packet], args, kwargs
    if packet in _SIZED and not kwargs:
        return "call_method", _SIZED[packet], (args[0], *args[1]), {}
    return "call_function", node.target, args, kwargs


def _at(dim: int, part: Any) -> tuple[Any, ...]:
    """Index with one part on an axis, all others whole."""
    whole: list[Any] = [slice(None)] * dim
    return (*whole, part)


def _slice(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Written:
    """``x[:, start:end:step]``."""
    defaults = (0, None, None, 1)
    given: list[Any] = [*args, *defaults[len(args) - 1 :]]
    x, dim, start, end, step = given
    if end == sys.maxsize:
        end = None
    part = slice(None if start == 0 else start, end, None if step == 1 else step)
    if not isinstance(dim, int) or dim < 0:
        return "call_function", aten.slice.Tensor, args, kwargs
    return "call_function", operator.getitem, (x, _at(dim, part)), {}


def _select(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Written:
    """``x[:, index]``."""
    x, dim, index = args
    if not isinstance(dim, int) or dim < 0:
        return "call_function", aten.select.int, args, kwargs
    return "call_function", operator.getitem, (x, _at(dim, index)), {}


def _to(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Written:
    """``x.to(dtype)``; a device and a layout are those of the example."""
    dtype = args[1] if len(args) > 1 else kwargs.get("dtype")
    if isinstance(dtype, torch.dtype) and isinstance(args[0], fx.Node):
        return "call_method", "to", (args[0], dtype), {}
    return "call_method", "contiguous", (args[0],), {}


def _norm(function: Any, arguments: int) -> Callable[[tuple[Any, ...], dict[str, Any]], Written]:
    """A norm, whose last argument (about cuDNN) torch's function does not have."""
    return lambda args, kwargs: (
        "call_function", function, args[:arguments], {k: v for k, v in kwargs.items() if k != "cudnn_enable"}
    )  # fmt: skip


def _batch_norm(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Written:
    """``F.batch_norm``, which has its arguments in another order."""
    if len(args) < 8:
        return "call_function", aten.batch_norm.default, args, kwargs
    x, weight, bias, mean, variance, *rest = args
    return "call_function", F.batch_norm, (x, mean, variance, weight, bias, *rest[:3]), {}


_SPECIAL: dict[Any, Callable[[tuple[Any, ...], dict[str, Any]], Written]] = {
    aten.layer_norm: _norm(F.layer_norm, 5),
    aten.group_norm: _norm(F.group_norm, 5),
    aten.batch_norm: _batch_norm,
    aten.slice: _slice,
    aten.select: _select,
    aten.to: _to,
    aten._to_copy: _to,
}
