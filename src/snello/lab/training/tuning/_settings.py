"""Settings of a tuning."""

from __future__ import annotations

from dataclasses import dataclass, field

from snello.errors import check_option, nearest
from snello.lab.methods import method_of
from snello.search.tune import Choices, Goal

from ._costs import COSTS, cost_for


@dataclass(frozen=True)
class TuneSettings:
    """Settings of [`tune`][snello.lab.training.tuning.tune].

    Attributes:
        method: the training method to tune.
        trials: number of trials of the whole study, pruned ones included.
        within: seconds that this call may take, with the final trainings as far as they can be
            foreseen; None: no bound.
        minimise: one of [`COSTS`][snello.lab.training.tuning.COSTS]; None: the cost that the method
            lowers.
        goal: bound on the drop of accuracy, and the penalty beyond it.
        choices: sampler, pruner, and front or single objective.
        share: share of the training images that an epoch of a trial uses, drawn again each epoch;
            the final trainings use all.
        seeds: number of final trainings with other seeds; 0: none.
        storage: a database URL, or the path of a journal file; None: `study.log` in the folder.

    Raises:
        ConfigError: for a value out of range, or an unknown name.
    """

    method: str = "lobster"
    trials: int = 20
    within: float | None = None
    minimise: str | None = None
    goal: Goal = field(default_factory=Goal)
    choices: Choices = field(default_factory=Choices)
    share: float = 1.0
    seeds: int = 3
    storage: str | None = None

    def __post_init__(self) -> None:
        method_of(self.method)
        check_option(self.trials >= 1, f"--trials must be at least 1, not {self.trials}")
        check_option(self.seeds >= 0, f"--seeds must be at least 0, not {self.seeds}")
        check_option(
            self.within is None or self.within > 0, f"--within must be positive, not {self.within}"
        )
        check_option(0 < self.share <= 1, f"--share must be in (0, 1], not {self.share}")
        if self.minimise is not None:
            hint = nearest(self.minimise, COSTS)
            check_option(
                self.minimise in COSTS,
                f"--minimise: there is no {self.minimise!r}{hint}; choose one of: {', '.join(COSTS)}",
            )
        check_option(
            not (self.choices.front and self.cost == "error"),
            "--front draws cost against accuracy: with the error as cost, both are the same; "
            "choose --minimise=parameters or backward, with a method that lowers it",
        )

    @property
    def cost(self) -> str:
        """Name of the cost to minimise."""
        return self.minimise or cost_for(self.method)
