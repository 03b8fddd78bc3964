"""Patterns in which the kernel of a convolution overlaps the border.

On one axis, let i of at most b taps be cut off before the input and j of at most a taps after it:
the pattern has number `i * (a + 1) + j`. Over several axes, patterns are numbered like the
elements of a tensor with one axis each, the last axis fastest.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from .edits import Geometry


def taps_inside(geometry: Geometry) -> Tensor:
    """Return the taps of a kernel that are inside the input: boolean, shape (patterns, taps)."""

    def along(kernel: int, before: int, after: int) -> list[Tensor]:
        taps = torch.arange(kernel)
        cuts = itertools.product(range(before + 1), range(after + 1))
        return [(taps >= i) & (taps < kernel - j) for i, j in cuts]

    axes = [along(*axis) for axis in zip(geometry.kernel, *geometry.cut, strict=True)]
    patterns = (torch.meshgrid(*taps, indexing="ij") for taps in itertools.product(*axes))
    return torch.stack([torch.stack(axis).all(0).flatten() for axis in patterns])
