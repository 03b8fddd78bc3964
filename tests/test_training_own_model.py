"""A user's own model and image folder, through the command line alone: twenty lines of Python,
three folders.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import snello
from snello.cli import main

pytest.importorskip("lightning")
pytest.importorskip("nncodec")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

MODEL = '''\
from torch import nn


class Small(nn.Module):
    """Two convolutions with a shortcut, and a head."""

    def __init__(self, width, classes):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.body = nn.Conv2d(width, width, 3, padding=1)
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        x = self.norm(self.stem(x)).relu()
        x = (x + self.body(x)).relu()
        return self.head(x.mean((2, 3)))


def small(classes=3, width=16):
    return Small(width, classes)
'''

RECIPE = """\
model: {name: "mynet:small", arguments: {classes: 3}}
data: {name: imagefolder, path: photos, image_size: 16, batch_size: 16}
optimizer: {lr: 0.05, momentum: 0.9}
epochs: 8
lobster: {lmbda: 0.001, twt: 0.2, pwe: 1, finetune: 2}
serene: {lmbda: 0.001, granularity: neuron, twt: 0.2, pwe: 1, finetune: 2}
neq: {probe: 8, eps: 0.05}
methods: [baseline, serene, neq, serene+neq]
ship: {repeats: 3, warmup: 1}
device: cpu
"""


def _photos(folder: Path) -> None:
    """Three classes that a small network can tell apart: red, green and blue pictures."""
    from PIL import Image

    for channel, name in enumerate(("apples", "leaves", "skies")):
        (folder / name).mkdir(parents=True)
        for i in range(30):
            colour = [20 + i] * 3
            colour[channel] = 200 - 2 * i
            Image.new("RGB", (20 + i % 3, 18), tuple(colour)).save(folder / name / f"{i}.jpg")


def _snello(folder: Path, *arguments: str) -> str:
    source = str(Path(snello.__file__).parents[1])
    path = os.pathsep.join([source, os.environ.get("PYTHONPATH", "")])
    found = subprocess.run(
        [sys.executable, "-m", "snello", *arguments],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        cwd=folder, capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr[-3000:]
    return found.stdout


def _snello_here(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The same in this process, which has imported everything already."""
    capsys.readouterr()
    assert main(arguments) == 0
    sys.modules.pop("mynet", None)  # a process of its own would not have it
    return capsys.readouterr().out


@pytest.mark.exhaustive
def test_journey_of_a_users_own_model_and_photos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _photos(tmp_path / "photos")
    (tmp_path / "mynet.py").write_text(MODEL)
    (tmp_path / "mine.yaml").write_text(RECIPE)

    monkeypatch.chdir(tmp_path)
    checked = _snello_here(capsys, "recipes", "validate", "mine.yaml")
    assert "baseline, serene, neq, serene+neq can start" in checked
    assert not (tmp_path / "runs").exists()

    shown = _snello(tmp_path, "journey", "mine.yaml", "--out=runs/mine")
    assert "The round trip, both ways: mynet:small on imagefolder" in shown
    page = (tmp_path / "runs/mine/report.md").read_text()
    for text in ("A lean network to ship", "Cheaper training", "both ways", "SeReNe + NEq"):
        assert text in page

    report = json.loads((tmp_path / "runs/mine/report.json").read_text())
    shipped = {row["method"]: row for row in report["shipped"]}
    trained = {row["method"]: row for row in report["trained"]}
    assert list(shipped) == list(trained) == ["baseline", "serene", "neq", "serene+neq"]
    for row in shipped.values():
        assert row["test_accuracy"] > 0.9, "the colours can be told apart"
        assert row["decoded_accuracy"] > 0.9
    assert shipped["serene"]["parameters"] < shipped["baseline"]["parameters"]
    for method in (
        "neq",
        "serene+neq",
    ):  # executed are as many as pay: in layers as small as these perhaps all
        assert trained[method]["paper_flops"] < trained["baseline"]["paper_flops"]
        assert trained[method]["executed_flops"] <= trained["baseline"]["executed_flops"]

    # What was shipped is read back by the other commands, with the user's own code.
    measured = _snello_here(
        capsys, "measure", "runs/mine/serene/simplified.pt", "--own-code=mynet:small",
        "--repeats=2", "--warmup=1", "--out=m.json",
    )  # fmt: skip
    assert "simplified" in measured


def test_scores_by_name_train_as_a_tensor_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Models of Hugging Face return an object or a mapping with their logits."""
    _photos(tmp_path / "photos")
    (tmp_path / "mine.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    scores = "self.head(x.mean((2, 3)))"
    results = []
    for returned in (scores, f"{{'logits': {scores}}}"):
        (tmp_path / "mynet.py").write_text(MODEL.replace(scores, returned))
        sys.modules.pop("mynet", None)
        _snello_here(
            capsys, "train", "mine.yaml", "--method=serene+neq", "--epochs=2", "--serene.finetune=1",
            f"--out=run-{len(results)}",
        )  # fmt: skip
        found = json.loads((tmp_path / f"run-{len(results)}/result.json").read_text())
        results.append([(epoch["train_loss"], epoch["val_loss"]) for epoch in found["epochs"]])
    assert results[0] == results[1]
