"""Several models side by side: one run, every kind of file, results that can be read back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from seams.cli import clock_table, paper_table
from snello import Record, save
from snello.cli import main
from snello.deploy import (
    DeviceResult,
    DeviceTime,
    Profile,
    Subject,
    compare,
    compiled_runner,
    export,
    read_profiles,
)
from snello.deploy.measure import compare as compare_module
from snello.errors import ConfigError, ModelError
from snello.lab.reporting import as_json
from snello.store import ModelSpec, build

for package in ("onnx", "onnxscript", "onnxruntime", "rich"):
    pytest.importorskip(package, reason="the extras onnx and report are not installed")

QUICK = {"repeats": 2, "warmup": 0}
SPEC = ModelSpec("lenet-300-100", {"in_features": 64})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same network as a model file, an ONNX file and a program."""
    path = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    model, record = build(SPEC).eval(), Record(SPEC, (1, 8, 8))
    save(path / "net.pt", model, record)
    export(model, record.example_inputs(), path / "net.onnx")
    (path / "deep").mkdir()
    export(model, record.example_inputs(), path / "deep" / "net.pt2")
    (path / "notes.txt").write_text("no model")
    return path


@pytest.fixture(scope="module")
def profiles(folder: Path) -> tuple[Profile, ...]:
    x = torch.randn(3, 1, 8, 8)
    given = [
        Subject("model", build(SPEC), (x,), folder / "net.pt"),
        Subject("file", file=folder / "net.onnx"),
        Subject("stranger", nn.Flatten(), (x,)),
    ]
    runtimes = ("pytorch", "onnxruntime", "onnxruntime int8")
    return compare(given[:2], runtimes=runtimes, batch=3, **QUICK) + compare(given[2:], **QUICK)


def test_every_subject_in_every_runtime(profiles: tuple[Profile, ...], folder: Path) -> None:
    model, file, stranger = profiles
    assert [profile.name for profile in profiles] == ["model", "file", "stranger"]
    assert list(model.latencies) == ["pytorch", "onnxruntime", "onnxruntime int8"]
    assert list(file.latencies) == ["onnxruntime"]
    assert list(stranger.latencies) == ["pytorch"]
    for profile in profiles:
        for runtime, time in profile.latencies.items():
            assert (time.runtime, time.batch, time.repeats) == (runtime, 3, 2)
    assert model.footprint is not None
    assert file.footprint is not None
    assert model.footprint.parameters == file.footprint.parameters
    assert (model.file_bytes, file.file_bytes) == tuple(
        (folder / name).stat().st_size for name in ("net.pt", "net.onnx")
    )
    assert (stranger.file, stranger.sha256, stranger.file_bytes) == (None, None, None)


def test_all_take_turns_in_one_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []
    real = compare_module.latencies
    monkeypatch.setattr(
        compare_module, "latencies", lambda calls, **k: runs.append(list(calls)) or real(calls, **k)
    )
    given = [
        Subject("a", nn.Flatten(), (torch.randn(1, 2),)),
        Subject("b", file=folder / "net.onnx"),
    ]
    compare(given, **QUICK)
    assert runs == [["a in pytorch", "b in onnxruntime"]]


def test_results_are_read_back(profiles: tuple[Profile, ...], tmp_path: Path) -> None:
    several, one = tmp_path / "several.json", tmp_path / "one.json"
    several.write_text(as_json({"models": profiles}))
    one.write_text(as_json(profiles[0]))
    assert read_profiles(several) == profiles
    assert read_profiles(one) == profiles[:1]
    for text in ("{}", "[1]", "nothing", '{"models": [{"name": "a"}]}'):
        one.write_text(text)
        with pytest.raises(ConfigError, match=r"one\.json"):
            read_profiles(one)


@pytest.mark.parametrize(
    ("given", "options", "words"),
    [
        ([], {}, "0 models"),
        ([Subject("a", nn.Flatten(), (torch.ones(1, 2),))] * 2, {}, "two models are called 'a'"),
        ([Subject("a", file=Path("a.tflite"))], {}, r"\.tflite"),
        (
            [Subject("a", nn.Flatten(), (torch.ones(1, 2),))],
            {"runtimes": ("tensorrt",)},
            "no such runtime",
        ),
        ([Subject("a", nn.Flatten(), (torch.ones(1, 2),))], {"batch": 0}, "batch=0"),
    ],
)
def test_impossible_comparisons(
    given: list[Subject], options: dict[str, object], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        compare(given, **options)


@pytest.mark.slow
def test_compiled_computes_the_same_or_says_what_is_missing() -> None:
    model, x = nn.Sequential(nn.Linear(6, 5), nn.Tanh()).eval(), torch.randn(4, 6)
    try:
        runner = compiled_runner(model, x)
    except ConfigError as error:
        assert "C++ compiler" in str(error)  # noqa: PT017
        pytest.skip("there is no C++ compiler")
    torch.testing.assert_close(runner(), model(x))
    assert (runner.runtime, runner.threads, runner.batch) == ("torch.compile", 1, 4)


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import config

    # A bound that no other test's code has, lest it come from the cache of compiled code.
    model, x = nn.Sequential(nn.Linear(3, 7), nn.Hardtanh(-0.123, 0.77)), torch.randn(2, 3)
    with (
        config.patch({"cpp.cxx": ("no-such-compiler",)}),
        pytest.raises(ConfigError, match=r"C\+\+ compiler"),
    ):
        compiled_runner(model, x)


def test_what_breaks_the_graph_is_refused() -> None:
    class Breaks(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            torch._dynamo.graph_break()
            return x + 1

    with pytest.raises(ModelError, match="Breaks as one graph"):
        compiled_runner(Breaks(), torch.ones(1, 2))


# The command line


def measured(tmp_path: Path, *argv: str) -> dict[str, object]:
    out = tmp_path / "out.json"
    assert main(["measure", *argv, f"--out={out}", "--repeats=2", "--warmup=0"]) == 0
    content: dict[str, object] = json.loads(out.read_text())
    return content


def test_measure_files_side_by_side(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = measured(tmp_path, str(folder / "net.pt"), str(folder / "net.onnx"), "--batch=2")
    rows = content["models"]
    assert isinstance(rows, list)
    assert [row["name"] for row in rows] == ["net.pt", "net.onnx"]
    assert {t["batch"] for row in rows for t in row["latencies"].values()} == {2}
    shown = capsys.readouterr().out
    assert "net.pt" in shown
    assert "net.onnx" in shown
    assert read_profiles(tmp_path / "out.json")[1].file == str(folder / "net.onnx")


def test_measure_a_folder(folder: Path, tmp_path: Path) -> None:
    rows = measured(tmp_path, str(folder))["models"]
    assert isinstance(rows, list)
    assert [Path(row["name"]).name for row in rows] == ["net.pt2", "net.onnx", "net.pt"]


def test_measure_one_with_its_export(folder: Path, tmp_path: Path) -> None:
    row = measured(tmp_path, str(folder / "net.pt"), f"--onnx={folder / 'net.onnx'}")
    latencies = row["latencies"]
    assert isinstance(latencies, dict)
    assert list(latencies) == ["pytorch", "onnxruntime"]


def test_mistakes_are_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    net = str(folder / "net.pt")
    for argv, words in (
        ([], "pass either"),
        ([net, net], "same name"),
        ([str(tmp_path / "empty")], "has no models"),
        ([str(tmp_path / "missing.onnx")], "missing.onnx"),
        ([net, "--runtimes=fast"], "'fast'"),
        (
            [net, str(folder / "net.onnx"), f"--onnx={folder / 'net.onnx'}"],
            "pass one model file only",
        ),
    ):
        assert main(["measure", *argv, f"--out={tmp_path / 'out.json'}"]) == 1
        err = capsys.readouterr().err
        assert err.startswith("snello: error: ")
        assert err.count("\n") == 1
        assert words in err
    assert not (tmp_path / "out.json").exists()


def test_export_a_program(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "net.pt2"
    assert main(["export", str(folder / "net.pt"), "--format=torch-export", f"--out={out}"]) == 0
    assert json.loads(Path(f"{out}.json").read_text())["bytes"] == out.stat().st_size
    assert "Verified" in capsys.readouterr().out


@pytest.mark.sampled(1)
@pytest.mark.parametrize("data", ["digits", None])
def test_export_int8_says_what_it_was_calibrated_on(
    data: str | None, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if data:
        pytest.importorskip("sklearn", reason="the extra train is not installed")
    out = tmp_path / "int8.onnx"
    argv = ["export", str(folder / "net.pt"), "--format=onnx-int8", f"--out={out}", "--samples=70"]
    assert main([*argv, *([f"--data={data}"] if data else [])]) == 0
    err = capsys.readouterr().err
    assert ("snello: warning: int8 is calibrated on random inputs" in err) == (data is None)
    result = json.loads(Path(f"{out}.json").read_text())
    assert result["samples"] == 70
    assert result["calibration"] == (f"{data}, training part" if data else "random inputs")
    assert 0 < result["difference"] < 0.2
    assert main([*argv, "--reduce-range"]) == 0
    reduced = json.loads(Path(f"{out}.json").read_text())
    assert reduced["reduce_range"]
    assert 0 < reduced["difference"] < 0.2
    assert main([*argv[:-1], "--samples=0"]) == 1
    assert "--samples=0" in capsys.readouterr().err


# Tables


def test_a_device_stands_in_the_row_of_its_file(profiles: tuple[Profile, ...]) -> None:
    def time(
        name: str, ms: float, sha: str | None, source: str | None, precision: str = "float32"
    ) -> DeviceTime:
        assert sha is not None
        return DeviceTime(name, f"{name}.onnx", precision, 1, sha, source, ms, ms, ms, 0.5, None)  # type: ignore[arg-type]

    model, file, _ = profiles
    times = (
        time("a", 11, "0", model.sha256),
        time("a-int8", 22, "1", model.sha256, "int8"),
        time("b", 33, file.sha256, None),
        time("model", 44, "2", "3"),  # the name is that of a row, the file is not
    )
    device = {"cpu": "Cortex-A53", "cores": 4}
    table = clock_table("Times", profiles, [("pi3", DeviceResult(device, 2, 1, 3, 9, times))])
    columns = {name.replace("\n", " "): i for i, name in enumerate(table.header)}
    cells = {row[0]: row for row in table.rows}
    float32, int8 = columns["pi3 float32 [ms]"], columns["pi3 int8 [ms]"]
    assert cells["model"][float32].startswith("11.000")
    assert cells["model"][int8].startswith("22.000")
    assert cells["file"][float32].startswith("33.000")
    assert (cells["file"][int8], cells["stranger"][float32]) == ("-", "-")
    assert cells["model.onnx (pi3)"][float32].startswith("44.000")
    assert all(len(row) == len(table.header) for row in table.rows)
    assert "pi3: Cortex-A53, 4 cores" in table.note
    assert "2 thread(s), 3 warm-up and 9 timed" in table.note
    assert "outputs of b.onnx differ by 0.5!" in table.note


def test_what_is_counted(profiles: tuple[Profile, ...]) -> None:
    table = paper_table("Counts", profiles)
    assert table.rows[0][:2] == ("model", "50610")
    assert "*" in table.rows[1][6] or table.rows[1][6] == "-"
    assert "*" not in table.rows[0][6]
