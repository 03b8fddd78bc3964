"""The protocol that every sensitivity follows, and the decay step that all of them share."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from snello.errors import ConfigError
from snello.optimizers import rows_kept


class Sensitivity(ABC):
    """A sensitivity of the outputs or of the loss, and weight decay by it.

    The protocol is `observe` → `sensitivity` → `step`: pass the outputs before the backward
    pass, measure, and shrink the weights after the optimizer's step.

    Args:
        lmbda: strength of the decay per optimizer step, in [0, 1); not multiplied by the learning
            rate.

    Attributes:
        by_gradient: whether the method uses the gradients of the loss. Those of neurons frozen by
            NEq are not computed, so that these neurons do not decay.
    """

    by_gradient = False

    def __init__(self, lmbda: float) -> None:
        if not (math.isfinite(lmbda) and 0 <= lmbda < 1):
            raise ConfigError(
                f"lmbda is the share of a weight removed per step: 0 <= lmbda < 1, not {lmbda}"
            )
        self.lmbda = lmbda

    def observe(self, outputs: Tensor, targets: Tensor | None = None) -> None:  # noqa: B027 - optional: not every method looks at the outputs
        """Observe the network's outputs, shape (B, C), before `loss.backward()`.

        Does nothing by default.
        """

    @abstractmethod
    def sensitivity(self) -> dict[str, Tensor]:
        """The latest sensitivities by name, non-negative; empty before the first observation."""

    @abstractmethod
    def _weights_and_insensitivities(self) -> tuple[list[Tensor], list[Tensor]]:
        """Weights that decay, and for each a tensor of insensitivities that broadcasts over it."""

    @torch.no_grad()
    def step(self) -> None:
        """Shrink every weight by `lmbda * insensitivity`.

        Call it after `optimizer.step()` (or `scaler.step(optimizer)`, which unscales the
        gradients) and before the gradients are zeroed: once per optimizer step, not once per
        accumulated batch.

        Raises:
            ConfigError: for a method that needs observations, if there has been none.
        """
        weights, insensitivities = self._weights_and_insensitivities()
        if weights:
            with rows_kept() if self.by_gradient else nullcontext():
                decay_(weights, insensitivities, self.lmbda)

    def state_dict(self) -> dict[str, Any]:
        """State that lets a resumed run continue identically."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027 - nothing to load by default
        """Restore [`state_dict`][snello.sensitivity.Sensitivity.state_dict]."""

    def remove(self) -> None:  # noqa: B027 - only methods with hooks have something to remove
        """Remove every hook from the model."""


def check_some_decay(layers: Mapping[str, nn.Module], model: nn.Module, method: str) -> None:
    """Refuse a model none of whose layers would decay, as GPT-2's without the head: they are `Conv1D`.

    Raises:
        ConfigError: if there are no layers.
    """
    if not layers:
        raise ConfigError(
            f"{method}: no layer of {type(model).__name__} would decay: only Linear layers and convolutions do, and "
            "with SeReNe the head only if exclude=() is given"
        )


def decay_(weights: Sequence[Tensor], insensitivities: Sequence[Tensor], lmbda: float) -> None:
    """`w <- w - lmbda * w * insensitivity` for all weights at once, in place.

    Multiplication and subtraction are separate operations, each rounded, so that the result does
    not depend on whether the machine has a fused multiply-add.
    """
    shrinkage = torch._foreach_mul(list(weights), lmbda)
    torch._foreach_mul_(shrinkage, list(insensitivities))
    torch._foreach_sub_(list(weights), shrinkage)


def insensitivity(sensitivities: Sequence[Tensor]) -> list[Tensor]:
    """`max(0, 1 - S)` for all sensitivities at once; they are not changed.

    Zero where S is not a number: when a gradient scaler has overflowed, weights must not change.
    """
    return [share.nan_to_num_(nan=0.0) for share in bounded(sensitivities)]


def bounded(sensitivities: Sequence[Tensor]) -> list[Tensor]:
    """`max(0, 1 - S)` for all sensitivities at once, not a number where S is not."""
    shares = torch._foreach_neg(list(sensitivities))
    torch._foreach_add_(shares, 1.0)
    torch._foreach_clamp_min_(shares, 0.0)
    return list(shares)
