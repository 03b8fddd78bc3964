"""The options of methods: the blocks of a recipe that methods read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from snello.errors import check_option


@dataclass(frozen=True)
class PruningConfig:
    """Training with a sensitivity and pruning under a bound on the validation loss.

    Attributes:
        lmbda: strength of the decay per step, not multiplied by the learning rate.
        granularity: unit of pruning: single weights or whole neurons.
        twt: how much worse one pruning step may make the loss, as a share of it.
        normalise: how scores are made comparable across layers; None is the papers' threshold on
            the magnitudes themselves. See :class:`snello.pruning.Pruner`.
        max_drop: how much of the validation accuracy pruning may cost altogether, since the dense
            network; None: no bound. See :class:`snello.pruning.QualityBound`.
        pwe: bad epochs to wait on a plateau before a pruning step.
        finetune: number of last epochs without decay and without further pruning.
        every: number of steps between two observations of a sensitivity that needs a pass of its
            own (SeReNe, output sensitivity); in between, the latest one decides the decay. LOBSTER
            reads the gradients of every step.
    """

    lmbda: float = 1e-4
    granularity: Literal["weight", "neuron"] = "weight"
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
    """Neurons at equilibrium, and the random baselines.

    Attributes:
        eps: bound on the velocity below which a neuron is at equilibrium.
        mu: weight of the last velocity.
        warmup: decisions before anything is frozen: epochs, unless ``every`` says otherwise.
        probe: number of training images on which outputs are compared.
        every: number of optimizer steps between two decisions; None: once an epoch, as published.
        positions: number of positions per layer of the probe's outputs that are kept; None: all.
        dispatch: way to decide whether a layer computes its active rows alone. "fixed" follows a
            rule, so that the same seed gives the same weights and a resumed run ends in the weights
            of an uninterrupted one; "measured" times both ways once, which is at least as fast, and
            two runs may round differently.
    """

    eps: float = 1e-3
    mu: float = 0.5
    warmup: int = 1
    probe: int = 50
    every: int | None = None
    positions: int | None = None
    dispatch: Literal["fixed", "measured"] = "fixed"

    def __post_init__(self) -> None:
        check_option(self.eps >= 0, f"neq.eps must be >= 0, not {self.eps}")
        check_option(0 <= self.mu < 1, f"neq.mu must be in [0, 1), not {self.mu}")
        for name in ("probe", "warmup", "every", "positions"):
            value = getattr(self, name)
            check_option(value is None or value >= 1, f"neq.{name} must be at least 1, not {value}")
