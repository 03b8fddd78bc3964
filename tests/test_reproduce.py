"""The published tables beside what is measured: rows, differences, resumption, and rows that were
not run.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("lightning")
pytest.importorskip("torchvision")

import dataset_files as files
from seams.datasets import cifar
from seams.pruning import quality
from seams.training import reproduction
from snello.cli import main
from snello.deploy import Latency
from snello.errors import ConfigError, DataError
from snello.lab.datasets import Splits
from snello.lab.reporting import markdown, reproduction_tables, write_reproduction
from snello.lab.training import (
    TABLES,
    Recipe,
    Reproduction,
    ShippedRow,
    TrainingResult,
    load_recipe,
    published_table,
    reproduce,
)

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TINY = (
    "--epochs=2",
    "--data.limit=40",
    "--data.test_limit=20",
    "--optimizer.milestones=[]",
    "--device=cpu",
)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """CIFAR-10 in its layout, and no other dataset."""
    root = tmp_path_factory.mktemp("data")
    for part, count in (("train", 8), ("test", 3)):
        for label, kind in enumerate(CIFAR10):
            for i in range(count):
                files.write_jpeg(
                    root / "cifar10" / part / kind / f"{i}.jpg", 100 * label + i, (32, 32)
                )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cifar, "CIFAR10_COUNTS", (80, 30))
        yield root


def _row(result: Reproduction, name: str) -> dict[str, float] | None:
    found = next(row for row in result.rows if row.row.name == name)
    return None if found.measured is None else dict(found.measured)


# The published numbers


def test_published_numbers_are_those_of_the_deck() -> None:
    table = published_table("table1")
    assert table.row("vgg16-cifar10-serene").published == {
        "pruned": 47.16, "lean_mb": 31.02, "stream_mb": 0.34,
        "ms RPi 3B": 594, "ms P20": 99, "ms MI9": 85, "ms S6L": 106,
    }  # fmt: skip
    neq = published_table("table2").row("deeplabv3-coco-neq").published
    assert neq == {"bprop_gflops": 217.29, "performance": 67.22}


def test_published_savings_are_those_of_the_deck() -> None:
    """An invariant beside the numbers: the percentages that the deck prints follow from them."""
    rows = {row.name: row.published["bprop_gflops"] or 0 for row in published_table("table2").rows}
    for name, change in {"resnet32-cifar10-neq": -38.96, "resnet18-imagenet-neq": -23.08,
                         "swin-b-imagenet-neq": -64.39, "deeplabv3-coco-neq": -28.77}.items():  # fmt: skip
        dense = rows[name.rpartition("-")[0] + "-baseline"]
        assert 100 * (rows[name] / dense - 1) == pytest.approx(change, abs=0.1)


@pytest.mark.parametrize("name", TABLES)
def test_unknown_rows_name_those_there_are(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no row 'lenet'; its rows are: .*resnet32-cifar10"):
        reproduce(name, tmp_path, row="lenet")
    with pytest.raises(ConfigError, match="table1, table2"):
        reproduce("table3", tmp_path)


# Running them


@pytest.fixture(scope="module")
def second(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Reproduction]:
    """One row of table 2: the one that needs another."""
    folder = tmp_path_factory.mktemp("table2")
    options = [*TINY, f"--data.root={data}", "--neq.eps=0.05"]
    return folder, reproduce(
        "table2", folder, row="resnet32-cifar10-stochastic-star", quick=True, overrides=options
    )


def test_one_row_runs_with_the_run_that_it_imitates(second: tuple[Path, Reproduction]) -> None:
    folder, result = second
    assert sorted(p.name for p in (folder / "cifar10_resnet32").iterdir() if p.is_dir()) == [
        "neq", "stochastic-star",
    ]  # fmt: skip
    star, neq = (_row(result, f"resnet32-cifar10-{name}") for name in ("stochastic-star", "neq"))
    assert star is not None
    assert neq is not None
    assert 0 < star["bprop_gflops"] < 0.13894
    # As many neurons of every layer, not of the same layers: the layers' FLOPs differ.
    assert star["bprop_gflops"] == pytest.approx(neq["bprop_gflops"], rel=0.2)
    assert _row(result, "resnet32-cifar10-baseline") is None


def test_plain_training_costs_what_the_paper_says(
    data: Path, second: tuple[Path, Reproduction]
) -> None:
    """138.94 M per iteration: the convention, counted on the network, with nothing frozen."""
    folder, _ = second
    options = [*TINY, f"--data.root={data}", "--neq.eps=0.05", "--data.limit=30"]
    result = reproduce(
        "table2", folder, row="resnet32-cifar10-baseline", quick=True, overrides=options
    )
    measured = _row(result, "resnet32-cifar10-baseline")
    assert measured is not None
    assert measured["bprop_gflops"] == pytest.approx(0.13894, rel=1e-3)
    assert _row(result, "resnet32-cifar10-neq") is not None, "what was run before is still there"
    images = {
        row.row.method: row.conditions["images"] for row in result.rows if row.measured is not None
    }
    assert images == {"baseline": 30, "neq": 40, "stochastic-star": 40}, (
        "each as it was run, not as asked now"
    )


def test_finished_rows_are_not_run_again(data: Path, second: tuple[Path, Reproduction]) -> None:
    folder, before = second
    lines: list[str] = []
    options = [*TINY, f"--data.root={data}", "--neq.eps=0.05"]
    again = reproduce(
        "table2", folder, row="resnet32-cifar10-stochastic-star", quick=True, overrides=options,
        progress=lines.append,
    )  # fmt: skip
    assert not lines
    assert _row(again, "resnet32-cifar10-neq") == _row(before, "resnet32-cifar10-neq")


def test_a_row_asked_for_by_name_complains(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="ImageNet"):
        reproduce(
            "table2",
            tmp_path,
            row="resnet18-imagenet-neq",
            quick=True,
            overrides=[f"--data.root={tmp_path}"],
        )


def test_rows_that_cannot_run_say_so(tmp_path: Path) -> None:
    """Nothing is here: all rows of the table are named, none has numbers, each says what is
    missing.
    """
    result = reproduce(
        "table2", tmp_path, quick=True, overrides=[f"--data.root={tmp_path}", "--device=cpu"]
    )
    assert all(row.measured is None and "not found" in row.why_not for row in result.rows)
    page = write_reproduction(result, tmp_path).read_text()
    assert page.count("not run: ") == len(result.rows) == 20
    assert "quick variants" in page


def test_a_row_is_measured_again_for_another_run_or_other_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    time, asked = Latency("", 1.0, 1.0, 1.0, 1, 1, 1, 1, "cpu"), []

    def ship(recipe: Recipe, folder: Path, methods: list[str], splits: Splits) -> list[ShippedRow]:
        asked.append(recipe.ship.batch)
        return [ShippedRow(m, 0.5, 0.5, 0.5, 1, 0.5, 1, 1, 1, time, time) for m in methods]

    for name, value in {"train": None, "load_data": "splits"}.items():
        monkeypatch.setattr(reproduction, name, lambda *_, _value=value, **__: _value)
    monkeypatch.setattr(reproduction, "ship", ship)
    row = published_table("table1").rows[0]
    run = tmp_path / row.recipe / row.method
    run.mkdir(parents=True)
    (run / "recipe.json").write_text(json.dumps(dataclasses.asdict(load_recipe(row.recipe))))

    def measured(batch: int, accuracy: float = 0.5) -> list[int]:
        result = TrainingResult(row.method, "model.pt", accuracy, 0, (), 0, "cpu", 1, "32-true")
        (run / "result.json").write_text(json.dumps(dataclasses.asdict(result)))
        asked.clear()
        found = reproduce("table1", tmp_path, row=row.name, overrides=[f"--ship.batch={batch}"])
        assert _row(found, row.name) is not None
        return list(asked)

    assert [measured(1), measured(1)] == [[1], []]
    assert [measured(2), measured(2)] == [[2], []], "the conditions would name another batch"
    assert [measured(2, 0.6), measured(2, 0.6)] == [[2], []]
    (tmp_path / row.recipe / "table1.json").write_text("{")
    assert measured(2, 0.6) == [2]
    (run / "recipe.json").unlink()
    with pytest.raises(ConfigError, match=r"recipe.json is missing"):
        measured(2, 0.6)


@pytest.mark.exhaustive
def test_command_runs_a_row_of_table_1(
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(quality, "MARGIN", -100)  # random images teach nothing
    pytest.importorskip("nncodec")
    pytest.importorskip("onnxruntime")
    arguments = [
        "reproduce",
        "table1",
        "--row=resnet32-cifar10-serene",
        "--quick",
        f"--out={tmp_path}",
        *TINY,
    ]
    assert main([*arguments, f"--data.root={data}"]) == 0, capsys.readouterr().err
    kept = json.loads((tmp_path / "table1.json").read_text())
    row = next(r for r in kept["rows"] if r["row"]["name"] == "resnet32-cifar10-serene")
    assert row["measured"]["lean_mb"] <= 1.9
    assert 0 < row["measured"]["stream_mb"] < 1.9
    assert row["measured"]["pruned"] > 0
    assert row["conditions"]["epochs"] == 2
    assert row["conditions"]["device"] == "cpu"
    page = (tmp_path / "table1.md").read_text()
    difference = f"{row['measured']['pruned'] - 52.80:+.2f}"
    line = next(line for line in page.splitlines() if line.startswith("| resnet32-cifar10-serene"))
    assert f"| 52.80 | {row['measured']['pruned']:.2f} | {difference} |" in line
    assert (tmp_path / "table1.png").stat().st_size > 10_000


def test_command_lists_its_rows(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "table1", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 12
    assert lines[0].split() == [
        "vgg16-cifar10-none",
        "snello",
        "train",
        "cifar10_vgg16",
        "--method=baseline",
    ]


# The page


def test_differences_are_measured_minus_paper() -> None:
    table = published_table("table2")
    rows = tuple(
        reproduced(row, None if number % 2 else {"bprop_gflops": 1.0, "performance": 50.0})
        for number, row in enumerate(table.rows)
    )
    first, second = reproduction_tables(Reproduction(table, False, rows))
    baseline = table.rows[0].published
    assert first.rows[0][1:4] == (
        f"{baseline['bprop_gflops']:.4f}", "1.0000", f"{1 - (baseline['bprop_gflops'] or 0):+.4f}",
    )  # fmt: skip
    assert first.rows[1][2:4] == ("not run", "-")
    assert all(len(row) == len(first.header) for row in first.rows)
    assert all(len(row) == len(second.header) for row in second.rows)
    assert "QUICK" not in markdown(first)


def reproduced(row, measured):  # type: ignore[no-untyped-def]
    from snello.lab.training import ReproducedRow

    extra = {"executed_gflops": 1.0, "backward_ratio": 1.0}
    return ReproducedRow(row, None if measured is None else {**measured, **extra}, {})


def test_the_quick_variants_of_a_table_are_of_its_own_recipes() -> None:
    for table in TABLES:
        for row in published_table(table).rows:
            quick, full = load_recipe(row.recipe, quick=True), load_recipe(row.recipe)
            assert quick.epochs < full.epochs
            assert dataclasses.replace(quick.data, name="x") != dataclasses.replace(
                full.data, name="x"
            )
            assert quick.data.name == full.data.name
