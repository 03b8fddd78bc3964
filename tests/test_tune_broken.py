"""Mistakes in tuning: spaces, times, folders of other settings, and damaged studies."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.seams.cli import seconds_of

pytest.importorskip("optuna")
pytest.importorskip("lightning")

from snello.cli import main
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


def test_choices_are_numbers_in_each_form_of_yaml() -> None:
    """YAML reads 1e-4, which has no point, as a text."""
    (one,) = space_of(_recipe(), "lobster", {"lobster.lmbda": {"choices": ["1e-4", 1e-3]}})
    assert one.values == (1e-4, 1e-3)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--updated=0.5", "--ramp"], "--ramp has no effect with --updated"),
        (["--updated=0.5", "--within=1h"], "--within has no effect with --updated"),
        (["--ramp", "--storage=sqlite:///x.db"], "--storage has no effect with --ramp"),
        (["--ramp", "--share=0.5"], "--share has no effect with --ramp"),
        (["--front", "--pruner=asha"], "--pruner has no effect with --front"),
        (["--updated=0.5", "--method=lobster"], "needs a method with NEq"),
    ],
)
def test_options_without_an_effect_are_refused(
    words: list[str], part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tune", "digits", "--quick", f"--out={tmp_path}", *words]) == 1
    assert part in capsys.readouterr().err


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


_KILLED = """
import os
from optuna.storages.journal import JournalFileSymlinkLock
from snello.search.tune import Choices, open_study
study = open_study("runs/study.log", "s", Choices("random", "none"), epochs=1, seed=0)
JournalFileSymlinkLock.release = lambda lock: os._exit(9)
study.ask()
"""


def test_the_lock_of_a_killed_process_is_released(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A study in a relative folder had waited for it for ever."""
    monkeypatch.chdir(tmp_path)
    assert subprocess.run([sys.executable, "-c", _KILLED], check=False).returncode == 9
    assert (tmp_path / "runs" / "study.log.lock").is_symlink()
    # Optuna's 30 seconds in a fifth of one.
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() * 150, sleep=time.sleep)
    monkeypatch.setattr("optuna.storages.journal._file.time", clock)
    trials = _opened(Path("runs/study.log")).trials
    assert [trial.state.name for trial in trials] == ["RUNNING"]
    assert not (tmp_path / "runs" / "study.log.lock").is_symlink()


@pytest.mark.parametrize("content", [b"{}\n{}\n", b"garbage\n{}\n", b"\xff\xfe\x00\n"])
def test_a_damaged_journal_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "study.log"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"study\.log is damaged"):
        _opened(path)
