"""Counts of operations: torch's FLOP counter, corrected where it miscounts, and MACs of a layer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from .neurons import is_weighted, neuron_count
from .wrappers import gradients_required, unfused_layers


def flop_counter() -> FlopCounterMode:
    """A context that counts the FLOPs of matrix products, convolutions and attention (2 per MAC).

    Two corrections to `torch.utils.flop_counter`: the weight gradient of a grouped convolution
    counts once and not `groups` times, and the fused attention of the CPU, which torch before
    2.15 does not know, is counted as that of the GPU is.
    """
    aten = torch.ops.aten
    return FlopCounterMode(
        display=False,
        custom_mapping={
            aten.convolution_backward: _convolution_backward,
            aten._scaled_dot_product_flash_attention_for_cpu: _attention,
            aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
        },
    )


@contextmanager
def counted(model: nn.Module) -> Iterator[FlopCounterMode]:
    """Count the FLOPs of forwards of a model that run inside, without gradients."""
    # The counter hooks the gradients of what a module is given. Without gradients, that fails for a
    # view of a parameter, such as learned queries that are expanded to the batch. It does not know
    # the fused attention of evaluation mode either, and would count zero.
    with (
        gradients_required(model.parameters(), False),
        unfused_layers(),
        torch.no_grad(),
        flop_counter() as counter,
    ):
        yield counter


def weight_uses(layer: nn.Module, x: Tensor, output: Tensor) -> int:
    """Number of products that each weight of a layer takes part in during one call.

    Padding is counted as if it were data, as is the custom.

    Args:
        layer: Linear, a convolution or a transposed one.
        x: its input, with any batch.
        output: its output.
    """
    if isinstance(layer, _ConvTransposeNd):  # every weight meets every position of the input
        return x.numel() // max(layer.in_channels, 1)
    return output.numel() // max(neuron_count(layer), 1)


def layer_macs(layer: nn.Module, x: Tensor, output: Tensor) -> int:
    """Multiply-accumulates of one call of a layer with neurons, for the whole batch.

    A normalisation layer counts 2 per output entry, as is the custom.

    Args:
        layer: Linear, a convolution, a transposed one, or a normalisation layer.
        x: its input, with any batch.
        output: its output.
    """
    if not is_weighted(layer):
        return 2 * output.numel()
    weight: Tensor = layer.weight  # type: ignore[assignment]
    return weight.numel() * weight_uses(layer, x, output)


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, *_per_query(query, key, value)))  # type: ignore[no-untyped-call]


def _attention_backward(grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    key, value = _per_query(query, key, value)
    return int(sdpa_backward_flop_count(grad, query, key, value))  # type: ignore[no-untyped-call]


def _per_query(query: Any, *shared: Any) -> list[Any]:
    """Shapes of keys and values as if each head of the query had its own: groups share them."""
    return [torch.Size([*query[:2], *shape[2:]]) for shape in shared]


def _convolution_backward(
    grad_shape: Any,
    x_shape: Any,
    w_shape: Any,
    _bias: Any,
    _stride: Any,
    _padding: Any,
    _dilation: Any,
    transposed: bool,
    _output_padding: Any,
    _groups: Any,
    output_mask: Any,
    out_shape: Any = None,
    **_: Any,
) -> int:
    positions = x_shape if transposed else grad_shape
    macs = int(positions[0] * torch.Size(positions[2:]).numel() * torch.Size(w_shape).numel())
    return 2 * macs * (int(output_mask[0]) + int(output_mask[1]))
