"""Patterns in which the kernel of a convolution overlaps the border.

Per axis, with i taps cut off before and j after, of at most b and a, the pattern is number
``i * (a + 1) + j``; over the axes, patterns are numbered like the elements of a tensor.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from .edits import Geometry


def taps_inside(geometry: Geometry) -> Tensor:
    """Return the taps of a kernel that are inside, for each pattern: boolean, shape (patterns,
    taps).
    """

    def along(kernel: int, before: int, after: int) -> list[Tensor]:
        taps = torch.arange(kernel)
        cuts = itertools.product(range(before + 1), range(after + 1))
        return [(taps >= i) & (taps < kernel - j) for i, j in cuts]

    axes = [along(*axis) for axis in zip(geometry.kernel, *geometry.cut, strict=True)]
    patterns = (torch.meshgrid(*taps, indexing="ij") for taps in itertools.product(*axes))
    return torch.stack([torch.stack(axis).all(0).flatten() for axis in patterns])
