"""One trial as its objective sees it: values in, measurements out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import optuna

from ._goal import Goal, Measured
from ._space import Space


class OutOfTime(Exception):  # noqa: N818 - not an error
    """The time of the search is over; the trial can be continued later."""


class Attempt:
    """A trial in progress.

    Attributes:
        number: of the trial, from 0.
        values: name of a setting -> its value.

    Args:
        trial: of Optuna.
        space: the settings.
        goal: the objective; None for a front, of which Optuna prunes no trial.
        late: tells if the time is over.
    """

    def __init__(
        self, trial: optuna.Trial, space: Space, goal: Goal | None, late: Callable[[], bool]
    ) -> None:
        self._trial, self._goal, self._late = trial, goal, late
        self.number = trial.number
        self.values: Mapping[str, Any] = {one.name: one.suggest(trial) for one in space}
        # A trial that goes on after its process was killed reports no epoch twice.
        stored = trial.study.get_trials(deepcopy=False)[trial.number]
        self._reported = set(stored.intermediate_values)

    def report(self, step: int, measured: Measured) -> None:
        """Report a measurement to the pruner.

        Args:
            step: number of finished epochs, from 1.
            measured: cost and drop after them.
        """
        if self._goal is not None and step not in self._reported:
            self._trial.report(self._goal.value(measured), step)
            self._reported.add(step)

    def proceed(self) -> None:
        """Ask if the trial should go on.

        Raises:
            optuna.TrialPruned: if the pruner stops it.
            OutOfTime: if the time is over.
        """
        if self._goal is not None and self._trial.should_prune():
            raise optuna.TrialPruned
        if self._late():
            raise OutOfTime

    def note(self, **facts: Any) -> None:
        """Keep facts with the trial, which dashboards show; values that JSON can hold."""
        for name, value in facts.items():
            self._trial.set_user_attr(name, value)
