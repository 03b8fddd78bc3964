"""Another number of epochs: what a recipe counts in epochs keeps its share of the run."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("jsonargparse")

from snello.cli import main
from snello.errors import ConfigError
from snello.lab.recipes import epoch_overrides, load_recipe, recipe_names

DIGITS = load_recipe("digits")


def _fitted(name: str, *overrides: str):
    return load_recipe(name, [*epoch_overrides(name, overrides), *overrides])


@pytest.mark.parametrize("name", recipe_names())
@pytest.mark.parametrize("epochs", [1, 2, 3, 7, 1000])
def test_every_recipe_runs_for_any_number_of_epochs(name: str, epochs: int) -> None:
    recipe = _fitted(name, f"--epochs={epochs}")
    assert recipe.epochs == epochs
    assert all(0 < place < epochs for place in recipe.optimizer.milestones)


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 400))
def test_shares_of_the_run_are_kept_to_an_epoch(epochs: int) -> None:
    recipe = _fitted("digits", f"--epochs={epochs}")
    finetune = DIGITS.serene.finetune * epochs / DIGITS.epochs
    assert abs(recipe.serene.finetune - finetune) <= 1
    assert epochs == 1 or recipe.serene.finetune >= 1
    for place in recipe.optimizer.milestones:
        assert abs(place - DIGITS.optimizer.milestones[0] * epochs / DIGITS.epochs) <= 1


def test_the_number_of_the_recipe_changes_nothing() -> None:
    assert epoch_overrides("digits", ["--epochs=60"]) == []
    assert epoch_overrides("digits", []) == []
    assert _fitted("digits", "--epochs=60") == DIGITS


def test_what_is_given_stays(tmp_path: Path) -> None:
    recipe = _fitted("digits", "--epochs=20", "--serene.finetune=7", "--optimizer.milestones=[3]")
    assert (recipe.serene.finetune, recipe.lobster.finetune) == (7, 5)
    assert recipe.optimizer.milestones == (3,)
    block = _fitted("digits", "--epochs=20", '--serene={"finetune": 7}')
    assert (block.serene.finetune, block.lobster.finetune) == (7, 5)
    note = {"optimizer": {"milestones": [2]}, "serene": {"finetune": 1, "pwe": 1}}
    fitted = epoch_overrides("digits", ["--epochs=20"], note=note)
    assert set(fitted) == {"--optimizer.milestones=[2]", "--serene.finetune=1", "--serene.pwe=1"}


def test_a_contradiction_that_is_given_names_the_way_out() -> None:
    with pytest.raises(
        ConfigError, match=r"finetune \(9\) .*set serene.finetune to 2 or less, or epochs to 10"
    ):
        _fitted("digits", "--epochs=3", "--serene.finetune=9")


def test_a_short_journey_checks_and_says_what_was_fitted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("lightning")
    pytest.importorskip("sklearn")
    assert main(["recipes", "validate", "digits", "--epochs=3"]) == 0
    said = capsys.readouterr()
    assert "note: fitted to 3 epochs: " in said.err
    assert "serene.finetune=1" in said.err
    assert "output." not in said.err, "no method of the recipe reads it"


def test_listing_needs_no_verb(capsys: pytest.CaptureFixture[str]) -> None:
    lists = {}
    for words in (["recipes"], ["recipes", "ls"], ["reproduce"], ["reproduce", "ls"]):
        assert main(words) == 0
        lists[" ".join(words)] = capsys.readouterr().out
    assert lists["recipes"] == lists["recipes ls"]
    assert lists["reproduce"] == lists["reproduce ls"]
    assert {line.split()[0] for line in lists["reproduce"].splitlines()} == {"table1", "table2"}
    assert main(["reproduce", "table2", "--row=resnet32-cifar10-ne"]) == 1
    assert "did you mean 'resnet32-cifar10-neq'?" in capsys.readouterr().err
