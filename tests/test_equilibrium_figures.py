"""The plots and the table of a selective update: drawn, and drawn from what they are given."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import snello
from equilibrium_samples import OPTIMIZERS, batch, network, sgd, train
from seams.reporting import figures, plots
from snello.equilibrium import NEq, UpdateCost, Velocity, measure_cost
from snello.errors import ConfigError
from snello.lab.reporting import (
    as_json,
    cost_table,
    markdown,
    plot_costs,
    plot_equilibrium,
    plot_updated,
)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are made, to look at what they show."""
    pytest.importorskip("matplotlib")
    made: list[Any] = []
    make = plots.blank

    def spy(width: float, height: float) -> Any:
        made.append(make(width, height))
        return made[-1]

    for module in (plots, figures):
        monkeypatch.setattr(module, "blank", spy)
    return made


@pytest.fixture(scope="module")
def costs() -> dict[str, UpdateCost]:
    found = {}
    for label, share in (("half", 0.5), ("all", 1.0)):
        model = network()
        neq = NEq(model, sgd(model), batch()[0])
        neq.apply({n: torch.arange(len(m)) < share * len(m) for n, m in neq.frozen.items()})
        found[label] = measure_cost(neq, *batch(), F.cross_entropy, repeats=2)
    return found


def is_png(path: Path) -> bool:
    return path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_updated_neurons_of_two_optimizers_in_one_plot(drawn: list[Any], tmp_path: Path) -> None:
    runs = {}
    for label, name in (("SGD", "momentum"), ("Adam", "adam foreach")):
        model = network()
        optimizer = OPTIMIZERS[name](model.parameters())
        neq = NEq(model, optimizer, batch()[0], eps=2e-2)
        runs[label] = []
        for _ in range(4):
            train(model, optimizer, 1)
            runs[label].append(neq.step())
    path = plot_updated(
        {**runs, "fixed": [1.0, 0.5]}, tmp_path / "new" / "updated.png", "two optimizers"
    )
    assert is_png(path)
    (axis,) = drawn[0].axes
    lines = {line.get_label(): line for line in axis.get_lines()}
    for label, run in runs.items():
        assert list(lines[label].get_xdata()) == [0, 1, 2, 3, 4]
        assert list(lines[label].get_ydata()) == [100, *(100 * step.total for step in run)]
        assert (
            lines[label].get_drawstyle() == "steps-post"
        )  # a decision holds from where it is taken
    assert list(lines["fixed"].get_xdata()) == [0, 1, 2]
    assert list(lines["fixed"].get_ydata()) == [100, 50, 50]
    assert axis.get_title() == "two optimizers"


def test_histograms_show_every_neuron_once(drawn: list[Any], tmp_path: Path) -> None:
    model = network()
    optimizer = sgd(model)
    neq = NEq(model, optimizer, batch()[0], eps=1e-2)
    for _ in range(3):
        train(model, optimizer, 1)
        decided = neq.step()
    assert isinstance(neq.selection, Velocity)
    path = plot_equilibrium(
        neq.selection.phi, neq.selection.velocity, tmp_path / "phi.png", eps=1e-2
    )
    assert is_png(path)
    neurons = sum(len(mask) for mask in neq.frozen.values())
    above, below = drawn[0].axes
    for axis in (above, below):
        bars = [bar for bar in axis.patches if bar in axis.containers[0]]
        assert sum(bar.get_height() for bar in bars) == neurons
    inside = sum(
        bar.get_height()
        for bar in below.containers[0]
        if abs(bar.get_x() + bar.get_width() / 2) < 1e-2
    )
    frozen = round((1 - decided.total) * neurons)
    assert inside == frozen
    assert 0 < frozen < neurons


def test_costs_stand_side_by_side(
    drawn: list[Any], tmp_path: Path, costs: dict[str, UpdateCost]
) -> None:
    assert is_png(plot_costs(costs, tmp_path / "costs.png"))
    (axis,) = drawn[0].axes
    names = list(costs["half"].ratios)
    assert [text.get_text() for text in axis.get_legend().get_texts()] == names
    heights = [[bar.get_height() for bar in group] for group in axis.containers if len(group) == 2]
    assert heights == [[costs["half"].ratios[name], costs["all"].ratios[name]] for name in names]


def test_the_table_of_costs(costs: dict[str, UpdateCost]) -> None:
    table = cost_table(costs)
    assert [row[0] for row in table.rows] == ["half", "all"]
    text = markdown(table)
    for cost in costs.values():
        assert f"({cost.ratios['backward FLOPs executed']:.2f})" in text
        assert f"{cost.timing.step.sparse_ms:.2f} ({cost.timing.step.ratio:.2f})" in text
    assert f"batch 8, {torch.get_num_threads()} thread(s), cpu" in text
    assert '"dense_flops"' in as_json(costs)


def test_nothing_to_draw_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="runs"):
        plot_updated({}, tmp_path / "a.png")
    with pytest.raises(ConfigError, match="NEq"):
        plot_updated({"NEq": []}, tmp_path / "a.png")
    with pytest.raises(ConfigError, match="call step"):
        plot_equilibrium(Velocity().phi, Velocity().velocity, tmp_path / "a.png")
    with pytest.raises(ConfigError, match="costs"):
        plot_costs({}, tmp_path / "a.png")
    with pytest.raises(ConfigError, match="costs"):
        cost_table({})
    assert not list(tmp_path.iterdir())


def test_reporting_loads_no_plotting_library() -> None:
    code = "import sys, snello.lab.reporting; sys.exit('matplotlib' in sys.modules)"
    paths = {"PYTHONPATH": str(Path(snello.__file__).parents[1])}
    assert (
        subprocess.run([sys.executable, "-c", code], env=paths, timeout=120, check=False).returncode
        == 0
    )
