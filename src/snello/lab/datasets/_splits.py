"""Splits, channel statistics and resizing of images in memory."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from snello.errors import DataError

from ._types import Images, Splits, StreamedImages

PartT = TypeVar("PartT", Images, StreamedImages)

CHUNK = 4096
"""Images per step when uint8 is temporarily converted to float32, to bound the memory."""


def derived_seed(seed: int, purpose: str) -> int:
    """Derive a seed per purpose, so that streams of random numbers are independent."""
    digest = hashlib.blake2b(f"{seed}:{purpose}".encode(), digest_size=6)
    return int.from_bytes(digest.digest(), "big")


def generator(seed: int, purpose: str) -> torch.Generator:
    """A random generator that depends on the seed and the purpose only."""
    return torch.Generator().manual_seed(derived_seed(seed, purpose))


def stratified(labels: Tensor, fraction: float, seed: int, purpose: str) -> tuple[Tensor, Tensor]:
    """Split off a random share of every class.

    Args:
        labels: int64, shape `(N,)`.
        fraction: share to split off, in (0, 1). For a class with two or more images, both sides get
            at least one.
        seed: seed of the random choice.
        purpose: name of the split; splits with the same seed and different names are independent.

    Returns:
        Indices that remain and indices that are split off: ascending, disjoint and complete.

    Raises:
        DataError: if no class has two images.
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
    """The images that remain and those that are split off; see `stratified`.

    Images with segmentation masks show several classes and are therefore not stratified.
    """
    masked = isinstance(images, StreamedImages) and not isinstance(images.targets, Tensor)
    labels = torch.zeros(len(images), dtype=torch.int64) if masked else images.labels
    stay, cut = stratified(labels, fraction, seed, purpose)
    return images.subset(stay), images.subset(cut)


def channel_statistics(pixels: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and population standard deviation per channel, with pixels scaled to 0 … 1.

    Computed from the histogram: exact up to float64 rounding, and without a floating-point copy of
    the dataset. A constant channel gets a standard deviation of 1, so that it normalises to zero
    instead of NaN.

    Args:
        pixels: uint8, shape `(N, C, H, W)`.
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


class Normalisation:
    """Conversion of pixels to a network's inputs: order of the channels, mean and deviation.

    Args:
        splits: the dataset, with its statistics and colours.
    """

    def __init__(self, splits: Splits) -> None:
        mean, std = (
            torch.tensor(v, dtype=torch.float64).view(-1, 1, 1) for v in (splits.mean, splits.std)
        )
        # (pixels / 255 − mean) / std, as one multiplication and one addition
        self._scale, self._shift = (1 / (255 * std)).float(), (-mean / std).float()
        self._reversed = splits.colours == "bgr"

    def __call__(self, pixels: Tensor) -> Tensor:
        """Normalise pixels, uint8 of shape `(..., C, H, W)`, to float32."""
        pixels = pixels.flip(-3) if self._reversed else pixels
        return pixels.float().mul_(self._scale).add_(self._shift)


def grey(images: Images) -> Images:
    """Images with one channel, the luma of ITU-R 601 as Pillow rounds it; grey ones keep their values."""
    if images.pixels.shape[1] == 1:
        return images
    weights = torch.tensor((19595, 38470, 7471), dtype=torch.int32).view(3, 1, 1)
    parts = [
        (((chunk.int() * weights).sum(1, keepdim=True) + 0x8000) >> 16).to(torch.uint8)
        for chunk in torch.split(images.pixels, CHUNK)
    ]
    return replace(images, pixels=torch.cat(parts))


def resized(images: Images, size: int | None) -> Images:
    """Images resized to `size` × `size` (bilinear, antialiased); None keeps their size."""
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
    return replace(images, pixels=torch.cat(parts))
