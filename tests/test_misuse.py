"""Mistakes at the seams: each gets one sentence with the way out, and loses nothing."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from snello import ModelSpec, Record, SeReNe, compress, save
from snello.cli import main
from snello.errors import ConfigError, DataError, ModelError
from snello.neurons import check_finite
from snello.sensitivity import OutputSensitivity
from snello.store import build

SMALL = ModelSpec("lenet-300-100", {"in_features": 64})


# In Python


def test_compress_of_a_module_names_its_state_dict() -> None:
    with pytest.raises(
        ConfigError, match=r"a Linear holds no tensors by name: pass model\.state_dict\(\)"
    ):
        compress(nn.Linear(2, 2))  # type: ignore[arg-type]
    for odd in ([torch.zeros(2)], torch.zeros(2), None, 3):
        with pytest.raises(ConfigError, match="pass a mapping of names to tensors"):
            compress(odd)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [SeReNe, OutputSensitivity])
def test_a_step_before_any_observation_says_so(kind: type) -> None:
    model = build("lenet-5")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    sensitivity = kind(model, 0.5)
    with pytest.raises(ConfigError, match=rf"{kind.__name__}\.step: nothing has been observed yet"):
        sensitivity.step()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    outputs = model(torch.randn(2, 1, 28, 28))
    sensitivity.observe(outputs)
    outputs.sum().backward()
    sensitivity.step()
    sensitivity.step()  # what was seen last still holds


def test_a_sensitivity_without_layers_does_nothing() -> None:
    model = build("lenet-5")
    sensitivity = SeReNe(model, 0.5, exclude=lambda name, module: True)
    sensitivity.observe(model(torch.randn(2, 1, 28, 28)))
    sensitivity.step()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_tensors_with_nans_are_named(value: float) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    check_finite(model, "model")
    with torch.no_grad():
        model[0].weight[1, 2] = value
    with pytest.raises(
        ModelError, match=r"model: tensor '0\.weight' has 1 of 16 values that are NaN or infinite"
    ):
        check_finite(model, "model")


def test_infinite_masks_are_no_mistake() -> None:
    model = nn.Linear(2, 2)
    model.register_buffer("mask", torch.full((2, 2), -float("inf")))
    check_finite(model, "model")
    model.mask[0, 0] = float("nan")
    with pytest.raises(ModelError, match="'mask' has 1 of 4"):
        check_finite(model, "model")


# At the command line


@pytest.fixture
def digits_of_three(tmp_path: Path) -> Path:
    spec = ModelSpec("lenet-300-100", {"in_features": 64, "classes": 3})
    return save(tmp_path / "three.pt", build(spec), Record(spec, (1, 8, 8)))


@pytest.mark.parametrize("command", ["simplify", "export", "sweep", "compress"])
def test_every_command_names_the_tensor_with_nans(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = build(SMALL)
    name, weight = next(iter(model.named_parameters()))
    with torch.no_grad():
        weight.view(-1)[:3] = float("nan")
    path = save(tmp_path / "nan.pt", model, Record(SMALL, (1, 8, 8)))
    out = tmp_path / {"export": "out.onnx", "compress": "out.snello"}.get(command, "out")
    assert main([command, str(path), f"--out={out}"]) == 1
    said = capsys.readouterr().err
    assert f"nan.pt: tensor {name!r} has 3 of " in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("command", [["sweep"], ["compress", "--max-drop=0.1"]])
def test_a_model_of_other_classes_is_refused(
    command: list[str], digits_of_three: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sklearn")
    out = tmp_path / ("out.json" if command == ["sweep"] else "out.snello")
    assert main([*command, str(digits_of_three), "--data=digits", f"--out={out}"]) == 1
    said = capsys.readouterr().err
    assert "gives (2, 3) for two images of digits, which has 10 classes: expected (2, 10)" in said
    assert said.count("\n") == 1
    assert not out.exists()


def test_mnist_is_not_shrunk_for_a_model_of_digits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from dataset_files import write_mnist

    write_mnist(tmp_path / "data")
    monkeypatch.setenv("SNELLO_DATA", str(tmp_path / "data"))
    path = save(tmp_path / "digits.pt", build(SMALL), Record(SMALL, (1, 8, 8)))
    for command, out in (
        (["sweep"], "out"),
        (["compress", "--max-drop=0.1"], "out.snello"),
        (["export", "--format=onnx-int8"], "out.onnx"),
    ):
        assert main([*command, str(path), "--data=mnist", f"--out={tmp_path / out}"]) == 1
        said = capsys.readouterr().err
        assert "(1, 28, 28)" in said
        assert "(1, 8, 8)" in said
        assert "--image-size" in said


def test_evaluate_compares_labels_with_outputs() -> None:
    pytest.importorskip("lightning")
    from snello.lab.training import evaluate

    images, labels = torch.zeros(4, 1, 8, 8), torch.tensor([0, 1, 9, 2])
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    with pytest.raises(
        DataError, match="the data contain the label 9, but the model has 3 outputs"
    ):
        evaluate(model, [(images, labels)])
    with pytest.raises(DataError, match="one row of logits per image"):
        evaluate(nn.Identity(), [(images, labels)])


def test_a_folder_with_one_class_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("lightning")
    image = pytest.importorskip("PIL.Image")
    (tmp_path / "images" / "cats").mkdir(parents=True)
    for number in range(12):
        image.new("RGB", (8, 8), (number, 0, 0)).save(
            tmp_path / "images" / "cats" / f"{number}.png"
        )
    data = ["--data.name=imagefolder", f"--data.path={tmp_path / 'images'}"]
    model = ["--model.name=lenet-300-100", "--model.arguments={in_features: 192, classes: 1}"]
    assert (
        main(["train", "digits", *data, *model, f"--out={tmp_path / 'run'}", "--device=cpu"]) == 1
    )
    said = capsys.readouterr().err
    assert "has only the class 'cats': a classifier needs two classes or more" in said
    assert said.count("\n") == 1


def test_notes_below_narrow_tables_are_not_wrapped(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rich")
    from snello.lab.reporting import Table, show

    note = "A note that is much longer than the table above it, and than a hundred columns, " * 2
    show(Table("Title", ("A", "B"), (("1", "2 [MB]"),), note + "[MB]"))
    assert f"\n{note}[MB]\n" in capsys.readouterr().out


# Exports


class _OwnError(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.compiler.is_exporting() or torch.jit.is_tracing():
            raise ValueError("\x1b[31mmy own\x1b[0m reason\nand a second line")
        return x * 2


class _NoOnnx(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.eigvals(x.unsqueeze(1) * x.unsqueeze(2)).real


class _ConstantBatch(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([row * 2 for row in x])


class _OneBatch(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(2, 4) * 2


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (_OwnError(), "my own reason"),
        (_NoOnnx(), "aten.linalg_eig"),
        (_OneBatch(), "_OneBatch itself does not run at batch size 3"),
        (_ConstantBatch(), "at batch size 3"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_exported_is_one_sentence_with_the_cause(
    model: nn.Module, words: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for module in ("onnxscript", "onnxruntime"):
        pytest.importorskip(module)
    from snello.deploy import export

    with pytest.raises(ModelError) as caught:
        export(model.eval(), torch.randn(2, 4), tmp_path / "model.onnx")
    message = str(caught.value)
    assert words in message
    assert message.isprintable(), "no line ends, no control codes"
    assert "Next steps" not in message
    out, err = capfd.readouterr()
    assert not out
    assert not err, "nothing is printed before the error"
    assert not list(tmp_path.iterdir())


def test_a_program_with_a_constant_batch_says_which(tmp_path: Path) -> None:
    from snello.deploy import export

    with pytest.raises(ModelError, match="its code takes the batch size 2 for a constant"):
        export(_ConstantBatch().eval(), torch.randn(2, 4), tmp_path / "model.pt2")


def test_int8_names_the_transposed_convolution_with_groups(tmp_path: Path) -> None:
    for module in ("onnxscript", "onnxruntime"):
        pytest.importorskip(module)
    from snello.deploy import export_int8

    up = nn.ConvTranspose2d(8, 8, 2, stride=2, groups=4)
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Sequential(nn.ReLU(), up)).eval()
    with pytest.raises(
        ModelError, match=r"Sequential cannot be quantised to int8: .*with groups \('1\.1'\)"
    ):
        export_int8(
            model, torch.randn(2, 4, 8, 8), tmp_path / "model.onnx", [torch.randn(4, 4, 8, 8)]
        )
    assert not list(tmp_path.iterdir())


def test_half_precision_is_compared_by_its_own_rounding(tmp_path: Path) -> None:
    for module in ("onnxscript", "onnxruntime"):
        pytest.importorskip(module)
    from seams.deploy import tolerance_of
    from snello.deploy import export

    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    ).eval()
    assert tolerance_of(model) == tolerance_of(model.double()) == 1e-4
    assert tolerance_of(model.half()) == pytest.approx(8 * 2**-10)
    export(model, torch.randn(2, 3, 16, 16).half(), tmp_path / "half.onnx")
    with pytest.raises(ModelError, match=r"export model\.float\(\)"):
        export(model.bfloat16(), torch.randn(2, 3, 16, 16).bfloat16(), tmp_path / "brain.onnx")


def test_int8_leaves_nothing_in_the_folder_for_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("onnxscript", "onnxruntime"):
        pytest.importorskip(module)
    import tempfile

    from snello.deploy import export_int8

    # As good as full: nothing can be created there, by root neither.
    monkeypatch.setenv("TMPDIR", "/proc/self/fd" if sys.platform == "linux" else os.devnull)
    monkeypatch.setattr(tempfile, "tempdir", os.environ["TMPDIR"])
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).eval()
    export_int8(model, torch.randn(2, 1, 8, 8), tmp_path / "model.onnx", [torch.randn(9, 1, 8, 8)])
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert tempfile.tempdir == os.environ["TMPDIR"]
