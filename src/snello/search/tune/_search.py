"""The search: trials until their number or the time is reached, by one process or by many."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState

from snello.errors import ConfigError, DivergenceError, ModelError

from ._attempt import Attempt, OutOfTime
from ._claims import PLACE, Claims
from ._goal import Goal, Measured
from ._space import Space

Objective = Callable[[Attempt], Measured]
"""Train with the values of an attempt, report each epoch, and return the last measurement."""

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
Done = Callable[[FrozenTrial], object]


def _never() -> bool:
    return False


def search(
    study: optuna.Study,
    objective: Objective,
    space: Space,
    goal: Goal,
    *,
    trials: int,
    late: Callable[[], bool] = _never,
    locks: Path | None = None,
    done: Done | None = None,
) -> None:
    """Run trials until the study has as many as asked for, in this and in other processes.

    Trials that are complete or pruned count. One whose process was killed is continued, with the same
    values; a trial whose loss diverges counts as pruned.

    Args:
        study: from [`open_study`][snello.search.tune.open_study].
        objective: see [`Attempt`][snello.search.tune.Attempt]. After a signal, or an error such as
            a full disk, the trial stays open and is continued by the next search in the same folder;
            after a ConfigError or a ModelError it is given up and does not count.
        space: the settings.
        goal: of the objective, and the constraint "drop" of a complete trial.
        trials: number of trials of the whole study.
        late: tells if the time is over; asked between trials, and between the epochs of one, which
            then stays open.
        locks: folder for the locks on the trials of this machine; None: trials of killed processes
            are not continued.
        done: called with every finished trial.
    """
    claims = Claims(locks)
    job = _Job(study, objective, space, goal, trials, late, claims, done)
    while not late() and (job.resumed() or job.started()):
        pass


class _Job:
    def __init__(
        self,
        study: optuna.Study,
        objective: Objective,
        space: Space,
        goal: Goal,
        trials: int,
        late: Callable[[], bool],
        claims: Claims,
        done: Done | None,
    ) -> None:
        self._study, self._objective, self._space, self._goal = study, objective, space, goal
        self._trials, self._late, self._claims, self._done = trials, late, claims, done

    def resumed(self) -> bool:
        """Continue a trial that its process left; False if there is none."""
        for left in _running(self._study, self._claims.place):
            with self._claims.claimed(left.number) as mine:
                # Another process may have finished it before it was claimed here.
                if mine and not _now(self._study, left.number).state.is_finished():
                    self._run(optuna.Trial(self._study, left._trial_id))
                    return True
        return False

    def started(self) -> bool:
        """Start a trial; False if there are enough."""
        if _counted(self._study) >= self._trials:
            return False
        trial = self._study.ask()
        # Two processes may have asked at once for the last trial: the later one gives it back.
        if _counted(self._study, before=trial.number) >= self._trials:
            self._study.tell(trial, state=TrialState.FAIL)
            return False
        with self._claims.claimed(trial.number):
            trial.set_user_attr(PLACE, self._claims.place)
            self._run(trial)
        return True

    def _run(self, trial: optuna.Trial) -> None:
        front = len(self._study.directions) > 1
        attempt = Attempt(trial, self._space, None if front else self._goal, self._late)
        try:
            measured = self._objective(attempt)
        except optuna.TrialPruned:
            self._study.tell(trial, state=TrialState.PRUNED)
        except DivergenceError:
            attempt.note(diverged=True)
            self._study.tell(trial, state=TrialState.PRUNED)
        except (ConfigError, ModelError):
            # Values that do not go together: continued, the trial would raise the same for ever.
            self._study.tell(trial, state=TrialState.FAIL)
            raise
        except OutOfTime:
            return
        else:
            attempt.note(cost=measured.cost, drop=measured.drop)
            if front:
                self._study.tell(trial, [measured.cost, measured.drop])
            else:
                trial.set_constraint("drop", measured.drop - self._goal.max_drop)
                self._study.tell(trial, self._goal.value(measured))
        if self._done is not None:
            self._done(_now(self._study, trial.number))


def _now(study: optuna.Study, number: int) -> FrozenTrial:
    return study.get_trials(deepcopy=False)[number]


def _counted(study: optuna.Study, before: int | None = None) -> int:
    """Number of finished and running trials, of those before a number alone if it is given."""
    trials = study.get_trials(deepcopy=False)[:before]
    return sum(trial.state in (*FINISHED, TrialState.RUNNING) for trial in trials)


def _running(study: optuna.Study, place: str | None) -> Sequence[FrozenTrial]:
    trials = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    return [one for one in trials if place is not None and one.user_attrs.get(PLACE) == place]


def is_shared(study: optuna.Study, locks: Path) -> bool:
    """Return True while another process of this machine and folder works on a trial."""
    claims = Claims(locks)
    for one in _running(study, claims.place):
        with claims.claimed(one.number) as free:
            if not free:
                return True
    return False


def best(study: optuna.Study, goal: Goal) -> FrozenTrial | None:
    """The complete trial with the lowest cost within the bound.

    If no trial holds the bound, that with the lowest penalised cost; None without a complete trial.
    """
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    pairs = [(goal.holds(_measured(t)), goal.value(_measured(t)), t.number, t) for t in trials]
    pairs = [pair for pair in pairs if pair[0]] or pairs
    return min(pairs, key=lambda pair: pair[1:3])[3] if pairs else None


def front(study: optuna.Study) -> list[FrozenTrial]:
    """Complete trials that no other one betters in cost or drop without being worse in the other.

    Sorted by cost. Of trials with equal cost and drop, the first.
    """
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    found: list[FrozenTrial] = []
    for trial in sorted(trials, key=lambda t: (_measured(t).cost, _measured(t).drop, t.number)):
        if not found or _measured(trial).drop < _measured(found[-1]).drop:
            found.append(trial)
    return found


def _measured(trial: FrozenTrial) -> Measured:
    return Measured(trial.user_attrs["cost"], trial.user_attrs["drop"])
