"""The GPU script: its dry form runs end to end, a killed run goes on, pages say what is missing."""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
gpu = pytest.importorskip("gpu", reason="the benchmarks are not part of this distribution")
gpu_page = pytest.importorskip("gpu_page")

RESULTS = Path(__file__).parents[1] / "docs" / "results"
pytestmark = pytest.mark.usefixtures("one_thread")


def here(step, seconds):  # type: ignore[no-untyped-def]
    """Run a step in this process: a fork of a test run with threads could hang."""
    code = importlib.import_module(step.module).main(list(step.arguments))
    return gpu.Attempt(step.name, 0.0, "differs or failed" if code else "done", "")


def test_the_dry_run_passes_through_all_steps_and_its_page_has_all_tables(tmp_path: Path) -> None:
    steps = gpu.steps("cpu", dry=True, out=tmp_path)
    gpu.note_environment("cpu", tmp_path / "environment.json", dry=True)
    assert gpu.run_all(steps, tmp_path, 600, here)
    attempts = json.loads((tmp_path / "steps.json").read_text())
    assert [(a["step"], a["outcome"]) for a in attempts] == [(s.name, "done") for s in steps]
    assert all(
        row["difference"] == 0 for row in json.loads((tmp_path / "equality.json").read_text())
    )
    text = gpu_page.text(tmp_path)
    assert gpu_page.MISSING not in text
    assert "no numbers to publish" in text
    assert text.count("## ") - text.count("### ") == len(gpu_page.SECTIONS)

    def refuse(step, seconds):  # type: ignore[no-untyped-def]
        raise AssertionError(f"{step.name} was run again")

    assert gpu.run_all(steps, tmp_path, 600, refuse)
    (tmp_path / "sensitivity.json").unlink()
    assert "Not measured" in gpu_page.text(tmp_path)
    with pytest.raises(AssertionError, match="sensitivity was run again"):
        gpu.run_all(steps, tmp_path, 600, refuse)


def test_real_steps_are_within_eight_minutes_and_parse_their_command_lines(tmp_path: Path) -> None:
    steps = gpu.steps("cuda", dry=False, out=tmp_path)
    assert gpu.LONGEST == 480
    names = [step.name for step in steps]
    assert len(set(names)) == len(names) == len({(s.result, s.key) for s in steps})
    for step in steps:
        line = list(step.arguments)
        assert "cuda" in line or "--device=cuda" in line
        if step.module == "neq_backward":
            options = importlib.import_module(step.module).arguments(line)
            assert options.bf16
            assert options.layouts == ["channels_last"]


STUB = """
import os, pathlib, sys, time
def main(given):
    {body}
"""


@pytest.mark.parametrize(
    ("body", "outcome"),
    [
        ("pathlib.Path(given[0]).write_text('[]')", "done"),
        ("raise RuntimeError('no such kernel')", "differs or failed"),
        ("os._exit(9)", "differs or failed"),
        ("time.sleep(60)", "out of time"),
    ],
)
def test_a_step_ends_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, outcome: str
) -> None:
    name = f"gpu_stub_{abs(hash(body))}"
    (tmp_path / f"{name}.py").write_text(STUB.format(body=body))
    monkeypatch.syspath_prepend(str(tmp_path))
    result = tmp_path / "result.json"
    step = gpu.Step("stub", name, (str(result),), result)
    started = time.monotonic()
    assert gpu.run(step, 1.0).outcome == outcome
    assert time.monotonic() - started < 20
    assert step.done == (outcome == "done")


def test_a_training_that_ran_out_of_time_is_continued_and_others_are_not(tmp_path: Path) -> None:
    resumable = gpu.Step("training", "", (), tmp_path / "a", resumable=True)
    once = gpu.Step("once", "", (), tmp_path / "b")
    tried: list[str] = []

    def attempt(step, seconds):  # type: ignore[no-untyped-def]
        tried.append(step.name)
        if step.name == "training" and tried.count("training") == 3:
            step.result.touch()
        return gpu.Attempt(step.name, 0.0, "out of time", "")

    assert not gpu.run_all([resumable, once], tmp_path, 600, attempt)
    assert tried == ["training"] * 3 + ["once"]
    assert not gpu.run_all([once], tmp_path, 10, attempt)  # less than a step is worth
    assert tried[-1] == "once"
    assert len(tried) == 4


def test_results_of_another_device_or_of_a_dry_run_are_not_mixed(tmp_path: Path) -> None:
    path = tmp_path / "environment.json"
    gpu.note_environment("cpu", path, dry=True)
    gpu.note_environment("cpu", path, dry=True)
    with pytest.raises(SystemExit, match="dry=True, here it is False"):
        gpu.note_environment("cpu", path)
    path.write_text(json.dumps({**json.loads(path.read_text()), "device": "another"}))
    with pytest.raises(SystemExit, match="device='another'"):
        gpu.note_environment("cpu", path, dry=True)
    assert json.loads(path.read_text())["device"] == "another"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_script_says_so(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert gpu.main([f"--out={tmp_path}"]) == 1
    error = capfd.readouterr().err
    assert "torch finds no GPU here" in error
    assert "Traceback" not in error
    assert not list(tmp_path.iterdir())


def test_a_comparison_that_failed_is_no_success(tmp_path: Path) -> None:
    step = gpu.Step("equality", "", (), tmp_path / "equality.json")

    def attempt(step, seconds):  # type: ignore[no-untyped-def]
        step.result.write_text("[]")
        return gpu.Attempt(step.name, 0.0, "differs or failed", "")

    assert not gpu.run_all([step], tmp_path, 600, attempt)
    assert not gpu.run_all([step], tmp_path, 600, attempt)


def test_the_published_page_is_that_of_its_results() -> None:
    assert (RESULTS / "gpu.md").read_text() == gpu_page.text(RESULTS / "gpu")
