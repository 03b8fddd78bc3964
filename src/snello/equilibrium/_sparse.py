"""A backward pass that computes the weight gradient of the active rows only.

The class of a layer with frozen neurons is changed to a subclass with another `forward`, as
`torch.nn.utils.parametrize` does: its parameters stay the same objects, and `isinstance` still
holds. A copy of such a layer (`deepcopy`, pickle) is a plain layer again, because frozen rows are
not kept in the parameters of the copy.

There are three cases:

- all neurons are frozen: the layer runs with detached parameters. No gradient is computed for them,
  a convolution saves no input, and the backward pass ends here if no layer before is updated.
- some are frozen, and slicing is faster (see `_dispatch.py`): only active rows are computed.
- some are frozen, and slicing is slower: the plain layer runs, and its gradient is masked.

Freezing output neurons saves weight gradients only. The gradient of the input is always computed in
full, because the layers below need it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.utils.hooks import RemovableHandle

from snello.neurons import CONVOLUTIONS, TRANSPOSED, neuron_axis, padding_of
from snello.wrappers import eager

from ._dispatch import BUCKETS, Dispatch, Work
from ._gradients import ConvRows, Geometry, LinearRows, is_channels_last
from ._rows import Rows, by_neuron


@dataclass
class _Attached:
    """Frozen rows and hooks of one layer."""

    rows: Rows
    dispatch: Dispatch
    gates: list[RemovableHandle]
    owner: object


_attached: WeakKeyDictionary[nn.Module, _Attached] = WeakKeyDictionary()
"""Kept outside the layers, so that copies of a layer do not have it."""


def _operand_dtype(x: Tensor) -> torch.dtype:
    """dtype to which autocast would cast an operand; it does not cast in a custom function."""
    if (
        torch.is_autocast_enabled(x.device.type)
        and x.is_floating_point()
        and x.dtype != torch.float64
    ):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


def _work(layer: Any, kind: tuple[Any, ...], x: Tensor, positions: int, last: bool) -> Work | None:
    """The work of the layer's backward; None if slicing is known to be slower."""
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


def _detached_forward(self: Any, *args: Any, **kwargs: Any) -> Any:
    """Run the plain layer's forward with detached parameters."""
    plain = self._snello_plain
    stand_in = object.__new__(plain)
    own = {name: p if p is None else p.detach() for name, p in self._parameters.items()}
    # The buffers are the layer's own, so that BatchNorm's statistics are still updated.
    vars(stand_in).update({**vars(self), "_parameters": own})
    return plain.forward(stand_in, *args, **kwargs)


@eager
def _linear_forward(self: Any, input: Tensor) -> Any:  # the name of torch: it may be a keyword
    attached, x = _in_force(self), input
    if attached is None:
        return self._snello_plain.forward(self, x)
    if attached.rows.all_frozen:
        return _detached_forward(self, x)
    work = _work(self, ("linear",), x, x.shape[:-1].numel(), last=True)
    if work is None:
        return self._snello_plain.forward(self, x)
    dtype = _operand_dtype(x)
    bias = None if self.bias is None else self.bias.to(dtype)
    return LinearRows.apply(
        x.to(dtype), self.weight.to(dtype), bias, attached.rows, attached.dispatch, work
    )


@eager
def _conv_forward(self: Any, input: Tensor, *args: Any, **kwargs: Any) -> Any:
    attached, x = _in_force(self), input
    if attached is None:
        return self._snello_plain.forward(self, x, *args, **kwargs)
    weight, bias = self.weight, self.bias
    if attached.rows.all_frozen:
        weight, bias, work = weight.detach(), None if bias is None else bias.detach(), None
    else:
        # Decisions are shared between layers of the same geometry.
        kind = (type(self).__name__, self.stride, self.padding, self.dilation, self.groups)
        work = _work(self, kind, x, x.numel() // x.shape[1 - self.weight.dim()], _layout(self, x))
        if work is None:
            return self._snello_plain.forward(self, x, *args, **kwargs)
    dtype = _operand_dtype(x)
    batched = x.to(dtype) if x.dim() == weight.dim() else x.to(dtype).unsqueeze(0)
    padded, geometry = _geometry(self, batched, *args, **kwargs)
    weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
    output: Tensor = ConvRows.apply(
        padded, weight, bias, attached.rows, geometry, attached.dispatch, work
    )
    return output if x.dim() == weight.dim() else output.squeeze(0)


def _in_force(layer: Any) -> _Attached | None:
    """The frozen rows of a layer, on its device; None if the plain forward has to run.

    This is so without gradients, in a replica of DataParallel, and under `torch.func`.
    """
    if torch._C._are_functorch_transforms_active():
        return None  # torch.func uses its own parameters; optimizer steps keep the frozen rows
    attached = _attached.get(layer) if torch.is_grad_enabled() else None
    if attached is not None:
        attached.rows = attached.rows.to(layer.weight.device)
    return attached


def _layout(layer: Any, x: Tensor) -> bool:
    """Return true if a convolution runs in channels_last, as it does if one operand has it."""
    return (x.dim() == layer.weight.dim() and is_channels_last(x)) or (
        layer.weight.shape[1] > 1 and is_channels_last(layer.weight)
    )


def _geometry(
    module: Any, x: Tensor, output_size: list[int] | None = None
) -> tuple[Tensor, Geometry]:
    """The input, padded where the kernel cannot do it, and the kernel's other arguments."""
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
    return x, Geometry(
        tuple(module.stride),
        tuple(padding),
        tuple(module.dilation),
        transposed,
        tuple(extra),
        module.groups,
    )


def _padded(module: Any, x: Tensor) -> tuple[Tensor, list[int]]:
    """The input, padded where the kernel cannot do it, and the padding left to the kernel."""
    sides: list[int] = module._reversed_padding_repeated_twice
    before, after = padding_of(module)
    if module.padding_mode != "zeros":
        return F.pad(x, sides, mode=module.padding_mode), [0] * len(before)
    if before != after:  # "same" with an even kernel
        return F.pad(x, sides), [0] * len(before)
    return x, list(before)


@eager
def _other_forward(self: Any, *args: Any, **kwargs: Any) -> Any:
    """Forward of layers that cannot be sliced, such as normalisations: all frozen, or plain."""
    attached = _in_force(self)
    if attached is None or not attached.rows.all_frozen:
        return self._snello_plain.forward(self, *args, **kwargs)
    return _detached_forward(self, *args, **kwargs)


_SLICED: dict[Callable[..., Any], Callable[..., Any]] = {
    nn.Linear.forward: _linear_forward,
    **{kind.forward: _conv_forward for kind in (*CONVOLUTIONS, *TRANSPOSED)},
}
"""A layer's own forward -> the one that skips frozen rows. Subclasses with another forward (lean
convolutions, weight standardisation) are not sliced: the gradients of their frozen rows are
computed, then set to zero."""


def _copied_plain(self: Any, _protocol: Any) -> tuple[Any, ...]:
    """Reduce to the plain layer, for copy and pickle."""
    return object.__new__, (self._snello_plain,), vars(self).copy()


@cache
def sparse_class(plain: Any, forward: Callable[..., Any]) -> Any:
    """The subclass that a module gets while rows are frozen; one per class and forward."""
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


def attach(module: nn.Module, frozen: Tensor, dispatch: Dispatch, owner: object = None) -> None:
    """Skip the weight gradient of the frozen rows of a layer; without any, restore the layer.

    Gradients that reach `.grad` in the frozen rows, from the layer or from elsewhere (a penalty
    on the weights), are set to zero as soon as they are accumulated.

    Args:
        module: a Linear, convolution, transposed convolution without groups, BatchNorm or
            LayerNorm.
        frozen: boolean, shape `(neurons,)`.
        dispatch: decides whether to slice.
        owner: kept alive as long as the rows are frozen; it must not refer to the module.
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
    _attached[module] = _Attached(rows, dispatch, gates, owner)
    if rows.all_frozen or isinstance(module, (nn.Linear, _ConvNd)):
        plain: Any = type(module)
        module.__class__ = sparse_class(plain, _SLICED.get(plain.forward, _other_forward))


def _gate(axis: int | None, rows: Rows) -> Callable[[Tensor], None]:
    """A hook that sets the gradient of a parameter to zero in the frozen rows."""

    @torch.no_grad()
    def erase(parameter: Tensor) -> None:
        # None if an optimizer that steps during the backward pass has already used it.
        if parameter.grad is not None:
            by_neuron(parameter.grad, axis).index_fill_(0, rows.to(parameter.device).frozen, 0)

    return erase


def detach(module: nn.Module) -> None:
    """Restore the class of a layer, and remove its hooks."""
    module.__class__ = getattr(type(module), "_snello_plain", type(module))
    attached = _attached.pop(module, None)
    if attached is not None:
        for gate in attached.gates:
            gate.remove()
