"""Quality of a network, and its drop below the dense network's."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from snello.errors import ConfigError, ModelError
from snello.graph import evaluation
from snello.wrappers import copied

Evaluate = Callable[[nn.Module], Any]
"""Quality of a network, higher is better: a number, or one number per sample."""

Z95 = 1.6449
"""95 % quantile of the normal distribution, for a limit on one side."""

_WANTED = "return a number, higher is better, or a vector with one number per sample"


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
    is 1.645 standard errors above it: samples on which both networks agree add no noise. The limit
    is a normal approximation: where no answer of n changes it is 0, although a share of up to 3 / n
    may change among other samples (the rule of three; Hanley and Lippman-Hand, 1983).

    Args:
        evaluate: the caller's function; it is called with copies, which it may move and change.
        dense: the dense network.

    Raises:
        ConfigError: if `evaluate` returns neither a finite number nor a vector of them.
    """

    def __init__(self, evaluate: Evaluate, dense: nn.Module) -> None:
        self._evaluate = evaluate
        self._reference = self._values(dense)
        if not bool(self._reference.isfinite().all()):
            raise ConfigError("evaluate returned NaN or infinity for the dense network")
        self.value = float(self._reference.mean())

    @property
    def samples(self) -> int:
        """Number of samples; 1 if `evaluate` returns one number."""
        return len(self._reference)

    def __call__(self, model: nn.Module) -> Verdict:
        """Evaluate a network.

        Raises:
            ConfigError: for another number of samples than of the dense network.
            ModelError: if a value is not finite, as after a fine-tuning that diverged.
        """
        values = self._values(model)
        if not bool(values.isfinite().all()):
            raise ModelError("evaluate returned NaN or infinity for this network")
        if len(values) != len(self._reference):
            raise ConfigError(
                f"evaluate returned {len(values)} values, and {len(self._reference)} for the dense network: "
                "evaluate every network on the same samples"
            )  # fmt: skip
        differences = self._reference - values
        drop = float(differences.mean())
        if len(differences) == 1:
            return Verdict(float(values.mean()), drop, drop)
        error = float(differences.std()) / math.sqrt(len(differences))
        return Verdict(float(values.mean()), drop, drop + Z95 * error)

    def _values(self, model: nn.Module) -> torch.Tensor:
        model = copied(model)
        with evaluation(model):
            found = self._evaluate(model)
        try:
            if isinstance(found, tuple):  # as_tensor would take (loss, accuracy) for two samples
                raise TypeError
            values = torch.as_tensor(found).detach()
        except (TypeError, ValueError, RuntimeError) as error:
            raise ConfigError(f"evaluate returns a {type(found).__name__}; {_WANTED}") from error
        if (
            not values.numel()
            or values.numel() != max(values.shape, default=1)
            or values.is_complex()
        ):
            raise ConfigError(
                f"evaluate returns {values.dtype} of shape {tuple(values.shape)}; {_WANTED}"
            )
        return values.double().cpu().flatten()
