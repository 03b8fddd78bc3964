"""Small datasets on disk, for the tests of snello.datasets; every image has a colour of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from snello.datasets import Images


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


def colours(images: Images) -> list[int]:
    return images.pixels[:, 0, 0, 0].tolist()


def same(a: Images, b: Images) -> bool:
    return torch.equal(a.pixels, b.pixels) and torch.equal(a.labels, b.labels)
