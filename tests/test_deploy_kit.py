"""The kit: a folder that runs by itself, on onnxruntime and numpy, and brings back what was
measured.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from snello import Record, save
from snello.cli import main
from snello.deploy import Subject, device_kit, export, format_of, read_device_result
from snello.errors import ConfigError, OutputError
from snello.files import check_new_folder, check_writable, writing_folder
from snello.store import ImageInput, ModelSpec, build

from .seams.deploy import device_bench

for package in ("onnx", "onnxscript", "onnxruntime", "rich"):
    pytest.importorskip(package, reason="the extras onnx and report are not installed")

SPEC = ModelSpec("lenet-300-100", {"in_features": 64})
IMAGES = ImageInput((0.5,), (0.25,), classes=("a", "b"))
QUICK = ("--repeats", "4", "--warmup", "1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file, an ONNX file, and the kit of both."""
    path = tmp_path_factory.mktemp("kit")
    torch.manual_seed(0)
    save(path / "net.pt", build(SPEC).eval(), Record(SPEC, (1, 8, 8), images=IMAGES))
    export(nn.Linear(3, 2), torch.randn(2, 3), path / "tiny.onnx")
    assert (
        main(["bench-device", str(path / "kit"), str(path / "net.pt"), str(path / "tiny.onnx")])
        == 0
    )
    return path


def bench(kit: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the kit as on another device: isolated, with nothing of this project on the path."""
    command = [sys.executable, "-I", "bench.py", *options]
    return subprocess.run(
        command, cwd=kit, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.fixture(scope="module")
def ran(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kit, copied elsewhere and run there."""
    kit = tmp_path_factory.mktemp("device") / "copied"
    shutil.copytree(folder / "kit", kit)
    done = bench(kit, *QUICK, "--batch", "2")
    assert done.returncode == 0, done.stderr
    assert "written" in done.stdout
    return kit


def test_a_kit_is_whole(folder: Path) -> None:
    kit = folder / "kit"
    files = {p.name for p in kit.iterdir()}
    models = {"net.onnx", "net-int8.onnx", "tiny.onnx"}
    checks = {"net.npz", "net-int8.npz", "tiny.npz"}
    assert files == models | checks | {"bench.py", "README.md", "models.json"}
    readme = (kit / "README.md").read_text()
    assert all(name in readme for name in models)
    assert "random inputs" in readme
    assert "snello" not in {word for line in (kit / "bench.py").read_text().splitlines()
                            if line.strip().startswith(("import ", "from ")) for word in line.split()}  # fmt: skip


def test_files_describe_their_inputs(folder: Path) -> None:
    """The facts of the model file are in its exports; a file that is copied stays as it was."""
    facts = Record(SPEC, (1, 8, 8), images=IMAGES).image_facts()
    for name in ("net.onnx", "net-int8.onnx"):
        assert format_of(folder / "kit" / name).metadata(folder / "kit" / name) == facts
    assert (folder / "kit" / "tiny.onnx").read_bytes() == (folder / "tiny.onnx").read_bytes()


def test_what_comes_back(folder: Path, ran: Path) -> None:
    result = read_device_result(ran / "device.json")
    assert [(m.name, m.file, m.precision) for m in result.models] == [
        ("net", "net.onnx", "float32"), ("net", "net-int8.onnx", "int8"), ("tiny", "tiny.onnx", "float32"),
    ]  # fmt: skip
    assert (result.threads, result.batch, result.warmup, result.repeats) == (1, 2, 1, 4)
    for model in result.models:
        assert 0 < model.p10_ms <= model.median_ms <= model.p90_ms
        assert model.difference < 1e-6, "the same machine computes the same"
        assert model.bytes == (ran / model.file).stat().st_size
    for fact in ("cpu", "cores", "os", "machine", "python", "onnxruntime", "numpy"):
        assert result.device[fact], fact
    source = {
        row["source_sha256"]
        for row in json.loads((folder / "kit" / "models.json").read_text())["models"]
    }
    assert {m.source_sha256 for m in result.models} == source
    assert len(source) == 2


def test_report_puts_the_device_beside(
    folder: Path, ran: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here, page = tmp_path / "measure.json", tmp_path / "report.md"
    argv = ["measure", str(folder / "net.pt"), str(folder / "tiny.onnx"), f"--out={here}"]
    assert main([*argv, "--repeats=2", "--warmup=0"]) == 0
    shutil.copy(ran / "device.json", tmp_path / "pi3.json")
    capsys.readouterr()
    assert main(["report", str(here), str(tmp_path / "pi3.json"), f"--out={page}"]) == 0
    assert "pi3" in capsys.readouterr().out
    result = read_device_result(ran / "device.json")
    rows = [line for line in page.read_text().splitlines() if line.startswith("| net.pt")]
    assert len(rows) == 2  # on paper, on the clock
    for model in result.models[:2]:
        assert f"{model.median_ms:.3f}" in rows[1]
    assert main(["report", str(tmp_path / "pi3.json")]) == 0
    assert (
        main(
            [
                "report",
                str(tmp_path / "pi3.json"),
                str(ran / "device.json"),
                str(ran / "device.json"),
            ]
        )
        == 1
    )
    assert "two devices" in capsys.readouterr().err


def test_a_changed_file_is_noticed(folder: Path, tmp_path: Path) -> None:
    kit = tmp_path / "kit"
    shutil.copytree(folder / "kit", kit)
    data = bytearray((kit / "net.onnx").read_bytes())
    data[-1] ^= 1
    (kit / "net.onnx").write_bytes(data)
    done = bench(kit, *QUICK)
    assert done.returncode == 1
    assert done.stderr.startswith("bench.py: error: net.onnx was changed or damaged")
    assert done.stderr.count("\n") == 1
    assert not (kit / "device.json").exists()


@pytest.mark.parametrize("content", [b"[]", b"[" * 100_000, None])
@pytest.mark.parametrize("name", ["models.json", "operations.json", "net.npz"])
def test_damaged_parts_are_named(
    name: str, content: bytes | None, folder: Path, tmp_path: Path
) -> None:
    kit = tmp_path / "kit"
    shutil.copytree(folder / "kit", kit)
    if content is None:
        (kit / name).unlink(missing_ok=True)
    else:
        (kit / name).write_bytes(content)
    done = bench(kit, *QUICK, *(["--profile"] if name == "operations.json" else []))
    assert done.returncode == 1
    assert done.stderr.startswith("bench.py: error: ")
    assert name in done.stderr
    assert done.stderr.count("\n") == 1
    assert not done.stdout, "nothing was timed before"
    assert not (kit / "device.json").exists()


def test_impossible_requests_are_refused_before_the_timing(folder: Path) -> None:
    for options, reason in (
        (("--profile", "--batch=2"), "--batch=2"),
        (("--out=no/folder/device.json",), "no/folder"),
        (("--out=.",), "--out=. is a folder"),
        (("--out=..",), "--out=.. is a folder"),
    ):
        done = bench(folder / "kit", *options)
        assert (done.returncode, done.stdout) == (1, "")
        assert reason in done.stderr
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "part", "key", "value"),
    [
        *(("models.json", "models", key, None) for key in device_bench.MODEL),
        ("models.json", "models", "file", 3),
        ("models.json", "models", "precision", "int4"),
        *(("operations.json", "operations", key, None) for key in device_bench.OPERATION),
        ("operations.json", "models", None, None),
        ("net.npz", None, "in_0", None),
        ("net.npz", None, "out_0", None),
    ],
)
def test_entries_that_lack_something_are_named(
    name: str, part: str | None, key: str | None, value: object, folder: Path, tmp_path: Path
) -> None:
    import numpy

    kit = tmp_path / "kit"
    shutil.copytree(folder / "kit", kit)
    if part is None:
        with numpy.load(kit / name) as saved:
            numpy.savez(kit / name, **{k: saved[k] for k in saved.files if k != key})
    else:
        entry = {**dict.fromkeys(device_bench.OPERATION, ""), "branches": 2}
        operations = {"format": "snello device operations 1", "operations": [entry], "models": {}}
        content = operations if name == "operations.json" else json.loads((kit / name).read_text())
        if key is None:
            del content[part]
        elif value is None:
            del content[part][-1][key]
        else:
            content[part][-1][key] = value
        (kit / name).write_text(json.dumps(content))
    done = bench(kit, *QUICK, *(["--profile"] if name == "operations.json" else []))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("bench.py: error: ")
    assert done.stderr.count("\n") == 1
    assert str(value or key or part) in done.stderr
    assert not (kit / "device.json").exists()


def test_different_outputs_are_noticed(folder: Path, tmp_path: Path) -> None:
    import numpy

    kit = tmp_path / "kit"
    shutil.copytree(folder / "kit", kit)
    with numpy.load(kit / "net.npz") as saved:
        arrays = dict(saved)
    numpy.savez(kit / "net.npz", **{**arrays, "out_0": arrays["out_0"] * 1.5})
    done = bench(kit, *QUICK)
    assert done.returncode == 0, done.stderr
    assert "WARNING: outputs differ by 0.33" in done.stdout
    assert "--reduce-range" not in done.stdout

    with numpy.load(kit / "net-int8.npz") as saved:
        arrays = dict(saved)
    numpy.savez(kit / "net-int8.npz", **{**arrays, "out_0": arrays["out_0"] * 1.5})
    assert "--reduce-range" in bench(kit, *QUICK).stdout
    assert read_device_result(kit / "device.json").models[0].difference == pytest.approx(
        1 / 3, abs=1e-4
    )


@pytest.mark.parametrize(
    "options", [("--threads", "0"), ("--repeats", "0"), ("--warmup", "-1"), ("--batch", "0")]
)
def test_options_out_of_range(folder: Path, options: tuple[str, str]) -> None:
    done = bench(folder / "kit", *options)
    assert done.returncode == 1
    assert (
        done.stderr
        == f"bench.py: error: {options[0]}={options[1]}: choose at least {int(options[0] != '--warmup')}\n"
    )


def test_results_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "device.json"
    for text in (
        "",
        "{}",
        "[]",
        '{"format": "another"}',
        '{"format": "snello device 1", "models": [{}]}',
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=r"device\.json"):
            read_device_result(path)
    with pytest.raises(ConfigError, match="missing"):
        read_device_result(tmp_path / "missing.json")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], "at least one"),
        ([Subject("a/b", nn.Linear(3, 2), (torch.ones(2, 3),))], "'a/b'"),
        ([Subject("..", nn.Linear(3, 2), (torch.ones(2, 3),))], r"'\.\.'"),
        (
            [
                Subject("a", nn.Linear(3, 2), (torch.ones(2, 3),)),
                Subject("a-int8", file=Path("b.onnx")),
            ],
            "int8",
        ),
        ([Subject("a", file=Path("a.pte"))], r"a\.pte"),
    ],
)
def test_kits_that_cannot_be_made(given: list[Subject], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        device_kit(tmp_path / "kit", given)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "made" / "kit"

    def broken() -> None:
        with writing_folder(target) as inside:
            (inside / "half").write_text("half")
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        broken()
    assert list(target.parent.iterdir()) == []
    target.mkdir()
    with writing_folder(check_new_folder(target)) as inside:
        (inside / "file").write_text("whole")
    assert [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")] == [
        "made",
        "made/kit",
        "made/kit/file",
    ]
    inner = target / "file"
    for path, words in (
        (target, "no empty folder"),
        (inner, "no empty folder"),
        (inner / "kit", "cannot write"),
    ):
        with pytest.raises(OutputError, match=words):
            check_new_folder(path)


def test_missing_folders_are_made_and_the_trial_leaves_nothing(tmp_path: Path) -> None:
    path = check_writable(tmp_path / "a" / "b" / "net.onnx")
    assert path.parent.is_dir()
    assert list(path.parent.iterdir()) == []
    with pytest.raises(OutputError, match="folder"):
        check_writable(tmp_path / "a")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file"):
        check_writable(tmp_path / "file" / "net.onnx")
