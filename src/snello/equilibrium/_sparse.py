"""A backward pass that computes the weight gradient of the active rows only.

A layer with frozen neurons changes its class to a subclass with another ``forward``, as
``torch.nn.utils.parametrize`` does: its parameters stay the very same objects, and ``isinstance`` still
holds. A copy of such a layer (``deepcopy``, pickle) is a plain layer again, for frozen neurons belong to the
optimizer that holds them, and the copy has none.

Three ways, by what is frozen:

- all neurons: the layer runs with detached parameters. Nothing is computed for them, a convolution keeps no
  input, and where nothing below learns the backward ends.
- some, and slicing pays (see ``_dispatch.py``): only the active rows are computed.
- some, and it does not: the plain layer, whose gradient is then masked.

Freezing output neurons saves weight gradients only. The gradient of the input is always the dense one, for
the layers below need it whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.utils.hooks import RemovableHandle

from snello.equilibrium._dispatch import BUCKETS, Dispatch, Gradients, Work, can_measure, rule
from snello.equilibrium._rows import Rows, by_neuron, neuron_axis


@dataclass
class _Attached:
    """What belongs to an attached layer besides its parameters."""

    rows: Rows
    dispatch: Dispatch
    gates: list[RemovableHandle]


Forward = TypeVar("Forward", bound=Callable[..., Any])

_attached: WeakKeyDictionary[nn.Module, _Attached] = WeakKeyDictionary()
"""Beside the layers, not in them, so that no copy takes it along."""


class _Geometry(NamedTuple):
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    output_padding: tuple[int, ...]
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


def _channels(tensor: Tensor, index: Tensor) -> Tensor:
    """Some channels, dimension 1, in the layout of the whole."""
    if not _channels_last(tensor):
        return tensor.index_select(1, index)
    # The matrix of positions and channels, a view: gathering its columns is several times faster on a CPU
    # than index_select on four dimensions, which also leaves the layout.
    last = tensor.movedim(1, -1)
    part = last.reshape(-1, last.shape[-1]).index_select(1, index)
    return part.view(*last.shape[:-1], len(index)).movedim(-1, 1)


class _ConvRows(torch.autograd.Function):
    """A convolution whose weight gradient may be computed for the active rows alone."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        rows: Rows,
        geometry: _Geometry,
        dispatch: Dispatch,
        work: Work,
    ) -> Tensor:
        # Without an active row the weight arrives detached, and the input need not survive the forward.
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
        if x is None:  # only its shape and layout matter now
            x = torch.empty_strided(*ctx.like, dtype=weight.dtype, device=weight.device)

        def dense() -> Gradients:
            return _conv_backward(grad, x, weight, ctx.geometry, wanted)

        def sliced() -> Gradients:
            to_input, _, _ = _conv_backward(grad, x, weight, ctx.geometry, [wanted[0], False, False])
            return to_input, *_conv_rows(grad, x, weight, ctx.geometry, ctx.rows, wanted)

        found = dense() if not wanted[1] else _faster(ctx, dense, sliced)
        return *found, None, None, None, None


def _faster(ctx: Any, dense: Any, sliced: Any) -> Gradients:
    """The gradients, by the way that is known or found to be the faster one."""
    decision = None if ctx.work is None else ctx.dispatch.decision(ctx.work)
    if decision is None and can_measure() and _weight_gradients:
        found: Gradients = ctx.dispatch.measure(ctx.work, dense, sliced)
        return found
    slicing = rule(ctx.work) if decision is None else decision.sliced
    return sliced() if slicing else dense()  # type: ignore[no-any-return]


def _conv_backward(
    grad: Tensor, x: Tensor, weight: Tensor, geometry: _Geometry, wanted: list[bool]
) -> Gradients:
    if not any(wanted):
        return None, None, None
    biases = [weight.shape[1] * geometry.groups if geometry.transposed else weight.shape[0]]
    found: Gradients = torch.ops.aten.convolution_backward(grad, x, weight, biases, *geometry, wanted)
    return found


def _conv_rows(
    grad: Tensor, x: Tensor, weight: Tensor, geometry: _Geometry, rows: Rows, wanted: list[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of weight and bias for the active rows, among zeros."""
    axis = 1 if geometry.transposed else 0
    index = rows.active
    if geometry.groups > 1:
        # Whole groups are computed: those with an active row. The frozen rows among them are masked later.
        index, inputs, groups = _active_groups(index, weight.shape[0], x.shape[1], geometry.groups)
        x, geometry = _channels(x, inputs), geometry._replace(groups=groups)
    # Only the shape of the weight matters here, so that a view of its first rows will do.
    head = weight.narrow(axis, 0, len(index))
    _, part, bias = _conv_backward(_channels(grad, index), x, head, geometry, [False, *wanted[1:]])
    return _scattered(part, bias, weight, index, axis)


def _active_groups(active: Tensor, outputs: int, inputs: int, groups: int) -> tuple[Tensor, Tensor, int]:
    """Output channels and input channels of the groups with an active neuron, and how many groups those are."""
    per_out, per_in = outputs // groups, inputs // groups
    alive: Tensor = torch.unique(active // per_out)

    def members(size: int) -> Tensor:
        channels = alive[:, None] * size + torch.arange(size, device=alive.device)
        return channels.flatten()

    return members(per_out), members(per_in), len(alive)


def _scattered(
    part: Tensor | None, bias: Tensor | None, weight: Tensor, index: Tensor, axis: int = 0
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of some rows of weight and bias, among zeros."""
    return (
        None if part is None else torch.zeros_like(weight).index_copy_(axis, index, part),
        None if bias is None else bias.new_zeros(weight.shape[axis]).index_copy_(0, index, bias),
    )


class _LinearRows(torch.autograd.Function):
    """A Linear layer whose weight gradient may be computed for the active rows alone."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, rows: Rows, dispatch: Dispatch, work: Work
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
            return part.t().mm(inputs) if needs_weight else None, part.sum(0) if needs_bias else None

        def sliced() -> Gradients:
            active = ctx.rows.active
            return _scattered(*products(flat.index_select(1, active)), weight, active)

        return to_input, *_faster(ctx, lambda: products(flat), sliced), None, None, None


def _operand_dtype(x: Tensor) -> torch.dtype:
    """What autocast makes of an operand; a custom function would keep the wide one."""
    if torch.is_autocast_enabled(x.device.type) and x.is_floating_point() and x.dtype != torch.float64:
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


def _work(layer: Any, kind: tuple[Any, ...], x: Tensor, positions: int, last: bool) -> Work | None:
    """The work of the layer's backward, or None if it is known that slicing does not pay there."""
    attached = _attached[layer]
    rows = attached.rows
    work = Work(
        kind,
        tuple(by_neuron(layer.weight, neuron_axis(layer)).shape),
        positions.bit_length(),
        last,
        x.requires_grad,
        _operand_dtype(x),
        str(x.device),
        -(-len(rows.active) * BUCKETS // rows.count),
        torch.get_num_threads(),
    )
    decision = attached.dispatch.decision(work)
    return None if decision is not None and not decision.sliced else work


def _eager(forward: Forward) -> Forward:
    """Break the graph here under torch.compile: the layer runs between two compiled parts."""
    found: Forward = torch.compiler.disable(forward)  # type: ignore[no-untyped-call]
    return found


def _detached_forward(self: Any, *args: Any) -> Any:
    """The plain layer's own forward with parameters that ask for no gradient."""
    plain = self._snello_plain
    stand_in = object.__new__(plain)
    own = {name: p if p is None else p.detach() for name, p in self._parameters.items()}
    # The buffers are the layer's own, so that BatchNorm's statistics go on moving.
    vars(stand_in).update({**vars(self), "_parameters": own})
    return plain.forward(stand_in, *args)


@_eager
def _linear_forward(self: Any, x: Tensor) -> Any:
    attached = _in_force(self)
    if attached is None:
        return self._snello_plain.forward(self, x)
    if attached.rows.all_frozen:
        return _detached_forward(self, x)
    work = _work(self, ("linear",), x, x.shape[:-1].numel(), last=True)
    if work is None:
        return self._snello_plain.forward(self, x)
    dtype = _operand_dtype(x)
    bias = None if self.bias is None else self.bias.to(dtype)
    return _LinearRows.apply(x.to(dtype), self.weight.to(dtype), bias, attached.rows, attached.dispatch, work)


@_eager
def _conv_forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    attached = _in_force(self)
    if attached is None:
        return self._snello_plain.forward(self, x, *args, **kwargs)
    weight, bias = self.weight, self.bias
    if attached.rows.all_frozen:
        weight, bias, work = weight.detach(), None if bias is None else bias.detach(), None
    else:
        kind = (type(self).__name__, self.stride, self.padding, self.dilation, self.groups)
        work = _work(self, kind, x, x.numel() // x.shape[1 - self.weight.dim()], _layout(self, x))
        if work is None:
            return self._snello_plain.forward(self, x, *args, **kwargs)
    dtype = _operand_dtype(x)
    batched = x.to(dtype) if x.dim() == weight.dim() else x.to(dtype).unsqueeze(0)
    padded, geometry = _geometry(self, batched, *args, **kwargs)
    weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
    output: Tensor = _ConvRows.apply(padded, weight, bias, attached.rows, geometry, attached.dispatch, work)
    return output if x.dim() == weight.dim() else output.squeeze(0)


def _in_force(layer: Any) -> _Attached | None:
    """What is attached to a layer, with the rows where the layer is now; None where the plain layer has to do.

    That is without gradients, and in a replica, as DataParallel makes them.
    """
    attached = _attached.get(layer) if torch.is_grad_enabled() else None
    if attached is not None:
        attached.rows = attached.rows.to(layer.weight.device)
    return attached


def _layout(layer: Any, x: Tensor) -> bool:
    """Whether a convolution works in channels_last: its kernel follows either operand."""
    return (x.dim() == layer.weight.dim() and _channels_last(x)) or (
        layer.weight.shape[1] > 1 and _channels_last(layer.weight)
    )


def _geometry(module: Any, x: Tensor, output_size: list[int] | None = None) -> tuple[Tensor, _Geometry]:
    """The input, padded here where the kernel cannot, and everything else that the kernel has to know."""
    transposed = isinstance(module, _ConvTransposeNd)
    if transposed:
        dims = len(module.kernel_size)
        extra = module._output_padding(
            x, output_size, module.stride, module.padding, module.kernel_size, dims, module.dilation
        )
        padding = module.padding
    else:
        x, padding = _padded(module, x)
        extra = [0] * len(padding)
    return x, _Geometry(
        tuple(module.stride), tuple(padding), tuple(module.dilation), transposed, tuple(extra), module.groups
    )


def _padded(module: Any, x: Tensor) -> tuple[Tensor, list[int]]:
    """The input, padded here where the kernel cannot, and the padding left to the kernel."""
    sides: list[int] = module._reversed_padding_repeated_twice
    before, after = sides[::2][::-1], sides[1::2][::-1]
    if module.padding_mode != "zeros":
        return F.pad(x, sides, mode=module.padding_mode), [0] * len(before)
    if before != after:  # "same" with an even kernel
        return F.pad(x, sides), [0] * len(before)
    return x, list(before)


@_eager
def _other_forward(self: Any, *args: Any) -> Any:
    """For layers without a product to slice, as normalisations: all frozen, or plain."""
    attached = _in_force(self)
    if attached is None or not attached.rows.all_frozen:
        return self._snello_plain.forward(self, *args)
    return _detached_forward(self, *args)


def _copied_plain(self: Any, _protocol: Any) -> tuple[Any, ...]:
    """How copy and pickle see the layer: plain."""
    return object.__new__, (self._snello_plain,), vars(self).copy()


@cache
def _sparse_class(plain: Any) -> Any:
    """The subclass that takes over while rows are frozen; one per class of layer."""
    forward: Callable[..., Any] = _other_forward
    if issubclass(plain, nn.Linear):
        forward = _linear_forward
    elif issubclass(plain, _ConvNd):
        forward = _conv_forward
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


def attach(module: nn.Module, frozen: Tensor, dispatch: Dispatch) -> None:
    """Let a layer skip the gradient of its frozen rows; nothing frozen restores the layer.

    Whatever reaches ``.grad`` in the frozen rows, by the layer or by another way (a penalty on the weights),
    is set to zero there as soon as it is accumulated.

    Args:
        module: a Linear, convolution, transposed convolution without groups, BatchNorm or LayerNorm.
        frozen: boolean, shape ``(neurons,)``.
        dispatch: decides whether slicing pays.
    """
    detach(module)
    if not frozen.any():
        return
    parameters = [p for p in module.parameters(recurse=False) if p.requires_grad]
    rows = Rows.of(frozen.to(parameters[0].device)) if parameters else Rows.of(frozen)
    axis = neuron_axis(module)
    gates = [
        p.register_post_accumulate_grad_hook(_gate(axis, rows))  # type: ignore[no-untyped-call]
        for p in parameters
    ]
    _attached[module] = _Attached(rows, dispatch, gates)
    if rows.all_frozen or isinstance(module, (nn.Linear, _ConvNd)):
        plain: Any = type(module)
        module.__class__ = _sparse_class(plain)


def _gate(axis: int | None, rows: Rows) -> Callable[[Tensor], None]:
    @torch.no_grad()
    def erase(parameter: Tensor) -> None:
        assert parameter.grad is not None
        by_neuron(parameter.grad, axis).index_fill_(0, rows.to(parameter.device).frozen, 0)

    return erase


def detach(module: nn.Module) -> None:
    """Give a layer its own class back."""
    module.__class__ = getattr(type(module), "_snello_plain", type(module))
    attached = _attached.pop(module, None)
    if attached is not None:
        for gate in attached.gates:
            gate.remove()
