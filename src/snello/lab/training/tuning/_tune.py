"""The tuning of a recipe, from its space to the winner's final trainings."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from snello.errors import ConfigError, Stopped
from snello.files import write_text
from snello.lab.datasets import Splits
from snello.lab.recipes import CurationConfig, Recipe, recipe_text, value_of
from snello.lab.training._fit import validate
from snello.search.tune import Space, best, front, is_shared, open_study, search

from ._final import Finals
from ._note import check_same_study, noted, study_name
from ._result import FinalRow, TrialRow, Tuned
from ._settings import TuneSettings
from ._shared import WINNER, check_one_process, trained
from ._space import check_ends, space_of, with_values
from ._trial import Trials

STUDY = "study.log"
_STATES = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned"}
Say = Callable[[str], object]


def tune(
    recipe: Recipe,
    folder: str | Path,
    settings: TuneSettings | None = None,
    *,
    declared: Mapping[str, Any] | None = None,
    progress: Say | None = None,
) -> Tuned:
    """Search the hyper-parameters of a recipe, and train the winner with other seeds.

    Called again with the same settings, it goes on with the study: finished trials stay, trials of
    killed processes continue with their last epoch. Several processes may share a folder, or several
    machines a database (`settings.storage`).

    Args:
        recipe: its own values are those of trial 0; all trials have its seed.
        folder: for the study, the trials, the final trainings and `winner.yaml`.
        settings: of the tuning; None: the defaults.
        declared: ranges by dotted name, as under `tune` in a recipe; None: the defaults of the
            method.
        progress: called with a line of text after each trial and each final training.

    Raises:
        ConfigError: for a wrong range or setting, for a folder that holds another study, and under
            torchrun.
        OutputError: if the folder or the storage cannot be written.
        Stopped: on SIGTERM or SIGINT during a training.
        SnelloError: for errors of the data, the model and the training.
    """
    check_one_process("tune")
    settings = settings or TuneSettings()
    try:
        return _Tuning(recipe, Path(folder), settings, declared, progress or (lambda _: None)).run()
    except Stopped as stopped:
        raise Stopped(
            f"stopped in a training: the same command in {folder} goes on from its last epoch",
            stopped.number,
        ) from None


@dataclass
class _Tuning:
    recipe: Recipe
    folder: Path
    settings: TuneSettings
    declared: Mapping[str, Any] | None
    say: Say

    def run(self) -> Tuned:
        self._started = time.monotonic()
        settings, method = self.settings, self.settings.method
        space = space_of(self.recipe, method, self.declared)
        methods = (method,) if settings.cost == "error" else tuple({"baseline": 0, method: 0})
        tried = replace(_reduced(self.recipe, settings.share), methods=methods)
        splits = validate(tried)
        check_ends(tried, method, space, splits)
        asked = noted(tried, settings, space)
        check_same_study(self.folder, asked)
        study = open_study(
            settings.storage or self.folder / STUDY, study_name(f"{splits.name}-{method}", asked),
            settings.choices, epochs=tried.epochs, seed=tried.seed, first=_own(tried, space),
        )  # fmt: skip
        reference = self._reference(study, tried, splits)
        trials = Trials(tried, method, settings.cost, reference, splits, self.folder / "trials")
        search(
            study, trials, space, settings.goal, trials=settings.trials, locks=self._locks,
            late=lambda: self._is_late(study), done=self._told,
        )  # fmt: skip
        return self._result(study, reference)

    @property
    def _locks(self) -> Path:
        return self.folder / "locks"

    def _reference(self, study: optuna.Study, recipe: Recipe, splits: Splits) -> list[float] | None:
        """Validation accuracy of the dense network after each epoch, trained once for a study."""
        if self.settings.cost == "error":
            return None
        if (stored := study.user_attrs.get("reference")) is not None:
            return list(stored)
        result = trained(recipe, "baseline", self.folder / "reference", splits)
        found = [epoch.val_accuracy for epoch in result.epochs]
        study.set_user_attr("reference", found)
        self.say(f"dense network: validation accuracy {found[-1]:.4f}")
        return found

    def _is_late(self, study: optuna.Study) -> bool:
        """Return True when the rest of the time is needed for the final trainings."""
        if self.settings.within is None:
            return False
        complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        longest = max((one.user_attrs["seconds"] for one in complete), default=0.0)
        each = 2 if self.settings.cost == "error" else 3
        reserved = self.settings.seeds * each * longest / self.settings.share
        return time.monotonic() - self._started >= self.settings.within - reserved

    def _told(self, trial: FrozenTrial) -> None:
        row = trial_row(trial)
        figures = f"epochs {row.epochs}"
        if row.cost is not None and row.accuracy is not None:
            figures += f"  {self.settings.cost} {row.cost:.4f}  val accuracy {row.accuracy:.4f}"
        values = ", ".join(f"{name}={_short(value)}" for name, value in row.values.items())
        self.say(f"trial {row.number:3} {row.state:9} {figures}  {values}")

    def _result(self, study: optuna.Study, reference: list[float] | None) -> Tuned:
        settings, goal = self.settings, self.settings.goal
        waiting = is_shared(study, self._locks)
        winner = best(study, goal)
        path, finals = None, tuple[FinalRow, ...]()
        if winner is not None and not waiting:
            tuned = with_values(self.recipe, winner.params)
            path = self._write(replace(tuned, methods=(settings.method,)), winner)
            finals = Finals(self.recipe, settings, self.folder / "final", self.say).rows(
                winner.number, winner.params
            )
        rows = tuple(map(trial_row, study.get_trials(deepcopy=False)))
        return Tuned(
            method=settings.method, cost=settings.cost, goal=goal,
            reference=None if reference is None else reference[-1],
            trials=tuple(row for row in rows if row.state != "given back"),
            front=tuple(trial.number for trial in front(study)),
            winner=None if winner is None else winner.number,
            holds=winner is not None and winner.user_attrs["drop"] <= goal.max_drop,
            importances=_importances(study), finals=finals,
            recipe=None if path is None else str(path), waiting=waiting,
            seconds=time.monotonic() - self._started,
        )  # fmt: skip

    def _write(self, recipe: Recipe, winner: FrozenTrial) -> Path:
        path = self.folder / WINNER
        comments = [
            f"{recipe.model.label} on {recipe.data.name}, {self.settings.method}: tuned values",
            "",
            f"    snello train {WINNER} --method={self.settings.method}",
            "",
            f"Trial {winner.number}: "
            + ", ".join(f"{name}={_short(value)}" for name, value in winner.params.items()),
        ]
        return write_text(path, recipe_text(recipe, comments))


def _reduced(recipe: Recipe, share: float) -> Recipe:
    """The recipe of a trial, with a random share of the images in each epoch."""
    if share == 1:
        return recipe
    if recipe.curation.method != "none":
        raise ConfigError(
            f"--share={share}: the recipe leaves out images itself (curation.method is "
            f"{recipe.curation.method!r}): use one of the two"
        )
    return replace(recipe, curation=CurationConfig("random", ratio=1 - share))


def _own(recipe: Recipe, space: Space) -> dict[str, Any]:
    """The recipe's own values, as far as they are in the space."""
    values = {one.name: value_of(recipe, one.name) for one in space}
    return {one.name: values[one.name] for one in space if one.holds(values[one.name])}


def trial_row(trial: FrozenTrial) -> TrialRow:
    """A trial of Optuna as plain data."""
    facts, reported = trial.user_attrs, trial.intermediate_values
    state = _STATES.get(trial.state, "unfinished")
    if trial.state == TrialState.FAIL:
        state = "given back"
    last = reported[max(reported)] if reported else None
    complete = trial.state == TrialState.COMPLETE
    return TrialRow(
        number=trial.number, state="diverged" if facts.get("diverged") else state,
        values=dict(trial.params), value=trial.values[0] if complete and len(trial.values) == 1 else last,
        cost=facts.get("cost"), drop=facts.get("drop"),
        accuracy=facts.get("accuracy") if complete else None,
        epochs=facts.get("epochs", len(reported)), seconds=facts.get("seconds", 0.0),
    )  # fmt: skip


def _importances(study: optuna.Study) -> dict[str, float]:
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(study.directions) > 1 or len(complete) < 4:
        return {}
    try:
        return dict(optuna.importance.get_param_importances(study))
    except (ValueError, RuntimeError):  # all trials have one value, for example
        return {}


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
