"""Every recipe of the folder loads, says how it is run, and can be copied."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest

pytest.importorskip("lightning")
pytest.importorskip("jsonargparse")

from snello.errors import ConfigError
from snello.models import build
from snello.training import METHODS, Recipe, load_recipe, recipe_names, recipe_path

NAMES = recipe_names()


def test_the_folder_is_walked() -> None:
    assert "digits" in NAMES
    assert len(NAMES) == len(list(recipe_path("digits").parent.glob("*.yaml")))


@pytest.mark.parametrize("name", NAMES)
def test_recipe_loads_and_its_model_builds(name: str) -> None:
    recipe = load_recipe(name)
    assert isinstance(recipe, Recipe)
    assert sum(p.numel() for p in build(recipe.model).parameters()) > 0
    assert recipe.methods == METHODS, "a recipe of the folder travels the whole round trip"


@pytest.mark.parametrize("name", NAMES)
def test_recipe_opens_with_its_command(name: str) -> None:
    lines = recipe_path(name).read_text().splitlines()
    assert lines[0].startswith("# "), "one line on what it is, for 'snello recipes ls'"
    assert f"snello journey {name}" in [line.lstrip("# ").rstrip() for line in lines[:6]]


@pytest.mark.parametrize("name", NAMES)
def test_copy_is_the_same_recipe(name: str, tmp_path: Path) -> None:
    copy = tmp_path / "mine.yaml"
    shutil.copy(recipe_path(name), copy)
    assert load_recipe(str(copy)) == load_recipe(name)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("key", ["epoch", "optimiser", "nonsense"])
def test_unknown_key_is_refused(name: str, key: str, tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text(f"{recipe_path(name).read_text()}\n{key}: 3\n")
    with pytest.raises(ConfigError, match=key):
        load_recipe(str(bad))


@pytest.mark.parametrize(
    "option",
    [
        "--epochs=0", "--epochs=two", "--data.batch_size=0", "--data.validation=1", "--data.validation=0",
        "--data.limit=0", "--optimizer.lr=0", "--optimizer.lr=nan", "--optimizer.momentum=1",
        "--optimizer.name=Adagrad", "--optimizer.weight_decay=-1", "--lobster.lmbda=1", "--serene.twt=-0.1",
        "--serene.granularity=layer", "--lobster.pwe=0", "--serene.finetune=1000", "--neq.eps=-1",
        "--neq.probe=0", "--ship.repeats=0", "--methods=[]", "--methods=[magic]", "--precision=16",
        "--device=tpu", "--data.batchsize=3", "--epoch=3", "--no_such_option",
    ],
)  # fmt: skip
def test_impossible_option_is_refused(option: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe("digits", [option])
    field = option.lstrip("-").partition("=")[0].rpartition(".")[2]
    assert field in str(caught.value)
    assert "\n" not in str(caught.value)


def test_options_override_the_file() -> None:
    recipe = load_recipe(
        "digits", ["--epochs=31", "--data.batch_size=7", "--methods=[neq]", "--optimizer.lr=0.5"]
    )
    assert (recipe.epochs, recipe.data.batch_size, recipe.methods, recipe.optimizer.lr) == (
        31,
        7,
        ("neq",),
        0.5,
    )
    changed = dataclasses.replace(recipe, epochs=load_recipe("digits").epochs)
    assert changed.lobster == load_recipe("digits").lobster, "what is not named stays"


def test_unknown_recipe_names_those_there_are() -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe("digit")
    assert "'digit'" in str(caught.value)
    assert all(name in str(caught.value) for name in NAMES)
