"""Segmentation data: COCO's outlines become masks by torchvision's rules, and masks follow their
images.
"""

from __future__ import annotations

import json
import pickle
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dataset_files import rectangle, write_coco, write_masks
from seams.datasets import VOC, CocoMasks, Texts
from snello.errors import DataError, MissingExtraError
from snello.lab.datasets import StreamedSplits, load_dataset, loader

Image = pytest.importorskip("PIL.Image", reason="streamed images need the extra 'train'")
pytest.importorskip("torchvision", reason="streamed images need the extra 'train'")

needs_coco = pytest.mark.skipif(
    find_spec("pycocotools") is None, reason="COCO needs the extra 'coco'"
)
PERSON, DOG, BICYCLE, GIRAFFE = 1, 18, 2, 25


def load_streamed(name: str, **options: Any) -> StreamedSplits:
    splits = load_dataset(name, **options)
    assert isinstance(splits, StreamedSplits)
    return splits


def coco_parts() -> dict[str, list[dict[str, Any]]]:
    large = (PERSON, rectangle(0, 0, 40, 40), 1600.0)
    return {
        "train": [
            {"size": (60, 50), "objects": [large]},
            {"size": (60, 50), "objects": [(DOG, rectangle(5, 5, 10, 10), 100.0)]},  # too small
            {
                "size": (60, 50),
                "objects": [(GIRAFFE, rectangle(0, 0, 50, 50), 2500.0)],
            },  # no VOC class
            {"size": (60, 50), "objects": []},
            {
                "size": (50, 60),
                "objects": [(DOG, rectangle(1, 1, 20, 20), 400.0)] * 3,
            },  # 1200 together
            {
                "size": (44, 44),
                "objects": [(DOG, rectangle(0, 0, 25, 40), 1000.0)],
            },  # not *more* than 1000
            {"size": (44, 44), "objects": [(DOG, rectangle(0, 0, 26, 40), 1040.0)]},
        ],
        "val": [
            {"size": (64, 48), "objects": [(GIRAFFE, rectangle(0, 0, 50, 40), 2000.0)]},
            {"size": (64, 48), "objects": [large]},
        ],
    }


# COCO ------------------------------------------------------------------------------------------------------


@needs_coco
def test_training_images_need_a_thousand_pixels_and_test_images_none(tmp_path: Path) -> None:
    write_coco(tmp_path, coco_parts())
    splits = load_streamed("coco", root=tmp_path, validation=0.3)
    assert (splits.task, splits.input_shape, splits.resize) == ("segmentation", (3, 480, 480), 520)
    assert len(splits.classes) == 21
    learnt = [
        Path(p.files[i]).name for p in (splits.train, splits.validation) for i in range(len(p))
    ]
    assert sorted(learnt) == [f"{100 + 7 * i:012}.jpg" for i in (0, 4, 6)]
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (2, 1, 2)
    with pytest.raises(DataError, match="have no labels"):
        _ = splits.test.labels


def test_the_classes_are_those_of_torchvisions_weights() -> None:
    from torchvision.models.segmentation import DeepLabV3_ResNet50_Weights as Weights

    assert [name.strip("_") for name in Weights.DEFAULT.meta["categories"]] == list(VOC)
    # CAT_LIST of torchvision's references/segmentation/coco_utils.py
    assert list(VOC.values()) == [
        0, 5, 2, 16, 9, 44, 6, 3, 17, 62, 21, 67, 18, 19, 4, 1, 64, 20, 63, 7, 72,
    ]  # fmt: skip


@needs_coco
def test_evaluation_masks_are_resized_with_their_images(tmp_path: Path) -> None:
    write_coco(tmp_path, coco_parts())
    splits = load_streamed("coco", root=tmp_path, image_size=48 * 12 // 13)
    assert splits.resize == 48
    masks = {int(mask.max()): (image, mask) for image, mask in loader(splits.test, splits, 1)}
    image, mask = masks[list(VOC).index("person")]
    assert image.shape == (1, 3, 48, 64)
    assert mask.dtype == torch.int64
    expected = torch.zeros(48, 64, dtype=torch.int64)
    expected[:40, :40] = list(VOC).index("person")
    assert torch.equal(mask[0], expected)
    assert not masks[0][1].any()  # a giraffe is background


def reference_mask(objects: list[tuple[int, Any]], height: int, width: int) -> Tensor:
    """ConvertCocoPolysToMask of torchvision's references/segmentation/coco_utils.py, in its own
    words.
    """
    from pycocotools import mask as coco_mask

    if not objects:
        return torch.zeros((height, width), dtype=torch.uint8)
    masks = []
    for _, polygons in objects:
        decoded = coco_mask.decode(coco_mask.frPyObjects(polygons, height, width))
        if len(decoded.shape) < 3:
            decoded = decoded[..., None]
        masks.append(torch.as_tensor(decoded, dtype=torch.uint8).any(dim=2))
    stacked = torch.stack(masks, dim=0)
    labels = torch.as_tensor([label for label, _ in objects], dtype=torch.uint8)
    target, _ = (stacked * labels[:, None, None]).max(dim=0)
    target[stacked.sum(0) > 1] = 255
    return target


COORDINATE = st.floats(-3, 26, allow_nan=False).map(lambda x: round(x, 2))
POLYGON = st.lists(COORDINATE, min_size=6, max_size=12).map(lambda c: c[: len(c) // 2 * 2])
RUNS = st.lists(st.integers(1, 40), min_size=1, max_size=6).map(
    lambda c: {"size": [20, 24], "counts": [*c, 480 - sum(c)]}
)
OUTLINE = st.lists(POLYGON, min_size=1, max_size=3) | RUNS


@needs_coco
@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(1, 20), OUTLINE), max_size=4))
def test_masks_are_those_of_torchvisions_reference(objects: list[tuple[int, Any]]) -> None:
    masks = CocoMasks(Texts(["a.jpg"]), Texts([json.dumps(objects)]))
    assert torch.equal(masks.mask(0, 20, 24), reference_mask(objects, 20, 24))


@needs_coco
def test_compressed_run_lengths_are_read_too() -> None:
    from pycocotools import mask as coco_mask

    drawn = np.zeros((20, 24), np.uint8, order="F")
    drawn[3:9, 4:20] = 1
    runs = coco_mask.encode(drawn)
    objects = [(7, {"size": runs["size"], "counts": runs["counts"].decode()})]
    masks = CocoMasks(Texts(["a.jpg"]), Texts([json.dumps(objects)]))
    assert torch.equal(masks.mask(0, 20, 24), torch.from_numpy(drawn) * 7)


@needs_coco
def test_faults_of_coco_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"(?s)instances_.*/coco, .*not downloaded automatically: get train2017.zip"
    ):
        load_dataset("coco", root=tmp_path)
    write_coco(tmp_path, coco_parts())
    masks = CocoMasks(Texts(["b.jpg"]), Texts([json.dumps([(5, "nonsense")])]))
    with pytest.raises(DataError, match=r"b\.jpg: an object of class 'bottle' has an outline"):
        masks.mask(0, 4, 4)
    file = tmp_path / "coco" / "annotations" / "instances_train2017.json"
    whole = file.read_text()
    file.write_text(whole[:-20])
    with pytest.raises(
        DataError, match=r"instances_train2017\.json is not valid JSON.*unpack it again"
    ):
        load_dataset("coco", root=tmp_path)
    file.write_text('{"images": [], "annotations": []}')
    with pytest.raises(DataError, match="no image with an object"):
        load_dataset("coco", root=tmp_path)


def test_coco_without_pycocotools_gives_the_pip_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools.mask", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'snello\[coco\]'"):
        load_dataset("coco", root=tmp_path)


# Folders of masks
# ------------------------------------------------------------------------------------------


def test_masks_of_a_folder_reach_the_batch(tmp_path: Path) -> None:
    write_masks(tmp_path)
    splits = load_streamed("maskfolder", path=tmp_path, image_size=22)
    assert splits.classes == ("background", "sky", "ground")
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (3, 1, 4)
    assert splits.resize == 24
    for image, mask in loader(splits.test, splits, 1):
        assert image.shape[2:] == mask.shape[1:]
        assert mask.shape[1] == 24
        assert mask[0, :12].eq(1).all()
        assert mask[0, 12].eq(255).all()
        assert mask[0, 13:].eq(2).all()


def test_masks_with_a_palette_hold_labels_too(tmp_path: Path) -> None:
    write_masks(tmp_path)
    plain = load_streamed("maskfolder", path=tmp_path)
    expected = [mask for _, mask in loader(plain.test, plain, 1)]
    for file in (tmp_path / "test" / "masks").iterdir():
        mask = Image.open(file)
        mask.putpalette(list(range(255, -1, -1)) * 3)
        mask.save(file)
        assert Image.open(file).mode == "P"
    for (_, mask), before in zip(loader(plain.test, plain, 1), expected, strict=True):
        assert torch.equal(mask, before)


@needs_coco
def test_coco_can_be_sent_to_a_process_that_shares_no_memory(tmp_path: Path) -> None:
    write_coco(tmp_path, coco_parts())
    splits = load_streamed("coco", root=tmp_path, image_size=30)
    batches = loader(splits.train, splits, 1, augment="crop-flip").dataset
    sent = pickle.loads(pickle.dumps(batches))
    for mine, theirs in zip(batches[(3, 1)], sent[(3, 1)], strict=True):
        assert torch.equal(mine, theirs)
    (with_worker,) = loader(splits.train, splits, 2, workers=1)
    (without,) = loader(splits.train, splits, 2)
    assert torch.equal(with_worker[1], without[1])


def test_images_of_different_size_are_padded_to_the_largest(tmp_path: Path) -> None:
    write_masks(tmp_path)
    splits = load_streamed("maskfolder", path=tmp_path, image_size=22)
    singles = list(loader(splits.test, splits, 1))
    images, masks = next(iter(loader(splits.test, splits, 4)))
    assert images.shape == (4, 3, 24, 36)
    for (image, mask), padded, padded_mask in zip(singles, images, masks, strict=True):
        width = image.shape[-1]
        assert torch.equal(padded[..., :width], image[0])
        assert torch.equal(padded_mask[:, :width], mask[0])
        assert not padded[..., width:].any()
        assert padded_mask[:, width:].eq(255).all()


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> StreamedSplits:
    """Images whose red channel is 250 where the mask is 1 and 100 where it is 0; the others tell
    the place.
    """
    folder = tmp_path_factory.mktemp("blocks")
    for part in ("train", "test"):
        (folder / part / "masks").mkdir(parents=True)
        (folder / part / "images").mkdir()
        for i in range(12):
            labels = np.kron(
                np.random.default_rng(i).integers(0, 2, (4, 5)), np.ones((16, 16), int)
            )
            pixels = np.stack([100 + 150 * labels] * 3, -1).astype(np.uint8)
            Image.fromarray(pixels).save(folder / part / "images" / f"{i}.png")
            Image.fromarray(labels.astype(np.uint8)).save(folder / part / "masks" / f"{i}.png")
    (folder / "classes.txt").write_text("dark\nbright\n")
    return load_streamed("maskfolder", path=folder, image_size=60)


def test_masks_follow_their_images_through_the_augmentation(blocks: StreamedSplits) -> None:
    batches = loader(blocks.train, blocks, 5, shuffle=True, augment="crop-flip")
    scales = set()
    padded_somewhere = 0
    for number in range(4):
        batches.sampler.set_epoch(number)  # type: ignore[attr-defined]
        for images, masks in batches:
            assert images.shape[1:] == (3, 60, 60)
            assert masks.shape[1:] == (60, 60)
            red = (images[:, 0] * blocks.std[0] + blocks.mean[0]) * 255
            black = red < 50
            padded_somewhere += int(black.any())
            # Padding is black and of no class, exactly.
            assert torch.equal(black, masks == 255)
            bright = (red > 175) & ~black
            right = (bright == (masks == 1)) | black
            # Bilinear pixels and nearest labels differ along the edges of blocks only.
            assert right.double().mean() > 0.93
            scales.add(int(black.sum()))
    assert 2 < padded_somewhere < 12
    assert len(scales) > 3


def test_segmentation_batches_belong_to_seed_epoch_and_image(blocks: StreamedSplits) -> None:
    options: dict[str, Any] = {"shuffle": True, "augment": "crop-flip", "seed": 8}
    loaders = [
        loader(blocks.train, blocks, 4, **options),
        loader(blocks.train, blocks, 4, workers=2, **options),
        loader(blocks.train, blocks, 3, **options),
    ]
    results = []
    for batches in loaders:
        batches.sampler.set_epoch(6)  # type: ignore[attr-defined]
        images, masks = zip(*batches, strict=True)
        results.append((torch.cat(images), torch.cat(masks)))
    for images, masks in results[1:]:
        assert torch.equal(images, results[0][0])
        assert torch.equal(masks, results[0][1])


def _no_mask(path: Path) -> None:
    (path / "train" / "masks" / "2.png").unlink()


def _two_suffixes(path: Path) -> None:
    Image.new("RGB", (30, 24)).save(path / "train" / "images" / "2.bmp")


def _other_size(path: Path) -> None:
    Image.new("L", (7, 5)).save(path / "train" / "masks" / "0.png")


def _colours(path: Path) -> None:
    Image.new("RGB", (30, 24)).save(path / "train" / "masks" / "0.png")


def _unknown_label(path: Path) -> None:
    Image.new("L", (30, 24), 3).save(path / "train" / "masks" / "0.png")


def _broken(path: Path) -> None:
    (path / "train" / "masks" / "0.png").write_bytes(b"junk")


def _no_list(path: Path) -> None:
    (path / "classes.txt").unlink()


def _one_class(path: Path) -> None:
    (path / "classes.txt").write_text("all\n")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_no_mask, r"train: '2' has no mask"),
        (
            _two_suffixes,
            r"images/2\.(bmp|png|jpg) and .*/train/images/2\.(bmp|png|jpg) have one name",
        ),
        (_other_size, r"masks/0\.png is 7×5, its image 30×24"),
        (_colours, r"masks/0\.png has mode 'RGB'"),
        (
            _unknown_label,
            r"masks/0\.png has the label 3; valid are the labels of classes.txt, 0 … 2",
        ),
        (_broken, r"masks/0\.png cannot be decoded"),
        (_no_list, "no list of classes in"),
        (_one_class, "names 1 classes"),
    ],
)
def test_faults_of_a_mask_folder_are_named(tmp_path: Path, damage: Any, message: str) -> None:
    write_masks(tmp_path)
    damage(tmp_path)
    with pytest.raises(DataError, match=message):
        _read_all(tmp_path)


def _read_all(path: Path) -> None:
    splits = load_streamed("maskfolder", path=path)
    for part in (splits.train, splits.validation):
        list(loader(part, splits, 1))
