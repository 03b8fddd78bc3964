"""Shared parts of the commands: models by file or by name, subjects, calibration, code of one's own."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from seams.cli import (
    BATCH,
    UsageError,
    add_calibration_arguments,
    add_model_arguments,
    arguments,
    calibration,
    command_in,
    device,
    divided,
    import_own_code,
    import_path_restored,
    named_code,
    read_model,
    run_folder,
    subjects,
)
from snello import Record, load, save, simplify
from snello.errors import ConfigError, ModelError, SnelloError
from snello.store import ModelSpec, build

pytest.importorskip("rich", reason="the extra report is not installed")
SPEC = ModelSpec("lenet-300-100", {"in_features": 64})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two model files of one name in two folders, and a file that is none."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    for part in ("dense", "lean"):
        (folder / part).mkdir()
        save(folder / part / "model.pt", build(SPEC), Record(SPEC, (1, 8, 8)))
    (folder / "notes.txt").write_text("no model")
    return folder


# A model


def lazy() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(6), nn.ReLU(), nn.LazyLinear(3))


def lazy_image() -> nn.Sequential:
    return nn.Sequential(nn.LazyConv2d(4, 3), *lazy())


def _model_arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_model_arguments(parser)
    parser.set_defaults(seed=None, device=None)
    return parser.parse_args(words)


def test_model_file_comes_in_evaluation_mode_with_its_record(folder: Path) -> None:
    model, record = read_model(_model_arguments(str(folder / "dense" / "model.pt")))
    assert not any(module.training for module in model.modules())
    assert record == Record(SPEC, (1, 8, 8))


def test_architecture_takes_arguments_shape_and_seed() -> None:
    words = ["--model=lenet-300-100", '--arguments={"in_features": 64}', "--input-shape=1,8,8"]
    given = _model_arguments(*words)
    given.seed = 3
    (one, record), (two, _) = read_model(given), read_model(given)
    assert record == Record(SPEC, (1, 8, 8))
    assert one(record.example_inputs(2)).shape == (2, 10)
    for left, right in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(left, right), "the same seed, the same weights"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "pass either a model file"),
        (["m.pt", "--model=lenet-5"], "pass either a model file"),
        (["--model=lenet-5"], "needs the shape of one input"),
        (["--model=lenet-5", "--input-shape=1,28,x"], "integers separated by commas"),
        (["--model=lenet-5", "--input-shape=1,0,28"], "at least 1"),
        (["--model=lenet-5", "--arguments=[1]", "--input-shape=1,28,28"], "must be a JSON object"),
        (["--model=lenet-5", "--arguments={", "--input-shape=1,28,28"], "is not valid JSON"),
        (["--model=lenet-5", "--weights=none.pt", "--input-shape=1,28,28"], "none.pt"),
        (["--model=./own/nets.py:two", "--input-shape=1,28,28"], "name its module, 'own.nets:two'"),
    ],
)
def test_model_that_is_not_there_says_which_option(words: list[str], said: str) -> None:
    with pytest.raises(SnelloError) as error:
        read_model(_model_arguments(*words))
    assert said in str(error.value)


def test_lazy_layers_get_their_shapes_from_the_input(tmp_path: Path) -> None:
    """Of an architecture with weights, and of the lean network in a model file."""
    x, own, trained = torch.randn(4, 1, 8, 8), f"{__name__}:lazy", lazy()
    trained(x)
    with torch.no_grad():
        for tensor in trained[1].parameters():
            tensor[:2] = 0
    torch.save(trained.state_dict(), tmp_path / "w.pt")
    words = [f"--model={own}", "--input-shape=1,8,8"]
    model, record = read_model(_model_arguments(*words, f"--weights={tmp_path / 'w.pt'}"))
    assert torch.equal(model(x), trained(x))
    path = save(tmp_path / "lean.pt", simplify(model, x), record, trust=own)
    lean, _ = load(path, trust=own)
    assert lean.get_submodule("1").out_features == 4
    assert torch.allclose(lean(x), trained(x), atol=1e-6)
    with pytest.raises(ModelError, match="has lazy layers, and does not run"):
        read_model(_model_arguments(f"--model={__name__}:lazy_image", "--input-shape=8"))


def test_nan_in_a_model_file_is_refused_by_name(tmp_path: Path) -> None:
    model = build(SPEC)
    with torch.no_grad():
        next(model.parameters())[0, 0] = float("nan")
    path = save(tmp_path / "broken.pt", model, Record(SPEC, (1, 8, 8)))
    with pytest.raises(ModelError, match=r"broken\.pt"):
        read_model(_model_arguments(str(path)))


@pytest.mark.parametrize("wanted", [None, "cpu", "auto", "cuda"])
def test_device_is_the_cpu_unless_told_otherwise(
    wanted: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seen in (False, True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda seen=seen: seen)
        asked = argparse.Namespace(device=wanted)
        if wanted == "cuda" and not seen:
            with pytest.raises(ConfigError, match="torch sees no GPU"):
                device(asked)
            continue
        gpu = seen and wanted in ("auto", "cuda")
        assert device(asked) == torch.device("cuda" if gpu else "cpu")


# Several files, and folders of them


def _subjects(*files: Path | str, short: bool = False, **options: Any) -> list[str]:
    given = argparse.Namespace(
        files=list(map(str, files)), model=None, own_code=[], seed=None, device=None
    )
    found = subjects(given, batch=options.pop("batch", 2), short_names=short)
    assert all(subject.inputs[0].shape == (2, 1, 8, 8) for subject in found if subject.inputs)
    return [subject.name for subject in found]


def test_names_are_the_shortest_that_differ(folder: Path) -> None:
    one, two = folder / "dense" / "model.pt", folder / "lean" / "model.pt"
    assert _subjects(one) == ["model.pt"]
    assert _subjects(one, two) == ["dense/model.pt", "lean/model.pt"]
    assert _subjects(one, two, short=True) == ["dense-model", "lean-model"]


def test_folder_is_all_its_models_and_nothing_else(folder: Path) -> None:
    assert _subjects(folder) == ["dense/model.pt", "lean/model.pt"]


def test_files_of_runtimes_are_not_opened(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"not read here")
    assert _subjects(folder / "dense", tmp_path / "net.onnx") == ["model.pt", "net.onnx"]


def test_subjects_that_cannot_be(folder: Path, tmp_path: Path) -> None:
    model = folder / "dense" / "model.pt"
    (tmp_path / "empty").mkdir()
    for files, batch, said in (
        ([model], 0, "--batch=0: choose at least 1"),
        ([], 1, "pass either model files"),
        ([tmp_path / "empty"], 1, "has no models"),
        ([model, model], 1, "two models have the same name"),
    ):
        with pytest.raises(ConfigError, match=said):
            _subjects(*files, batch=batch)


# Calibration of int8


def _calibration(shape: tuple[int, ...], *words: str) -> tuple[list[torch.Tensor], str]:
    parser = argparse.ArgumentParser()
    add_calibration_arguments(parser)
    return calibration(shape, parser.parse_args(words))


@given(st.integers(1, 3 * BATCH))
def test_random_calibration_has_as_many_samples_as_asked(samples: int) -> None:
    batches, where = _calibration((2, 3), f"--samples={samples}")
    assert where == "random inputs"
    assert sum(map(len, batches)) == samples
    assert all(len(batch) == BATCH for batch in batches[:-1])
    again, _ = _calibration((2, 3), f"--samples={samples}")
    assert all(map(torch.equal, batches, again))


def test_random_calibration_warns(capsys: pytest.CaptureFixture[str]) -> None:
    _calibration((2,), "--samples=1")
    said = capsys.readouterr().err
    assert said.startswith("snello: warning: int8 is calibrated on random inputs")
    assert said.count("\n") == 1


def test_calibration_on_training_images(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn", reason="the extra train is not installed")
    batches, where = _calibration((1, 8, 8), "--data=digits", "--samples=70")
    assert where == "digits, training part"
    assert [tuple(batch.shape) for batch in batches] == [(50, 1, 8, 8), (20, 1, 8, 8)]
    assert not capsys.readouterr().err
    with pytest.raises(ModelError, match="--image-size if its images were resized"):
        _calibration((3, 8, 8), "--data=digits")
    with pytest.raises(ConfigError, match="--samples=0: choose at least 1"):
        _calibration((1, 8, 8), "--samples=0")


# Code of one's own


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the working folder, which is not on the import path."""
    name = "cli_inputs_own_net"
    (tmp_path / f"{name}.py").write_text("from torch import nn\ndef net():\n    return nn.ReLU()\n")
    monkeypatch.chdir(tmp_path)
    yield name
    sys.modules.pop(name, None)


def test_own_code_is_imported_from_the_working_folder(own_module: str, tmp_path: Path) -> None:
    before = list(sys.path)
    with import_path_restored():
        import_own_code([f"{own_module}:net"])
        assert own_module in sys.modules
        assert sys.path[-1] == str(tmp_path), "last: it must replace no installed package"
    assert sys.path == before


@pytest.mark.parametrize("name", ["lenet-5", "torch.nn:ReLU", "no_such_package_anywhere:net"])
def test_names_outside_the_working_folder_are_left_alone(name: str, own_module: str) -> None:
    before = list(sys.path)
    import_own_code([name, own_module])
    assert sys.path == before
    assert own_module not in sys.modules, "a name without a colon names no factory"


def test_missing_factory_is_an_error_and_leaves_the_path(own_module: str) -> None:
    with import_path_restored(), pytest.raises(ModelError, match="missing"):
        import_own_code([f"{own_module}:missing"])


def test_model_that_the_user_named_is_trusted_beside_own_code() -> None:
    assert named_code(argparse.Namespace(own_code=["a:b"], model="c:d")) == ("a:b", "c:d")
    assert named_code(argparse.Namespace(own_code=["a:b"], model=None)) == ("a:b",)


# Words


def test_run_folder_is_named_after_the_recipe() -> None:
    for recipe, out, expected in (
        ("digits", None, "runs/digits"),
        ("folder/mine.yaml", None, "runs/mine"),
        ("digits", "here", "here"),
    ):
        assert run_folder(argparse.Namespace(recipe=recipe, out=out)) == Path(expected)


def test_command_is_the_first_word_that_is_no_option() -> None:
    commands = ("simplify", "train")
    assert command_in(["--seed", "simplify", "train"], commands) == 1
    assert command_in(["--help"], commands) is None
    with pytest.raises(UsageError, match=r"'trian' \(did you mean 'train'\?\)"):
        command_in(["trian"], commands)


WORD = st.text("abc=-", max_size=6)


@given(st.lists(WORD, max_size=8), st.dictionaries(st.sampled_from(["--a", "--b"]), st.booleans()))
def test_dividing_words_loses_none(words: list[str], known: dict[str, bool]) -> None:
    """The letters of all words come out again; a value is joined to its option by ``=``."""
    try:
        own, others = divided(words, known)
    except UsageError:
        assert "--" in " ".join(words)
        return
    letters = sorted("".join(words).replace("=", ""))
    assert sorted("".join([*own, *others]).replace("=", "")) == letters
    ended = own.index("--") if "--" in own else len(own)
    for word in own[:ended]:
        assert not word.startswith("--") or word.partition("=")[0] in known
    assert all(word.startswith("--") for word in others)


def test_seed_and_device_belong_to_every_command() -> None:
    for command, word in (("simplify", "m.pt"), ("inspect", "m.pt"), ("train", "digits")):
        found = arguments([command, word, "--seed=3", "--device=cpu"])
        assert (found.seed, found.device, found.command) == (3, "cpu", command)
