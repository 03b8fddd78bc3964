"""Statistics over channels, computed over the kept ones alone.

A removed channel of a masked network is zero, but would still count in the mean and the variance of
a norm. A pruned network is defined to normalise over its kept channels, so that the masked network,
its reference, has to do the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class _Reduction:
    """The call of a reduction of which some elements are masked.

    Attributes:
        x: the operand.
        dims: axes that are reduced.
        mask: 1 for kept elements.
        keep: whether the axes stay, with length 1.
        args, kwargs: all arguments.
    """

    x: Tensor
    dims: list[int]
    mask: Tensor
    keep: bool
    args: Sequence[Any]
    kwargs: Mapping[str, Any]

    def sum(self, values: Tensor, *, keep: bool) -> Tensor:
        return (values * self.mask).sum(self.dims, keepdim=keep)

    def mean(self, *, keep: bool) -> Tensor:
        return self.sum(self.x, keep=keep) / _count(self.mask, self.x, self.dims)

    def var(self) -> Tensor:
        less = self.kwargs.get("correction", 1)
        count = _count(self.mask, self.x, self.dims) - (1 if less is None else less)
        return self.sum((self.x - self.mean(keep=True)) ** 2, keep=self.keep) / count

    def norm(self) -> Tensor:
        order = self.args[1] if len(self.args) > 1 else self.kwargs.get("ord", 2)
        found: Tensor = torch.linalg.vector_norm(self.x * self.mask, order, self.dims, self.keep)
        return found


def _reduction(compute: Callable[[_Reduction], Any]) -> Masked:
    """The result of a reduction over kept elements; None if it keeps every element."""

    def masked(run: Run, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        x, dims = args[0], reduced_axes(args, kwargs)
        mask = _mask(run, x, dims)
        keep = bool(kwargs.get("keepdim", any(a is True for a in args[2:])))
        return None if mask is None else compute(_Reduction(x, dims, mask, keep, args, kwargs))

    return masked


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
    "mean": _reduction(lambda r: r.mean(keep=r.keep)),
    "sum": _reduction(lambda r: r.sum(r.x, keep=r.keep)),
    "linalg_vector_norm": _reduction(_Reduction.norm),
    "var": _reduction(_Reduction.var),
    "std": _reduction(lambda r: r.var().sqrt()),
    "var_mean": _reduction(lambda r: (r.var(), r.mean(keep=r.keep))),
    "std_mean": _reduction(lambda r: (r.var().sqrt(), r.mean(keep=r.keep))),
    "native_layer_norm": _layer_norm,
    "_fused_rms_norm": _rms_norm,
    "native_group_norm": _group_norm,
}
"""Operator of aten -> its result over kept channels; None where all of them are kept."""
