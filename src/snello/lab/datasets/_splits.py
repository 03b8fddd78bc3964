"""Cutting, measuring and resizing what is in memory."""

from __future__ import annotations

import hashlib
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from snello.errors import DataError

from ._types import Images, StreamedImages

PartT = TypeVar("PartT", Images, StreamedImages)

CHUNK = 4096
"""Images per step where uint8 has to become float32 for a moment."""


def derived_seed(seed: int, purpose: str) -> int:
    """A seed of its own for every purpose, so that no two streams of random numbers coincide."""
    digest = hashlib.blake2b(f"{seed}:{purpose}".encode(), digest_size=6)
    return int.from_bytes(digest.digest(), "big")


def generator(seed: int, purpose: str) -> torch.Generator:
    """A random generator that depends on nothing but the seed and the purpose."""
    return torch.Generator().manual_seed(derived_seed(seed, purpose))


def stratified(labels: Tensor, fraction: float, seed: int, purpose: str) -> tuple[Tensor, Tensor]:
    """Cut a share out of every class.

    Args:
        labels: int64, shape ``(N,)``.
        fraction: share to cut out, in (0, 1). Every class with two images or more gives at least
            one and keeps at least one.
        seed: chooses which.
        purpose: names the cut, so that two cuts with the same seed are independent.

    Returns:
        Indices that stay and indices that were cut out: disjoint, ascending, together all of them.

    Raises:
        DataError: when no class has two images.
    """
    random = generator(seed, purpose)
    cut = torch.zeros(len(labels), dtype=torch.bool)
    for label in torch.unique(labels).tolist():
        members = (labels == label).nonzero().flatten()
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        cut[members[torch.randperm(len(members), generator=random)[:count]]] = True
    if not cut.any():
        raise DataError(
            f"too few images for a {purpose} part: no class has two of the {len(labels)} images; add images"
        )
    return (~cut).nonzero().flatten(), cut.nonzero().flatten()


def cut_out(images: PartT, fraction: float, seed: int, purpose: str) -> tuple[PartT, PartT]:
    """The images that stay and those that are cut out; see :func:`stratified`.

    Images with segmentation masks count as one class: they show several.
    """
    masked = isinstance(images, StreamedImages) and not isinstance(images.targets, Tensor)
    labels = torch.zeros(len(images), dtype=torch.int64) if masked else images.labels
    stay, cut = stratified(labels, fraction, seed, purpose)
    return images.subset(stay), images.subset(cut)


def channel_statistics(pixels: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and population deviation per channel of uint8 ``(N, C, H, W)``, scaled to 0 … 1.

    Computed from the histogram: exact up to float64, and without a floating copy of the dataset. A
    channel without any variation gets a deviation of 1, so that it normalises to zero rather than
    to NaN.
    """
    levels = torch.arange(256, dtype=torch.float64) / 255
    means, deviations = [], []
    for channel in pixels.unbind(1):
        share = torch.bincount(channel.reshape(-1), minlength=256).double() / channel.numel()
        mean = (share * levels).sum()
        variance = (share * (levels - mean) ** 2).sum()
        constant = bool((share > 0).sum() == 1)
        means.append(float(mean))
        deviations.append(1.0 if constant else float(variance.sqrt()))
    return tuple(means), tuple(deviations)


def resized(images: Images, size: int | None) -> Images:
    """Images resized to ``size`` × ``size`` (bilinear, antialiased); None keeps their size."""
    if size is None or images.pixels.shape[2:] == (size, size) or len(images) == 0:
        return images
    parts = [
        F.interpolate(
            chunk.float(), (size, size), mode="bilinear", antialias=True, align_corners=False
        )
        .round_()
        .clamp_(0, 255)
        .to(torch.uint8)
        for chunk in torch.split(images.pixels, CHUNK)
    ]
    return Images(torch.cat(parts), images.labels)
