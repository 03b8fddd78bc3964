"""Numbers on pages of results are those of the JSON beside them, as the benchmark writes them."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[1]
RESULTS, BENCHMARKS = ROOT / "docs" / "results", ROOT / "benchmarks"
if not BENCHMARKS.is_dir():
    pytest.skip("the benchmarks are not part of this distribution", allow_module_level=True)
sys.path.insert(0, str(BENCHMARKS))
for needed in ("lightning", "matplotlib", "onnxruntime", "nncodec", "optuna"):
    pytest.importorskip(needed)


def read(name):
    return json.loads((RESULTS / name).read_text())


def backward(tmp_path):
    record = read("neq/backward.json")
    models = list(dict.fromkeys(row["model"] for row in record["rows"]))
    module = importlib.import_module("neq_backward")
    options = module.arguments(["--models", *models, "--threads", "1", "--repeats", "7"])
    return module.page(record["rows"], options)


def bitstream(tmp_path):
    lines = []
    for name in ("bitstream_resnet32.json", "bitstream_lenet5.json"):
        rows = read(name)["rows"]
        usual = {r["network"]: r["bytes"] for r in rows if r["variant"] == "nncodec defaults"}
        lines += [
            f"| {r['variant']} | {r['bytes']:,} | {r['bytes'] / usual[r['network']]:.2f} | "
            f"{100 * r['accuracy']:.2f} % ({0.0 - 100 * r['drop']:+.2f}) | "
            f"{'kept' if r['kept'] else 'lost'} | {r['choice']} |"
            for r in rows
        ]
    return "\n".join(lines)


def channels(tmp_path):
    module = importlib.import_module("channel_pruning_page")
    paths = (RESULTS / "channel_pruning").glob("resnet*.json")
    found = [path for path in paths if not path.stem.endswith("-latency")]
    return "\n".join(module.markdown(module.table(p, module.points_of(p))) for p in found)


def coverage(tmp_path):
    module = importlib.import_module("coverage")
    return module.table([module.Row(**row) for row in read("coverage.json")])


def latency(tmp_path):
    module = importlib.import_module("latency")
    profiles = tuple(
        SimpleNamespace(
            name=p["name"], footprint=SimpleNamespace(**p["footprint"]),
            latencies={key: SimpleNamespace(**value) for key, value in p["latencies"].items()},
        )
        for p in read("latency.json")["models"]
    )  # fmt: skip
    return module.markdown(module.table(profiles, ""))


def potential(tmp_path):
    page = tmp_path / "page.md"
    rows = read("pruning_potential.json")
    importlib.import_module("pruning_potential").report(rows, tmp_path / "potential.json", page)
    return page.read_text()


def time_to_accuracy(tmp_path):
    module = importlib.import_module("time_to_accuracy_page")
    return "\n".join(
        module.page(read(f"{name}.json"), "", "")
        for name in ("time_to_accuracy", "time_to_accuracy_vit", "time_to_accuracy_scratch")
    )


def training(tmp_path):
    module = importlib.import_module("neq_training")
    options = argparse.Namespace(recipe="")
    tables = []
    for name in ("training_resnet32.json", "training_lenet5.json"):
        runs = {
            method: [
                SimpleNamespace(**{**run, "epochs": [SimpleNamespace(**e) for e in run["epochs"]]})
                for run in found
            ]
            for method, found in read(f"neq/{name}").items()
        }
        tables.append(module.markdown(module.table(runs, options, [])))
    return "\n".join(tables)


def steps(tmp_path):
    pytest.importorskip("transformers")
    stepped = map(importlib.import_module("resting_steps").line, read("neq/steps.json")["rows"])
    cost = map(importlib.import_module("neq_overhead").line, read("neq/overhead.json")["rows"])
    return "\n".join([*stepped, *cost])


def tuning(tmp_path):
    return importlib.import_module("tuning")._page(read("tuning.json"))


def zoo(tmp_path):
    module = importlib.import_module("simplify_zoo")
    rows = read("simplify_zoo.json")["rows"]
    return "\n".join(f"| {' | '.join(module._cells(row)[:10])} |" for row in rows)


@pytest.mark.parametrize(
    ("pages", "made"),
    [
        (["bitstream.md"], bitstream),
        (["channel_pruning/index.md"], channels),
        (["coverage.md"], coverage),
        (["latency.md"], latency),
        (["neq/backward.md"], backward),
        (["neq/steps.md"], steps),
        (["neq/training.md"], training),
        (["pruning_potential.md"], potential),
        (["simplify_zoo.md"], zoo),
        (
            ["time_to_accuracy.md", "time_to_accuracy_vit.md", "time_to_accuracy_scratch.md"],
            time_to_accuracy,
        ),
        (["tuning.md"], tuning),
    ],
    ids=lambda value: "" if isinstance(value, list) else value.__name__,
)
def test_rows_of_tables_are_those_of_the_json(tmp_path, pages, made):
    shown = set("\n".join((RESULTS / page).read_text() for page in pages).splitlines())
    rows = [line for line in made(tmp_path).splitlines() if line.startswith("| ")]
    assert len(rows) > 3
    assert [row for row in rows if row not in shown] == []
