"""torch's counter of floating-point operations, corrected where it miscounts."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count


def flop_counter() -> FlopCounterMode:
    """A context that counts the FLOPs of matrix products, convolutions and attention (2 per MAC).

    Two corrections to ``torch.utils.flop_counter``: the weight gradient of a grouped convolution
    counts once and not ``groups`` times, and the fused attention of the CPU, which torch before
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


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


def _attention_backward(grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_backward_flop_count(grad, query, key, value))  # type: ignore[no-untyped-call]


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
