"""``snello tune`` on recipes: spaces, trials, the winner's recipe, bisection of epsilon, ramps."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lightning")
pytest.importorskip("optuna")
pytest.importorskip("vl_convert")

from snello.cli import main as snello
from snello.errors import ConfigError
from snello.lab.methods import SPACES
from snello.lab.recipes import declared_space, load_recipe, recipe_names, recipe_text
from snello.lab.training import Recipe
from snello.lab.training.tuning import (
    FinalRow,
    Tuned,
    TuneSettings,
    epsilon,
    ramp,
    space_of,
    tune,
    with_values,
)
from snello.search.tune import Choices, Goal, Interval

TINY = ["--epochs=3", "--data.limit=100", "--data.test_limit=100", "--lobster.finetune=1"]


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return load_recipe("digits", [*TINY, "--optimizer.milestones=[2]", "--methods=[lobster]"])


# Recipes as text


@pytest.mark.parametrize("name", recipe_names())
def test_a_written_recipe_is_read_as_the_same(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    path = tmp_path / "written.yaml"
    path.write_text(recipe_text(recipe, ["One line", "", "    snello train written.yaml"]))
    assert load_recipe(str(path)) == recipe


def _declared(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(f"extends: digits\n{text}\n")
    return str(path)


def test_a_recipe_declares_its_space(tmp_path: Path) -> None:
    mine = _declared(
        tmp_path, "tune: {lobster.lmbda: [1e-5, 1e-3, log]}\nquick: {tune: {optimizer.lr: [0.1, 0.2]}}"
    )  # fmt: skip
    assert load_recipe(mine) == load_recipe("digits"), "ranges are no values"
    assert declared_space(mine) == {"lobster.lmbda": ["1e-5", "1e-3", "log"]}
    assert set(declared_space(mine, quick=True)) == {"lobster.lmbda", "optimizer.lr"}
    (only,) = space_of(load_recipe(mine), "lobster", declared_space(mine))
    assert only == Interval("lobster.lmbda", 1e-5, 1e-3, log=True)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("tune: {lobster.lambda: [1, 2]}", "did you mean 'lobster.lmbda'"),
        ("tune: [1]", "must be a mapping"),
    ],
)
def test_wrong_declarations_name_the_recipe(text: str, part: str, tmp_path: Path) -> None:
    mine = _declared(tmp_path, text)
    with pytest.raises(ConfigError, match=r"mine\.yaml") as caught:
        declared_space(mine)
    assert part in str(caught.value)


# Spaces


@pytest.mark.parametrize("method", ["baseline", "lobster", "serene", "output", "neq", "serene+neq"])
def test_every_method_has_a_default_space(method: str) -> None:
    names = {one.name for one in space_of(load_recipe("digits"), method)}
    blocks = [part for part in method.split("+") if part != "baseline"]
    assert names == {f"{b}.{f}" for b in (*blocks, "optimizer") for f in SPACES[b]}


def test_the_default_learning_rates_lie_around_the_recipe_s(recipe: Recipe) -> None:
    (rate,) = space_of(recipe, "baseline")
    assert (rate.low, rate.high) == pytest.approx(
        (recipe.optimizer.lr / 10, recipe.optimizer.lr * 10)
    )


@pytest.mark.parametrize(
    ("declared", "part"),
    [
        ({"lobster.lmda": [1e-5, 1e-3]}, "did you mean 'lobster.lmbda'"),
        ({"lobster.lmbda": [0.1, 2.0]}, "tune: lobster.lmbda=2.0: lmbda must be in [0, 1)"),
        ({"lobster.pwe": [0, 3]}, "tune: lobster.pwe=0: pwe must be at least 1"),
        ({"lobster.pwe": [1.5, 3]}, "whole number"),
        ({"lobster.finetune": [1, 3]}, "tune: lobster.finetune=3"),
        ({"lobster.granularity": [1, 2]}, "write {choices: [a, b]}"),
        ({"lobster": [1, 2]}, "is a block"),
        ({"epochs": [1, 2]}, "cannot be tuned"),
        ({"seed": [1, 2]}, "cannot be tuned"),
        ({"data.validation": [0.1, 0.2]}, "cannot be tuned"),
        ({"serene.lmbda": [1e-5, 1e-3]}, "no range is left for the method 'lobster'"),
    ],
)
def test_wrong_spaces_are_refused(recipe: Recipe, declared: dict[str, Any], part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        space_of(recipe, "lobster", declared)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_ranges_of_other_methods_are_left_out(recipe: Recipe) -> None:
    declared = {"lobster.twt": [0.1, 0.2], "neq.eps": [0.1, 0.2], "data.batch_size": [10, 20]}
    assert [one.name for one in space_of(recipe, "lobster", declared)] == [
        "lobster.twt",
        "data.batch_size",
    ]


def test_values_are_set_at_any_depth(recipe: Recipe) -> None:
    changed = with_values(recipe, {"lobster.lmbda": 0.5, "model.arguments.classes": 7, "ema": 0.5})
    assert (changed.lobster.lmbda, changed.ema) == (0.5, 0.5)  # type: ignore[attr-defined]
    assert changed.model.arguments == {**recipe.model.arguments, "classes": 7}
    assert "classes" not in recipe.model.arguments
    assert (
        dataclasses.replace(changed, lobster=recipe.lobster, model=recipe.model, ema=None) == recipe
    )  # type: ignore[attr-defined,call-arg]


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"trials": 0}, "--trials"), ({"within": 0.0}, "--within"), ({"share": 0.0}, "--share"),
        ({"seeds": -1}, "--seeds"), ({"minimise": "macs"}, "choose one of: parameters"),
        ({"method": "lobstr"}, "lobster"), ({"method": "baseline", "choices": Choices(front=True)}, "--front"),
    ],
)  # fmt: skip
def test_impossible_settings_are_refused(options: dict[str, Any], part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        TuneSettings(**options)


@pytest.mark.parametrize("goal", [{"max_drop": -0.1}, {"max_drop": 1.0}, {"penalty": 0.0}])
def test_impossible_goals_are_refused(goal: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="must be"):
        Goal(**goal)


# Trainings


def test_a_stopped_tuning_goes_on_and_writes_its_winner(recipe: Recipe, tmp_path: Path) -> None:
    folder, asked = (
        tmp_path / "out",
        TuneSettings(trials=3, seeds=1, choices=Choices(pruner="none")),
    )
    said: list[str] = []

    def stop(line: str) -> None:
        said.append(line)
        if line.startswith("trial   1"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(recipe, folder, asked, progress=stop)
    assert not (folder / "winner.yaml").exists()
    found = tune(recipe, folder, asked, progress=said.append)
    assert sum(line.startswith("trial") for line in said[:-3]) == 3, "each trial was run once"
    assert [t.state for t in found.trials] == ["complete"] * 3
    assert found.epochs == 9
    winner = load_recipe(str(folder / "winner.yaml"))
    assert winner == with_values(recipe, found.trials[found.winner or 0].values)
    assert {row.name for row in found.finals} == {"dense", "recipe", "tuned"}
    assert {row.seed for row in found.finals} == {recipe.seed + 1}
    own = found.trials[0].values
    assert own == {one.name: _value(recipe, one.name) for one in space_of(recipe, "lobster")}
    again = tune(recipe, folder, asked)
    assert dataclasses.replace(again, seconds=found.seconds) == found, "nothing was trained again"
    with pytest.raises(ConfigError, match=r"other settings: max_drop is 0\.01 there, 0\.2 here"):
        tune(recipe, folder, dataclasses.replace(asked, goal=Goal(0.2)))
    with pytest.raises(ConfigError, match=r"optimizer\.momentum is 0\.0 there"):
        tune(with_values(recipe, {"optimizer.momentum": 0.5}), folder, asked)


def _value(recipe: Recipe, name: str) -> Any:
    block, field = name.split(".")
    return getattr(getattr(recipe, block), field)


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    words = ["tune", "digits", *TINY, "--optimizer.milestones=[2]", f"--out={out}"]
    options = ["--method=neq", "--front", "--trials=2", "--seeds=0", "--share=0.5", "--within=1h"]
    assert snello([*words, *options]) == 0
    report = json.loads((out / "report.json").read_text())
    assert (report["cost"], len(report["trials"]), report["finals"]) == ("backward", 2, [])
    assert {t["state"] for t in report["trials"]} == {"complete"}
    assert set(report["front"]) <= {0, 1}
    assert "Accuracy against cost" in (out / "report.html").read_text()
    assert load_recipe(str(out / "winner.yaml")).methods == ("neq",)
    assert load_recipe(str(out / "winner.yaml")).curation.method == "none", "all images again"
    capsys.readouterr()
    for wrong, part in (
        ("--within=2x", "write 90s, 45m, 2h"),
        ("--minimise=parametres", "did you mean 'parameters'"),
        ("--trial=3", "did you mean 'trials'"),
        ("--ramp", "--front has no effect with --ramp"),
    ):
        assert snello([*words, "--front", "--method=neq", wrong]) in (1, 2)
        assert part in capsys.readouterr().err


def test_epsilon_by_bisection(recipe: Recipe, tmp_path: Path) -> None:
    found = epsilon(recipe, tmp_path, 0.45, steps=4, tolerance=0.02)
    shares = [share for _, share in found.found.tried]
    assert shares[0] > 0.45 > shares[1], "the range includes the wished share"
    nearest = min(shares, key=lambda share: abs(share - 0.45))
    assert found.found.effect == nearest
    assert load_recipe(found.recipe).neq.eps == found.found.setting
    again = epsilon(recipe, tmp_path, 0.45, steps=4, tolerance=0.02)
    assert again == found, "nothing was trained again"
    with pytest.raises(ConfigError, match="--updated needs a method with NEq"):
        epsilon(recipe, tmp_path, 0.45, method="lobster")
    with pytest.raises(ConfigError, match=r"in \(0, 1\), not 1"):
        epsilon(recipe, tmp_path, 1.0)


def test_a_ramp_prunes_further_in_every_epoch(tmp_path: Path) -> None:
    options = ["--epochs=9", "--methods=[lobster]", "--lobster.finetune=1", "--data.limit=500"]
    declared = {"lobster.lmbda": [1e-4, 1e-2, "log"]}
    found = ramp(load_recipe("digits", options), tmp_path, method="lobster", declared=declared)
    lmbdas = [point.lmbda for point in found.points]
    assert lmbdas == pytest.approx([0, 0, 0, *(1e-4 * 100 ** (k / 5) for k in range(6))])
    pruned = [point.pruned for point in found.points]
    assert pruned[:3] == [0, 0, 0], "the first third is plain training"
    assert pruned == sorted(pruned)
    assert len(set(pruned)) >= 5
    recipe = load_recipe("digits")
    with pytest.raises(ConfigError, match="--ramp needs a method with a sensitivity"):
        ramp(recipe, tmp_path, method="neq")


# The verdict


def _tuned(own: list[float], tuned: list[float]) -> Tuned:
    finals = [FinalRow("recipe", s, 0.9, v, v) for s, v in enumerate(own)]
    finals += [FinalRow("tuned", s, 0.9, v, v) for s, v in enumerate(tuned)]
    return Tuned(
        "lobster", "parameters", Goal(), 0.9, (), (), 1, True, {}, tuple(finals), None, False, 1.0
    )


@pytest.mark.parametrize(
    ("tuned", "part"),
    [
        (
            [0.4, 0.4],
            "beats the recipe's own values (mean difference of the penalised cost -0.1000",
        ),
        ([0.6, 0.7], "does not beat the recipe's own values: it is worse"),
        ([0.4, 0.7], "does not clearly beat"),
        ([0.5, 0.5], "has the recipe's own values"),
        ([], "was not trained"),
    ],
)
def test_the_verdict_says_if_the_winner_is_no_better(tuned: list[float], part: str) -> None:
    assert part in _tuned([0.5, 0.5], tuned).verdict()
