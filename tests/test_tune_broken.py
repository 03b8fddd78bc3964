"""Mistakes in tuning: spaces, times, folders of other settings, and damaged studies."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tests.seams.cli import seconds_of

pytest.importorskip("optuna")
pytest.importorskip("lightning")

from snello.errors import ConfigError
from snello.lab.training import load_recipe
from snello.lab.training.tuning import TuneSettings, epsilon, space_of, tune
from snello.search.tune import Choices, open_study


def _recipe(epochs: int = 1):  # type: ignore[no-untyped-def]
    recipe = load_recipe("digits", quick=True)
    optimizer = replace(recipe.optimizer, milestones=())
    lobster = replace(recipe.lobster, finetune=0)
    return replace(
        recipe, epochs=epochs, optimizer=optimizer, lobster=lobster, methods=("lobster",)
    )


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90), ("90s", 90), ("1.5h", 5400), ("2H", 7200), ("1h30m", 5400), ("1h 30 min", 5400),
        ("90sec", 90), ("2 hours", 7200), ("1d", 86400), ("2mins", 120),
    ],
)  # fmt: skip
def test_times_are_read_as_people_write_them(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "h", "-5m", "inf", "1hs", "1e3s", "2 weeks", "5m3"])
def test_other_times_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--within"):
        seconds_of(text)


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("optimizer.milestones", [1, 2], "several values"),
        ("data.augment", {"choices": [True, False]}, "must be a text"),
        ("lobster.lmbda", {"choices": ["a", 1e-3]}, "must be a number"),
        ("lobster.pwe", {"choices": [1, 2.5]}, "must be a whole number"),
    ],
)
def test_values_of_another_type_are_refused(name: str, given: object, words: str) -> None:
    """A list of milestones as a number had ended in a traceback after the first training."""
    with pytest.raises(ConfigError, match=words) as refused:
        space_of(_recipe(), "lobster", {name: given})
    assert name in str(refused.value)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("model.arguments.width", [1, 2]),
        ("data.augment", {"choices": ["none", "nonsense"]}),
        ("lobster.granularity", {"choices": ["weight", "nonsense"]}),
    ],
)
def test_ends_that_do_not_build_are_refused_before_any_training(
    name: str, given: object, tmp_path: Path
) -> None:
    settings = TuneSettings(trials=1, seeds=0)
    with pytest.raises(ConfigError, match=f"tune: {name}"):
        tune(_recipe(), tmp_path, settings, declared={name: given})
    assert not (tmp_path / "reference").exists()


def test_a_bisection_of_other_settings_is_not_taken_over(tmp_path: Path) -> None:
    """The shares of one epoch had been reported as those of two."""
    epsilon(_recipe(), tmp_path, 0.5, steps=2)
    with pytest.raises(ConfigError, match="epochs is 1 there, 2 here"):
        epsilon(_recipe(2), tmp_path, 0.5, steps=2)
    said: list[str] = []
    epsilon(_recipe(), tmp_path, 0.5, steps=2, progress=said.append)
    assert len(said) == 2, "the same settings go on"


def _opened(path: Path):  # type: ignore[no-untyped-def]
    return open_study(path, "s", Choices("random", "none"), epochs=1, seed=0)


def test_half_a_line_of_a_journal_is_cut(tmp_path: Path) -> None:
    """A process killed while it writes: the next line had been written behind the half one."""
    path = tmp_path / "study.log"
    study = _opened(path)
    for _ in range(2):
        study.tell(study.ask(), 1.0)
    path.write_bytes(path.read_bytes() + b'{"op_code": 6, "tri')
    for number in (2, 3):
        study = _opened(path)
        study.tell(study.ask(), 1.0)
        assert len(_opened(path).trials) == number + 1


@pytest.mark.parametrize("content", [b"{}\n{}\n", b"garbage\n{}\n", b"\xff\xfe\x00\n"])
def test_a_damaged_journal_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "study.log"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"study\.log is damaged"):
        _opened(path)
