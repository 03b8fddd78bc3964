"""Norms, reductions and attention."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from snello.graph.coupled.attention import joined
from snello.graph.coupled.run import Run, Shadow
from snello.graph.coupled.statistics import reduced_axes

from .base import (
    argument,
    rule,
    tensors_in,
    together,
    unlabelled,
)


@rule("native_batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm", "batch_norm",
      "_native_batch_norm_legit", "native_batch_norm_legit_no_training")  # fmt: skip
def batch_norm(run: Run, args: Any, kwargs: Any, out: Any) -> list[Shadow]:
    shadow = run.of(args[0])
    channels = shadow.axes[1]
    for value in args[1:5]:
        if isinstance(value, Tensor) and args[0].shape[1] > 1:
            why = run.reason("a norm of fixed size")
            channels = run.labels.unify(channels, run.of(value).axes[0], why)
    run.mirror(channels, ("num_features",))
    first = Shadow((shadow.axes[0], channels, *shadow.axes[2:]))
    return [first, *[unlabelled(x) for x in tensors_in(out)[1:]]]


@rule("native_layer_norm", "_fused_rms_norm", "layer_norm", "rms_norm")
def layer_norm(run: Run, args: Any, kwargs: Any, out: Any) -> list[Shadow]:
    x, shape = args[0], args[1]
    affine = [value for value in args[2:4] if isinstance(value, Tensor)]
    shadow = together(run, [x, *affine], x.shape)
    for axis in shadow.axes[x.dim() - len(shape) :]:
        run.statistic(axis, "layer_norm")
        run.mirror(axis, ("normalized_shape",))
    return [Shadow(shadow.axes), *[unlabelled(y) for y in tensors_in(out)[1:]]]


@rule("native_group_norm")
def group_norm(run: Run, args: Any, kwargs: Any, out: Any) -> list[Shadow]:
    """The rule of GroupNorm: a whole group is removed, or the same channel of each group."""
    x, groups = args[0], args[6]
    shadow = run.of(x)
    channels = shadow.axes[1]
    for value in args[1:3]:
        if isinstance(value, Tensor) and x.shape[1] > 1:
            channels = run.labels.unify(channels, run.of(value).axes[0], run.reason("a norm"))
    rows, columns = run.labels.split(channels, [groups, x.shape[1] // groups])
    run.statistic(columns, "group_norm")
    run.mirror(rows, ("num_groups",))
    run.mirror(channels, ("num_channels",))
    first = Shadow((shadow.axes[0], channels, *shadow.axes[2:]))
    return [first, *[unlabelled(y) for y in tensors_in(out)[1:]]]


@rule("mean", "sum", "var", "std", "var_mean", "std_mean", "linalg_vector_norm", "norm")
def reduction(run: Run, args: Any, kwargs: Any, out: Any) -> list[Shadow]:
    """The rule of reductions: over channels, they become statistics of the kept channels."""
    x, outs = args[0], tensors_in(out)
    shadow, dims = run.of(x), reduced_axes(args, kwargs)
    for dim in dims:
        run.statistic(shadow.axes[dim], "a mean or sum")
    if outs[0].dim() == x.dim():
        axes = tuple(None if i in dims else axis for i, axis in enumerate(shadow.axes))
    else:
        axes = tuple(axis for i, axis in enumerate(shadow.axes) if i not in dims)
    return [Shadow(axes, shadow.weight) for _ in outs]


@rule("_weight_norm_interface")
def weight_norm(run: Run, args: Any, kwargs: Any, out: Any) -> list[Shadow]:
    dim = argument(args, kwargs, 2, "dim", 0)
    for i, axis in enumerate(run.of(args[0]).axes):
        if i != dim:
            run.labels.pin(axis, run.reason("the norm of a weight"))
    shadow = together(run, args[:2], args[0].shape)
    return [shadow, *[unlabelled(y) for y in tensors_in(out)[1:]]]


@rule("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention",
      "_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention",
      "_scaled_dot_product_attention_math")  # fmt: skip
def attention(run: Run, args: Any, kwargs: Any, out: Any) -> list[Shadow]:
    mask = kwargs.get(
        "attn_mask", args[3] if len(args) > 3 and isinstance(args[3], Tensor) else None
    )
    outs = tensors_in(out)
    return [
        joined(run, args[0], args[1], args[2], mask, outs[0]),
        *[unlabelled(x) for x in outs[1:]],
    ]
