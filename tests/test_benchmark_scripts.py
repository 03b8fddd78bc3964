"""The benchmarks can be run: their imports hold, and the command lines that pages of results and their
own docstrings give are accepted.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch

from snello.curation import Recorder

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"
if not BENCHMARKS.is_dir():
    pytest.skip("the benchmarks are not part of this distribution", allow_module_level=True)
sys.path.insert(0, str(BENCHMARKS))
pytest.importorskip("lightning")
pytest.importorskip("matplotlib")
MODULES = sorted(path.stem for path in BENCHMARKS.glob("*.py"))
OPTIONAL = {"timm", "torch_pruning", "transformers", "onnxruntime", "nncodec", "optuna", "sklearn"}


class AcceptedError(Exception):
    """A command line was parsed: nothing more is wanted of the script."""


def benchmark(name):
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name in OPTIONAL:
            pytest.skip(f"{name} needs {error.name}")
        raise


def commands(text):
    """Name of the script and command line of all calls of benchmarks in a text."""
    for name, line in re.findall(
        r"python benchmarks/(\w+)\.py((?:[^\n\\`#]|\\+\n)*)", text, flags=re.M
    ):
        # Comments are set off by a gap.
        given = re.split(r"\s{4,}", re.sub(r"\\+\n\s*", " ", line).rstrip())[0]
        yield name, shlex.split(given)


@pytest.mark.parametrize("name", MODULES)
def test_a_benchmark_can_be_imported(name):
    benchmark(name)


PAGES = [*sorted((ROOT / "docs" / "results").rglob("*.md")), *sorted(BENCHMARKS.glob("*.py"))]


@pytest.mark.parametrize(
    ("name", "line"),
    {(name, tuple(line)): None for page in PAGES for name, line in commands(page.read_text())},
    ids=lambda value: value if isinstance(value, str) else " ".join(value)[:60],
)
def test_a_command_line_is_accepted(monkeypatch, name, line):
    module = benchmark(name)
    if "argparse" not in vars(module):
        pytest.skip("a script with one argument")
    parse = argparse.ArgumentParser.parse_args

    def accepted(self, args=None, namespace=None):
        parse(self, args, namespace)
        raise AcceptedError

    def train(*_, **__):
        raise AcceptedError

    if name == "neq_training":  # its last options are those of recipes
        monkeypatch.setattr(module, "train", train)
    else:
        monkeypatch.setattr(argparse.ArgumentParser, "parse_args", accepted)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *line])
    with pytest.raises(AcceptedError):
        module.main()


def test_a_folder_of_time_to_accuracy_is_of_one_setting(tmp_path):
    script = benchmark("time_to_accuracy")
    given = argparse.Namespace(rows=["plain"], seeds=[0], images=100, lr=0.1, out=tmp_path)
    script.check_folder(given)
    script.check_folder(argparse.Namespace(**vars(given) | {"rows": ["epochs-2"], "seeds": [1]}))
    with pytest.raises(SystemExit, match="other values of lr"):
        script.check_folder(argparse.Namespace(**vars(given) | {"lr": 0.2}))
    script.check_folder(argparse.Namespace(**vars(given), device="cpu"))  # begun without a choice
    with pytest.raises(SystemExit, match="other values of device"):
        script.check_folder(argparse.Namespace(**vars(given), device="cuda"))


def test_a_recording_without_its_time_costs_nothing_only_where_time_does_not_count(tmp_path):
    script = benchmark("time_to_accuracy")
    recorder = Recorder(1)
    recorder.record(torch.ones(1, 2), torch.zeros(1, dtype=torch.long), torch.zeros(1).long())
    recorder.step()
    kept = {"recording": vars(recorder.recording()), "cost": None}
    torch.save(kept, tmp_path / "recorded-2-seed-0.pt")
    options = argparse.Namespace(out=tmp_path)
    found, cost = script.recorded(argparse.Namespace(shared=True), 0, 2, options)
    assert (len(found), cost) == (1, 0.0)
    with pytest.raises(SystemExit, match="recorded with --shared, without its time"):
        script.recorded(argparse.Namespace(shared=False), 0, 2, options)


def test_a_page_of_time_to_accuracy_needs_times(tmp_path, capsys):
    script, page = benchmark("time_to_accuracy_page"), tmp_path / "page.md"
    shared = {"row": "plain", "seed": 0, "accuracy": 0.9, "seconds": [], "reference": []}
    (tmp_path / "plain-seed-0.json").write_text(json.dumps(shared))
    with pytest.raises(SystemExit):
        script.main([str(page), f"--rows={tmp_path}"])
    assert "--shared" in capsys.readouterr().err
    assert not page.with_suffix(".json").exists()


def test_subsets_of_time_to_accuracy_leave_out_their_share():
    script = benchmark("time_to_accuracy")
    torch.manual_seed(0)
    recorder = Recorder(200)
    labels = torch.arange(200) % 4
    for _ in range(script.WINDOW):
        recorder.record(torch.randn(200, 4), labels, torch.arange(200))
        recorder.step()
    images = script.Images(torch.zeros(200, 1), labels, torch.zeros(1), torch.zeros(1))
    chosen = {}
    for name in ("static-0.3", "dual-0.3", "ccs-0.3"):
        recording = None if name == "static-0.3" else recorder.recording()
        keep, where = script.subset(script.parsed(name), images, 0, recording)
        assert len(keep) == len(where) == 140
        chosen[name] = set(where.tolist())
    assert len(set(map(frozenset, chosen.values()))) == 3


def test_a_command_that_is_cut_is_found():
    found = list(
        commands("    python benchmarks/x.py --a \\\n        --b 1    a comment\n    other")
    )
    assert found == [("x", ["--a", "--b", "1"])]
    assert list(commands("`python benchmarks/x.py --out y`, then")) == [("x", ["--out", "y"])]


def test_runs_of_other_settings_are_no_finished_ones(tmp_path, capsys):
    """A quick try must not stand in a table beside whole runs, nor be taken for one of them."""
    potential = benchmark("pruning_potential")
    path = tmp_path / "potential.json"
    rows = json.loads((ROOT / "docs/results/pruning_potential.json").read_text())
    path.write_text(json.dumps([row for row in rows if row["network"] == "lenet300"]))
    line = ["--model=lenet300", f"--out={path}"]
    potential.main(line)
    assert "lobster" in capsys.readouterr().out
    for other in ("--limit=3", "--lmbda=1e-4", "--importance=l1"):
        with pytest.raises(SystemExit, match=r"lobster seed 0 was run with another"):
            potential.main([*line, other])
    with pytest.raises(SystemExit):
        potential.main([*line, "--methods=lobstr"])
