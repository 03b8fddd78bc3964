"""`snello shrink` on a user's own networks: a tiny vision transformer, and one with two inputs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy
import pytest
import torch
from torch import nn

from seams.cli import Samples
from snello.cli import main
from snello.errors import ModelError
from snello.store import load

for package in ("nncodec", "vl_convert", "jinja2"):
    pytest.importorskip(package)

OWN = """
import torch
from torch import nn


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.patches = nn.Conv2d(1, 16, 2, stride=2)
        self.block = nn.TransformerEncoderLayer(16, 4, 32, 0.0, batch_first=True)
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        return self.head(self.block(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


class Two(nn.Module):
    def __init__(self, classes):
        super().__init__()
        torch.manual_seed(0)
        self.left, self.right, self.head = nn.Linear(6, 24), nn.Linear(4, 24), nn.Linear(24, classes)

    def forward(self, a, b):
        return self.head(torch.relu(self.left(a) + self.right(b)))


def tiny():
    return Tiny()


def two(classes=3):
    return Two(classes)
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the user's code."""
    (tmp_path / "ownnets.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "ownnets", raising=False)
    return tmp_path


TWO = ("--model=ownnets:two", "--input-shape=6", "--input-shape=4")


def arrays(path: Path, *shapes: tuple[int, ...], labels: int | None = None) -> None:
    random = numpy.random.RandomState(0)
    found = {f"input_{i}": random.randn(128, *s).astype("f4") for i, s in enumerate(shapes)}
    if labels:
        found["labels"] = random.randint(0, labels, 128)
    numpy.savez(path, **found)


def test_a_model_with_two_inputs(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arrays(own / "samples.npz", (6,), (4,))
    argv = ["shrink", *TWO, "--samples=samples.npz"]
    options = ["--minimise=macs", "--max-drop=0.2", "--folder=search"]
    assert main([*argv, *options]) == 0, capsys.readouterr().err
    report = json.loads((own / "lean.pt.json").read_text())
    chosen = next(c for c in report["candidates"] if c["state"] == "chosen")
    dense = report["candidates"][0]
    assert chosen["macs"] < dense["macs"]
    assert chosen["limit"] <= 0.2
    model, record = load(own / "lean.pt", trust="ownnets:two")
    assert model.head.in_features == chosen["widths"]["left"]  # type: ignore[union-attr]
    assert len(record.inputs(1)) == 2
    assert "Predicted" in (own / "lean.pt.html").read_text()
    before = (own / "search" / "candidates.jsonl").read_text()
    assert main([*argv, *options]) == 0
    assert (own / "search" / "candidates.jsonl").read_text() == before


def test_a_tiny_vision_transformer(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arrays(own / "samples.npz", (1, 8, 8))
    argv = ["shrink", "--model=ownnets:tiny", "--input-shape=1,8,8", "--samples=samples.npz"]
    argv += ["--minimise=bytes", "--max-drop=0.2", "--trials=3", "--out=vit"]
    assert main(argv) == 0, capsys.readouterr().err
    report = json.loads((own / "vit.snello.json").read_text())
    chosen = next(c for c in report["candidates"] if c["state"] == "chosen")
    assert chosen["precision"] == "nnc"
    assert chosen["bytes"] < report["candidates"][0]["bytes"] / 4
    model, _ = load(own / "vit.snello", trust="ownnets:tiny")
    assert torch.isfinite(model(torch.randn(2, 1, 8, 8))).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--samples=none.npz"], "none.npz"),
        (["--samples=samples.npz", "--finetune=1"], "--finetune"),
        (["--samples=samples.npz", "--distil"], "--distil"),
        (["--samples=samples.npz", "--validation-path=."], "--validation-path"),
        (["--samples=samples.npz", "--calibration=-5"], "--calibration=-5"),
        (["--samples=samples.npz", "--allow=nnc", "--minimise=macs"], "lowers no macs"),
        (["--samples=odd.npz"], "in this order"),
        (["--samples=half.npz"], "half.npz"),
        (["--samples=one-hot.npz"], "one whole number per sample"),
        (["--samples=samples.npz", "--allow=chanels"], "chanels"),
        (["--samples=samples.npz", "--device=none.json"], "none.json"),
        (["--samples=samples.npz", '--arguments={"classes": 1}'], "two classes or more"),
    ],
)
def test_mistakes(
    own: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arrays(own / "samples.npz", (6,), (4,))
    arrays(own / "odd.npz", (5,), (4,))
    whole = (own / "samples.npz").read_bytes()
    (own / "half.npz").write_bytes(whole[: len(whole) // 2])
    x, z, labels = torch.zeros(8, 6), torch.zeros(8, 4), torch.eye(4).repeat(2, 1)
    numpy.savez(own / "one-hot.npz", x=x.numpy(), z=z.numpy(), labels=labels.numpy())
    argv = ["shrink", *TWO, *options]
    assert main(argv) == 1
    assert message in capsys.readouterr().err


def test_the_dense_network_is_not_replaced(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arrays(own / "samples.npz", (6,), (4,))
    shrinking = [
        "shrink",
        "--samples=samples.npz",
        "--minimise=macs",
        "--max-drop=0.3",
        "--trials=2",
    ]
    assert main([*shrinking, *TWO, "--out=lean.v2"]) == 0, capsys.readouterr().err
    file = own / "lean.v2.pt"  # the name is not cut at its dot
    before = file.read_bytes()
    for out in ("lean.v2", "lean.v2.pt", "lean.v2.onnx"):
        assert main([*shrinking, str(file), "--own-code=ownnets:two", f"--out={out}"]) == 1
        assert "lean.v2.pt: this would replace" in capsys.readouterr().err
    assert file.read_bytes() == before


class Named(nn.Module):
    """Returns scores by name, as the models of some libraries do."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {self.name: x}


def test_scores_by_name_are_answers() -> None:
    scores = torch.randn(300, 4)
    samples = Samples((scores,), None)
    for name in ("out", "logits"):
        assert torch.equal(samples.answers(Named(name)), scores.argmax(1))
    with pytest.raises(ModelError, match="Named returns dict"):
        samples.answers(Named("boxes"))


def test_samples_of_another_file_are_another_search(
    own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arrays(own / "samples.npz", (6,), (4,), labels=3)
    argv = [
        "shrink",
        *TWO,
        "--minimise=macs",
        "--samples=samples.npz",
        "--trials=2",
        "--folder=search",
        "--max-drop=0.3",
    ]
    assert main(argv) == 0, capsys.readouterr().err
    with numpy.load(own / "samples.npz") as file:
        found = dict(file)
    numpy.savez(own / "samples.npz", **{**found, "labels": (found["labels"] + 1) % 3})
    assert main(argv) == 1
    said = capsys.readouterr().err
    assert "other settings (evaluate)" in said
    assert "samples are few" not in said, "128 * 0.3 >= 3"
    assert main([*argv[:-2], "--max-drop=0.02"]) == 0
    assert "128 samples are few for a drop of 0.02" in capsys.readouterr().err
