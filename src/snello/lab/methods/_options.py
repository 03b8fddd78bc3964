"""Options of the training methods: one dataclass per kind of recipe block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from snello.errors import check_option


@dataclass(frozen=True)
class PruningConfig:
    """Options of sensitivity-driven training, with pruning under a bound on the validation loss.

    Attributes:
        lmbda: strength of the decay per step, not multiplied by the learning rate.
        granularity: unit of pruning: single weights, whole neurons, or channels that are coupled
            across layers. The decay acts on the same unit.
        twt: relative increase of the validation loss that one pruning step may cause.
        normalise: scaling that makes scores comparable across layers; None thresholds the raw
            magnitudes, as the papers do. See [`snello.pruning.Pruner`][].
        max_drop: total drop of validation accuracy, relative to the dense network, that pruning may
            cause, in [0, 1); None: no bound. See [`snello.pruning.QualityBound`][].
        pwe: plateau patience: number of epochs without improvement before a pruning step.
        finetune: number of final epochs without decay and without further pruning.
        every: number of steps between two observations of a sensitivity that needs an extra
            backward pass (SeReNe, output sensitivity); the latest observation sets the decay in
            between. LOBSTER uses the gradients of every step.
    """

    lmbda: float = 1e-4
    granularity: Literal["weight", "neuron", "channel"] = "weight"
    twt: float = 0.05
    normalise: Literal["mean", "max", "standard", "rank"] | None = "mean"
    max_drop: float | None = None
    pwe: int = 5
    finetune: int = 5
    every: int = 1

    def __post_init__(self) -> None:
        check_option(0 <= self.lmbda < 1, f"lmbda must be in [0, 1), not {self.lmbda}")
        check_option(self.twt >= 0, f"twt must be >= 0, not {self.twt}")
        check_option(
            self.max_drop is None or 0 <= self.max_drop < 1,
            f"max_drop must be in [0, 1), not {self.max_drop}",
        )
        check_option(self.pwe >= 1, f"pwe must be at least 1, not {self.pwe}")
        check_option(self.finetune >= 0, f"finetune must be >= 0, not {self.finetune}")
        check_option(self.every >= 1, f"every must be at least 1, not {self.every}")


@dataclass(frozen=True)
class NEqConfig:
    """Options of NEq and of its random baselines.

    Attributes:
        eps: velocity below which a neuron counts as being at equilibrium.
        mu: weight of the previous velocity (momentum coefficient).
        smoothing: weight of the past in a moving average of the similarities, for decisions within
            an epoch (`every`); 0 as published.
        warmup: number of decisions before neurons are frozen; one decision is an epoch unless
            `every` is set.
        probe: number of training images on which a neuron's outputs are compared.
        every: number of optimizer steps between two decisions; None: once an epoch, as published.
        positions: number of spatial positions per layer kept from the probe's outputs; None: all.
        dispatch: how to decide whether a layer computes only its active rows. "fixed" follows a
            rule, so that a seed determines the weights and a resumed run ends with the same weights
            as an uninterrupted one; "measured" times both ways once and takes the faster one, so
            that two runs may round differently.
        only_if_faster: freeze neurons only where a training step is measured to be faster for it;
            two runs may then differ. For one process.
    """

    eps: float = 1e-3
    mu: float = 0.5
    smoothing: float = 0.0
    warmup: int = 1
    probe: int = 50
    every: int | None = None
    positions: int | None = None
    dispatch: Literal["fixed", "measured"] = "fixed"
    only_if_faster: bool = False

    def __post_init__(self) -> None:
        check_option(self.eps >= 0, f"neq.eps must be >= 0, not {self.eps}")
        for name in ("mu", "smoothing"):
            value = getattr(self, name)
            check_option(0 <= value < 1, f"neq.{name} must be in [0, 1), not {value}")
        for name in ("probe", "warmup", "every", "positions"):
            value = getattr(self, name)
            check_option(value is None or value >= 1, f"neq.{name} must be at least 1, not {value}")
