"""Quality of a network, and its drop below the dense network's."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from snello.errors import ConfigError
from snello.graph import evaluation

Evaluate = Callable[[nn.Module], Any]
"""Quality of a network, higher is better: a number, or one number per sample."""

Z95 = 1.6449
"""95 % quantile of the normal distribution, for a limit on one side."""


@dataclass(frozen=True)
class Verdict:
    """Quality of a candidate.

    Attributes:
        value: its quality.
        drop: quality of the dense network minus its own.
        limit: upper limit of the drop, at 95 % confidence for values per sample; else the drop.
    """

    value: float
    drop: float
    limit: float


class Judge:
    """Compares networks with the dense one on the same samples.

    With one value per sample, the drop is the mean of the paired differences, and its upper limit
    is 1.645 standard errors above it: samples on which both networks agree add no noise.

    Args:
        evaluate: the caller's function.
        dense: the dense network.

    Raises:
        ConfigError: if `evaluate` returns neither a finite number nor a vector of them.
    """

    def __init__(self, evaluate: Evaluate, dense: nn.Module) -> None:
        self._evaluate = evaluate
        self._reference = self._values(dense)
        self.value = float(self._reference.mean())

    @property
    def samples(self) -> int:
        """Number of samples; 1 if `evaluate` returns one number."""
        return len(self._reference)

    def __call__(self, model: nn.Module) -> Verdict:
        """Evaluate a network.

        Raises:
            ConfigError: as for the dense network, or for another number of samples.
        """
        values = self._values(model)
        if len(values) != len(self._reference):
            raise ConfigError(
                f"shrink: evaluate returned {len(values)} values, and {len(self._reference)} for the dense network: "
                "evaluate every network on the same samples"
            )  # fmt: skip
        differences = self._reference - values
        drop = float(differences.mean())
        if len(differences) == 1:
            return Verdict(float(values.mean()), drop, drop)
        error = float(differences.std()) / math.sqrt(len(differences))
        return Verdict(float(values.mean()), drop, drop + Z95 * error)

    def _values(self, model: nn.Module) -> torch.Tensor:
        with evaluation(model):
            found = self._evaluate(model)
        try:
            values = torch.as_tensor(found).detach().double().cpu().flatten()
        except (TypeError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"shrink: evaluate returns a {type(found).__name__}; return a number, higher is "
                "better, or a vector with one number per sample"
            ) from error
        if not len(values) or not bool(values.isfinite().all()):
            raise ConfigError(
                "shrink: evaluate returned no value, NaN or infinity; finite numbers are needed"
            )
        return values
