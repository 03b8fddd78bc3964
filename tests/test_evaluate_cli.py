"""``snello evaluate``, and the normalisation, colour order and classes that go with a model file."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from dataset_files import write_classes, write_masks
from seams.cli import subjects
from snello.cli import main
from snello.errors import ConfigError, DataError, ModelError
from snello.lab.datasets import load_dataset, loader
from snello.store import ImageInput, ModelSpec, Record, build, inspect, load, save

pytest.importorskip("lightning")
pytest.importorskip("jsonargparse")
pytest.importorskip("rich")
pytest.importorskip("PIL")

IMAGES = ImageInput((0.5, 0.4, 0.3), (0.2, 0.3, 0.4), "bgr", ("cat", "dog"))
SPEC = ModelSpec("lenet-300-100", {"in_features": 3 * 6 * 6, "classes": 2})


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_classes(tmp_path / "data" / "train", ("cat", "dog"), 6)
    write_classes(tmp_path / "data" / "val", ("cat", "dog"), 10, first=40)
    return tmp_path / "data"


def _model() -> nn.Module:
    torch.manual_seed(0)
    return build(SPEC).eval()


# The record


@pytest.mark.parametrize("suffix", [".pt", ".snello"])
def test_a_model_file_keeps_what_its_images_are(tmp_path: Path, suffix: str) -> None:
    if suffix == ".snello":
        pytest.importorskip("nncodec")
    path = save(tmp_path / f"m{suffix}", _model(), Record(SPEC, (3, 6, 6), images=IMAGES))
    assert load(path)[1].images == IMAGES
    assert inspect(path)["record"]["images"] == IMAGES.to_dict()
    assert "other_keys" not in inspect(path)["record"]
    plain = save(tmp_path / f"p{suffix}", _model(), Record(SPEC, (3, 6, 6)))
    assert load(plain)[1].images is None


def test_images_come_back_from_json() -> None:
    assert ImageInput.from_dict(json.loads(json.dumps(IMAGES.to_dict()))) == IMAGES
    grey = ImageInput((0.1,), (0.3,), "grey")
    assert ImageInput.from_dict(grey.to_dict()) == grey


@pytest.mark.parametrize(
    "change",
    [{"std": [0, 1, 1]}, {"mean": [1, 2]}, {"colours": "cmyk"}, {"mean": "x"}, {"std": [float("nan")] * 3}],
)  # fmt: skip
def test_images_that_cannot_be_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ModelError):
        ImageInput.from_dict({**IMAGES.to_dict(), **change})


def test_statistics_and_order_are_those_that_are_given(data: Path) -> None:
    own = load_dataset("imagefolder", path=data)
    given = load_dataset("imagefolder", path=data, mean=IMAGES.mean, std=IMAGES.std, order="bgr")
    assert (given.mean, given.std, given.colours) == (IMAGES.mean, IMAGES.std, "bgr")
    pixels = own.test.pixels.double().flip(1) / 255
    mean, std = (torch.tensor(v).double().view(-1, 1, 1) for v in (IMAGES.mean, IMAGES.std))
    batch, _ = next(iter(loader(given.test, given, 100)))
    assert torch.allclose(batch.double(), (pixels - mean) / std, atol=1e-6)
    streamed = load_dataset(
        "imagefolder-stream", path=data, image_size=6, mean=IMAGES.mean, std=IMAGES.std, order="bgr"
    )
    batch, _ = next(iter(loader(streamed.test, replace(streamed, resize=6), 100)))
    assert torch.allclose(batch.double(), (pixels - mean) / std, atol=1e-6)
    with pytest.raises(ConfigError, match="3 channels"):
        load_dataset("imagefolder", path=data, mean=(0.1, 0.2), std=(1, 1))


@pytest.mark.parametrize("name", ["imagefolder", "imagefolder-stream"])
def test_a_validation_folder_alone_is_validation_and_test(data: Path, name: str) -> None:
    splits = load_dataset(name, path=data)
    assert [len(p) for p in (splits.train, splits.validation, splits.test)] == [12, 10, 10]
    other = load_dataset(name, path=data, seed=3)
    assert torch.equal(other.test.labels, splits.test.labels), "the test part depends on no seed"
    if name == "imagefolder":
        held_out = torch.cat([splits.validation.pixels, splits.test.pixels])[:, 0, 0, 0]
        assert sorted(held_out.tolist()) == list(range(40, 60)), "and no image of the training"


def test_a_train_folder_alone_is_refused(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", ("cat", "dog"), 2)
    with pytest.raises(DataError, match="no folder 'test' or 'val'"):
        load_dataset("imagefolder", path=tmp_path)


# The command


def test_a_network_of_one_channel_gets_grey_images(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = ImageInput((0.4,), (0.3,), "grey", ("cat", "dog"))
    torch.manual_seed(1)
    spec = ModelSpec("lenet-300-100", {"in_features": 36, "classes": 2})
    model = build(spec).eval()
    paths = [
        save(tmp_path / "grey.pt", model, Record(spec, (1, 6, 6), images=images)),
        save(tmp_path / "coloured.pt", _model(), Record(SPEC, (3, 6, 6), images=IMAGES)),
    ]
    words = ["--data=imagefolder", f"--data-path={data}", f"--out={tmp_path / 'e.json'}"]
    assert main(["evaluate", *map(str, paths), *words]) == 0
    rows = json.loads((tmp_path / "e.json").read_text())["files"]
    assert rows[0]["accuracy"] == pytest.approx(
        _accuracy(model, data, mean=images.mean, std=images.std, order="grey")
    )
    assert rows[1]["accuracy"] == pytest.approx(
        _accuracy(_model(), data, mean=IMAGES.mean, std=IMAGES.std, order="bgr")
    )
    assert "warning" not in capsys.readouterr().err


def _accuracy(model: nn.Module, data: Path, **options: object) -> float:
    splits = load_dataset("imagefolder", path=data, **options)  # type: ignore[arg-type]
    images, labels = next(iter(loader(splits.test, splits, 100)))
    return float((model(images).argmax(1) == labels).double().mean())


def test_files_are_scored_side_by_side_as_their_records_say(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in ("nncodec", "onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(module)
    model, out = _model(), tmp_path / "evaluate.json"
    pt = save(tmp_path / "m.pt", model, Record(SPEC, (3, 6, 6), images=IMAGES))
    onnx, int8 = tmp_path / "m.onnx", tmp_path / "m-int8.onnx"
    images = [f"--data-path={data}", "--data=imagefolder", "--image-size=6"]
    assert main(["compress", str(pt), f"--out={tmp_path / 'm.snello'}"]) == 0
    assert main(["export", str(pt), f"--out={onnx}"]) == 0
    assert main(["export", str(pt), "--format=onnx-int8", f"--out={int8}", *images]) == 0
    facts = IMAGES.to_dict() | {"input_shape": [3, 6, 6]}
    assert inspect(onnx)["metadata"] == inspect(int8)["metadata"] == facts
    assert not capsys.readouterr().err.count("warning")
    files = [str(pt), str(tmp_path / "m.snello"), str(onnx), str(int8)]
    assert main(["evaluate", *files, *images, f"--out={out}"]) == 0
    rows = json.loads(out.read_text())["files"]
    expected = _accuracy(model, data, mean=IMAGES.mean, std=IMAGES.std, order="bgr")
    assert [row["file"] for row in rows] == files
    assert rows[0]["accuracy"] == rows[2]["accuracy"] == pytest.approx(expected)
    assert rows[2]["same"] == 1
    for row in rows:
        assert row["input"] == facts
        assert row["points"] == pytest.approx(100 * (row["won"] - row["lost"]) / row["images"])
    assert "warning" not in capsys.readouterr().err
    assert main(["inspect", str(onnx)]) == 0
    assert "metadata: mean" in capsys.readouterr().out


def test_what_no_record_says_is_said(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = _model(), tmp_path / "evaluate.json"
    pt = save(tmp_path / "m.pt", model, Record(SPEC, (3, 6, 6)))
    words = ["evaluate", str(pt), "--data=imagefolder", f"--data-path={data}", f"--out={out}"]
    assert main(words) == 0
    assert "warning: the model file has no normalisation" in capsys.readouterr().err
    assert main([*words, "--mean=0.5,0.4,0.3", "--std=0.2,0.3,0.4", "--channel-order=bgr"]) == 0
    assert "warning" not in capsys.readouterr().err
    row = json.loads(out.read_text())["files"][0]
    assert row["images"] == 10
    assert (row["input"]["mean"], row["input"]["colours"]) == ([0.5, 0.4, 0.3], "bgr")
    assert main([*words, "--part=all"]) == 0
    assert json.loads(out.read_text())["files"][0]["images"] == 32
    other = save(
        tmp_path / "o.pt", model, Record(SPEC, (3, 6, 6), images=replace(IMAGES, classes=("a", "b")))
    )  # fmt: skip
    assert main([*words[:1], str(other), *words[2:]]) == 0
    assert "those of the model a, b" in capsys.readouterr().err


def test_segmentation_networks_are_scored_by_mean_overlap(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_masks(tmp_path / "masks", count=3)
    spec = ModelSpec("test_evaluate_cli:Sky")
    files = []
    for name, sky in (("all", 0.0), ("half", 1.0)):
        record = Record(spec, (3, 16, 16), images=ImageInput((0.5,), (0.5,)))
        model = Sky()
        model.tell.fill_(sky)
        files.append(str(save(tmp_path / f"{name}.pt", model, record, trust=spec.name)))
    words = [f"--data-path={tmp_path / 'masks'}", f"--out={tmp_path / 'e.json'}"]
    words += ["--data=maskfolder", "--own-code=test_evaluate_cli:Sky"]
    assert main(["evaluate", *files, *words]) == 0
    rows = json.loads((tmp_path / "e.json").read_text())["files"]
    splits = load_dataset("maskfolder", path=tmp_path / "masks", image_size=16)
    masks = [target for _, target in loader(splits.test, splits, 1)]
    labels = torch.cat([_centre(mask, 16).flatten() for mask in masks])
    labels = labels[labels != 255]
    share = float((labels == 1).double().mean())
    assert rows[0]["mean_iou"] == pytest.approx(share / 2)  # sky is predicted everywhere
    assert rows[1]["mean_iou"] > 0.8
    assert rows[1]["points"] == pytest.approx(100 * (rows[1]["mean_iou"] - rows[0]["mean_iou"]))
    assert "Mean IoU on maskfolder" in capsys.readouterr().out


def _centre(mask: torch.Tensor, side: int) -> torch.Tensor:
    top, left = ((size - side) // 2 for size in mask.shape[-2:])
    return mask[:, top : top + side, left : left + side]


class Sky(nn.Module):
    """Predicts sky in all rows, or in the upper half, and ground below it."""

    tell: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("tell", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        upper = torch.linspace(-1, 1, x.shape[2])[:, None].expand(x.shape[2:]) * self.tell
        scores = torch.stack([torch.full_like(upper, -9), -upper + 0.01, upper])
        return {"out": scores.expand(len(x), -1, -1, -1)}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "choose a dataset, such as --data=cifar10"),
        (["--data=imagefolder", "--mean=0.5"], "--mean and --std belong together"),
        (["--data=imagefolder", "--mean=a", "--std=1"], "must be numbers separated by commas"),
        (["--data=digits"], "--image-size if its images were resized"),
    ],
)
def test_evaluations_that_cannot_be(
    words: list[str], said: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pt = save(tmp_path / "m.pt", _model(), Record(SPEC, (3, 6, 6)))
    path = [] if "--data=digits" in words else [f"--data-path={data}"]
    status = main(["evaluate", str(pt), *path, *words, f"--out={tmp_path / 'e.json'}"])
    assert status == 1
    assert said in capsys.readouterr().err
    assert main(["evaluate", str(pt), str(tmp_path / "no.onnx"), *path, *words]) == 1
    if "--data=imagefolder" in words:
        assert "there is no file" in capsys.readouterr().err


def test_natural_files_make_a_kit(tmp_path: Path) -> None:
    pt, onnx = save(tmp_path / "lean.pt", _model(), Record(SPEC, (3, 6, 6))), tmp_path / "lean.onnx"
    onnx.touch()
    arguments = argparse.Namespace(files=[pt, onnx], model=None, own_code=[], device=None)
    names = [subject.name for subject in subjects(arguments, batch=1, short_names=True)]
    assert names == ["lean", "lean-onnx"]
