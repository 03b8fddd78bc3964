"""Dataclasses of a recipe; each validates its own values."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from snello.errors import check_option
from snello.lab.methods import (
    JOURNEY_METHODS,
    METHOD_SPECS,
    METHODS,
    Method,
    NEqConfig,
    PruningConfig,
    method_of,
)
from snello.store import ModelSpec

T = TypeVar("T")


@dataclass(frozen=True)
class DataConfig:
    """The dataset and its batches.

    Attributes:
        name: one of [`snello.lab.datasets.dataset_names`][]: "digits", "cifar10", "imagenet",
            "imagefolder", ...
        root: folder (or several, separated as in PATH) that holds the dataset; default:
            $SNELLO_DATA, ./data.
        path: the image folder, for "imagefolder".
        image_size: side of the images in pixels, for datasets without a fixed size.
        mean, std: normalisation per channel, with pixels scaled to 0 … 1; None: the training part's
            own, or ImageNet's for streamed datasets. The model file keeps it.
        order: order of the channels of coloured images, "rgb" or "bgr"; "grey" makes one channel
            of them (not of streamed ones); None: "rgb".
        batch_size: images per step, over all processes together.
        validation: share of the training images held out to choose thresholds and detect plateaus,
            in (0, 1).
        augment: "none" or "crop-flip".
        download: let torchvision download the dataset into the first root.
        limit: number of training images to use, for quick tries; None: all.
        test_limit: number of validation images and of test images to use, for quick tries; None:
            all.
        workers: number of processes that decode images, for datasets too large for memory.
        kept: index file of the training images to use, as [`snello.curation.Kept.save`][] writes
            it; None: all.
    """

    name: str = "digits"
    root: str | None = None
    path: str | None = None
    image_size: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    order: Literal["rgb", "bgr", "grey"] | None = None
    batch_size: int = 100
    validation: float = 0.1
    augment: Literal["none", "crop-flip"] = "none"
    download: bool = False
    limit: int | None = None
    test_limit: int | None = None
    workers: int = 0
    kept: str | None = None

    def __post_init__(self) -> None:
        check_option(
            self.batch_size >= 1, f"data.batch_size must be at least 1, not {self.batch_size}"
        )
        for name in ("limit", "test_limit"):
            value = getattr(self, name)
            check_option(
                value is None or value >= 1, f"data.{name} must be at least 1, not {value}"
            )
        check_option(
            self.mean is None or not self.mean or max(self.mean) <= 1,
            f"data.mean={self.mean}: pixels are in 0 ... 1 here: divide mean and deviation by 255",
        )
        check_option(
            (self.mean is None) == (self.std is None),
            f"data.mean ({self.mean}) and data.std ({self.std}) belong together: give both or neither",
        )
        check_option(self.workers >= 0, f"data.workers must be at least 0, not {self.workers}")
        check_option(
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
        schedule: learning rate schedule: "multistep" (decays at the milestones), "step" (every
            step_size epochs), "poly" ((1 - t/T)^power, every step) or "cosine" (to zero, every
            step).
        milestones: epochs after which the learning rate is multiplied by gamma.
        gamma: the factor of "multistep" and "step".
        step_size: number of epochs between two decays of "step".
        power: the exponent of "poly".
        warmup_epochs: number of first epochs in which the learning rate rises linearly, step by step.
        aux_lr_factor: factor on the learning rate of a segmentation network's auxiliary classifier.
        clip: bound on the norm of the gradient; None: no clipping.
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
        check_option(
            math.isfinite(self.lr) and self.lr > 0, f"optimizer.lr must be positive, not {self.lr}"
        )
        check_option(
            0 <= self.momentum < 1, f"optimizer.momentum must be in [0, 1), not {self.momentum}"
        )
        check_option(
            self.weight_decay >= 0, f"optimizer.weight_decay must be >= 0, not {self.weight_decay}"
        )
        for name in ("gamma", "power", "aux_lr_factor"):
            check_option(
                getattr(self, name) > 0,
                f"optimizer.{name} must be positive, not {getattr(self, name)}",
            )
        check_option(
            self.step_size >= 1, f"optimizer.step_size must be at least 1, not {self.step_size}"
        )
        check_option(
            all(milestone >= 1 for milestone in self.milestones),
            f"optimizer.milestones are epochs, from 1, not {self.milestones}",
        )
        check_option(
            self.warmup_epochs >= 0,
            f"optimizer.warmup_epochs must be >= 0, not {self.warmup_epochs}",
        )
        check_option(
            self.clip is None or self.clip > 0, f"optimizer.clip must be positive, not {self.clip}"
        )


@dataclass(frozen=True)
class CurationConfig:
    """Training images that an epoch leaves out: see [`snello.curation`][].

    Attributes:
        method: "none", "random", "infobatch" or "orderdp".
        ratio: share left out: by "random" and "orderdp" of all images, by "infobatch" of those
            whose loss is below the mean.
        replacement: for "random": draw from all images in every epoch, also from those that were
            used in the last.
        anneal: for "infobatch": share of the epochs after which all images are used.
        window: for "infobatch": number of batches whose mean loss is the bound; None: the mean of
            all last losses.
        rescaling: for "infobatch": "share" or "cumulative".
        pool: for "orderdp": share of the images from which the hardest are taken; None: as
            published.
    """

    method: Literal["none", "random", "infobatch", "orderdp"] = "none"
    ratio: float = 0.5
    replacement: bool = False
    anneal: float = 0.875
    window: int | None = None
    rescaling: Literal["share", "cumulative"] = "share"
    pool: float | None = None

    def __post_init__(self) -> None:
        check_option(0 <= self.ratio < 1, f"curation.ratio must be in [0, 1), not {self.ratio}")
        check_option(0 <= self.anneal <= 1, f"curation.anneal must be in [0, 1], not {self.anneal}")
        check_option(
            self.window is None or self.window >= 1,
            f"curation.window must be at least 1, not {self.window}",
        )
        check_option(
            self.pool is None or 1 - self.ratio <= self.pool <= 1,
            f"curation.pool must lie between 1 - ratio and 1, not at {self.pool}",
        )


@dataclass(frozen=True)
class ShipConfig:
    """Options of coding and timing.

    Attributes:
        max_drop: largest drop of the accuracy by coding the bitstream: upper limit at 95 % of the
            paired drop on validation images, or the drop of the mean IoU for segmentation. A rate
            search finds the smallest bitstream within it.
        validation_images: number of images that the search measures on: validation images, and
            training images where there are fewer.
        qp: quantisation parameter (QP) of the weights in the NNC bitstream, without a search; lower
            is finer. None: search.
        repeats: number of timed forward passes per network and runtime.
        warmup: number of untimed forward passes before them.
        threads: CPU threads while timing.
        batch: images per forward while timing.
    """

    max_drop: float = 0.005
    validation_images: int = 2000
    qp: int | None = None
    repeats: int = 100
    warmup: int = 10
    threads: int = 1
    batch: int = 1

    def __post_init__(self) -> None:
        check_option(
            0 <= self.max_drop < 1,
            f"ship.max_drop is a share of the images, from 0 to below 1, not {self.max_drop}",
        )
        for name in ("validation_images", "repeats", "warmup", "threads", "batch"):
            value, least = getattr(self, name), int(name != "warmup")
            check_option(value >= least, f"ship.{name} must be at least {least}, not {value}")


SENSITIVITY_BLOCKS: dict[str, PruningConfig] = {
    spec.uses: spec.defaults for spec in METHOD_SPECS.values() if spec.kind == "sensitivity"
}
"""Recipe block with the options of a sensitivity -> default options."""


def _with_sensitivity_blocks(kind: type[T]) -> type[T]:
    """Add one field per sensitivity to a class, before it becomes a dataclass.

    A row added to the table of methods becomes a recipe block without an edit here.
    """
    for name, defaults in SENSITIVITY_BLOCKS.items():
        kind.__annotations__[name] = PruningConfig
        setattr(kind, name, defaults)
    return kind


@dataclass(frozen=True)
@_with_sensitivity_blocks
class Recipe:
    """The full description of a run: model, data, optimizer, methods and shipping.

    In addition to the attributes below, a recipe has one
    [`PruningConfig`][snello.lab.methods.PruningConfig] per sensitivity, under the sensitivity's
    name: `lobster`, `serene`, `output`.

    Attributes:
        model: the network, by name and arguments.
        weights: file of initial weights, in a format that [`snello.store.load_weights`][] reads;
            None: random initialisation.
        data: the images.
        optimizer: optimizer and schedule, the same for every method.
        epochs: passes over the training images, the same for every method.
        accumulate: number of batches whose gradients are accumulated before an optimizer step.
        ema: decay of an exponential moving average of the weights, such as 0.999; the averaged
            weights are then tested and saved. None: no average.
        curation: training images that each epoch leaves out, the same for every method.
        neq: options of the methods that freeze neurons.
        ship: options of coding and timing.
        methods: methods to train with, one row of the result tables each.
        seed: seed of the initial weights, batch order, augmentation and random selections.
        device: "auto", "cpu" or "cuda".
        precision: "32-true", "bf16-mixed" or, on a GPU, "16-mixed".
        channels_last: memory format of convolutional networks.
        sync_batchnorm: compute batch statistics over all GPUs.
        log: loggers that receive the metrics of each epoch, in addition to the result file: "csv",
            "tensorboard", "wandb", "mlflow".
    """

    model: ModelSpec
    weights: str | None = None
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    epochs: int = 30
    accumulate: int = 1
    ema: float | None = None
    curation: CurationConfig = field(default_factory=CurationConfig)
    neq: NEqConfig = field(default_factory=NEqConfig)
    ship: ShipConfig = field(default_factory=ShipConfig)
    methods: tuple[str, ...] = JOURNEY_METHODS
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    channels_last: bool = False
    sync_batchnorm: bool = False
    log: tuple[Literal["csv", "tensorboard", "wandb", "mlflow"], ...] = ()

    def __post_init__(self) -> None:
        check_option(self.epochs >= 1, f"epochs must be at least 1, not {self.epochs}")
        check_option(0 <= self.seed < 2**32, f"seed must be from 0 to 4294967295, not {self.seed}")
        check_option(self.accumulate >= 1, f"accumulate must be at least 1, not {self.accumulate}")
        check_option(
            self.ema is None or 0 < self.ema < 1, f"ema must lie between 0 and 1, not at {self.ema}"
        )
        check_option(
            len(self.methods) > 0, "methods must name at least one of: " + ", ".join(METHODS)
        )
        check_option(
            len(set(self.methods)) == len(self.methods),
            f"methods: each can be named once, not {', '.join(self.methods)}",
        )
        for method in map(method_of, self.methods):
            # The blocks of methods that do not run are not checked: their defaults may need more
            # epochs than a short run has.
            finetune = self.pruning(method).finetune if method.block else 0
            check_option(
                finetune < self.epochs,
                f"{method.block}.finetune ({finetune}) must be less than epochs ({self.epochs}): "
                f"nothing would be pruned; set {method.block}.finetune to {self.epochs - 1} or less, "
                f"or epochs to {finetune + 1} or more",
            )
        warmup = self.optimizer.warmup_epochs
        check_option(
            warmup < self.epochs or not warmup,
            f"optimizer.warmup_epochs ({warmup}) must be less than epochs ({self.epochs}): set it to "
            f"{self.epochs - 1} or less, or epochs to {warmup + 1} or more",
        )

    def pruning(self, method: Method) -> PruningConfig:
        """Options of a method's sensitivity.

        Args:
            method: a method with a sensitivity.
        """
        assert method.block is not None
        options: PruningConfig = getattr(self, method.block)
        return options
