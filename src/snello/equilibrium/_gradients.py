"""Autograd functions of convolutions and Linear layers with sliced weight gradients.

The weight gradient is computed for all rows or for the active ones alone; both give the same values
in the active rows. Gradients of frozen rows are set to zero by the hooks of `_sparse.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ._dispatch import Dispatch, Gradients, Work, can_measure, rule
from ._rows import Rows


class Geometry(NamedTuple):
    """Arguments of `aten.convolution` after the bias, in its order."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    output_padding: tuple[int, ...]
    groups: int


_weight_gradients = True


@contextmanager
def input_gradients_only() -> Iterator[None]:
    """Skip all weight gradients of sparse layers, to count only the input gradients.

    In plain layers autograd skips weight gradients that `torch.autograd.grad` is not asked for; a
    custom function has no information about that.
    """
    global _weight_gradients  # noqa: PLW0603 - the backward of an accelerator runs in another thread
    _weight_gradients = False
    try:
        yield
    finally:
        _weight_gradients = True


def is_channels_last(tensor: Tensor) -> bool:
    """Return true if channels are innermost in memory and there are several positions."""
    return tensor.stride(1) == 1 and tensor.shape[2:].numel() > 1


def _channels(tensor: Tensor, index: Tensor) -> Tensor:
    """Select some channels (dimension 1), keeping the memory layout."""
    if not is_channels_last(tensor):
        return tensor.index_select(1, index)
    # A view as a matrix of positions and channels: gathering its columns is several times faster on
    # a CPU than index_select on four dimensions, which would also change the layout.
    last = tensor.movedim(1, -1)
    part = last.reshape(-1, last.shape[-1]).index_select(1, index)
    return part.view(*last.shape[:-1], len(index)).movedim(-1, 1)


class ConvRows(torch.autograd.Function):
    """A convolution whose weight gradient may be computed for the active rows alone."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        rows: Rows,
        geometry: Geometry,
        dispatch: Dispatch,
        work: Work,
    ) -> Tensor:
        # If no row is active, the weight is detached, and the input need not be saved.
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        ctx.rows, ctx.geometry, ctx.like = rows, geometry, (x.shape, x.stride())
        ctx.dispatch, ctx.work = dispatch, work
        output: Tensor = torch.ops.aten.convolution(x, weight, bias, *geometry)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Gradients:
        (grad,) = grads
        x, weight = ctx.saved_tensors
        needs = ctx.needs_input_grad[:3]
        wanted = [need and (i == 0 or _weight_gradients) for i, need in enumerate(needs)]
        if x is None:  # only its shape and layout are used
            x = torch.empty_strided(*ctx.like, dtype=weight.dtype, device=weight.device)

        def dense() -> Gradients:
            return _conv_backward(grad, x, weight, ctx.geometry, wanted)

        def sliced() -> Gradients:
            to_input, _, _ = _conv_backward(
                grad, x, weight, ctx.geometry, [wanted[0], False, False]
            )
            return to_input, *_conv_rows(grad, x, weight, ctx.geometry, ctx.rows, wanted)

        # Without a weight gradient there is nothing to slice.
        found = dense() if not wanted[1] else _faster(ctx, dense, sliced)
        return *found, None, None, None, None


def _faster(ctx: Any, dense: Any, sliced: Any) -> Gradients:
    """Gradients, computed in the faster way, which is measured if it is not known yet."""
    decision = None if ctx.work is None else ctx.dispatch.decision(ctx.work)
    if decision is None and can_measure() and _weight_gradients:
        found: Gradients = ctx.dispatch.measure(ctx.work, dense, sliced)
        return found
    slicing = rule(ctx.work) if decision is None else decision.sliced
    return sliced() if slicing else dense()  # type: ignore[no-any-return]


def _conv_backward(
    grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, wanted: list[bool]
) -> Gradients:
    if not any(wanted):
        return None, None, None
    biases = [weight.shape[1] * geometry.groups if geometry.transposed else weight.shape[0]]
    found: Gradients = torch.ops.aten.convolution_backward(
        grad, x, weight, biases, *geometry, wanted
    )
    return found


def _conv_rows(
    grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, rows: Rows, wanted: list[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of weight and bias, computed for the active rows and zero in the others."""
    axis = 1 if geometry.transposed else 0
    index = rows.active
    if geometry.groups > 1:
        # Groups with an active row are computed whole; their frozen rows are set to zero later.
        index, inputs, groups = _active_groups(index, weight.shape[0], x.shape[1], geometry.groups)
        x, geometry = _channels(x, inputs), geometry._replace(groups=groups)
    # Only the shape of the weight is used here, so that a view of its first rows is enough.
    head = weight.narrow(axis, 0, len(index))
    _, part, bias = _conv_backward(_channels(grad, index), x, head, geometry, [False, *wanted[1:]])
    return _scattered(part, bias, weight, index, axis)


def _active_groups(
    active: Tensor, outputs: int, inputs: int, groups: int
) -> tuple[Tensor, Tensor, int]:
    """Output channels, input channels and number of the groups with an active neuron."""
    per_out, per_in = outputs // groups, inputs // groups
    alive: Tensor = torch.unique(active // per_out)

    def members(size: int) -> Tensor:
        channels = alive[:, None] * size + torch.arange(size, device=alive.device)
        return channels.flatten()

    return members(per_out), members(per_in), len(alive)


def _scattered(
    part: Tensor | None, bias: Tensor | None, weight: Tensor, index: Tensor, axis: int = 0
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of weight and bias from those of some rows, zero in the others."""
    return (
        None if part is None else torch.zeros_like(weight).index_copy_(axis, index, part),
        None if bias is None else bias.new_zeros(weight.shape[axis]).index_copy_(0, index, bias),
    )


class LinearRows(torch.autograd.Function):
    """A Linear layer whose weight gradient may be computed for the active rows alone."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        rows: Rows,
        dispatch: Dispatch,
        work: Work,
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.rows, ctx.dispatch, ctx.work = rows, dispatch, work
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Gradients:
        (grad,) = grads
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        to_input = grad.matmul(weight) if needs_x else None
        if not (_weight_gradients and (needs_weight or needs_bias)):
            return to_input, None, None, None, None, None
        flat, inputs = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])

        def products(part: Tensor) -> tuple[Tensor | None, Tensor | None]:
            return part.t().mm(inputs) if needs_weight else None, part.sum(
                0
            ) if needs_bias else None

        def sliced() -> Gradients:
            active = ctx.rows.active
            return _scattered(*products(flat.index_select(1, active)), weight, active)

        return to_input, *_faster(ctx, lambda: products(flat), sliced), None, None, None
