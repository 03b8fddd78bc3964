"""Every recipe of the folder loads, says how it is run, and can be copied."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lightning")
pytest.importorskip("jsonargparse")

import dataset_files as files
from seams.datasets import cifar
from seams.pruning import quality
from snello.errors import ConfigError
from snello.lab.training import (
    METHODS,
    TABLES,
    Recipe,
    load_recipe,
    published_table,
    recipe_names,
    recipe_path,
    train,
    validate,
)
from snello.store import build

NAMES = recipe_names()


def test_the_folder_is_walked() -> None:
    assert "digits" in NAMES
    assert len(NAMES) == len(list(recipe_path("digits").parent.glob("*.yaml")))


@pytest.mark.parametrize("name", NAMES)
def test_recipe_loads_and_its_model_builds(name: str) -> None:
    recipe = load_recipe(name)
    assert isinstance(recipe, Recipe)
    assert sum(p.numel() for p in build(recipe.model).parameters()) > 0
    assert set(recipe.methods) <= set(METHODS)
    assert "baseline" in recipe.methods


@pytest.mark.parametrize("name", NAMES)
def test_recipe_opens_with_its_command(name: str) -> None:
    lines = recipe_path(name).read_text().splitlines()
    assert lines[0].startswith("# "), "one line on what it is, for 'snello recipes ls'"
    commands = [line.lstrip("# ").rstrip() for line in lines[:6]]
    rows = [row for table in TABLES for row in published_table(table).rows if row.recipe == name]
    tables = {row.name: table for table in TABLES for row in published_table(table).rows}
    assert f"snello journey {name}" in commands or any(
        f"snello reproduce {tables[row.name]} --row {row.name}" in commands for row in rows
    )


@pytest.mark.parametrize("name", NAMES)
def test_copy_is_the_same_recipe(name: str, tmp_path: Path) -> None:
    copy = tmp_path / "mine.yaml"  # what it extends is still found by name
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
        "--serene.granularity=layer", "--lobster.pwe=0", "--serene.every=0", "--serene.finetune=1000", "--neq.eps=-1",
        "--neq.probe=0", "--ship.repeats=0", "--ship.warmup=-1", "--optimizer.milestones=[-1]",
        "--methods=[]", "--methods=[neq,neq]", "--methods=[magic]", "--precision=16",
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


# Built on one another


def _file(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def test_a_recipe_takes_what_it_does_not_say_from_another(tmp_path: Path) -> None:
    _file(
        tmp_path,
        "base.yaml",
        "extends: digits\nepochs: 40\nneq: {eps: 1e-2}\noptimizer: {weight_decay: 1e-4}\n",
    )
    recipe = load_recipe(_file(tmp_path, "mine.yaml", "extends: base.yaml\nneq: {mu: 0.25}\n"))
    base = load_recipe("digits")
    assert (recipe.epochs, recipe.neq.eps, recipe.neq.mu) == (40, 0.01, 0.25)
    assert recipe.optimizer.weight_decay == 1e-4
    assert (recipe.neq.probe, recipe.optimizer.milestones) == (
        base.neq.probe,
        base.optimizer.milestones,
    )


def test_another_model_does_not_inherit_arguments(tmp_path: Path) -> None:
    text = "extends: digits\nmodel: {name: lenet-5}\n"
    assert load_recipe(_file(tmp_path, "mine.yaml", text)).model.arguments == {}


def test_quick_values_are_laid_over_and_options_have_the_last_word(tmp_path: Path) -> None:
    mine = _file(tmp_path, "mine.yaml", "extends: digits\nquick: {epochs: 5, neq: {probe: 7}}\n")
    quick = load_recipe(mine, ["--neq.probe=9"], quick=True)
    assert (quick.epochs, quick.neq.probe) == (5, 9)
    assert quick.data.limit == load_recipe("digits", quick=True).data.limit, (
        "the base's quick values hold too"
    )
    assert load_recipe(mine).epochs == load_recipe("digits").epochs


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("extends: mine.yaml\n", "extends itself"),
        ("extends: [digits]\n", "must name one recipe"),
        ("extends: digit\n", "no recipe 'digit'"),
        ("- digits\n", "must be a mapping"),
        ("model: [\n", "not valid YAML"),
        ("model: {name: lenet-5}\n", "no quick variant"),
        ("extends: digits\nquick: {epochs: }\n", "epochs has no value"),
        ("extends: digits\nquick: {optimizer: {schedule: null}}\n", "schedule has no value"),
        ("extends: digits\nquick: {data: }\n", "data must be a mapping"),
        ("? [epochs]\n: 3\n", "not valid YAML"),
    ],
)
def test_a_recipe_that_cannot_be_read_says_why(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        load_recipe(_file(tmp_path, "mine.yaml", text), quick=True)


# Every quick variant runs

QUICK = {
    "digits": "serene+neq",
    "mnist_lenet5": "lobster",
    "cifar10_resnet32": "serene",
    "cifar10_vgg16": "lobster",
    "cifar100_alexnet": "serene",
    "round_trip": "serene+neq",
    "imagenet_resnet18": "neq",
    "imagenet_resnet101": "baseline",
    "imagenet_swin_b": "stochastic-0.5",
    "coco_deeplabv3": "neq",
}
"""Each network with one of its methods; the fewest epochs that show it."""

EPOCHS = {
    "imagenet_resnet18": 2,
    "imagenet_resnet101": 1,
    "imagenet_swin_b": 2,
    "coco_deeplabv3": 2,
}


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Every dataset of the recipes, tiny, in its real layout."""
    root = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        files.write_mnist(root)
        files.write_cifar100(root, patch)
        for part, count in (("train", 12), ("test", 4)):
            for label, kind in enumerate(CIFAR10):
                for i in range(count):
                    path = root / "cifar10" / part / kind / f"{i}.jpg"
                    files.write_jpeg(path, 100 * label + i, (32, 32))
        patch.setattr(cifar, "CIFAR10_COUNTS", (120, 40))
        files.write_imagenet(root, classes=2, train=4, val=2)
        _other_classes(root / "imagenet")
        person = {"size": (70, 60), "objects": [(1, files.rectangle(5, 5, 40, 40), 1600)]}
        files.write_coco(root, {"train": [person] * 8, "val": [person] * 3})
        yield root


CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def _other_classes(imagenet: Path) -> None:
    """A thousand classes: two are real files, the others are the same files under other names."""
    for part in ("train", "val"):
        first = imagenet / part / files.wnid(0)
        for label in range(2, 1000):
            folder = imagenet / part / files.wnid(label)
            folder.mkdir()
            for image in first.iterdir():
                os.link(image, folder / image.name)


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_has_a_quick_run_here(name: str) -> None:
    assert name in QUICK
    assert QUICK[name].partition("+")[0] in " ".join(METHODS)


def _quick(name: str, datasets: Path) -> Recipe:
    options = ["--device=cpu", *([] if name == "digits" else [f"--data.root={datasets}"])]
    if name in EPOCHS:
        options += [
            f"--epochs={EPOCHS[name]}",
            "--optimizer.warmup_epochs=0",
            f"--methods=[{QUICK[name]}]",
        ]
    return load_recipe(name, options, quick=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_quick_variant_validates(name: str, datasets: Path) -> None:
    recipe = _quick(name, datasets)
    assert recipe.epochs <= 6, "a quick variant is quick"
    validate(dataclasses.replace(recipe, methods=(QUICK[name],)))


RUN_HERE = ("digits", "mnist_lenet5", "cifar10_resnet32", "imagenet_resnet18")
"""In memory and streamed, with and without accumulation; the others run behind the marker."""


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in RUN_HERE else pytest.mark.exhaustive) for n in NAMES],
)
def test_quick_variant_runs(
    name: str, datasets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quality, "MARGIN", -100)  # random images teach nothing
    recipe = _quick(name, datasets)
    run = train(recipe, QUICK[name], tmp_path)
    assert len(run.epochs) == recipe.epochs
    if "serene" in QUICK[name] or "lobster" in QUICK[name]:
        assert run.epochs[-1].pruned > 0
    if "stochastic" in QUICK[name]:
        assert run.epochs[-1].updated < 1


# The published tables


@pytest.mark.parametrize("table", TABLES)
def test_every_row_is_a_recipe_and_a_method(table: str) -> None:
    rows = published_table(table).rows
    assert len({row.name for row in rows}) == len(rows) == {"table1": 12, "table2": 20}[table]
    for row in rows:
        assert row.method in load_recipe(row.recipe).methods or row.recipe == "cifar10_resnet32"
        assert row.published.keys() == {
            quantity.key for quantity in published_table(table).quantities
        }


def test_published_policies() -> None:
    """The hyper-parameters that are published, and not ours to choose."""
    resnet32, resnet18 = load_recipe("cifar10_resnet32"), load_recipe("imagenet_resnet18")
    assert (resnet32.epochs, resnet32.data.batch_size, resnet32.optimizer.milestones) == (
        250,
        100,
        (100, 150),
    )
    assert (resnet32.neq.eps, resnet32.neq.mu, resnet32.neq.probe, resnet32.neq.warmup) == (
        1e-3,
        0.5,
        50,
        1,
    )
    assert (resnet18.epochs, resnet18.data.batch_size, resnet18.accumulate) == (90, 128, 2)
    assert (resnet18.optimizer.schedule, resnet18.optimizer.step_size) == ("step", 30)
    swin, deeplab = load_recipe("imagenet_swin_b"), load_recipe("coco_deeplabv3")
    assert (swin.epochs, swin.optimizer.warmup_epochs, swin.data.batch_size, swin.accumulate) == (
        30,
        5,
        64,
        2,
    )
    assert (swin.optimizer.name, swin.optimizer.lr, swin.optimizer.weight_decay) == (
        "AdamW",
        2e-5,
        1e-8,
    )
    assert (deeplab.epochs, deeplab.optimizer.lr, deeplab.optimizer.schedule) == (30, 0.02, "poly")
    assert (deeplab.optimizer.power, deeplab.optimizer.aux_lr_factor, deeplab.neq.eps) == (
        0.9,
        10,
        0.02,
    )
