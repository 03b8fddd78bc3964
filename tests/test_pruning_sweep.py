"""``snello sweep`` and its plot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from snello.cli import main
from snello.lab.reporting import plot_potential
from snello.store import ModelSpec, Record, build, save

SPEC = ModelSpec("lenet-300-100", {"in_features": 64})
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    return save(tmp_path / "model.pt", build(SPEC), Record(SPEC, (1, 8, 8)))


def test_a_sweep_writes_every_point_and_draws_them(
    model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sweep.json"
    before = model_file.read_bytes()
    options = [
        "--data=digits",
        "--importances=l1,random,serene",
        "--ratios=0,0.5,0.9,0.5",
        "--calibration=100",
        f"--out={out}",
    ]
    assert main(["sweep", str(model_file), *options]) == 0
    result = json.loads(out.read_text())
    assert [(p["method"], p["ratio"]) for p in result["points"]] == [
        (method, ratio) for method in ("l1", "random", "serene") for ratio in (0.0, 0.5, 0.9)
    ]
    dense = {p["value"] for p in result["points"] if p["ratio"] == 0}
    assert len(dense) == 1  # the same network, whole
    assert all(abs(p["pruned"] - p["ratio"]) < 0.06 for p in result["points"])
    assert (result["images"], result["part"]) == (143, "validation")
    assert Path(f"{out}.png").read_bytes().startswith(b"\x89PNG")
    assert model_file.read_bytes() == before
    assert "serene" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ratios=0,1"], "0,1"),
        (["--ratios=half"], "half"),
        (["--importances=l3"], "l3"),
        (["--importances=bn-scale", "--granularity=neuron"], "BatchNorm"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused_in_one_line(
    model_file: Path,
    tmp_path: Path,
    options: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["sweep", str(model_file), "--data=digits", *options]
    assert main([*words, f"--out={tmp_path / 'x.json'}"]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in error
    assert not (tmp_path / "x.json").exists()


def test_a_network_that_no_file_could_give_back_is_refused_by_the_files_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One whose factory makes another network each time, without `--out`."""
    monkeypatch.chdir(tmp_path)
    Path("growing.py").write_text(
        "from itertools import count\nfrom torch import nn\nwidths = count(8)\n"
        "def net():\n    n = next(widths)\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, n), nn.Linear(n, 10))\n"
    )
    words = ["--model=growing:net", "--input-shape=1,8,8", "--data=digits", "--apply=0.5"]
    assert main(["sweep", *words]) == 1
    assert "pruned.pt is not written" in capsys.readouterr().err


def test_a_plot_of_several_seeds(tmp_path: Path) -> None:
    curves = {"a": {0.0: [0.9, 0.8], 0.99: [0.5, 0.7], 1.0: [0.1, 0.1]}, "b": {0.0: [0.9]}}
    assert plot_potential(curves, tmp_path / "a.png", "title").read_bytes().startswith(b"\x89PNG")
