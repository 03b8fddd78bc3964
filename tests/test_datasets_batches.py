"""loader(): what a batch holds, and that order and augmentation are functions of the seed and the
epoch.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader

from seams.datasets import channel_statistics, crop_flip
from snello.errors import ConfigError, DataError
from snello.lab.datasets import DataSplits, Images, loader

Batches = DataLoader[tuple[Tensor, Tensor]]


def make_splits(
    count: int = 23, shape: tuple[int, int, int] = (3, 6, 5), seed: int = 0
) -> DataSplits:
    """Random images; the label of each is its place."""
    random = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, *shape), generator=random).to(torch.uint8)
    images = Images(pixels, torch.arange(count))
    mean, std = channel_statistics(pixels)
    return DataSplits("random", images, images, images, ("a",), mean, std)


def identity(splits: DataSplits) -> DataSplits:
    """Statistics under which a batch is just pixels / 255."""
    channels = splits.input_shape[0]
    return dataclasses.replace(splits, mean=(0.0,) * channels, std=(1.0,) * channels)


def epoch(batches: Batches, number: int) -> tuple[Tensor, Tensor]:
    batches.sampler.set_epoch(number)  # type: ignore[attr-defined]
    images, labels = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(labels)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 30), st.integers(1, 40), st.integers(0, 1000))
def test_batches_are_the_images_in_order_normalised(count: int, batch_size: int, seed: int) -> None:
    splits = make_splits(count, seed=seed)
    batches = list(loader(splits.train, splits, batch_size))
    assert [len(y) for _, y in batches[:-1]] == [batch_size] * (len(batches) - 1)
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert images.dtype == torch.float32
    assert labels.tolist() == list(range(count))
    mean, std = (
        torch.tensor(v, dtype=torch.float64).view(-1, 1, 1) for v in (splits.mean, splits.std)
    )
    expected = (splits.train.pixels.double() / 255 - mean) / std
    torch.testing.assert_close(images.double(), expected, rtol=0, atol=2e-6)


def test_normalised_training_part_has_mean_0_and_deviation_1() -> None:
    splits = make_splits(200)
    images = torch.cat([x for x, _ in loader(splits.train, splits, 32)]).double()
    assert images.mean((0, 2, 3)).abs().max() < 1e-5
    assert (images.std((0, 2, 3), unbiased=False) - 1).abs().max() < 1e-5


def test_constant_channel_normalises_to_zero() -> None:
    images = Images(torch.full((4, 1, 3, 3), 77, dtype=torch.uint8), torch.arange(4))
    splits = DataSplits("flat", images, images, images, ("a",), *channel_statistics(images.pixels))
    assert torch.cat([x for x, _ in loader(images, splits, 2)]).abs().max() < 1e-6


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**40), st.integers(0, 500), st.integers(1, 30))
def test_order_is_a_permutation_decided_by_seed_and_epoch(
    seed: int, number: int, batch_size: int
) -> None:
    splits = make_splits()
    one, two = (loader(splits.train, splits, b, shuffle=True, seed=seed) for b in (batch_size, 7))
    epoch(one, number + 1)  # what came before must not matter
    torch.manual_seed(number)
    images, labels = epoch(one, number)
    assert sorted(labels.tolist()) == list(range(23))
    assert torch.equal(labels, epoch(two, number)[1])
    assert torch.equal(images, epoch(two, number)[0])


def test_epochs_and_seeds_give_different_orders() -> None:
    splits = make_splits()
    orders = {
        tuple(epoch(loader(splits.train, splits, 4, shuffle=True, seed=seed), number)[1].tolist())
        for seed in range(4)
        for number in range(4)
    }
    assert len(orders) == 16  # seed 0 at epoch 1 is not seed 1 at epoch 0 either


def test_the_global_random_state_is_neither_read_nor_written() -> None:
    splits = make_splits()
    results = []
    for state in (1, 2):
        torch.manual_seed(state)
        before = torch.get_rng_state()
        results.append(epoch(loader(splits.train, splits, 4, shuffle=True, augment="crop-flip"), 3))
        list(loader(splits.train, splits, 4))
        assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(results[0][0], results[1][0])


def windows(image: Tensor) -> set[bytes]:
    """Every window of the padded image, and of its mirror."""
    height, width = image.shape[1:]
    padded = F.pad(image, (4, 4, 4, 4))
    found = [padded[:, y : y + height, x : x + width] for y in range(9) for x in range(9)]
    return {w.contiguous().numpy().tobytes() for f in found for w in (f, f.flip(2))}


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10**6), st.integers(0, 300), st.integers(1, 24))
def test_every_augmented_image_is_a_window_of_its_own(
    seed: int, number: int, batch_size: int
) -> None:
    splits = identity(make_splits(8))
    batches = loader(splits.train, splits, batch_size, shuffle=True, seed=seed, augment="crop-flip")
    images, labels = epoch(batches, number)
    assert images.shape[1:] == splits.train.pixels.shape[1:]
    for image, label in zip(images, labels, strict=True):
        pixels = (image * 255).round().to(torch.uint8)
        assert pixels.numpy().tobytes() in windows(splits.train.pixels[label])


def test_crop_flip_against_slices() -> None:
    pixels = make_splits(50, (2, 6, 6)).train.pixels
    corners = torch.randint(0, 9, (50, 2), generator=torch.Generator().manual_seed(1))
    mirrored = torch.arange(50) % 2 == 0
    padded = F.pad(pixels, (4, 4, 4, 4))
    for i, out in enumerate(crop_flip(pixels, corners, mirrored)):
        top, left = corners[i].tolist()
        window = padded[i, :, top : top + 6, left : left + 6]
        assert torch.equal(out, window.flip(2) if mirrored[i] else window)


def test_augmentation_covers_every_window_evenly_and_independently() -> None:
    splits = make_splits(81 * 2 * 40, (1, 1, 1))
    data = loader(splits.train, splits, 64, augment="crop-flip").dataset
    cells = data.corners[:, 0] * 18 + data.corners[:, 1] * 2 + data.mirrored  # type: ignore[attr-defined]
    counts = torch.bincount(cells, minlength=162).double()
    chi_square = float(((counts - 40) ** 2 / 40).sum())
    assert len(counts) == 162
    assert chi_square < 161 + 5 * (2 * 161) ** 0.5


@pytest.mark.parametrize("shuffle", [False, True])
def test_augmentation_belongs_to_the_image_not_to_the_batch(shuffle: bool) -> None:
    splits = make_splits()
    results = []
    for batch_size in (1, 5, 23):
        batches = loader(
            splits.train, splits, batch_size, shuffle=shuffle, seed=9, augment="crop-flip"
        )
        images, labels = epoch(batches, 4)
        results.append(images[labels.argsort()])
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_augmentation_changes_with_epoch_and_seed() -> None:
    splits = make_splits()

    def images(seed: int, number: int) -> Tensor:
        return epoch(loader(splits.train, splits, 5, seed=seed, augment="crop-flip"), number)[0]

    assert torch.equal(images(0, 1), images(0, 1))
    assert not torch.equal(images(0, 1), images(0, 2))
    assert not torch.equal(images(0, 1), images(1, 1))


def test_dataset_is_not_changed_by_its_batches() -> None:
    splits = make_splits()
    before = splits.train.pixels.clone()
    for x, _ in loader(splits.train, splits, 5, augment="crop-flip"):
        x.zero_()
    for x, y in loader(splits.train, splits, 5):
        x.zero_()
        y.zero_()
    assert torch.equal(splits.train.pixels, before)
    assert splits.train.labels.tolist() == list(range(23))


def test_limit_takes_the_first_images() -> None:
    splits = make_splits()
    batches = loader(splits.train, splits, 4, shuffle=True, limit=10)
    assert sorted(epoch(batches, 0)[1].tolist()) == list(range(10))
    assert len(batches) == 3
    assert len(loader(splits.train, splits, 4, limit=1000).dataset) == 23  # type: ignore[arg-type]


@pytest.mark.parametrize("shuffle", [False, True])
def test_replicas_share_the_images_and_draw_the_same_crops(shuffle: bool) -> None:
    splits = make_splits(24)
    whole, labels = epoch(loader(splits.train, splits, 5, shuffle=shuffle, augment="crop-flip"), 2)
    seen = []
    for rank in range(2):
        part = loader(
            splits.train, splits, 5, shuffle=shuffle, augment="crop-flip", replicas=2, rank=rank
        )
        images, mine = epoch(part, 2)
        seen += mine.tolist()
        places = torch.stack([(labels == label).nonzero()[0, 0] for label in mine])
        assert torch.equal(images, whole[places])
    assert sorted(seen) == list(range(24))


def test_single_images_agree_with_batches() -> None:
    splits = make_splits()
    batches = loader(splits.train, splits, 23, augment="crop-flip")
    images, _ = epoch(batches, 0)
    image, label = batches.dataset[7]
    assert torch.equal(image, images[7])
    assert int(label) == 7


def test_impossible_requests() -> None:
    splits = make_splits()
    with pytest.raises(ConfigError, match="batch_size=0"):
        loader(splits.train, splits, 0)
    with pytest.raises(ConfigError, match="limit=0"):
        loader(splits.train, splits, 1, limit=0)
    with pytest.raises(
        ConfigError, match="augment='mixup' is unknown; choose one of: none, crop-flip"
    ):
        loader(splits.train, splits, 1, augment="mixup")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="rank=2"):
        loader(splits.train, splits, 1, replicas=2, rank=2)
    empty = Images(splits.train.pixels[:0], splits.train.labels[:0])
    with pytest.raises(DataError, match="no images"):
        loader(empty, splits, 1)
