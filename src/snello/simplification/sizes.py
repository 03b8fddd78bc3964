"""Inputs of other sizes than the example's."""

from __future__ import annotations

import torch
from torch import Tensor


def more_examples(x: Tensor) -> Tensor:
    """Make a batch with one more example, or the last three examples if there are more.

    The new example is the first one flipped along its last axis, halved if it is floating point.
    """
    if not x.dim():
        return x
    other = x[:1].flip(-1)
    return torch.cat([x, other * 0.5 if x.is_floating_point() else other])[-3:].contiguous()


def smaller(x: Tensor, numerator: int = 3, denominator: int = 4) -> Tensor:
    """Crop a tensor to a fraction of its resolution, or of its length if it contains indices.

    Args:
        x: batch on axis 0; a floating-point tensor has channels on axis 1, which are kept.
        numerator, denominator: the fraction.
    """
    first = 2 if x.is_floating_point() else 1
    for axis in range(first, x.dim()):
        x = x.narrow(axis, 0, max(1, (numerator * x.shape[axis]) // denominator))
    return x.contiguous()


def shorter(x: Tensor) -> Tensor:
    """Crop sequences of vectors (N, L, C) or indices (N, L) to three quarters of their length."""
    sequence = x.dim() == 3 or (x.dim() > 1 and not x.is_floating_point())
    return x.narrow(1, 0, max(1, 3 * x.shape[1] // 4)).contiguous() if sequence else x
