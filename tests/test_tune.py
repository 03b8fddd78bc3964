"""The search of `snello tune`, with objectives that take no time: goal, spaces, studies, workers."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("optuna")

import optuna

from snello.errors import ConfigError, DivergenceError, OutputError
from snello.search.tune import (
    PRUNERS,
    SAMPLERS,
    Attempt,
    Choices,
    Goal,
    Interval,
    Measured,
    Options,
    best,
    bisect,
    dimension,
    front,
    open_study,
    search,
)

SPACE = (Interval("x", 0.0, 1.0), Interval("n", 1, 9, whole=True), Options("kind", ("a", "b")))
GOAL = Goal(max_drop=0.1, penalty=10.0)
EPOCHS = 9
shares = st.floats(0, 1)


def _measured(attempt: Attempt, epoch: int) -> Measured:
    x, n = attempt.values["x"], attempt.values["n"]
    return Measured(x + 0.01 * n, drop=max(0.0, 0.5 - x) / epoch)


def objective(attempt: Attempt) -> Measured:
    """Cheaper is worse; each epoch is reported as a training does it."""
    for epoch in range(1, EPOCHS + 1):
        if epoch > 1:
            attempt.proceed()
        attempt.report(epoch, _measured(attempt, epoch))
    return _measured(attempt, EPOCHS)


def _study(storage: str | Path = "memory", **choices: Any) -> optuna.Study:
    return open_study(storage, "s", Choices(**choices), epochs=EPOCHS, seed=3)


def _facts(study: optuna.Study) -> list[tuple[Any, ...]]:
    return [(t.number, t.state, t.params, t.values, t.intermediate_values) for t in study.trials]


# The goal


@given(shares, shares, shares, st.floats(0.01, 100))
def test_the_penalty_begins_at_the_bound_and_rises_with_the_drop(
    cost: float, drop: float, more: float, penalty: float
) -> None:
    goal = Goal(0.25, penalty)
    value = goal.value(Measured(cost, drop))
    assert value >= cost
    assert (value == cost) == goal.holds(Measured(cost, drop)) or math.isclose(drop, 0.25)
    assert goal.value(Measured(cost, drop + more)) >= value
    assert goal.value(Measured(cost + more, drop)) >= value


@given(shares, shares, st.floats(0.001, 1))
def test_a_large_penalty_is_exact(cost: float, other: float, beyond: float) -> None:
    """No cost in [0, 1] makes up for a broken bound if the penalty is above 1 / excess."""
    goal = Goal(0.1, 1.01 / beyond)
    broken = goal.value(Measured(other, 0.1 + beyond))
    assert broken > goal.value(Measured(cost, 0.1))


@pytest.mark.parametrize(("penalty", "state"), [(10.0, "PRUNED"), (0.01, "COMPLETE")])
def test_the_pruner_stops_what_is_cheap_only_because_it_is_inaccurate(
    penalty: float, state: str
) -> None:
    study, goal = _study(sampler="random"), Goal(0.1, penalty)

    def alternating(attempt: Attempt) -> Measured:
        poor = attempt.number >= 6
        measured = Measured(0.1, 0.4) if poor else Measured(0.5, 0.0)
        for epoch in range(1, EPOCHS + 1):
            attempt.report(epoch, measured)
            attempt.proceed()
        return measured

    search(study, alternating, SPACE, goal, trials=8)
    assert [t.state.name for t in study.trials] == ["COMPLETE"] * 6 + [state] * 2
    assert best(study, goal).user_attrs["cost"] == 0.5, "the bound decides, not the penalised value"


# Spaces


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([0, 3], Interval("x", 0, 3, whole=True)),
        ([0.5, 3], Interval("x", 0.5, 3)),
        (["1e-5", "1e-3", "log"], Interval("x", 1e-5, 1e-3, log=True)),
        ({"choices": ["a", None]}, Options("x", ("a", None))),
    ],
)
def test_forms_of_a_range(given: Any, expected: Any) -> None:
    assert dimension("x", given) == expected


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ([1], "is no range"), ("log", "is no range"), ([2, 1], "smaller than"), ([1, 1], "smaller than"),
        ([0, 1, "log"], "above 0"), ([1, 2, "lg"], "did you mean 'log'"), (["a", 2], "is no number"),
        ([True, 2], "is no number"), ({"choices": ["a"]}, "two or more"), ({"choices": ["a", "a"]}, "two or more"),
        ({"lmbda": [1, 2]}, "x.lmbda"), ([float("nan"), 1.0], "smaller than"), ([0, float("inf")], "smaller than"),
    ],
)  # fmt: skip
def test_wrong_ranges_are_refused(given: Any, part: str) -> None:
    with pytest.raises(ConfigError, match="tune: x:") as caught:
        dimension("x", given)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_whole_numbers_stay_whole() -> None:
    with pytest.raises(ConfigError, match="whole number"):
        dimension("x", [0.5, 3], whole=True)
    study = _study()
    search(study, objective, SPACE, GOAL, trials=3)
    for trial in study.trials:
        assert isinstance(trial.params["n"], int)
        assert all(one.holds(trial.params[one.name]) for one in SPACE)


def test_unknown_samplers_and_pruners_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'tpe'.*tpe, gp, random"):
        Choices(sampler="tp")
    with pytest.raises(ConfigError, match="did you mean 'hyperband'"):
        Choices(pruner="hyperbnd")


# Studies


@pytest.mark.parametrize("pruner", PRUNERS)
def test_every_pruner_runs(pruner: str) -> None:
    study = _study(pruner=pruner, sampler="random")
    search(study, objective, SPACE, GOAL, trials=8)
    assert len(study.trials) == 8
    assert all(t.state.is_finished() for t in study.trials)
    assert (
        any(t.state.name == "PRUNED" for t in study.trials) == (pruner != "none")
        or pruner != "asha"
    )


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "gp"])
def test_a_stopped_study_ends_like_an_uninterrupted_one(sampler: str, tmp_path: Path) -> None:
    """Stopped in the middle of a trial, twice, and opened again: the same trials to the last bit."""
    whole = _study(tmp_path / "whole.log", sampler=sampler)
    search(whole, objective, SPACE, GOAL, trials=14, locks=tmp_path / "a")

    epochs: list[tuple[int, int]] = []

    def stopping(attempt: Attempt) -> Measured:
        for epoch in range(1, EPOCHS + 1):
            if epoch > 1:
                attempt.proceed()
            epochs.append((attempt.number, epoch))
            attempt.report(epoch, _measured(attempt, epoch))
            if (
                epochs.count((attempt.number, epoch)) == 1
                and attempt.number in (4, 11)
                and epoch == 1
            ):
                raise KeyboardInterrupt
        return _measured(attempt, EPOCHS)

    for _ in range(2):
        study = _study(tmp_path / "parts.log", sampler=sampler)
        with pytest.raises(KeyboardInterrupt):
            search(study, stopping, SPACE, GOAL, trials=14, locks=tmp_path / "b")
        assert study.trials[-1].state.name == "RUNNING", "not counted as finished"
    study = _study(tmp_path / "parts.log", sampler=sampler)
    search(study, stopping, SPACE, GOAL, trials=14, locks=tmp_path / "b")
    assert _facts(study) == _facts(whole)


def test_more_trials_extend_a_study(tmp_path: Path) -> None:
    for count in (3, 3, 7):
        study = _study(tmp_path / "study.log")
        search(study, objective, SPACE, GOAL, trials=count)
        assert len(study.trials) == count
    whole = _study()
    search(whole, objective, SPACE, GOAL, trials=7)
    assert _facts(study) == _facts(whole)


def test_a_trial_that_runs_out_of_time_is_continued(tmp_path: Path) -> None:
    asked = [0]

    def late() -> bool:
        asked[0] += 1
        return asked[0] > 4

    study = _study(tmp_path / "study.log")
    search(study, objective, SPACE, GOAL, trials=2, late=late, locks=tmp_path)
    assert [t.state.name for t in study.trials] == ["RUNNING"]
    reported = len(study.trials[0].intermediate_values)
    assert 0 < reported < EPOCHS
    search(study, objective, SPACE, GOAL, trials=2, locks=tmp_path)
    assert [t.number for t in study.trials if t.state.is_finished()] == [0, 1]


def test_impossible_values_do_not_block_a_study(tmp_path: Path) -> None:
    def refusing(attempt: Attempt) -> Measured:
        if attempt.number == 1:
            raise ConfigError("impossible together")
        return objective(attempt)

    study = _study(tmp_path / "study.log", pruner="none")
    with pytest.raises(ConfigError, match="impossible"):
        search(study, refusing, SPACE, GOAL, trials=3, locks=tmp_path)
    search(study, refusing, SPACE, GOAL, trials=3, locks=tmp_path)
    states = [t.state.name for t in study.trials]
    assert states == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]


def test_divergence_counts_as_pruned() -> None:
    def diverging(attempt: Attempt) -> Measured:
        raise DivergenceError("the loss is nan")

    study = _study()
    search(study, diverging, SPACE, GOAL, trials=2)
    assert [t.state.name for t in study.trials] == ["PRUNED"] * 2
    assert best(study, GOAL) is None


def test_trial_0_has_the_given_values() -> None:
    first = {"x": 0.25, "n": 7}
    study = open_study("memory", "s", Choices(), epochs=EPOCHS, seed=0, first=first)
    search(study, objective, SPACE, GOAL, trials=2)
    assert study.trials[0].params == {**first, "kind": study.trials[0].params["kind"]}
    assert study.trials[1].params["x"] != 0.25


def test_the_front_is_what_nothing_dominates() -> None:
    study = _study(front=True)
    search(study, objective, SPACE, GOAL, trials=25)
    assert all(t.state.name == "COMPLETE" for t in study.trials), "Optuna prunes no front"
    points = [(t.user_attrs["cost"], t.user_attrs["drop"]) for t in study.trials]
    undominated = {
        p for p in points
        if not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points)
    }  # fmt: skip
    found = [(t.user_attrs["cost"], t.user_attrs["drop"]) for t in front(study)]
    assert set(found) == undominated
    assert found == sorted(found)


_WORKER = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_tune import GOAL, SPACE, objective, _study
from snello.search.tune import search
def slow(attempt):
    time.sleep(0.02)
    return objective(attempt)
study = _study({storage!r}, sampler="random")
Path({folder!r}, "ready-" + sys.argv[1]).touch()
while len(list(Path({folder!r}).glob("ready-*"))) < 2:
    time.sleep(0.01)
ran = []
search(study, slow, SPACE, GOAL, trials=16, locks=Path({folder!r}), done=lambda t: ran.append(t.number))
print(ran)
"""


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("journal", marks=pytest.mark.exhaustive)])
def test_two_processes_share_one_study(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "study.log"
    storage = str(path) if kind == "journal" else f"sqlite:///{tmp_path}/study.db"
    _study(storage, sampler="random")
    here = str(Path(__file__).parent)
    code = _WORKER.format(tests=here, storage=storage, folder=str(tmp_path))
    workers = [
        subprocess.Popen([sys.executable, "-c", code, str(n)], stdout=subprocess.PIPE, text=True)
        for n in range(2)
    ]
    ran = [eval(worker.communicate()[0]) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0]
    study = _study(storage, sampler="random")
    finished = [t.number for t in study.trials if t.state.name in ("COMPLETE", "PRUNED")]
    assert len(finished) == 16, "together as many as asked for"
    assert sorted(ran[0] + ran[1]) == finished, "no trial twice"
    assert all(ran), "both took part"
    assert len({str(t.params) for t in study.trials}) == len(study.trials), "no values twice"


@pytest.mark.parametrize(
    ("storage", "kind"),
    [
        ("nonsense://x", ConfigError), ("redis://localhost", ConfigError),
        ("sqlite:////proc/none/study.db", OutputError), ("/proc/none/study.log", OutputError),
    ],
)  # fmt: skip
def test_a_storage_that_cannot_be_opened(storage: str, kind: type[Exception]) -> None:
    with pytest.raises(kind) as caught:
        _study(storage)
    assert storage in str(caught.value)
    assert "\n" not in str(caught.value)


# Bisection


@settings(max_examples=60)
@given(st.floats(0.05, 0.95), st.floats(0.3, 4), st.booleans(), st.booleans())
def test_bisection_finds_the_setting_of_a_monotone_effect(
    target: float, power: float, falls: bool, log: bool
) -> None:
    def effect(x: float) -> float:
        share = ((x - 0.01) / 0.99) ** power
        return 1 - share if falls else share

    found = bisect(effect, target, 0.01, 1.0, tolerance=1e-3, log=log, steps=60)
    assert found.reached
    assert abs(effect(found.setting) - target) <= 1e-3
    assert found.effect == effect(found.setting)


@pytest.mark.parametrize("effect", [lambda x: 0.2 * x, lambda x: -x])
def test_bisection_says_if_the_target_is_out_of_reach(effect: Callable[[float], float]) -> None:
    found = bisect(effect, 0.5, 0.0, 1.0, tolerance=0.01)
    assert not found.reached
    assert len(found.tried) == 2, "the ends tell"
    assert found.effect == max(effect(0.0), effect(1.0))


@pytest.mark.parametrize(
    "options",
    [
        {"low": math.nan}, {"high": math.inf}, {"low": 2.0}, {"low": 0.0, "log": True}, {"target": math.nan},
        {"tolerance": -1.0}, {"tolerance": math.nan}, {"steps": 1},
    ],
)  # fmt: skip
def test_bisections_without_a_range_or_target_are_refused(options: dict[str, Any]) -> None:
    given = {"target": 0.5, "low": 0.1, "high": 1.0, "tolerance": 0.1, **options}
    with pytest.raises(ConfigError):
        bisect(lambda x: x, given.pop("target"), given.pop("low"), given.pop("high"), **given)
