"""A backward pass that computes the weight gradient of the active rows only.

A layer with frozen neurons changes its class to a subclass with another ``forward``, as
``torch.nn.utils.parametrize`` does: its parameters stay the very same objects, and ``isinstance`` still
holds. A copy of such a layer (``deepcopy``, pickle) is a plain layer again, for frozen neurons belong to the
optimizer that holds them, and the copy has none.

Freezing output neurons saves weight gradients only. The gradient of the input is always the dense one, for
the layers below need it whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_PLAN = "_snello_rows"

MIN_FROZEN = 0.5
"""Frozen share from which the active rows are computed alone; below it, the dense gradient is masked.

Measured per layer on one x86 thread, whole backward of the layer over the plain one (LeNet-5, ResNet-32 and
128-channel layers, 1x1 and 3x3): at 25 % slicing gave 0.8 to 1.4, at 50 % 0.7 to 0.95, at 75 % 0.5 to 0.9
where the bounds below hold. Masking costs 0 to 3 %. Accelerators have not been measured.
"""

MIN_CHANNELS = 17
"""CPU kernels work on blocks of 16 channels: slicing a 16-channel layer gave 1.0 to 1.9 at every share."""

MIN_CHANNELS_LAST = 32
"""In channels_last the active channels must be gathered entry by entry; 20 channels gave 1.0 to 1.7."""

MIN_FAN_IN_LAST = 256
"""In channels_last, incoming weights per neuron for the gathering to be worth it already at MIN_FROZEN;
with fewer (a 1x1 convolution of 64 channels gave 1.08 at 50 %, 0.77 at 75 %) MIN_FROZEN_NARROW holds."""

MIN_FROZEN_NARROW = 0.75


@dataclass(frozen=True)
class Rows:
    """Which rows of a layer are frozen, as index tensors made once per mask.

    Attributes:
        frozen: indices of the frozen rows.
        active: indices of the others.
    """

    frozen: Tensor
    active: Tensor

    @classmethod
    def of(cls, mask: Tensor) -> Rows:
        """From a boolean mask, true where frozen."""
        return cls(mask.nonzero().flatten(), (~mask).nonzero().flatten())

    @cached_property
    def share(self) -> float:
        """Share of the rows that are frozen."""
        return len(self.frozen) / (len(self.frozen) + len(self.active))

    @property
    def all_frozen(self) -> bool:
        """Whether no row is active."""
        return not len(self.active)

    def to(self, device: torch.device) -> Rows:
        """The same rows on another device."""
        return self if self.frozen.device == device else Rows(self.frozen.to(device), self.active.to(device))


class _Geometry(NamedTuple):
    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int


_weight_gradients = True


@contextmanager
def input_gradients_only() -> Iterator[None]:
    """Let the sparse layers skip all weight gradients, to tell the two halves of a backward apart.

    Autograd itself skips them in plain layers when nobody asks; a custom function is not told.
    """
    global _weight_gradients  # noqa: PLW0603 - the backward of an accelerator runs in another thread
    _weight_gradients = False
    try:
        yield
    finally:
        _weight_gradients = True


def _channels_last(tensor: Tensor) -> bool:
    """Whether the channels are the innermost dimension in memory, and there is more than one position."""
    return tensor.stride(1) == 1 and tensor.shape[2:].numel() > 1


def _slicing_pays(rows: Rows, grad: Tensor, weight: Tensor) -> bool:
    """Whether to compute the active rows alone: the rule behind the constants above."""
    if not _channels_last(grad):
        return rows.share >= MIN_FROZEN and len(weight) >= MIN_CHANNELS
    bound = MIN_FROZEN if weight[0].numel() >= MIN_FAN_IN_LAST else MIN_FROZEN_NARROW
    return rows.share >= bound and len(weight) >= MIN_CHANNELS_LAST


class _ConvRows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, rows: Rows, geometry: _Geometry
    ) -> Tensor:
        # Without an active row the weight arrives detached, and the input need not survive the forward.
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        ctx.rows, ctx.geometry, ctx.like = rows, geometry, (x.shape, x.stride())
        stride, padding, dilation, groups = geometry
        output: Tensor = torch.ops.aten.convolution(
            x, weight, bias, stride, padding, dilation, False, [0] * len(stride), groups
        )
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        x, weight = ctx.saved_tensors
        wanted = [need and (i == 0 or _weight_gradients) for i, need in enumerate(ctx.needs_input_grad[:3])]
        if x is None:  # only its shape and layout matter now
            x = torch.empty_strided(*ctx.like, dtype=weight.dtype, device=weight.device)
        if wanted[1] and ctx.geometry.groups == 1 and _slicing_pays(ctx.rows, grad, weight):
            return *_sliced(ctx, grad, x, weight, wanted), None, None
        return *_masked(ctx, grad, x, weight, wanted), None, None


def _conv_backward(
    grad: Tensor, x: Tensor, weight: Tensor, geometry: _Geometry, wanted: list[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    if not any(wanted):
        return None, None, None
    stride, padding, dilation, groups = geometry
    found: tuple[Tensor | None, Tensor | None, Tensor | None] = torch.ops.aten.convolution_backward(
        grad,
        x,
        weight,
        [weight.shape[0]],
        stride,
        padding,
        dilation,
        False,
        [0] * len(stride),
        groups,
        wanted,
    )
    return found


def _masked(
    ctx: Any, grad: Tensor, x: Tensor, weight: Tensor, wanted: list[bool]
) -> tuple[Tensor | None, ...]:
    """The dense gradient times the mask."""
    to_input, *own = _conv_backward(grad, x, weight, ctx.geometry, wanted)
    return to_input, *(g if g is None else g.index_fill_(0, ctx.rows.frozen, 0) for g in own)


def _sliced(
    ctx: Any, grad: Tensor, x: Tensor, weight: Tensor, wanted: list[bool]
) -> tuple[Tensor | None, ...]:
    """The gradient of the active rows, among zeros."""
    to_input, _, _ = _conv_backward(grad, x, weight, ctx.geometry, [wanted[0], False, False])
    active = ctx.rows.active
    # Two ways to gather the same channels: each is the fast one in its layout.
    part = grad[:, active] if _channels_last(grad) else grad.index_select(1, active)
    if _channels_last(grad):
        part = _as_channels_last(part)
    # Only the shape of the weight matters here, so that a view of the first rows will do.
    head = weight.narrow(0, 0, len(active))
    _, rows, bias = _conv_backward(part, x, head, ctx.geometry, [False, *wanted[1:]])
    return to_input, *_scattered(rows, bias, weight, active)


def _as_channels_last(tensor: Tensor) -> Tensor:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return tensor.contiguous(memory_format=formats.get(tensor.dim(), torch.contiguous_format))


def _scattered(
    rows: Tensor | None, bias: Tensor | None, weight: Tensor, active: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of the active rows of weight and bias, among zeros."""
    return (
        None if rows is None else torch.zeros_like(weight).index_copy_(0, active, rows),
        None if bias is None else bias.new_zeros(len(weight)).index_copy_(0, active, bias),
    )


class _LinearRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, rows: Rows) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        ctx.rows = rows
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad
        to_input = grad.matmul(weight) if needs_x else None
        if not (_weight_gradients and (needs_weight or needs_bias)):
            return to_input, None, None, None
        flat, active = grad.reshape(-1, grad.shape[-1]), ctx.rows.active
        sliced = ctx.rows.share >= MIN_FROZEN
        part = flat.index_select(1, active) if sliced else flat
        found = (
            part.t().mm(x.reshape(-1, x.shape[-1])) if needs_weight else None,
            part.sum(0) if needs_bias else None,
        )
        if sliced:
            return to_input, *_scattered(*found, weight, active), None
        return to_input, *(g if g is None else g.index_fill_(0, ctx.rows.frozen, 0) for g in found), None


def _operands(module: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None, Rows]:
    """Input, weight and bias as the plain layer would use them, and the frozen rows."""
    weight, bias, rows = module.weight, module.bias, vars(module)[_PLAN].to(module.weight.device)
    if rows.all_frozen:
        weight, bias = weight.detach(), None if bias is None else bias.detach()
    if torch.is_autocast_enabled(x.device.type) and x.is_floating_point() and x.dtype != torch.float64:
        # What autocast does for the plain layer; a custom function would keep the wide operands.
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    return x, weight, bias, rows


def _linear_forward(self: Any, x: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return F.linear(x, self.weight, self.bias)
    x, weight, bias, rows = _operands(self, x)
    output: Tensor = (
        F.linear(x, weight, bias) if rows.all_frozen else _LinearRows.apply(x, weight, bias, rows)
    )
    return output


def _conv_forward(self: Any, x: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        plain: Tensor = self._conv_forward(x, self.weight, self.bias)
        return plain
    x, weight, bias, rows = _operands(self, x)
    batched = x if x.dim() == weight.dim() else x.unsqueeze(0)
    batched, padding = _padded(self, batched)
    geometry = _Geometry(list(self.stride), padding, list(self.dilation), self.groups)
    output: Tensor = _ConvRows.apply(batched, weight, bias, rows, geometry)
    return output if x.dim() == weight.dim() else output.squeeze(0)


def _padded(module: Any, x: Tensor) -> tuple[Tensor, list[int]]:
    """The input, padded here where the kernel cannot, and the padding left to the kernel."""
    sides: list[int] = module._reversed_padding_repeated_twice
    before, after = sides[::2][::-1], sides[1::2][::-1]
    if module.padding_mode != "zeros":
        return F.pad(x, sides, mode=module.padding_mode), [0] * len(before)
    if before != after:  # "same" with an even kernel
        return F.pad(x, sides), [0] * len(before)
    return x, list(before)


def _copied_plain(self: Any, _protocol: Any) -> tuple[Any, ...]:
    """How copy and pickle see the layer: plain."""
    state = {key: value for key, value in vars(self).items() if key != _PLAN}
    return object.__new__, (self._snello_plain,), state


@cache
def _sparse_class(plain: Any) -> Any:
    """The subclass that takes over while rows are frozen; one per class of layer."""
    forward = _linear_forward if issubclass(plain, nn.Linear) else _conv_forward
    return type(
        f"Sparse{plain.__name__}",
        (plain,),
        {
            "__doc__": f"{plain.__name__} whose frozen rows get no gradient.",
            "__module__": __name__,
            "__reduce_ex__": _copied_plain,
            "_snello_plain": plain,
            "forward": forward,
            "snello_leaf": True,
        },
    )


def worth_attaching(module: nn.Module, frozen: Tensor) -> bool:
    """Whether a Linear or convolution can gain from a backward of its own; else masking its gradient will do.

    It can when nothing is active, or when slicing may pay; the layout of the data has the last word in each
    backward.

    Args:
        module: a Linear, Conv1d, Conv2d or Conv3d.
        frozen: boolean, shape ``(neurons,)``.
    """
    if frozen.all():
        return True
    enough = float(frozen.float().mean()) >= MIN_FROZEN
    if isinstance(module, nn.Linear):
        return enough
    return enough and len(frozen) >= MIN_CHANNELS and bool(module.groups == 1)


def attach(module: nn.Module, frozen: Tensor) -> None:
    """Let a Linear or convolution skip the gradient of its frozen rows; nothing frozen restores the layer.

    Args:
        module: a Linear, Conv1d, Conv2d or Conv3d.
        frozen: boolean, shape ``(neurons,)``.
    """
    detach(module)
    if not frozen.any():
        return
    weight: Tensor = module.weight  # type: ignore[assignment]
    vars(module)[_PLAN] = Rows.of(frozen.to(weight.device))
    plain: Any = type(module)
    module.__class__ = _sparse_class(plain)


def detach(module: nn.Module) -> None:
    """Give a layer its own class back."""
    module.__class__ = getattr(type(module), "_snello_plain", type(module))
    vars(module).pop(_PLAN, None)
