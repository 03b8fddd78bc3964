"""Data loaders whose order and augmentation depend only on the seed and the epoch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from snello.curation import DynamicSubset
from snello.errors import ConfigError, DataError

from ._splits import Normalisation, derived_seed, generator
from ._stream import Batch, EpochKeys, StreamedBatches
from ._types import (
    DataSplits,
    Images,
    Part,
    Splits,
    StreamedImages,
    StreamedSplits,
)

Augment = Literal["none", "crop-flip"]
T = TypeVar("T")

PADDING = 4
"""Padding in pixels on every side before the random crop (He et al., 2016, section 4.2)."""


def loader(
    images: Part,
    splits: Splits,
    batch_size: int,
    *,
    shuffle: bool = False,
    seed: int = 0,
    augment: Augment = "none",
    limit: int | None = None,
    replicas: int = 1,
    rank: int = 0,
    workers: int = 0,
    curate: Callable[[Dataset[Batch]], DynamicSubset] | None = None,
) -> DataLoader[Any]:
    """Build a data loader for one part of a dataset, normalised by the splits' channel statistics.

    For images in memory, whole batches are indexed, augmented and normalised as tensors, without a
    Python loop over images. Streamed images are decoded by worker processes. With `shuffle` or
    `augment` the sampler is a `DistributedSampler`: call `sampler.set_epoch(epoch)` before
    every epoch, as Lightning does automatically; otherwise every epoch repeats the first one.

    Args:
        images: a part of the splits.
        splits: the dataset of the part.
        batch_size: images per batch; the last batch may be smaller.
        shuffle: whether to draw a new order every epoch.
        seed: seed of order and augmentation, combined with the epoch.
        augment: `"crop-flip"`: in memory it pads 4 black pixels, crops a random window of the
            original size and flips it horizontally with probability 1/2; for streamed
            classification it crops a random area with a random aspect ratio and flips it; for
            segmentation it scales by 0.5 … 2, flips and crops. The random numbers depend on (seed,
            epoch, image) only.
        limit: use only the first `limit` images; the order of a part is random, so they are an
            unbiased sample.
        replicas: number of processes over which the images are split. If the number of images is
            not a multiple, the last processes repeat a few images.
        rank: index of this process, 0 … replicas − 1.
        workers: number of processes that decode streamed images; ignored for images in memory.
        curate: builds a dynamic subset of the part, of [`snello.curation`][]; with `shuffle`.

    Returns:
        A loader of (float32 `(B, C, H, W)`, int64 `(B,)`), or for segmentation (float32
        `(B, 3, H, W)`, int64 `(B, H, W)` with 255 for pixels without a class). Without
        augmentation, segmentation images keep their size and are padded on the right and at the
        bottom to the largest of the batch. With `curate`, pairs of such a batch and the indices,
        int64 `(B,)`; the loader's `dataset` is the subset.

    Raises:
        ConfigError: for a batch size or limit below 1, an unknown augmentation, a rank out of
            range, or a part of other splits.
        DataError: if there are no images; while iterating, for an image that cannot be decoded (the
            message names its file).
    """
    _check(images, splits, batch_size, augment, limit, replicas, rank, workers)
    if limit is not None and limit < len(images):
        images = images.subset(torch.arange(limit))
    batches: _Batches | StreamedBatches
    kind: type[EpochKeys | _EpochSampler]
    if isinstance(images, StreamedImages):
        assert isinstance(splits, StreamedSplits)
        batches, kind = StreamedBatches(images, splits, seed, augment), EpochKeys
    else:
        assert isinstance(splits, DataSplits)
        batches, kind, workers = _Batches(images, splits, seed, augment), _EpochSampler, 0
    sampler: DistributedSampler[Any] | None = None
    if shuffle or augment != "none" or replicas > 1:
        sampler = kind(
            batches,
            num_replicas=replicas,
            rank=rank,
            shuffle=shuffle,
            seed=derived_seed(seed, "order"),
        )
    data: Dataset[Any] = batches
    if curate is not None:
        keep = curate(batches)
        data, sampler = keep, keep.sampler(sampler, shuffle=False)
    return DataLoader(
        data,
        batch_size=batch_size,
        sampler=sampler,
        collate_fn=_identity,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=workers > 0 and torch.cuda.is_available(),
        # A loader without its own generator advances the global one at every epoch.
        generator=generator(seed, "loader"),
    )


def _check(
    images: Part, splits: Splits, batch_size: int, augment: str, limit: int | None, replicas: int, rank: int,
    workers: int,
) -> None:  # fmt: skip
    if isinstance(images, StreamedImages) != isinstance(splits, StreamedSplits):
        raise ConfigError(
            f"{images!r} is not a part of these {type(splits).__name__}: pass splits.train, for "
            "example"
        )
    if batch_size < 1:
        raise ConfigError(f"batch_size={batch_size} must be at least 1")
    if limit is not None and limit < 1:
        raise ConfigError(f"limit={limit} must be at least 1 image, or None for all of them")
    if augment not in get_args(Augment):
        raise ConfigError(
            f"augment={augment!r} is unknown; choose one of: {', '.join(get_args(Augment))}"
        )
    if not 0 <= rank < replicas:
        raise ConfigError(f"rank={rank} must be one of 0 … replicas − 1, with replicas={replicas}")
    if workers < 0:
        raise ConfigError(f"workers={workers} must be 0 or more processes")
    if len(images) == 0:
        raise DataError("there are no images to load: this part of the dataset is empty")


class _Batches(Dataset[Batch]):
    """One part of a dataset in memory; indexing with a list returns a batch."""

    def __init__(self, images: Images, splits: DataSplits, seed: int, augment: Augment) -> None:
        self.images, self.seed, self.augment = images, seed, augment
        self.normalised = Normalisation(splits)
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Draw the crops and flips of all images for an epoch."""
        if self.augment != "crop-flip":
            return
        random = generator(self.seed, f"crop-flip of epoch {epoch}")
        self.corners = torch.randint(0, 2 * PADDING + 1, (len(self), 2), generator=random)
        self.mirrored = torch.randint(0, 2, (len(self),), generator=random, dtype=torch.bool)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Batch:
        pixels, labels = self.__getitems__([index])
        return pixels[0], labels[0]

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        chosen = torch.as_tensor(indices)
        pixels = self.images.pixels[chosen]
        if self.augment == "crop-flip":
            pixels = crop_flip(pixels, self.corners[chosen], self.mirrored[chosen])
        return self.normalised(pixels), self.images.labels[chosen]


def crop_flip(pixels: Tensor, corners: Tensor, mirrored: Tensor) -> Tensor:
    """Crop windows from padded images and flip some of them horizontally.

    Args:
        pixels: images, shape `(B, C, H, W)`.
        corners: int64, shape `(B, 2)`: top and left of each window in the padded image, 0 … 8.
        mirrored: boolean, shape `(B,)`: the images to flip.

    Returns:
        The windows, shape `(B, C, H, W)`.
    """
    height, width = pixels.shape[2:]
    # unfold returns a view of all windows, (B, C, 9, 9, H, W): only the chosen ones are copied.
    windows = F.pad(pixels, (PADDING,) * 4).unfold(2, height, 1).unfold(3, width, 1)
    cropped = windows[torch.arange(len(pixels)), :, corners[:, 0], corners[:, 1]]
    return torch.where(mirrored.view(-1, 1, 1, 1), cropped.flip(3), cropped)


class _EpochSampler(DistributedSampler[Batch]):
    """Distributed sampler that passes the epoch on to the dataset, for its augmentation."""

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        self.dataset.set_epoch(epoch)  # type: ignore[attr-defined]


def _identity(batch: T) -> T:
    return batch
