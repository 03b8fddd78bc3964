"""Optuna's samplers and pruners by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import optuna

from snello.errors import check_option, nearest

SAMPLERS: Mapping[str, Callable[[int], optuna.samplers.BaseSampler]] = {
    "tpe": lambda seed: optuna.samplers.TPESampler(seed=seed),
    "gp": lambda seed: optuna.samplers.GPSampler(seed=seed),
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
}
"""Name -> function from a seed to a sampler of Optuna."""

REDUCTION = 3
"""The share of trials that goes on at a rung is one in this number."""


def _hyperband(epochs: int) -> optuna.pruners.BasePruner:
    return optuna.pruners.HyperbandPruner(_first_rung(epochs), epochs, REDUCTION)


def _asha(epochs: int) -> optuna.pruners.BasePruner:
    return optuna.pruners.SuccessiveHalvingPruner(_first_rung(epochs), REDUCTION)


def _median(epochs: int) -> optuna.pruners.BasePruner:
    return optuna.pruners.MedianPruner(n_warmup_steps=_first_rung(epochs))


def _none(epochs: int) -> optuna.pruners.BasePruner:
    return optuna.pruners.NopPruner()


PRUNERS: Mapping[str, Callable[[int], optuna.pruners.BasePruner]] = {
    "asha": _asha, "hyperband": _hyperband, "median": _median, "none": _none,
}  # fmt: skip
"""Name -> function from the number of epochs of a trial to a pruner of Optuna."""


def _first_rung(epochs: int) -> int:
    """A ninth of the epochs: two rungs come before the last epoch."""
    return max(1, epochs // REDUCTION**2)


@dataclass(frozen=True)
class Choices:
    """The sampler, the pruner and the kind of objective of a study.

    Attributes:
        sampler: one of [`SAMPLERS`][snello.search.tune.SAMPLERS].
        pruner: one of [`PRUNERS`][snello.search.tune.PRUNERS].
        front: look for the front of cost and drop instead of the lowest penalised cost; Optuna prunes
            no trial with two objectives.
    """

    sampler: str = "tpe"
    pruner: str = "asha"
    front: bool = False

    def __post_init__(self) -> None:
        tables: dict[str, Mapping[str, Any]] = {"sampler": SAMPLERS, "pruner": PRUNERS}
        for kind, table in tables.items():
            name = getattr(self, kind)
            check_option(
                name in table,
                f"--{kind}: there is no {name!r}{nearest(name, table)}; choose one of: {', '.join(table)}",
            )
