"""Schedules of pruning steps: once, or gradually (plateaus are in `_plateau`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from snello.errors import ConfigError

from ._state import Stateful


class Schedule(Protocol):
    """The decision when to prune, updated once per epoch."""

    restores: bool
    """True if the best weights since the last pruning step are restored before the next."""

    def update(self, loss: float) -> bool:
        """Count an epoch with this loss; return True if it is the best since the last step."""

    @property
    def reached(self) -> bool:
        """Return True when it is time to prune."""

    @property
    def progress(self) -> float:
        """Share of the amount that is due by now, in (0, 1]."""

    @property
    def done(self) -> bool:
        """Return True if no further pruning step will come."""

    def reset(self, loss: float) -> None:
        """Note that a pruning step was taken, with the loss after it."""

    def state_dict(self) -> dict[str, Any]:
        """The state as plain numbers."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore [`state_dict`][snello.pruning.Schedule.state_dict]."""


@dataclass
class _Counter(Stateful):
    """Counts epochs and pruning steps."""

    # By keyword: the first positional argument of a schedule is its option, as in Cubic(20).
    epochs: int = field(default=0, kw_only=True)
    steps: int = field(default=0, kw_only=True)
    best: float = field(default=float("inf"), kw_only=True)

    def update(self, loss: float) -> bool:
        """Count an epoch with this loss; return True if it is the best since the last step."""
        self.epochs += 1
        improved = loss < self.best
        self.best = loss if improved else self.best
        return improved

    def reset(self, loss: float) -> None:
        """Note that a pruning step was taken, with the loss after it."""
        self.steps += 1
        self.best = loss


@dataclass
class OneShot(_Counter):
    """One pruning step after a number of epochs; the rest of the training is fine-tuning.

    Attributes:
        after: number of epochs before the step.
        epochs, steps, best: the state.
    """

    after: int = 1
    restores = False

    def __post_init__(self) -> None:
        if self.after < 1:
            raise ConfigError(
                f"after counts epochs before the pruning step: at least 1, not {self.after}"
            )

    @property
    def reached(self) -> bool:
        """Return True when it is time to prune."""
        return self.steps == 0 and self.epochs >= self.after

    @property
    def progress(self) -> float:
        """1: the step asks for the whole amount."""
        return 1.0

    @property
    def done(self) -> bool:
        """Return True once the step was taken."""
        return self.steps > 0


@dataclass
class Cubic(_Counter):
    r"""A gradually increasing share, $s_t = s_f (1 - (1 - t / n)^3)$ after t epochs.

    Epochs are counted from `begin`.

    Attributes:
        over: number n of epochs until the whole amount is reached.
        begin: number of epochs before the increase starts.
        every: number of epochs from one pruning step to the next.
        epochs, steps, best, complete: the state.

    Source: Zhu and Gupta, "To prune, or not to prune: exploring the efficacy of pruning for model
    compression", 2017, eq. 1, from a sparsity of zero. The amount must be a share:
    [`Ratio`][snello.pruning.Ratio].
    """

    over: int = 10
    begin: int = 0
    every: int = 1
    complete: bool = field(default=False, kw_only=True)
    restores = False

    def __post_init__(self) -> None:
        if self.over < 1 or self.every < 1 or self.begin < 0:
            raise ConfigError(
                f"a cubic schedule needs over >= 1, every >= 1 and begin >= 0 epochs, not {self.over}, "
                f"{self.every}, {self.begin}"
            )

    @property
    def _since(self) -> int:
        return self.epochs - self.begin

    @property
    def reached(self) -> bool:
        """Return True when it is time to prune."""
        due = self._since >= 1 and (self._since % self.every == 0 or self._since >= self.over)
        return due and not self.complete

    @property
    def progress(self) -> float:
        """The share of the final amount that is due by now."""
        return 1 - (1 - min(max(self._since / self.over, 0.0), 1.0)) ** 3

    @property
    def done(self) -> bool:
        """Return True once the last pruning step was taken."""
        return self.complete

    def reset(self, loss: float) -> None:
        """Note that a pruning step was taken, with the loss after it."""
        super().reset(loss)
        self.complete = self._since >= self.over
