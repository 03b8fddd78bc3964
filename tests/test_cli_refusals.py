"""Command lines that would lose a file, or have no effect: refused before any work."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import snello.pruning
from snello import ModelSpec, Record, save
from snello.cli import main
from snello.store import build

pytest.importorskip("lightning")
pytest.importorskip("sklearn")
pytest.importorskip("nncodec")
pytest.importorskip("onnxruntime")
pytest.importorskip("vl_convert")

SPEC = ModelSpec("lenet-300-100", {"in_features": 64})
DIGITS = "--data=digits"


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return save(Path("model.pt"), build(SPEC), Record(SPEC, (1, 8, 8)))


def _refused(words: list[str], capsys: pytest.CaptureFixture[str], said: str) -> None:
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    assert main(words) == 1
    error = capsys.readouterr().err
    assert said in error
    assert error.count("error:") == 1
    assert before == {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "words",
    [
        ["evaluate", "model.pt", DIGITS, "--out=model.pt"],
        ["measure", "model.pt", "--out=model.pt"],
        ["measure", "model.pt", "--out=lean.onnx"],
        ["measure", "model.pt", "--out=page.html"],
        ["sweep", "model.pt", DIGITS, "--out=model.pt", "--force"],
        ["sweep", "model.pt", DIGITS, "--apply=0.5", "--out=model.pt", "--force"],
        ["prune", "model.pt", DIGITS, "--macs=0.5", "--out=./model.pt"],
        ["shrink", "model.pt", DIGITS, "--minimise=macs", "--out=model"],
        ["curate", "digits", "--out=model.pt"],
        ["compress", "model.snello"],
        ["compress", "model.snello", "--out=./model.snello"],
        ["report", "m.json", "--out=m.json"],
    ],
    ids=" ".join,
)
def test_no_command_replaces_what_it_reads(
    words: list[str], model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(Path("model.snello"), build(SPEC), Record(SPEC, (1, 8, 8)))
    Path("m.json").write_text("{}")
    _refused(words, capsys, "--out=")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["prune", "model.pt", DIGITS, "--macs=0.5", "--lr=0.1"], "--lr has no effect without --finetune"),
        (["shrink", "model.pt", DIGITS, "--minimise=macs", "--batch-size=8"], "without --finetune"),
        (["compress", "model.pt", "--one-qp"], "--one-qp has no effect without --max-drop"),
        (["compress", "model.pt", DIGITS], "--data has no effect without --max-drop"),
        (["export", "model.pt", DIGITS], "--data has no effect without --format=onnx-int8"),
        (["export", "model.pt", "--no-reduce-range"], "--no-reduce-range has no effect without --format=onnx-int8"),
        (["export", "model.pt", "--batch=4"], "--batch has no effect without --format=executorch"),
        (["bench-device", "kit", "model.pt", "--no-int8", DIGITS], "--data has no effect"),
        (["curate", "digits", "--ratio=0.5"], "--ratio has no effect without --kept"),
        (["measure", "model.pt", "--input-shape=3,9,9"], "--input-shape has no effect without --model"),
        (["simplify", "model.pt", "--weights=w.pt"], "--weights has no effect without --model"),
        (["recipes", "ls", "digits"], "recipes ls takes no name"),
        (["reproduce", "--row=x"], "--row=x: name its table"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_options_without_effect_are_refused(
    words: list[str], said: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _refused(words, capsys, said)


@pytest.mark.parametrize(
    "words",
    [["prune", "--macs=0.5"], ["shrink", "--minimise=macs"], ["compress"]],
    ids=lambda words: words[0],
)
@pytest.mark.parametrize("drop", ["5", "-0.1", "nan"])
def test_a_drop_in_points_is_no_share(
    words: list[str], drop: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Five points written as 5 would bound nothing."""
    _refused(
        [words[0], "model.pt", DIGITS, *words[1:], f"--max-drop={drop}"],
        capsys,
        f"--max-drop={drop}: the largest drop of the accuracy, in [0, 1]: 0.01 is one point",
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["simplify", "lean.onnx"], "lean.onnx is an exported file, from which no model is built"),
        (["simplify", "model.pt", "--out=lean.json"], "--out=lean.json: this command writes a model file, *.pt"),
        (["sweep", "model.pt", DIGITS, "--apply=0.5", "--out=sweep.json"], "writes a model file, *.pt"),
        (["simplify", "folder"], "folder is a folder: name a model file in it"),
        (["export", "model.pt", "--out=folder"], "cannot write folder: it is a folder; give the name of a file in it"),
        (["compress", "model.pt", "--out=folder"], "cannot write folder: it is a folder"),
        (["shrink", "model.pt", DIGITS, "--minimise=macs", "--out=folder"], "cannot write folder: it is a folder"),
        (["inspect", "half.snello"], "half.snello: truncated or damaged"),
        (["export", "half.snello"], "half.snello: truncated or damaged"),
        (["prune", "model.pt", DIGITS, "--macs=0.5", "--mean=128", "--std=64"], "divide mean and deviation by 255"),
        (["prune", "model.pt", DIGITS, "--macs=0.001"], "Keep(macs=0.001) cannot be reached"),
        (["prune", "model.pt", "--data=mnist", "--data-root=folder", "--macs=0.5"], "--data-root=/that/folder"),
        (["curate", "imagefolder"], "imagefolder needs the folder of its images: --data-path=FOLDER"),
        (["recipes", "validate", "digits", "--epochs=x"], "epochs must be a whole number, not x"),
        (["recipes", "validate", "digits", "--methods=neq"], "methods must be a list, such as [a,b], not neq"),
        (["recipes", "validate", "digits", "--seed=-1"], "from 0 to 4294967295"),
        (["recipes", "validate", "digits", "--data.mean=[128]", "--data.std=[1]"], "divide mean"),
        (["shrink", "model.pt", "--samples=nan.npz", "--minimise=macs"], "'x' has values that are NaN"),
        (["shrink", "model.pt", "--samples=label.npz", "--minimise=macs"], "labels contain 99, but the model has 10"),
        (["shrink", "model.pt", "--samples=none.npz", "--minimise=macs"], "there is no file none.npz"),
        (["shrink", "model.pt", "--samples=model.pt", "--minimise=macs"], "is no .npz file of plain arrays"),
        (["shrink", "model.pt", DIGITS, "--minimise=macs", "--importance=x"], "choose one of: fisher, l1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_wrong_files_and_values_are_named(
    words: list[str], said: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("lean.onnx").write_text("no graph")
    Path("folder").mkdir()
    data = save(Path("whole.snello"), build(SPEC), Record(SPEC, (1, 8, 8))).read_bytes()
    Path("half.snello").write_bytes(data[: len(data) // 2])
    x = np.zeros((4, 1, 8, 8), "float32")
    np.savez("nan.npz", x=x * np.nan)
    np.savez("label.npz", x=x, labels=np.full(4, 99))
    seed = "--seed=-1" in words  # of the command: a usage error
    if seed:
        with pytest.raises(SystemExit, match="2"):
            main(words)
        assert said in capsys.readouterr().err
        return
    _refused(words, capsys, said)


@pytest.mark.parametrize("seed", ["-1", "4294967296", "9" * 30, "x"])
def test_a_seed_is_what_all_generators_take(seed: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["inspect", "model.pt", f"--seed={seed}"])
    assert f"{seed!r} is no whole number from 0 to 4294967295" in capsys.readouterr().err


def test_digits_are_not_mirrored_and_a_recipe_decides(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from seams.cli import use_recipe_beside
    from snello.lab.training import augmentation_for

    assert augmentation_for(SimpleNamespace(input_shape=(1, 8, 8))) == "none"  # type: ignore[arg-type]
    assert augmentation_for(SimpleNamespace(input_shape=(3, 8, 8))) == "crop-flip"  # type: ignore[arg-type]
    recipe = {"seed": 0, "data": {"name": "digits", "validation": 0.1, "augment": "crop-flip"}}
    Path("recipe.json").write_text(json.dumps(recipe))
    for data, given, found in (
        (None, None, "crop-flip"),
        ("digits", "none", "none"),
        ("mnist", None, None),
    ):
        arguments = SimpleNamespace(
            data=data, data_root=None, data_path=None, image_size=None, augment=given
        )
        use_recipe_beside(arguments, model)  # type: ignore[arg-type]
        assert arguments.augment == found


def test_warnings_of_snello_are_lines_of_the_command(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from snello.cli import simplify

    def run(arguments: object) -> None:
        warnings.warn_explicit("heed this", UserWarning, snello.pruning.__file__, 1)

    monkeypatch.setattr(simplify, "run", run)
    assert main(["simplify", "model.pt"]) == 0
    assert capsys.readouterr().err == "snello: warning: heed this\n"


def test_a_pipe_whose_reader_has_gone_ends_quietly(model: Path) -> None:
    command = [sys.executable, "-m", "snello", "inspect", "model.pt", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_choices_are_those_that_can_be_typed(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["prune", "model.pt", DIGITS, "--macs=0.5", "--reconstruct=all"])
    error = capsys.readouterr().err
    assert "biases" in error
    assert "True" not in error
