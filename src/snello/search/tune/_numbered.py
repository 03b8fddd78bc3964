"""A sampler that is made again for each trial, from the trial's number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import optuna
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState


class Numbered(optuna.samplers.BaseSampler):
    """A sampler whose random numbers depend on the number of a trial alone.

    A study that was stopped goes on as if it had not been, and workers on one study do not repeat
    each other's numbers.

    Args:
        make: number of a trial -> the sampler of Optuna that chooses its values.
    """

    def __init__(self, make: Callable[[int], optuna.samplers.BaseSampler]) -> None:
        self._make = make
        self._number, self._current = -1, make(0)

    def _of(self, trial: FrozenTrial) -> optuna.samplers.BaseSampler:
        if trial.number != self._number:
            self._number, self._current = trial.number, self._make(trial.number)
        return self._current

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Of the trial's own sampler."""
        self._of(trial).before_trial(study, trial)

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Of the trial's own sampler."""
        return self._of(trial).infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Of the trial's own sampler."""
        return self._of(trial).sample_relative(study, trial, search_space)

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Of the trial's own sampler."""
        return self._of(trial).sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self,
        study: Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """Of the trial's own sampler."""
        self._of(trial).after_trial(study, trial, state, values)
