"""Inputs of other sizes than the example's."""

from __future__ import annotations

import torch
from torch import Tensor


def more_examples(x: Tensor) -> Tensor:
    """Make another batch: one example more, three at most."""
    if not x.dim():
        return x
    other = x[:1].flip(-1)
    return torch.cat([x, other * 0.5 if x.is_floating_point() else other])[-3:].contiguous()


def smaller(x: Tensor, numerator: int = 3, denominator: int = 4) -> Tensor:
    """Cut a tensor to a part of its resolution, or of its length if it holds indices.

    Args:
        x: the batch is axis 0; axis 1 of numbers has their channels.
        numerator, denominator: of the part.
    """
    first = 2 if x.is_floating_point() else 1
    for axis in range(first, x.dim()):
        x = x.narrow(axis, 0, max(1, (numerator * x.shape[axis]) // denominator))
    return x.contiguous()


def shorter(x: Tensor) -> Tensor:
    """Cut sequences of vectors, or of indices, to three quarters of their length: that is axis 1."""
    sequence = x.dim() == 3 or (x.dim() > 1 and not x.is_floating_point())
    return x.narrow(1, 0, max(1, 3 * x.shape[1] // 4)).contiguous() if sequence else x
