"""The fine-tuning with resting layers that the round trip shows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from pair import in_two_processes
from seams.training import compare_finetuning
from snello.lab.datasets import Splits
from snello.lab.recipes import Recipe
from snello.lab.training import load_recipe, train, validate
from snello.store import ModelSpec, Record, save


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Path, Splits]:
    folder = tmp_path_factory.mktemp("trained")
    recipe = load_recipe("digits", ["--data.limit=100"], quick=True)
    splits = validate(recipe)
    train(recipe, "baseline", folder, splits=splits)
    return recipe, folder, splits


def test_both_are_fine_tuned_and_only_one_caches(trained: tuple[Recipe, Path, Splits]) -> None:
    recipe, folder, splits = trained
    before = (folder / "model.pt").read_bytes()
    plain, resting = compare_finetuning(recipe, folder, splits, epochs=3)
    again = compare_finetuning(recipe, folder, splits, epochs=3)
    assert (plain.method, resting.method) == ("plain", "resting")
    assert [row.test_accuracy for row in again] == [plain.test_accuracy, resting.test_accuracy]
    assert plain.note == ""
    assert min(plain.seconds, resting.seconds, plain.epoch_ms, resting.epoch_ms) > 0
    assert (folder / "model.pt").read_bytes() == before


class Dropping(nn.Sequential):
    """The network drops most inputs of its classifier."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, 32), nn.Dropout(0.8), nn.Linear(32, 10))


def test_dropout_is_the_same_in_a_resumed_journey(
    trained: tuple[Recipe, Path, Splits], tmp_path: Path
) -> None:
    """A resumed journey, which draws no numbers for trainings, tunes as an uninterrupted one."""
    recipe, _, splits = trained
    spec = ModelSpec(f"{__name__}:Dropping")
    save(tmp_path / "model.pt", Dropping(), Record(spec, splits.input_shape), trust=spec.name)
    found = set()
    for seed in (1, 2):
        torch.manual_seed(seed)
        rows = compare_finetuning(replace(recipe, model=spec), tmp_path, splits, epochs=2)
        found.add(tuple(row.test_accuracy for row in rows))
    assert len(found) == 1


def _first_process(rank: int, folder: str) -> list[float]:
    """As in a journey of several processes, of which the first alone compares."""
    if rank:
        return []
    recipe = load_recipe("digits", ["--data.limit=100"], quick=True)
    rows = compare_finetuning(recipe, Path(folder), validate(recipe), epochs=1)
    return [row.test_accuracy for row in rows]


def test_the_first_process_waits_for_no_other(trained: tuple[Recipe, Path, Splits]) -> None:
    recipe, folder, splits = trained
    alone = [row.test_accuracy for row in compare_finetuning(recipe, folder, splits, epochs=1)]
    assert in_two_processes(_first_process, str(folder), timeout=30) == [alone, []]


def test_nothing_is_shown_for_other_tasks(trained: tuple[Recipe, Path, Splits]) -> None:
    recipe, folder, splits = trained

    class Segments(type(splits)):  # type: ignore[misc]
        task = "segmentation"

    other = Segments(**{f: getattr(splits, f) for f in splits.__dataclass_fields__})
    assert compare_finetuning(recipe, folder, replace(other)) == ()
