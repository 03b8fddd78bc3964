"""Predicted latency of a search next to what a kit measured later."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from snello.cli import main
from snello.deploy import DeviceResult, DeviceTime
from snello.errors import ConfigError
from snello.lab.reporting import Table
from snello.lab.reporting.pages import Page, add_to_page, measured_on, write_page

for package in ("vl_convert", "jinja2"):
    pytest.importorskip(package)

OWN = """
import torch
from torch import nn


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 4))
"""


def run(*argv: str) -> None:
    assert main(list(argv)) == 0


DATA: dict[str, Any] = {
    "candidates": [
        {"key": "a", "precision": "float32", "predicted": 2.0},
        {"key": "b", "precision": "int8", "predicted": 0.5},
    ],
    "chosen": "b", "unit": "ms", "device": "a board",
    "files": [
        {"key": "a", "file": "dense.pt", "sha256": "1"}, {"key": "b", "file": "lean.onnx", "sha256": "2"},
    ],
}  # fmt: skip


def timed(sha: str, source: str | None, precision: Any, ms: float) -> DeviceTime:
    return DeviceTime("m", "m.onnx", precision, 1, sha, source, 2 * ms, ms, 3 * ms, 0.0, None)


def device(*times: DeviceTime) -> DeviceResult:
    return DeviceResult({"cpu": "A53", "onnxruntime": "1.2"}, 1, 1, 5, 50, times)


def test_times_belong_to_files_of_the_same_digest_and_precision() -> None:
    found = device(
        timed("8", "1", "float32", 2.5), timed("9", "1", "int8", 9.0), timed("2", None, "int8", 0.4),
        timed("7", "6", "float32", 8.0),
    )  # fmt: skip
    table, rows = measured_on(
        DATA, [("pi", found), ("other", device(timed("1", None, "float32", 1)))]
    )
    assert [(r["file"], r["device"], r["measured_ms"]) for r in rows] == [
        ("dense.pt", "pi", 2.5), ("lean.onnx", "pi", 0.4), ("dense.pt", "other", 1),
    ]  # fmt: skip
    assert [round(r["difference"], 9) for r in rows] == [0.25, -0.2, -0.5]
    assert [row[-1] for row in table.rows] == ["+25.0 %", "-20.0 %", "-50.0 %"]
    assert "a board" in table.note


def test_predictions_in_another_unit_are_not_compared() -> None:
    _, rows = measured_on(DATA | {"unit": "MACs"}, [("pi", device(timed("1", None, "float32", 1)))])
    assert (rows[0]["predicted_ms"], rows[0]["difference"]) == (None, None)


@pytest.mark.parametrize("data", [DATA, {k: v for k, v in DATA.items() if k != "files"}])
def test_a_device_that_timed_none_of_the_files_is_refused(data: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="pi has timed none"):
        measured_on(data, [("pi", device(timed("3", None, "float32", 1)))])


def test_added_tables_replace_those_of_an_earlier_call(tmp_path: Path) -> None:
    page = write_page(
        Page("A", "b", tables=(Table("first", ("x",), (("<1>",),)),), data=1), tmp_path / "p.html"
    )
    before = page.read_text()
    for number in (1, 2):
        add_to_page(page, [Table(f"added {number}", ("y",), (("</section>",),))], {"n": number})
    after = page.read_text()
    assert "first" in after
    assert "added 2" in after
    assert "added 1" not in after
    assert '"n": 2' in after
    add_to_page(page, [], 1)
    assert page.read_text() == before
    page.write_text("<html></html>")
    with pytest.raises(ConfigError, match="not a page"):
        add_to_page(page, [], 1)


@pytest.mark.exhaustive
def test_a_kit_measures_what_a_profile_predicted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Profile of a device, search for it, kit of the result on the device, one report."""
    for package in ("onnxruntime", "onnxscript"):
        pytest.importorskip(package)
    numpy = pytest.importorskip("numpy")
    (tmp_path / "pagenets.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    numpy.savez("samples.npz", x=numpy.random.RandomState(0).randn(200, 64).astype("f4"))
    own = ("--model=pagenets:net",)
    run("simplify", *own, "--input-shape=64", "--out=dense.pt")
    run("bench-device", "profiled", "dense.pt", "--profile", "--no-int8", "--own-code=pagenets:net")
    bench("profiled", "--profile", "--repeats=20", "--warmup=2")
    run(
        "shrink", "dense.pt", "--own-code=pagenets:net", "--samples=samples.npz", "--minimise=latency",
        "--allow=channels", "--max-drop=0.9", "--trials=3", "--device=profiled/profile.json",
    )  # fmt: skip
    run("bench-device", "kit", "dense.pt", "lean.pt", "--no-int8", "--own-code=pagenets:net")
    bench("kit", "--repeats=20", "--warmup=2")
    capsys.readouterr()
    for _ in range(2):  # the second call replaces the first one's table
        run("report", "lean.pt.json", "kit/device.json")
    assert "Predicted and measured latency" in capsys.readouterr().out

    report = json.loads(Path("lean.pt.json").read_text())
    times = {m["name"]: m for m in json.loads(Path("kit/device.json").read_text())["models"]}
    candidates = {c["key"]: c for c in report["candidates"]}
    assert [row["file"] for row in report["measured"]] == ["dense.pt", "lean.pt"]
    for row in report["measured"]:
        predicted = candidates[row["key"]]["predicted"]
        measured = times[row["file"].removesuffix(".pt")]["p10_ms"]
        assert (row["predicted_ms"], row["measured_ms"]) == (predicted, measured)
        assert row["difference"] == pytest.approx(measured / predicted - 1)
    page = Path("lean.pt.html").read_text()
    assert page.count("Predicted and measured latency") == 1
    assert '"measured_ms"' in page
    assert main(["report", "lean.pt.json", "profiled/device.json"]) == 0, "the dense network alone"
    assert main(["report", "lean.pt.json"]) == 1
    assert "bench.py" in capsys.readouterr().err


def bench(kit: str, *options: str) -> None:
    command = [sys.executable, f"{kit}/bench.py", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
