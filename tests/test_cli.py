"""The command line: one journey, every command on its files, and one line for every foreseen
mistake.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

import snello
from snello import CodecSettings, Record, decompress, load, save
from snello.cli import main
from snello.search.shrink import Judge
from snello.store import ImageInput, ModelSpec, build, inspect

pytest.importorskip("lightning")
pytest.importorskip("sklearn")
pytest.importorskip("jsonargparse")
pytest.importorskip("rich")
pytest.importorskip("matplotlib")
pytest.importorskip("nncodec")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from seams.training import coding_of, measured_on
from snello.lab.training import answers, load_data, load_recipe

SPEC = ModelSpec("lenet-300-100", {"in_features": 64})
SMALL = (
    "--data.limit=300", "--epochs=4", "--lobster.finetune=1", "--serene.finetune=1", "--device=cpu",
    "--ship.repeats=3", "--ship.warmup=1", "--neq.probe=10",
)  # fmt: skip
COMMANDS = (
    "journey", "train", "reproduce", "sweep", "simplify", "compress", "decompress", "inspect", "export", "evaluate",
    "measure", "bench-device", "report", "recipes", "curate",
)  # fmt: skip


@dataclass(frozen=True)
class Travelled:
    folder: Path
    stdout: str


@pytest.fixture(scope="session")
def travelled(tmp_path_factory: pytest.TempPathFactory) -> Travelled:
    """One small journey, shared by all tests that only read its files."""
    folder, stdout = tmp_path_factory.mktemp("journey") / "run", io.StringIO()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the layers are tiny
    try:
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(io.StringIO()):
            assert main(["journey", "digits", f"--out={folder}", *SMALL]) == 0
    finally:
        torch.set_num_threads(threads)
    return Travelled(folder, stdout.getvalue())


@pytest.fixture(scope="session")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file with dead neurons, made without training."""
    torch.manual_seed(0)
    model = build(SPEC)
    with torch.no_grad():
        for layer in [m for m in model.modules() if isinstance(m, torch.nn.Linear)][:-1]:
            layer.weight[::2] = 0
    return save(tmp_path_factory.mktemp("model") / "model.pt", model, Record(SPEC, (1, 8, 8)))


@pytest.fixture(scope="session")
def bitstream(model_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stream") / "model.snello"
    with contextlib.redirect_stdout(io.StringIO()):
        assert main(["compress", str(model_file), f"--out={path}", "--qp=-38"]) == 0
    return path


# The journey


@pytest.mark.slow
def test_journey_writes_its_pages(travelled: Travelled) -> None:
    for name in ("report.html", "report.md", "report.json", "pruning.png", "updates.png"):
        assert (travelled.folder / name).stat().st_size > 500, name
    for name in ("pruning.png", "updates.png"):
        data = (travelled.folder / name).read_bytes()
        assert data.startswith(b"\x89PNG\r\n\x1a\n")
        assert b"IEND" in data[-12:], "the picture is complete"
        assert len(data) > 5000
    page = (travelled.folder / "report.md").read_text()
    for text in (
        "A lean network to ship",
        "Cheaper training",
        "LOBSTER",
        "SeReNe",
        "NEq",
        "(pruning.png)",
    ):
        assert text in page
    for method in ("baseline", "lobster", "serene"):
        for name in ("model.pt", "simplified.pt", "simplified.onnx", "model.snello", "result.json"):
            assert (travelled.folder / method / name).stat().st_size > 100
        images = load(travelled.folder / method / "model.pt")[1].images
        assert images is not None
        assert images.classes == tuple("0123456789")
        facts = inspect(travelled.folder / method / "simplified.onnx")["metadata"]
        assert ImageInput.from_dict(facts) == images


@pytest.mark.slow
def test_journey_prints_both_tables(travelled: Travelled) -> None:
    out = travelled.stdout
    for text in (
        "A lean network to ship: lenet-300-100 on digits",
        "Cheaper training",
        "LOBSTER",
        "SeReNe",
        "NEq",
    ):
        assert text in out
    assert "report.html" in out.rstrip().splitlines()[-1]


@pytest.mark.slow
def test_report_agrees_with_the_runs(travelled: Travelled) -> None:
    report = json.loads((travelled.folder / "report.json").read_text())
    assert [row["method"] for row in report["shipped"]] == ["baseline", "lobster", "serene"]
    assert [row["method"] for row in report["trained"]] == ["baseline", "neq"]
    for method, run in report["runs"].items():
        assert run == json.loads((travelled.folder / method / "result.json").read_text())
    for row in report["trained"]:
        run = report["runs"][row["method"]]
        assert row["test_accuracy"] == run["test_accuracy"]
        mean = sum(e["executed_flops"] for e in run["epochs"]) / len(run["epochs"])
        assert row["executed_flops"] == pytest.approx(mean)
    for row in report["shipped"]:
        folder = travelled.folder / row["method"]
        assert row["bitstream_bytes"] == (folder / "model.snello").stat().st_size
        lean, _ = load(folder / "simplified.pt")
        assert row["parameters"] == sum(p.numel() for p in lean.parameters())
        assert row["simplified_bytes"] < (folder / "simplified.pt").stat().st_size
        # Simplification is exact: the accuracy of the network as it was trained is that of the lean
        # one.
        assert row["test_accuracy"] == pytest.approx(
            report["runs"][row["method"]]["test_accuracy"], abs=0.004
        )


@pytest.mark.slow
def test_bitstreams_of_a_journey_hold_their_bound(travelled: Travelled) -> None:
    """The upper limit of the paired drop is at most `ship.max_drop` of the recipe."""
    recipe = load_recipe("digits")
    splits = load_data(recipe)
    images = measured_on(recipe, splits)
    assert sum(len(x) for x, _ in images()) == len(splits.validation) + len(splits.train)
    for method in ("baseline", "lobster", "serene"):
        lean, _ = load(travelled.folder / method / "simplified.pt")
        decoded, _ = load(travelled.folder / method / "model.snello")
        judge = Judge(lambda m: answers(m, images()).right, lean)
        assert judge(decoded).limit <= recipe.ship.max_drop == 0.005
        fixed = replace(recipe, ship=replace(recipe.ship, qp=-30))
        model, settings = coding_of(fixed, lean, None, splits)  # type: ignore[arg-type]
        assert (model, settings) == (lean, CodecSettings(qp=-30))


@pytest.mark.slow
def test_finished_journey_resumes_to_the_same_report(
    travelled: Travelled, capsys: pytest.CaptureFixture[str]
) -> None:
    def runs() -> object:
        return json.loads((travelled.folder / "report.json").read_text())["runs"]

    before = runs()
    assert main(["journey", "digits", f"--out={travelled.folder}", "--resume", *SMALL]) == 0
    assert "epoch" not in capsys.readouterr().err, "nothing is trained again"
    assert runs() == before


# Every other command


def test_commands_chain(
    model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lean, stream, decoded, onnx, measured = (
        tmp_path / name
        for name in ("lean.pt", "lean.snello", "decoded.pt", "lean.onnx", "measured.json")
    )
    assert main(["simplify", str(model_file), f"--out={lean}"]) == 0
    assert main(["compress", str(lean), f"--out={stream}", "--qp=-30", "--nonweight-qp=-60"]) == 0
    assert main(["decompress", str(stream), f"--out={decoded}"]) == 0
    assert main(["export", str(decoded), f"--out={onnx}"]) == 0
    timing = ["--repeats=2", "--warmup=0"]
    assert main(["measure", str(decoded), f"--onnx={onnx}", f"--out={measured}", *timing]) == 0
    assert main(["measure", str(onnx), f"--out={tmp_path / 'onnx.json'}", *timing]) == 0
    assert "neurons kept" in capsys.readouterr().out

    original, record = load(model_file)
    inputs = record.example_inputs(4)
    small, _ = load(lean)
    torch.testing.assert_close(small(inputs), original(inputs))
    assert _parameters(small) < _parameters(original)

    # What decompress writes is what the bitstream holds, and the file's model computes with just
    # that.
    content = decompress(stream.read_bytes())
    assert content.settings == CodecSettings(qp=-30, nonweight_qp=-60)
    quantised, _ = load(decoded)
    for name, value in quantised.state_dict().items():
        assert torch.equal(value, content.tensors[name]), name
    small.load_state_dict(content.tensors)
    assert torch.equal(quantised(inputs), small(inputs))
    assert not torch.equal(quantised(inputs), original(inputs)), "qp -30 is lossy"

    sizes = json.loads(Path(f"{stream}.json").read_text())
    assert sizes["bitstream_bytes"] == stream.stat().st_size
    assert json.loads(measured.read_text())["footprint"]["parameters"] == _parameters(small)


def test_simplify_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(1)
    model = build(ModelSpec("resnet-20")).eval()
    with torch.no_grad():
        for block in model.layer2:
            block.conv1.weight[:5] = 0
    dense, out = tmp_path / "dense.pt", tmp_path / "lean.pt"
    save(dense, model, Record(ModelSpec("resnet-20"), (3, 32, 32)))
    options = ["--prefer=latency", "--round-to=8", "--fold-batchnorm"]
    assert main(["simplify", str(dense), f"--out={out}", *options]) == 0
    shown = capsys.readouterr().out
    assert "BatchNorms folded" in shown
    assert "constants folded" not in shown, (
        "the five dead neurons of 32 are kept: 27 is no multiple of 8"
    )
    lean, _ = load(out)
    assert {block.conv1.out_channels for block in lean.layer2.children()} == {32}
    assert not [m for m in lean.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    inputs = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(lean(inputs), model(inputs), rtol=1e-4, atol=1e-4)
    assert main(["simplify", str(dense), f"--out={out}", "--round-to=0"]) != 0
    assert "round_to: must be a whole number, at least 1, not 0" in capsys.readouterr().err


def _parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_model_by_name(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = build(ModelSpec("lenet-5"))
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    out = tmp_path / "dense.pt"
    by_name = ["--model=lenet-5", f"--weights={tmp_path / 'weights.pt'}", "--input-shape=1,28,28"]
    assert main(["simplify", *by_name, f"--out={out}"]) == 0
    inputs = torch.rand(2, 1, 28, 28)
    torch.testing.assert_close(load(out)[0](inputs), model.eval()(inputs))


@pytest.mark.slow
def test_train_writes_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["train", "digits", f"--out={tmp_path}", "--method=serene", "--seed=3", *SMALL]) == 0
    )
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["method"] == "serene"
    assert len(result["epochs"]) == 4
    assert json.loads((tmp_path / "recipe.json").read_text())["seed"] == 3
    assert "serene" in capsys.readouterr().out
    spec = load(tmp_path / "model.pt")[1].model
    assert (spec.label, spec.arguments) == (SPEC.name, SPEC.arguments)


def test_recipes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["recipes", "ls"]) == 0
    assert any(line.startswith("digits ") for line in capsys.readouterr().out.splitlines())
    assert main(["recipes", "cp", "digits"]) == 0
    assert main(["recipes", "cp", "digits", "mine.yaml"]) == 0
    assert Path("mine.yaml").read_text() == Path("digits.yaml").read_text()
    capsys.readouterr()
    assert main(["recipes", "fields"]) == 0
    fields = capsys.readouterr().out
    for option in ("--epochs", "--data.batch_size", "--neq.eps", "--serene.twt", "--ship.qp"):
        assert option in fields


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    assert left.value.code == 0
    assert f"example: snello {command}" in capsys.readouterr().out


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--help"])
    assert left.value.code == 0
    out = capsys.readouterr().out
    assert all(command in out for command in COMMANDS)


# Bad input: one line, no half-written file


@dataclass(frozen=True)
class Bench:
    """Parts of a bad command line."""

    folder: Path
    model: Path
    stream: Path

    @property
    def out(self) -> str:
        return f"--out={self.folder / 'out'}"

    def file(self, name: str, data: bytes) -> str:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return str(path)


def _flipped(data: bytes) -> bytes:
    middle = len(data) * 2 // 3
    return data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :]


def _other_weights(b: Bench) -> list[str]:
    torch.save(build(SPEC).state_dict(), b.folder / "weights.pt")
    return [
        "simplify",
        "--model=lenet-5",
        f"--weights={b.folder / 'weights.pt'}",
        "--input-shape=1,28,28",
        b.out,
    ]


def _no_images(b: Bench) -> list[str]:
    (b.folder / "images" / "cats").mkdir(parents=True)
    return [
        "train",
        "digits",
        "--data.name=imagefolder",
        f"--data.path={b.folder / 'images'}",
        b.out,
    ]


def _run_already(b: Bench) -> list[str]:
    b.file("out/recipe.json", b"{}")
    b.file("out/last.ckpt", b"")
    return ["train", "digits", b.out]


def _unknown_key(b: Bench) -> list[str]:
    return ["train", b.file("r.yaml", b"model: {name: lenet-5}\nepoch: 3\n"), b.out]


BAD: dict[str, tuple[Callable[[Bench], list[str]], str]] = {
    "missing file": (lambda b: ["simplify", "nowhere.pt", b.out], "nowhere.pt"),
    "missing bitstream": (lambda b: ["decompress", "nowhere.snello", b.out], "nowhere.snello"),
    "truncated bitstream": (
        lambda b: ["decompress", b.file("cut", b.stream.read_bytes()[:-100]), b.out], "truncated",
    ),
    "flipped bit": (lambda b: ["decompress", b.file("flip", _flipped(b.stream.read_bytes())), b.out], "damaged"),
    "empty bitstream": (lambda b: ["decompress", b.file("empty", b""), b.out], ""),
    "no bitstream": (lambda b: ["decompress", str(b.model), b.out], ""),
    "truncated model": (
        lambda b: ["compress", b.file("cut.pt", b.model.read_bytes()[:5000]), b.out], "truncated, damaged",
    ),
    "no model file": (lambda b: ["export", b.file("text.pt", b"hello"), f"{b.out}.onnx"], "text.pt"),
    "wrong weights": (_other_weights, "does not fit this LeNet5"),
    "unknown model": (lambda b: ["simplify", "--model=lenet-55", "--input-shape=1,28,28", b.out], "lenet-55"),
    "no model": (lambda b: ["simplify", b.out], "pass either a model file"),
    "two models": (lambda b: ["simplify", str(b.model), "--model=lenet-5", b.out], "pass either"),
    "shape with letters": (lambda b: ["measure", "--model=lenet-5", "--input-shape=1,x", b.out], "1,x"),
    "negative shape": (lambda b: ["measure", "--model=lenet-5", "--input-shape=1,-28,28", b.out], "at least 1"),
    "no shape": (lambda b: ["measure", "--model=lenet-5", b.out], "--input-shape"),
    "shape that does not fit": (lambda b: ["simplify", "--model=lenet-5", "--input-shape=1,28", b.out], ""),
    "arguments no JSON": (
        lambda b: ["measure", "--model=lenet-5", "--arguments={x", "--input-shape=1,28,28", b.out], "JSON",
    ),
    "qp out of range": (lambda b: ["compress", str(b.model), "--qp=-1000", b.out], "-1000"),
    "unknown recipe": (lambda b: ["train", "digit", b.out], "digits, "),
    "recipe to copy unknown": (lambda b: ["recipes", "cp", "nothing"], "nothing"),
    "unknown key in YAML": (_unknown_key, "epoch"),
    "broken YAML": (lambda b: ["train", b.file("r.yaml", b"model: [\n"), b.out], "r.yaml"),
    "unknown option": (lambda b: ["train", "digits", "--epoch=3", b.out], "epoch"),
    "unknown option without recipe": (lambda b: ["simplify", str(b.model), "--speed=3", b.out], "--speed=3"),
    "wrong type": (lambda b: ["train", "digits", "--epochs=x", b.out], "epochs"),
    "no epochs": (lambda b: ["train", "digits", "--epochs=0", b.out], "epochs must be at least 1"),
    "batch of none": (lambda b: ["train", "digits", "--data.batch_size=0", b.out], "batch_size must be at least 1"),
    "measured batch of none": (lambda b: ["measure", str(b.model), "--batch=0", b.out], "batch"),
    "measured never": (lambda b: ["measure", str(b.model), "--repeats=0", b.out], "repeats"),
    "diverges": (
        lambda b: ["train", "digits", "--optimizer.lr=1e30", "--epochs=3", "--lobster.finetune=1",
                   "--serene.finetune=1", "--optimizer.milestones=[2]", "--device=cpu", b.out],
        "lower optimizer.lr",
    ),
    "no images": (_no_images, "cats"),
    "missing dataset": (lambda b: ["train", "mnist_lenet5", b.out], "MNIST"),
    "model of other classes": (
        lambda b: ["journey", "digits", "--model.arguments={in_features: 64, classes: 7}", b.out], "10 classes",
    ),
    "model of other inputs": (
        lambda b: ["journey", "digits", "--model.arguments={in_features: 65}", b.out], "does not run on images",
    ),
    "folder below a file": (
        lambda b: ["train", "digits", f"--out={b.file('plain', b'') + '/run'}"], "plain",
    ),
    "file below a file": (
        lambda b: ["simplify", str(b.model), f"--out={b.file('plain', b'') + '/lean.pt'}"], "cannot write",
    ),
    "out is a folder": (lambda b: ["simplify", str(b.model), f"--out={b.folder}"], "folder"),
    "run already": (_run_already, "--resume"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", BAD)
def test_mistake_is_one_line(
    mistake: str,
    model_file: Path,
    bitstream: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "data").mkdir()
    monkeypatch.setenv("SNELLO_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    command, words = BAD[mistake]
    argv = command(Bench(tmp_path, model_file, bitstream))
    before = _files(tmp_path)
    capsys.readouterr()

    with warnings.catch_warnings():
        warnings.simplefilter(
            "error", UserWarning
        )  # outside of pytest it would be a line on stderr too
        assert main(argv) != 0
    err = capsys.readouterr().err
    assert err.startswith("snello: error: "), err
    assert err.count("\n") == 1, err
    assert words in err
    assert "Traceback" not in err
    # The note of what a run was asked to do is whole, and all that a failed run leaves behind.
    assert _files(tmp_path) - before <= {"out/recipe.json"}


def _files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_mistake_is_one_line_in_a_shell(tmp_path: Path) -> None:
    """Nothing of torch, Lightning or the interpreter's end adds to it."""
    shell = subprocess.run(
        [sys.executable, "-m", "snello", "train", "digits", "--optimizer.lr=1e30",
         "--optimizer.milestones=[3]", *SMALL, "--out=run"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(Path(snello.__file__).parents[1])},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert shell.returncode == 1
    assert shell.stderr.startswith("snello: error: the training loss is ")
    assert shell.stderr.count("\n") == 1, shell.stderr
    assert not shell.stdout
    assert _files(tmp_path) == {"run/recipe.json"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("command", ["measure", "simplify", "train", "curate"])
def test_no_gpu_is_one_line(
    command: str, model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    what = "digits" if command in ("train", "curate") else str(model_file)
    assert main([command, what, "--device=cuda", f"--out={tmp_path / 'out'}"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("snello: error: ")
    assert err.count("\n") == 1
    assert "torch sees no GPU" in err
    assert not (tmp_path / "out").is_file()


def test_copy_never_overwrites(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("my work")
    assert main(["recipes", "cp", "digits", str(mine)]) == 1
    assert "already exists" in capsys.readouterr().err
    assert mine.read_text() == "my work"
