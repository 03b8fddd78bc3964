"""Datasets that stay in their files: ImageNet, large folders, and what their batches hold."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dataset_files import wnid, write_classes, write_imagenet, write_jpeg
from seams.datasets import Texts, streamed
from snello.errors import ConfigError, DataError
from snello.lab.datasets import DataSplits, Images, StreamedSplits, load_dataset, loader

Image = pytest.importorskip("PIL.Image", reason="streamed images need the extra 'train'")
pytest.importorskip("torchvision", reason="streamed images need the extra 'train'")

CLASSES = 5


@pytest.fixture
def imagenet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The root of a small ImageNet."""
    monkeypatch.setattr(streamed, "IMAGENET_CLASSES", CLASSES)
    write_imagenet(tmp_path, CLASSES, train=8, val=2)
    return tmp_path


def load_streamed(name: str, **options: Any) -> StreamedSplits:
    splits = load_dataset(name, **options)
    assert isinstance(splits, StreamedSplits)
    return splits


def epoch(batches: Any, number: int) -> tuple[Tensor, Tensor]:
    batches.sampler.set_epoch(number)
    images, labels = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(labels)


# Texts -----------------------------------------------------------------------------------------------------

TEXTS = st.text(st.characters(codec="utf-8") | st.sampled_from("\udc80\udcff"), max_size=9)


@given(st.lists(TEXTS, max_size=9), st.data())
def test_texts_are_a_list_in_two_tensors(texts: list[str], data: st.DataObject) -> None:
    table = pickle.loads(pickle.dumps(Texts(texts)))
    assert [table[i] for i in range(len(table))] == texts
    chosen = data.draw(st.lists(st.sampled_from(range(len(texts))), max_size=9)) if texts else []
    part = table.subset(torch.tensor(chosen, dtype=torch.int64))
    assert [part[i] for i in range(len(part))] == [texts[i] for i in chosen]


# ImageNet --------------------------------------------------------------------------------------------------


def names(part: Any) -> list[str]:
    return [Path(part.files[i]).name for i in range(len(part))]


def test_imagenet_parts_are_disjoint_complete_and_labelled(imagenet: Path) -> None:
    splits = load_streamed("imagenet", root=imagenet, validation=0.25, seed=3)
    assert (splits.task, splits.input_shape, splits.resize) == (
        "classification",
        (3, 224, 224),
        256,
    )
    assert splits.classes == tuple(map(wnid, range(CLASSES)))
    parts = (splits.train, splits.validation, splits.test)
    assert [len(p) for p in parts] == [30, 10, 10]
    assert torch.equal(torch.bincount(splits.validation.labels), torch.full((CLASSES,), 2))
    expected = sorted(f"{wnid(c)}_{i}.JPEG" for c in range(CLASSES) for i in range(8))
    assert sorted(names(splits.train) + names(splits.validation)) == expected
    for part in parts:
        assert [wnid(label) for label in part.labels.tolist()] == [
            n.partition("_")[0] for n in names(part)
        ]
    other = load_streamed("imagenet", root=imagenet, validation=0.25, seed=4)
    assert names(other.test) == names(splits.test)
    assert names(other.validation) != names(splits.validation)
    # Folders list one class after the other; a slice must not.
    assert len(splits.train.labels[:10].unique()) > 2


def test_imagenet_is_found_as_the_root_itself_and_named_by_torchvisions_file(
    imagenet: Path,
) -> None:
    classes = {wnid(c): (f"name {c}", "synonym") for c in range(CLASSES)}
    torch.save((classes, []), imagenet / "imagenet" / "meta.bin")
    splits = load_streamed("imagenet", root=imagenet / "imagenet")
    assert splits.classes == tuple(f"name {c}" for c in range(CLASSES))
    (imagenet / "imagenet" / "meta.bin").write_bytes(b"junk")
    with pytest.raises(DataError, match=r"meta\.bin is not torchvision's list"):
        load_dataset("imagenet", root=imagenet)


def test_faults_of_imagenet_say_what_to_do(imagenet: Path, tmp_path: Path) -> None:
    with pytest.raises(
        DataError,
        match=r"(?s)ILSVRC2012, .*It is not downloaded automatically: get ILSVRC2012_img_train",
    ):
        load_dataset("imagenet", root=tmp_path / "elsewhere")
    packed = tmp_path / "packed"
    packed.mkdir()
    (packed / "ILSVRC2012_img_train.tar").touch()
    with pytest.raises(
        DataError, match=r"still packed; torchvision unpacks it .*python -c 'from torchvision"
    ):
        load_dataset("imagenet", root=packed)
    (imagenet / "imagenet" / "val" / wnid(2)).rename(imagenet / "imagenet" / "val" / "other")
    with pytest.raises(DataError, match=f"differ in class '{wnid(2)}'"):
        load_dataset("imagenet", root=imagenet)
    (imagenet / "imagenet" / "train" / "n9").mkdir()
    with pytest.raises(
        DataError, match=r"holds 6 class folders instead of the 5.*imagefolder-stream"
    ):
        load_dataset("imagenet", root=imagenet)


# Folders ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("own_parts", [False, True])
def test_a_streamed_folder_is_cut_as_one_in_memory(tmp_path: Path, own_parts: bool) -> None:
    if own_parts:
        write_classes(tmp_path / "train", ("cat", "dog"), 10)
        write_classes(tmp_path / "test", ("cat", "dog"), 3, first=50)
        write_classes(tmp_path / "val", ("cat", "dog"), 2, first=80)
    else:
        write_classes(tmp_path, ("cat", "dog"), 20)
    memory = load_dataset("imagefolder", path=tmp_path, seed=1)
    streamed = load_streamed("imagefolder-stream", path=tmp_path, seed=1, image_size=6)
    assert streamed.classes == memory.classes
    for part in ("train", "validation", "test"):
        images, labels = zip(*loader(getattr(streamed, part), streamed, 4), strict=True)
        std, mean = (torch.tensor(v).view(3, 1, 1) for v in (streamed.std, streamed.mean))
        pixels = ((torch.cat(images) * std + mean) * 255).round().to(torch.uint8)
        assert torch.equal(pixels, getattr(memory, part).pixels)
        assert torch.equal(torch.cat(labels), getattr(memory, part).labels)


def test_a_subset_names_its_files_and_labels(tmp_path: Path) -> None:
    write_classes(tmp_path, ("cat", "dog"), 5)
    part = load_streamed("imagefolder-stream", path=tmp_path).train
    chosen = part.subset(torch.tensor([2, 0]))
    assert names(chosen) == [names(part)[2], names(part)[0]]
    assert chosen.labels.tolist() == part.labels[[2, 0]].tolist()


# Batches ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> StreamedSplits:
    folder = tmp_path_factory.mktemp("photos")
    for i in range(30):
        write_jpeg(folder / "ab"[i % 2] / f"{i:02}.jpg", i, (40 + i, 36))
    return load_streamed("imagefolder-stream", path=folder, image_size=14)


def test_evaluation_resizes_crops_the_centre_and_normalises(photos: StreamedSplits) -> None:
    from torchvision.transforms import functional as reference

    assert photos.resize == 16
    images, _ = next(iter(loader(photos.test, photos, 3)))
    assert images.shape == (3, 3, 14, 14)
    for i, seen in enumerate(images):
        with Image.open(photos.test.files[i]) as image:
            expected = reference.to_tensor(reference.center_crop(reference.resize(image, 16), 14))
        expected = reference.normalize(expected, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        torch.testing.assert_close(seen, expected, rtol=0, atol=2e-6)


@settings(deadline=None, max_examples=8)
@given(st.integers(0, 2**40), st.integers(0, 90), st.integers(1, 25))
def test_batches_belong_to_seed_epoch_and_image(
    photos: StreamedSplits, seed: int, number: int, batch_size: int
) -> None:
    one, two = (
        loader(photos.train, photos, b, shuffle=True, seed=seed, augment="crop-flip")
        for b in (batch_size, 7)
    )
    before = torch.manual_seed(number).get_state()
    images, labels = epoch(one, number)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(number + 1)
    again = epoch(two, number)
    assert torch.equal(images, again[0])
    assert torch.equal(labels, again[1])
    assert not torch.equal(images, epoch(two, number + 1)[0])


def test_workers_and_replicas_change_nothing(photos: StreamedSplits) -> None:
    options: dict[str, Any] = {"shuffle": True, "seed": 5, "augment": "crop-flip", "limit": 18}
    whole = loader(photos.train, photos, 5, **options)
    with_workers = loader(photos.train, photos, 5, workers=2, **options)
    halves = [loader(photos.train, photos, 4, replicas=2, rank=r, **options) for r in range(2)]
    for number in (3, 4, 1):  # the workers outlive an epoch: they must not go on with the old one
        images, labels = epoch(whole, number)
        parallel = epoch(with_workers, number)
        assert torch.equal(images, parallel[0])
        assert torch.equal(labels, parallel[1])
        dealt = [epoch(half, number)[0] for half in halves]
        # DistributedSampler deals the images out in turns.
        assert torch.equal(torch.stack(dealt, 1).flatten(0, 1), images)


def test_a_part_can_be_sent_to_a_process_that_shares_no_memory(photos: StreamedSplits) -> None:
    """As where worker processes are spawned and not forked: on macOS and Windows."""
    batches = loader(photos.train, photos, 4, augment="crop-flip").dataset
    sent = pickle.loads(pickle.dumps(batches))
    for mine, theirs in zip(batches[(3, 7)], sent[(3, 7)], strict=True):
        assert torch.equal(mine, theirs)


def test_every_image_comes_once_and_augmentation_keeps_its_label(photos: StreamedSplits) -> None:
    batches = loader(photos.train, photos, 6, shuffle=True, augment="crop-flip")
    _, labels = epoch(batches, 0)
    assert torch.equal(labels.bincount(), photos.train.labels.bincount())
    in_order = loader(photos.train, photos, 6, augment="crop-flip")
    assert torch.equal(epoch(in_order, 0)[1], photos.train.labels)


def test_crops_vary_in_place_scale_and_mirror(tmp_path: Path) -> None:
    """Red grows from left to right, green from top to bottom: a crop shows where it was taken."""
    import numpy as np

    ramp = np.zeros((200, 200, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(200)[None, :], np.arange(200)[:, None]
    (tmp_path / "a").mkdir()
    for i in range(40):
        Image.fromarray(ramp).save(tmp_path / "a" / f"{i}.png")
    splits = load_streamed("imagefolder-stream", path=tmp_path, image_size=16)
    images, _ = epoch(loader(splits.train, splits, 40, augment="crop-flip"), 0)
    std, mean = (torch.tensor(v).view(3, 1, 1) for v in (splits.std, splits.mean))
    pixels = (images * std + mean) * 255
    widths = pixels[:, 0, 8, -1] - pixels[:, 0, 8, 0]
    heights = pixels[:, 1, -1, 8] - pixels[:, 1, 0, 8]
    mirrored = widths < 0
    assert 5 < int(mirrored.sum()) < len(images) - 5
    assert bool((heights > 0).all())
    area = (widths.abs() * heights) / (200 * 15 / 16) ** 2
    assert 0.06 < float(area.min()) < 0.4
    assert 0.7 < float(area.max()) < 1.05
    aspect = widths.abs() / heights
    assert 0.7 < float(aspect.min()) < 0.95
    assert 1.05 < float(aspect.max()) < 1.4


@pytest.mark.parametrize("workers", [0, 1])
def test_an_undecodable_image_is_named(tmp_path: Path, workers: int) -> None:
    write_classes(tmp_path, ("a", "b"), 6)
    splits = load_streamed("imagefolder-stream", path=tmp_path, image_size=4)
    Path(splits.train.files[3]).write_bytes(b"no image")
    with pytest.raises(DataError, match=Path(splits.train.files[3]).name):
        list(loader(splits.train, splits, 2, workers=workers))


def test_impossible_requests(photos: StreamedSplits) -> None:
    with pytest.raises(ConfigError, match="workers=-1"):
        loader(photos.train, photos, 2, workers=-1)
    images = Images(torch.zeros(4, 3, 5, 5, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64))
    memory = DataSplits("flat", images, images, images, ("a",), (0.0,) * 3, (1.0,) * 3)
    with pytest.raises(
        ConfigError, match=r"StreamedImages\(\d+\) is not a part of these DataSplits"
    ):
        loader(photos.train, memory, 2)
    with pytest.raises(ConfigError, match="is not a part of these StreamedSplits"):
        loader(images, photos, 2)
    with pytest.raises(DataError, match="no images"):
        loader(photos.train.subset(torch.tensor([], dtype=torch.int64)), photos, 2)
