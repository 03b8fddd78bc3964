"""Small datasets on disk, for the tests of snello.lab.datasets; every image has a colour of its own."""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from snello.lab.datasets import Images


def write_image(path: Path, value: int, size: tuple[int, int] = (6, 6), mode: str = "RGB") -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode == "L" else (value, 0, 255 - value)).save(path)


def write_classes(folder: Path, classes: tuple[str, ...], count: int, first: int = 0) -> None:
    """``folder/CLASS/NN.png``, every image of a colour of its own."""
    for label, name in enumerate(classes):
        for i in range(count):
            write_image(folder / name / f"{i:02}.png", first + label * count + i)


def write_idx(path: Path, values: np.ndarray) -> None:  # type: ignore[type-arg]
    header = bytes([0, 0, 8, values.ndim]) + b"".join(n.to_bytes(4, "big") for n in values.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header + values.astype(np.uint8).tobytes())


def write_mnist(root: Path) -> None:
    for part, count in (("train", 40), ("t10k", 10)):
        pixels = np.arange(count)[:, None, None] + np.zeros((1, 28, 28), int)
        write_idx(root / f"MNIST/raw/{part}-images-idx3-ubyte", pixels)
        write_idx(root / f"MNIST/raw/{part}-labels-idx1-ubyte", np.arange(count) % 10)


def write_cifar100(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``cifar-100-python`` as torchvision reads it, two training images and one test image per
    class.

    torchvision knows the real files by their MD5; it is told those of the files written here.
    """
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    names = [f"class {i}" for i in range(100)]
    content = {
        "train": cifar_batch(np.arange(200), np.arange(200) // 2),
        "test": cifar_batch(np.arange(100), np.arange(100)),
        "meta": {"fine_label_names": names, "coarse_label_names": ["all"]},
    }
    digests = {}
    for name, entry in content.items():
        data = pickle.dumps(entry, protocol=2)
        (folder / name).write_bytes(data)
        digests[name] = hashlib.md5(data).hexdigest()
    kind = "torchvision.datasets.CIFAR100"
    monkeypatch.setattr(f"{kind}.train_list", [["train", digests["train"]]])
    monkeypatch.setattr(f"{kind}.test_list", [["test", digests["test"]]])
    meta = {"filename": "meta", "key": "fine_label_names", "md5": digests["meta"]}
    monkeypatch.setattr(f"{kind}.meta", meta)


def cifar_batch(red: Any, labels: Any) -> dict[str, Any]:
    """Rows of 3072 bytes, channel by channel: a constant red, green counting columns, blue counting
    rows.
    """
    pixels = np.zeros((len(red), 3, 32, 32), np.uint8)
    pixels[:, 0] = red[:, None, None]
    pixels[:, 1] = np.arange(32)[None, None, :]
    pixels[:, 2] = np.arange(32)[None, :, None]
    return {
        "data": pixels.reshape(len(red), -1),
        "fine_labels": labels.tolist(),
        "coarse_labels": [0] * len(red),
    }


def write_jpeg(path: Path, seed: int, size: tuple[int, int]) -> None:
    """A photograph-like JPEG: smooth random colours. ``size`` is width × height."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path, "JPEG", quality=95)


def wnid(label: int) -> str:
    """A WordNet id; they sort as their labels do."""
    return f"n{label + 1000:08}"


def write_imagenet(root: Path, classes: int, train: int = 3, val: int = 1) -> None:
    """``imagenet/{train,val}/n…/*.JPEG`` of various sizes, as torchvision unpacks it."""
    for part, count in (("train", train), ("val", val)):
        for label in range(classes):
            for i in range(count):
                name = f"{wnid(label)}_{i}.JPEG"
                size = (40 + 3 * (label % 5), 50 - 4 * (label % 3))
                write_jpeg(root / "imagenet" / part / wnid(label) / name, label * 10 + i, size)


def rectangle(left: int, top: int, width: int, height: int) -> list[list[float]]:
    """A COCO polygon that covers exactly these pixels."""
    right, bottom = left + width, top + height
    return [[left, top, right, top, right, bottom, left, bottom]]


def write_coco(root: Path, parts: dict[str, list[dict[str, Any]]]) -> None:
    """``coco/{train,val}2017/*.jpg`` and ``coco/annotations/instances_…2017.json``.

    Args:
        root: where ``coco`` goes.
        parts: for "train" and "val", per image its "size" (width, height) and its "objects": (COCO
            category, segmentation, area).
    """
    for part, described in parts.items():
        images, annotations = [], []
        for number, image in enumerate(described):
            identity, (width, height) = 100 + 7 * number, image["size"]
            name = f"{identity:012}.jpg"
            write_jpeg(root / "coco" / f"{part}2017" / name, number, (width, height))
            images.append({"id": identity, "file_name": name, "width": width, "height": height})
            for category, segmentation, area in image["objects"]:
                annotations.append(
                    {
                        "id": len(annotations) + 1, "image_id": identity, "category_id": category,
                        "segmentation": segmentation, "area": area, "bbox": [0, 0, width, height],
                        "iscrowd": int(isinstance(segmentation, dict)),
                    }
                )  # fmt: skip
        file = root / "coco" / "annotations" / f"instances_{part}2017.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(
            json.dumps({"images": images, "annotations": annotations, "categories": []})
        )


def write_masks(path: Path, parts: tuple[str, ...] = ("train", "test"), count: int = 4) -> None:
    """A folder of images and masks of three classes: upper half 1, a line of 255, lower half 2."""
    from PIL import Image

    for part in parts:
        for i in range(count):
            size = (30 + 2 * i, 24)
            write_jpeg(path / part / "images" / f"{i}.jpg", i, size)
            labels = np.full((size[1], size[0]), 2, np.uint8)
            labels[:12], labels[12] = 1, 255
            (path / part / "masks").mkdir(exist_ok=True)
            Image.fromarray(labels).save(path / part / "masks" / f"{i}.png")
    (path / "classes.txt").write_text("background\nsky\nground\n")


def colours(images: Images) -> list[int]:
    return images.pixels[:, 0, 0, 0].tolist()


def same(a: Images, b: Images) -> bool:
    return torch.equal(a.pixels, b.pixels) and torch.equal(a.labels, b.labels)
