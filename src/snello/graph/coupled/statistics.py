"""Statistics over channels, computed over the kept ones alone.

A removed channel of a masked network is zero, but would still count in the mean and the variance of
a norm. A pruned network is defined to normalise over its kept channels, so that the masked network,
its reference, has to do the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .run import Run

Masked = Callable[[Run, Sequence[Any], Mapping[str, Any]], Any]


def reduced_axes(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[int]:
    """The axes that a reduction sums over."""
    x = args[0]
    dims = kwargs.get("dim")
    if dims is None:
        # Of a norm, the second argument is its order.
        dims = next((a for a in args[1:] if isinstance(a, (list, tuple))), None)
    if dims is None or (isinstance(dims, (list, tuple)) and not dims):
        return list(range(x.dim()))
    return [dim % x.dim() for dim in ([dims] if isinstance(dims, int) else dims)]


def _mask(run: Run, x: Tensor, dims: Sequence[int]) -> Tensor | None:
    """1 for kept elements, along the given axes; None if all of them are kept."""
    mask = None
    for dim in dims:
        kept = run.kept(run.of(x).axes[dim])
        if kept is not None:
            shape = [1] * x.dim()
            shape[dim] = -1
            one = torch.tensor(kept, dtype=x.dtype, device=x.device).reshape(shape)
            mask = one if mask is None else mask * one
    return mask


def _count(mask: Tensor, x: Tensor, dims: Sequence[int]) -> Tensor:
    """The number of kept elements that a reduction over these axes sums, a scalar."""
    sizes = [x.shape[i] if i in dims else 1 for i in range(x.dim())]
    return mask.expand([max(a, b) for a, b in zip(mask.shape, sizes, strict=True)]).sum()


def _reduce(run: Run, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Operand, axes, mask and keepdim of a reduction; None if it keeps every element."""
    x, dims = args[0], reduced_axes(args, kwargs)
    mask = _mask(run, x, dims)
    if mask is None:
        return None
    keep = bool(kwargs.get("keepdim", any(a is True for a in args[2:])))
    return x, dims, mask, keep


def _mean(run: Run, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    found = _reduce(run, args, kwargs)
    if found is None:
        return None
    x, dims, mask, keep = found
    return (x * mask).sum(dims, keepdim=keep) / _count(mask, x, dims)


def _sum(run: Run, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    found = _reduce(run, args, kwargs)
    return None if found is None else (found[0] * found[2]).sum(found[1], keepdim=found[3])


def _norm(run: Run, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    found = _reduce(run, args, kwargs)
    if found is None:
        return None
    order = args[1] if len(args) > 1 else kwargs.get("ord", 2)
    return torch.linalg.vector_norm(found[0] * found[2], order, found[1], found[3])


def _var(run: Run, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Variance, mean (with keepdim), axes and keepdim; None if every element is kept."""
    found = _reduce(run, args, kwargs)
    if found is None:
        return None
    x, dims, mask, keep = found
    less = kwargs.get("correction", 1)
    less = 1 if less is None else less
    count = _count(mask, x, dims)
    mean = (x * mask).sum(dims, keepdim=True) / count
    return (((x - mean) * mask) ** 2).sum(dims, keepdim=keep) / (count - less), mean, dims, keep


def _only_var(run: Run, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    found = _var(run, args, kwargs)
    return None if found is None else found[0]


def _std(run: Run, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    found = _var(run, args, kwargs)
    return None if found is None else found[0].sqrt()


def _var_mean(run: Run, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    found = _var(run, args, kwargs)
    if found is None:
        return None
    var, mean, dims, keep = found
    return var, mean if keep else mean.squeeze(dims)


def _layer_norm(run: Run, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    x, shape, weight, bias, eps = args[:5]
    dims = list(range(x.dim() - len(shape), x.dim()))
    mask = _mask(run, x, dims)
    if mask is None:
        return None
    count = _count(mask, x, dims)
    mean = (x * mask).sum(dims, keepdim=True) / count
    rstd = ((((x - mean) * mask) ** 2).sum(dims, keepdim=True) / count + eps).rsqrt()
    return _affine((x - mean) * rstd * mask, weight, bias), mean, rstd


def _rms_norm(run: Run, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    x, shape, weight, eps = args[:4]
    dims = list(range(x.dim() - len(shape), x.dim()))
    mask = _mask(run, x, dims)
    if mask is None:
        return None
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    square = ((x * mask) ** 2).sum(dims, keepdim=True) / _count(mask, x, dims)
    rstd = (square + eps).rsqrt()
    return _affine(x * mask * rstd, weight, None), rstd


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    scaled = x if weight is None else x * weight
    return scaled if bias is None else scaled + bias


def _group_norm(run: Run, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    x, weight, bias, n, channels, pixels, groups, eps = args
    mask = _mask(run, x, [1])
    if mask is None:
        return None
    grid = x.reshape(n, groups, channels // groups, pixels)
    kept = mask.reshape(1, groups, channels // groups, 1)
    count = (kept.sum((2, 3), keepdim=True) * pixels).clamp_min(1)
    mean = (grid * kept).sum((2, 3), keepdim=True) / count
    rstd = ((((grid - mean) * kept) ** 2).sum((2, 3), keepdim=True) / count + eps).rsqrt()
    y = ((grid - mean) * rstd * kept).reshape(x.shape)
    shape = [1, -1] + [1] * (x.dim() - 2)
    parts = [p if p is None else p.reshape(shape) for p in (weight, bias)]
    return _affine(y, *parts), mean.reshape(n, groups), rstd.reshape(n, groups)


STATISTICS: dict[str, Masked] = {
    "mean": _mean,
    "sum": _sum,
    "linalg_vector_norm": _norm,
    "var": _only_var,
    "std": _std,
    "var_mean": _var_mean,
    "native_layer_norm": _layer_norm,
    "_fused_rms_norm": _rms_norm,
    "native_group_norm": _group_norm,
}
"""Operator of aten -> its result over kept channels; None where all of them are kept."""
