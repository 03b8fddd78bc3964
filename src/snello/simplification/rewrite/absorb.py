"""Absorption of a BatchNorm's scale and shift into a layer, in place and in float64."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from snello.neurons import CONVOLUTIONS, neuron_axis, spread
from snello.simplification.ir.folds import Fold
from snello.simplification.runtime.ragged import RaggedConv

PLAIN = (nn.Linear, *CONVOLUTIONS)


@torch.no_grad()
def absorb(layer: Any, scale: Tensor, shift: Tensor) -> None:
    """Absorb a norm after a layer: the layer's rows, bias and folds are scaled.

    Args:
        layer: Linear, convolution, transposed or ragged convolution.
        scale, shift: float64, shape (outputs,).
    """
    bias = add_bias(layer, len(scale))
    layer.weight.copy_(layer.weight.double() * _by_row(layer, scale))
    axis = neuron_axis(layer)
    for name in Fold.family:
        if (folded := getattr(layer, name, None)) is not None:
            shape = [-1 if i == axis else 1 for i in range(folded.dim())]
            folded.copy_(folded.double() * scale.view(shape))
    bias.copy_(bias.double() * scale + shift)


def _by_row(layer: Any, scale: Tensor) -> Tensor:
    """The scale of each neuron, shaped to broadcast over the weight."""
    if not isinstance(layer, RaggedConv):
        return spread(layer, scale)
    # A ragged weight has one kernel per pair of channels. ``slots`` is its place in the padded
    # layout, ``outputs`` the row of each neuron there.
    row = {int(place): neuron for neuron, place in enumerate(layer.outputs)}
    neurons = torch.tensor(
        [row[int(slot) // layer.fan_in] for slot in layer.slots], device=scale.device
    )
    return scale[neurons].view(-1, *[1] * len(layer.kernel_size))


@torch.no_grad()
def absorb_next(layer: Any, scale: Tensor, shift: Tensor) -> None:
    """Absorb a norm before a layer: the columns are scaled, and the shift becomes a bias.

    Args:
        layer: Linear or convolution without zero padding, which the shift would not reach.
        scale, shift: float64, shape (inputs,).
    """
    weight = layer.weight.double()
    groups = getattr(layer, "groups", 1)
    rows = weight.view(groups, weight.shape[0] // groups, weight.shape[1], -1)
    moved = torch.einsum("goik,gi->go", rows, shift.view(groups, -1)).flatten()
    bias = add_bias(layer, len(moved))
    bias.copy_(bias.double() + moved)
    layer.weight.copy_((rows * scale.view(groups, 1, -1, 1)).view(weight.shape))


def add_bias(layer: Any, channels: int) -> Tensor:
    """Return the layer's bias, after adding a bias of zeros if it has none.

    Args:
        layer: the layer.
        channels: number of outputs. Only used for transposed and ragged convolutions; for others it
            is the number of rows of the weight.
    """
    if layer.bias is None:
        weight: Tensor = layer.weight
        width = weight.shape[0] if type(layer) in PLAIN else channels
        zeros = weight.detach().new_zeros(width)
        layer.bias = nn.Parameter(zeros, weight.requires_grad)
    return layer.bias  # type: ignore[no-any-return]
