"""Recording of the operations that a model runs."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from snello.errors import ModelError
from snello.graph import Example, Inputs, evaluation
from snello.wrappers import unfused_layers

from .operation import Operation

_ATEN = torch.ops.aten


def operations_of(model: nn.Module, example_inputs: Example) -> tuple[Operation, ...]:
    """Record the convolutions and matrix products of one forward pass, in order.

    Normalisation, activations and copies are not recorded; neither are transposed convolutions.

    Args:
        model: any module; it runs in evaluation mode.
        example_inputs: its inputs, with the batch size of interest.

    Raises:
        ModelError: if the model does not run on the inputs.
    """
    inputs = Inputs.of(example_inputs)
    recorder = _Recorder()
    try:
        with evaluation(model), unfused_layers(), recorder:
            inputs.map(torch.clone).call(model)
    except Exception as error:  # the model's own code may raise anything
        raise ModelError(f"{type(model).__name__} does not run: {error}") from error
    return tuple(recorder.found)


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[Operation] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        read = _READERS.get(getattr(function, "overloadpacket", None))
        if read is not None:
            self.found += read(*args)
        return function(*args, **(kwargs or {}))


def _convolution(
    x: Tensor, weight: Tensor, _bias: Any, stride: Any, padding: Any, dilation: Any,
    transposed: bool, _output_padding: Any, groups: int,
) -> list[Operation]:  # fmt: skip
    if transposed:
        return []
    size = tuple(x.shape[2:])
    options = [
        (*values, *values[-1:] * (len(size) - len(values)))  # one number for all dimensions
        for values in (tuple(weight.shape[2:]), tuple(stride), tuple(padding), tuple(dilation))
    ]
    shape = (x.shape[0], x.shape[1], weight.shape[0], groups, *size)
    return [Operation("conv", shape, sum(options, ()))]


def _product(a: Tensor, b: Tensor) -> list[Operation]:
    return [Operation("linear", (a.shape[0], a.shape[1], b.shape[1]))]


def _batched(a: Tensor, b: Tensor) -> list[Operation]:
    return [Operation("matmul", (a.shape[0], a.shape[1], a.shape[2], b.shape[2]))]


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> list[Operation]:
    heads = prod(query.shape[:-2])
    (length, width), sources = query.shape[-2:], key.shape[-2]
    return [
        Operation("matmul", (heads, length, width, sources)),
        Operation("matmul", (heads, length, sources, value.shape[-1])),
    ]


_READERS: dict[Any, Any] = {
    _ATEN.convolution: _convolution,
    _ATEN.mm: _product,
    _ATEN.addmm: lambda _bias, a, b, *_: _product(a, b),
    _ATEN.bmm: _batched,
    _ATEN.baddbmm: lambda _bias, a, b, *_: _batched(a, b),
    _ATEN._scaled_dot_product_flash_attention_for_cpu: _attention,
    _ATEN._scaled_dot_product_flash_attention: _attention,
    _ATEN._scaled_dot_product_efficient_attention: _attention,
}
