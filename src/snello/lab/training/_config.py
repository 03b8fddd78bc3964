"""What a recipe is made of: typed data, each part of which checks itself."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from snello.errors import ConfigError
from snello.store import ModelSpec

from ._methods import JOURNEY_METHODS, METHODS, method_of


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


@dataclass(frozen=True)
class DataConfig:
    """Which images, and how they come in batches.

    Attributes:
        name: one of :func:`snello.lab.datasets.available`: "digits", "cifar10", "imagenet",
        "imagefolder", ... root: folder (or several, separated as in PATH) that holds the dataset;
        default: $SNELLO_DATA, ./data. path: the image folder, for "imagefolder".
        image_size: images are brought to this many pixels a side, for sets that leave the choice.
        batch_size: images per step, over all processes together.
        validation: share of the training images that thresholds and plateaus are judged on.
        augment: "none" or "crop-flip".
        download: let torchvision download the dataset into the first root.
        limit: use only so many training images; for quick tries.
        test_limit: use only so many validation and so many test images; for quick tries.
        workers: processes that decode images, for sets that are too large for memory.
    """

    name: str = "digits"
    root: str | None = None
    path: str | None = None
    image_size: int | None = None
    batch_size: int = 100
    validation: float = 0.1
    augment: Literal["none", "crop-flip"] = "none"
    download: bool = False
    limit: int | None = None
    test_limit: int | None = None
    workers: int = 0

    def __post_init__(self) -> None:
        _require(self.batch_size >= 1, f"data.batch_size must be at least 1, not {self.batch_size}")
        for name in ("limit", "test_limit"):
            value = getattr(self, name)
            _require(value is None or value >= 1, f"data.{name} must be at least 1, not {value}")
        _require(self.workers >= 0, f"data.workers must be at least 0, not {self.workers}")
        _require(
            0 < self.validation < 1,
            f"data.validation must lie between 0 and 1, not at {self.validation}",
        )


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer and its schedule.

    Attributes:
        name: "SGD" or "AdamW", with the meaning that torch.optim gives them.
        lr: learning rate.
        momentum: for SGD.
        weight_decay: as in torch.optim.
        schedule: how the learning rate falls: "multistep" (at the milestones), "step" (every
            step_size epochs), "poly" ((1 - t/T)^power, every step) or "cosine" (to zero, every
            step).
        milestones: epochs after which the learning rate is multiplied by gamma.
        gamma: that factor.
        step_size: epochs between two falls of "step".
        power: the exponent of "poly".
        warmup_epochs: the learning rate rises linearly, step by step, during so many first epochs.
        aux_lr_factor: the auxiliary classifier of a segmentation network learns at so many times
        the rate. clip: bound on the norm of the gradient; None leaves it as it is.
    """

    name: Literal["SGD", "AdamW"] = "SGD"
    lr: float = 0.1
    momentum: float = 0.0
    weight_decay: float = 0.0
    schedule: Literal["multistep", "step", "poly", "cosine"] = "multistep"
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    step_size: int = 30
    power: float = 0.9
    warmup_epochs: int = 0
    aux_lr_factor: float = 1.0
    clip: float | None = None

    def __post_init__(self) -> None:
        _require(
            math.isfinite(self.lr) and self.lr > 0, f"optimizer.lr must be positive, not {self.lr}"
        )
        _require(
            0 <= self.momentum < 1, f"optimizer.momentum must be in [0, 1), not {self.momentum}"
        )
        _require(
            self.weight_decay >= 0, f"optimizer.weight_decay must be >= 0, not {self.weight_decay}"
        )
        for name in ("gamma", "power", "aux_lr_factor"):
            _require(
                getattr(self, name) > 0,
                f"optimizer.{name} must be positive, not {getattr(self, name)}",
            )
        _require(
            self.step_size >= 1, f"optimizer.step_size must be at least 1, not {self.step_size}"
        )
        _require(
            self.warmup_epochs >= 0,
            f"optimizer.warmup_epochs must be >= 0, not {self.warmup_epochs}",
        )
        _require(
            self.clip is None or self.clip > 0, f"optimizer.clip must be positive, not {self.clip}"
        )


@dataclass(frozen=True)
class PruningConfig:
    """Training with a sensitivity and pruning under a bound on the validation loss.

    Attributes:
        lmbda: strength of the decay per step, not multiplied by the learning rate.
        granularity: what is pruned: single weights or whole neurons.
        twt: how much worse one pruning step may make the loss, as a share of it.
        normalise: how scores are made comparable across layers; None is the papers' threshold on
            the magnitudes themselves. See :class:`snello.pruning.Pruner`.
        max_drop: how much of the validation accuracy pruning may cost altogether, since the dense
            network; None: no bound. See :class:`snello.pruning.QualityBound`.
        pwe: bad epochs to wait on a plateau before a pruning step.
        finetune: the last so many epochs run without decay and without further pruning.
        every: SeReNe looks at the neurons every so many steps, which is what its extra pass costs;
            what it saw decides the decay of the steps between. LOBSTER's gradients are there at
            every step.
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
        _require(0 <= self.lmbda < 1, f"lmbda must be in [0, 1), not {self.lmbda}")
        _require(self.twt >= 0, f"twt must be >= 0, not {self.twt}")
        _require(
            self.max_drop is None or 0 <= self.max_drop < 1,
            f"max_drop must be in [0, 1), not {self.max_drop}",
        )
        _require(self.pwe >= 1, f"pwe must be at least 1, not {self.pwe}")
        _require(self.finetune >= 0, f"finetune must be >= 0, not {self.finetune}")
        _require(self.every >= 1, f"every must be at least 1, not {self.every}")


@dataclass(frozen=True)
class NEqConfig:
    """Neurons at equilibrium, and the random baselines beside it.

    Attributes:
        eps: a neuron is at equilibrium when its velocity is below this.
        mu: memory of the velocity.
        warmup: decisions before anything is frozen: epochs, unless ``every`` says otherwise.
        probe: number of training images on which outputs are compared.
        every: decide every so many optimizer steps; None: once an epoch, as published.
        positions: keep so many positions per layer of the probe's outputs instead of all; None:
        all. dispatch: how a layer decides whether to compute its active rows alone: "fixed" follows
            a rule, so that the same seed gives the same weights and a resumed run those of one
            never killed; "measured" times both ways once, which is at least as fast, and two runs
            may round differently.
    """

    eps: float = 1e-3
    mu: float = 0.5
    warmup: int = 1
    probe: int = 50
    every: int | None = None
    positions: int | None = None
    dispatch: Literal["fixed", "measured"] = "fixed"

    def __post_init__(self) -> None:
        _require(self.eps >= 0, f"neq.eps must be >= 0, not {self.eps}")
        _require(0 <= self.mu < 1, f"neq.mu must be in [0, 1), not {self.mu}")
        for name in ("probe", "warmup", "every", "positions"):
            value = getattr(self, name)
            _require(value is None or value >= 1, f"neq.{name} must be at least 1, not {value}")


@dataclass(frozen=True)
class ShipConfig:
    """How the networks are coded and timed.

    Attributes:
        qp: quantisation parameter of the weights in the NNC bitstream; less is finer.
        repeats: timed forwards per network and runtime.
        warmup: untimed forwards before them.
        threads: CPU threads while timing.
        batch: images per forward while timing.
    """

    qp: int = -32
    repeats: int = 100
    warmup: int = 10
    threads: int = 1
    batch: int = 1

    def __post_init__(self) -> None:
        for name in ("repeats", "threads", "batch"):
            _require(
                getattr(self, name) >= 1,
                f"ship.{name} must be at least 1, not {getattr(self, name)}",
            )


@dataclass(frozen=True)
class Recipe:
    """One round trip.

    Attributes:
        model: the network, by name and arguments.
        weights: a file of weights to start from, as :func:`snello.store.load_weights` reads it;
        None: random. data: the images.
        optimizer: optimizer and schedule, the same for every method.
        epochs: passes over the training images, the same for every method.
        accumulate: batches whose gradients are summed before a step of the optimizer.
        ema: share of the past in a running average of the weights, such as 0.999; the average is
            then what is tested and written. None: no average.
        lobster, serene, neq: the methods.
        ship: coding and timing.
        methods: which rows of the table to run.
        seed: decides initial weights, batches, augmentation and draws.
        device: "auto", "cpu" or "cuda".
        precision: "32-true", "bf16-mixed" or, on a GPU, "16-mixed".
        channels_last: memory format of convolutional networks.
        sync_batchnorm: on several GPUs, batch statistics over all of them.
        log: where the epochs' figures are logged, beside the history in the results: "csv",
            "tensorboard".
    """

    model: ModelSpec
    weights: str | None = None
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    epochs: int = 30
    accumulate: int = 1
    ema: float | None = None
    lobster: PruningConfig = field(default_factory=PruningConfig)
    serene: PruningConfig = field(default_factory=lambda: PruningConfig(granularity="neuron"))
    neq: NEqConfig = field(default_factory=NEqConfig)
    ship: ShipConfig = field(default_factory=ShipConfig)
    methods: tuple[str, ...] = JOURNEY_METHODS
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    channels_last: bool = False
    sync_batchnorm: bool = False
    log: tuple[Literal["csv", "tensorboard"], ...] = ()

    def __post_init__(self) -> None:
        _require(self.epochs >= 1, f"epochs must be at least 1, not {self.epochs}")
        _require(self.accumulate >= 1, f"accumulate must be at least 1, not {self.accumulate}")
        _require(
            self.ema is None or 0 < self.ema < 1, f"ema must lie between 0 and 1, not at {self.ema}"
        )
        _require(len(self.methods) > 0, "methods must name at least one of: " + ", ".join(METHODS))
        for name in self.methods:
            method_of(name)
        # Only what is going to run needs room for fine-tuning.
        pruning = {method_of(name).pruning for name in self.methods} - {None}
        for name in ("lobster", "serene"):
            finetune = getattr(self, name).finetune
            _require(
                name not in pruning or finetune < self.epochs,
                f"{name}.finetune ({finetune}) must be less than epochs ({self.epochs}): nothing would be pruned",
            )
        warmup = self.optimizer.warmup_epochs
        _require(
            warmup < self.epochs or not warmup,
            f"optimizer.warmup_epochs ({warmup}) must be less than epochs ({self.epochs})",
        )
