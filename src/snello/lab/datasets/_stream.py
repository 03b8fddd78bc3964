"""Batches of images decoded on access, in this process or in worker processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler

from snello.errors import require

from ._folders import open_rgb
from ._splits import Normalisation, derived_seed
from ._transforms import image_transform
from ._types import IGNORED, StreamedImages, StreamedSplits

Batch = tuple[Tensor, Tensor]
Key = int | tuple[int, int]
"""Index of an image, or (epoch, index) from an `EpochKeys` sampler."""


class StreamedBatches(Dataset[Batch]):
    """One part of a streamed dataset; indexing with a list of keys returns a batch."""

    def __init__(
        self, images: StreamedImages, splits: StreamedSplits, seed: int, augment: str
    ) -> None:
        self.images, self.seed, self.augment = images, seed, augment
        self.view = image_transform(splits, augment)
        self.normalised = Normalisation(splits)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: Key) -> Batch:
        images, targets = self.__getitems__([key])
        return images[0], targets[0]

    def __getitems__(self, keys: Sequence[Key]) -> Batch:
        pairs = [self._one(*(key if isinstance(key, tuple) else (0, key))) for key in keys]
        images = _stack([self.normalised(image) for image, _ in pairs], 0)
        return images, _stack([target.long() for _, target in pairs], IGNORED)

    def _one(self, epoch: int, index: int) -> Batch:
        if self.augment == "none":
            return self._seen(index)
        with _drawing_from(
            derived_seed(self.seed, f"{self.augment} of epoch {epoch}, image {index}")
        ):
            return self._seen(index)

    def _seen(self, index: int) -> Batch:
        """The transformed pixels, uint8 `(3, H, W)`, and the label `()` or mask `(H, W)`."""
        image = open_rgb(
            require("PIL.Image", "train", "reading image files"), self.images.files[index]
        )
        targets = self.images.targets
        if isinstance(targets, Tensor):
            return _plain(self.view(image)), targets[index]
        tensors = require("torchvision.tv_tensors", "train", "reading masks")
        pixels, mask = self.view(
            image, tensors.Mask(targets.mask(index, image.height, image.width))
        )
        return _plain(pixels), _plain(mask)


class EpochKeys(DistributedSampler[Any]):
    """Sampler of (epoch, index): persistent workers learn the epoch from the key."""

    def __iter__(self) -> Iterator[Any]:
        return ((self.epoch, index) for index in super().__iter__())


def _plain(tensor: Any) -> Tensor:
    """Convert torchvision's tensor subclass to a plain tensor, to avoid its dispatch in Python."""
    return torch.Tensor.as_subclass(tensor, torch.Tensor)


def _stack(tensors: Sequence[Tensor], fill: int) -> Tensor:
    """Stack tensors, padded on the right and at the bottom to the size of the largest."""
    if len({tensor.shape for tensor in tensors}) == 1:
        return torch.stack(list(tensors))
    height, width = (max(tensor.shape[d] for tensor in tensors) for d in (-2, -1))
    return torch.stack(
        [F.pad(t, (0, width - t.shape[-1], 0, height - t.shape[-2]), value=fill) for t in tensors]
    )


@contextmanager
def _drawing_from(seed: int) -> Iterator[None]:
    """Seed the CPU's global generator inside the block and restore its state afterwards."""
    # torch.manual_seed would reseed the GPU as well.
    state = torch.default_generator.get_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.default_generator.set_state(state)
