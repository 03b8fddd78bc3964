"""Image folders: what is read, how it is cut, and how every fault names its file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dataset_files import colours, same, write_classes, write_image
from seams.datasets import folders
from snello.errors import ConfigError, DataError
from snello.lab.datasets import load_dataset

Image = pytest.importorskip("PIL.Image", reason="image folders need the extra 'train'")


def test_folder_of_classes_is_cut_in_three(tmp_path: Path) -> None:
    write_classes(tmp_path, ("cat", "dog"), 20)
    a, b = (
        load_dataset("imagefolder", path=tmp_path, seed=0),
        load_dataset("imagefolder", path=tmp_path, seed=1),
    )
    parts = (a.train, a.validation, a.test)
    assert [len(p) for p in parts] == [28, 4, 8]
    assert sorted(c for p in parts for c in colours(p)) == list(range(40))
    assert all(p.labels.tolist() == [c // 20 for c in colours(p)] for p in parts)
    assert a.classes == ("cat", "dog")
    assert same(a.test, b.test)
    # The files list one class after the other; a slice must not.
    assert len(a.train.labels[:8].unique()) == 2


def test_folder_with_its_own_parts(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", ("cat", "dog"), 10)
    write_classes(tmp_path / "test", ("cat", "dog"), 3, first=50)
    splits = load_dataset("imagefolder", path=tmp_path)
    assert sorted(colours(splits.train) + colours(splits.validation)) == list(range(20))
    assert sorted(colours(splits.test)) == list(range(50, 56))
    write_classes(tmp_path / "val", ("cat", "dog"), 2, first=80)
    splits = load_dataset("imagefolder", path=tmp_path)
    assert sorted(colours(splits.train)) == list(range(20))
    assert sorted(colours(splits.validation)) == list(range(80, 84))


@pytest.mark.parametrize("name", ["imagefolder", "imagefolder-stream"])
@pytest.mark.parametrize(
    ("parts", "named"),
    [
        (("Train", "Test"), "'Test'.*'test'"),
        (("train", "valid", "test"), "'valid'.*'val'"),
        (("training", "val"), "'training'.*'train'"),
    ],
)
def test_parts_of_other_names_are_no_classes(
    tmp_path: Path, name: str, parts: tuple[str, ...], named: str
) -> None:
    for part in parts:
        write_classes(tmp_path / part, ("cat", "dog"), 3)
    with pytest.raises(DataError, match=f"has a folder {named}"):
        load_dataset(name, path=tmp_path)


def test_valid_may_be_a_class(tmp_path: Path) -> None:
    write_classes(tmp_path, ("invalid", "valid"), 6)
    assert load_dataset("imagefolder", path=tmp_path).classes == ("invalid", "valid")


def test_parts_must_agree(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", ("cat", "dog"), 2)
    with pytest.raises(DataError, match="a folder 'train' but no folder 'test'"):
        load_dataset("imagefolder", path=tmp_path)
    write_classes(tmp_path / "test", ("cat",), 2)
    with pytest.raises(DataError, match="differ in class 'dog'"):
        load_dataset("imagefolder", path=tmp_path)


def test_greyscale_has_three_equal_channels(tmp_path: Path) -> None:
    for i in range(5):
        write_image(tmp_path / "a" / f"{i}.png", 10 * i, mode="L")
    pixels = load_dataset("imagefolder", path=tmp_path).train.pixels
    assert pixels.shape[1] == 3
    assert torch.equal(pixels[:, 0], pixels[:, 2])
    grey = load_dataset("imagefolder", path=tmp_path, order="grey")
    assert torch.equal(grey.train.pixels, pixels[:, :1])
    assert (grey.input_shape[0], grey.colours, len(grey.mean)) == (1, "grey", 1)
    with pytest.raises(ConfigError, match="imagefolder reads grey images"):
        load_dataset("imagefolder-stream", path=tmp_path, order="grey")


def test_colours_become_grey_as_pillow_makes_them(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    generator = torch.Generator().manual_seed(0)
    for i in range(12):
        pixels = torch.randint(256, (5, 5, 3), dtype=torch.uint8, generator=generator)
        Image.fromarray(pixels.numpy()).save(tmp_path / "a" / f"{i}.png")
    part = load_dataset("imagefolder", path=tmp_path, order="grey").train
    assert part.files is not None
    for i, pixels in enumerate(part.pixels):
        expected = Image.open(part.files[i]).convert("L").tobytes()
        assert bytes(pixels.flatten().tolist()) == expected
    assert pixels.any()


def test_sizes_differ(tmp_path: Path) -> None:
    write_classes(tmp_path, ("a", "b"), 3)
    write_image(tmp_path / "b" / "wide.png", 50, size=(12, 6))
    with pytest.raises(
        ConfigError, match=r"differ in size: .*(12×6|6×6).*--image-size=N, or --data.image_size=N"
    ):
        load_dataset("imagefolder", path=tmp_path)
    assert load_dataset("imagefolder", path=tmp_path, image_size=4).input_shape == (3, 4, 4)


def test_sizes_differ_between_parts(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", ("a",), 3)
    for i in range(3):
        write_image(tmp_path / "test" / "a" / f"{i}.png", 0, size=(9, 7))
    with pytest.raises(ConfigError, match=r"'test' are 9×7, those of 'train' are 6×6"):
        load_dataset("imagefolder", path=tmp_path)


def test_resizing_crops_the_centre(tmp_path: Path) -> None:
    image = Image.new("RGB", (30, 10), (255, 0, 0))
    image.paste((0, 255, 0), (10, 0, 20, 10))
    (tmp_path / "a").mkdir()
    for i in range(3):
        image.save(tmp_path / "a" / f"{i}.png")
    pixels = load_dataset("imagefolder", path=tmp_path, image_size=5).train.pixels
    assert pixels[:, 1].eq(255).all()
    assert not pixels[:, 0].any()


@pytest.mark.parametrize("damage", ["truncated", "text", "empty", "16 bits"])
def test_an_undecodable_image_is_named(tmp_path: Path, damage: str) -> None:
    write_classes(tmp_path, ("a", "b"), 3)
    file = tmp_path / "b" / "01.png"
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-20])
    elif damage == "16 bits":
        Image.new("I;16", (6, 6), 4000).save(file)
    else:
        file.write_text("no image" if damage == "text" else "")
    with pytest.raises(DataError, match=r"b/01\.png"):
        load_dataset("imagefolder", path=tmp_path)


def test_empty_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent: it does not exist"):
        load_dataset("imagefolder", path=tmp_path / "absent")
    with pytest.raises(DataError, match="has no class folders"):
        load_dataset("imagefolder", path=tmp_path)
    write_classes(tmp_path, ("a",), 2)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "notes.txt").write_text("no image")
    with pytest.raises(DataError, match=r"/b has no images"):
        load_dataset("imagefolder", path=tmp_path)


def test_one_image_per_class_is_too_few(tmp_path: Path) -> None:
    write_classes(tmp_path, ("a", "b"), 1)
    with pytest.raises(DataError, match="no class has two"):
        load_dataset("imagefolder", path=tmp_path)


def test_images_beyond_the_memory_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_classes(tmp_path, ("a", "b"), 3)
    monkeypatch.setattr(folders, "_physical_memory", lambda: 500)
    with pytest.raises(DataError, match=r"6 images of 6×6 pixels need.*imagefolder-stream"):
        load_dataset("imagefolder", path=tmp_path)
