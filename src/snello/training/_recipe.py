"""A recipe: everything that a run depends on, as typed data that is checked before the first step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from snello.errors import ConfigError, require
from snello.models import ModelSpec

Method = Literal["baseline", "lobster", "serene", "neq"]
METHODS: tuple[Method, ...] = ("baseline", "lobster", "serene", "neq")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


@dataclass(frozen=True)
class DataConfig:
    """Which images, and how they come in batches.

    Attributes:
        name: "digits", "mnist", "cifar10" or "imagefolder".
        root: folder (or several, separated as in PATH) that holds the dataset; default: $SNELLO_DATA, ./data.
        path: the image folder, for "imagefolder".
        image_size: images are resized to this many pixels a side; for "imagefolder".
        batch_size: images per step.
        validation: share of the training images that thresholds and plateaus are judged on.
        augment: "none" or "crop-flip".
        download: let torchvision download the dataset into the first root.
        limit: use only so many training images; for quick tries.
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

    def __post_init__(self) -> None:
        _require(self.batch_size >= 1, f"data.batch_size must be at least 1, not {self.batch_size}")
        _require(self.limit is None or self.limit >= 1, f"data.limit must be at least 1, not {self.limit}")
        _require(
            0 < self.validation < 1, f"data.validation must lie between 0 and 1, not at {self.validation}"
        )


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer and its schedule.

    Attributes:
        name: "SGD" or "AdamW", with the meaning that torch.optim gives them.
        lr: learning rate.
        momentum: for SGD.
        weight_decay: as in torch.optim.
        milestones: epochs after which the learning rate is multiplied by gamma.
        gamma: that factor.
    """

    name: Literal["SGD", "AdamW"] = "SGD"
    lr: float = 0.1
    momentum: float = 0.0
    weight_decay: float = 0.0
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1

    def __post_init__(self) -> None:
        _require(math.isfinite(self.lr) and self.lr > 0, f"optimizer.lr must be positive, not {self.lr}")
        _require(0 <= self.momentum < 1, f"optimizer.momentum must be in [0, 1), not {self.momentum}")
        _require(self.weight_decay >= 0, f"optimizer.weight_decay must be >= 0, not {self.weight_decay}")


@dataclass(frozen=True)
class PruningConfig:
    """Training with a sensitivity and pruning under a bound on the validation loss.

    Attributes:
        lmbda: strength of the decay per step, not multiplied by the learning rate.
        granularity: what is pruned: single weights or whole neurons.
        twt: how much worse one pruning step may make the loss, as a share of it.
        pwe: bad epochs to wait on a plateau before a pruning step.
        finetune: the last so many epochs run without decay and without further pruning.
    """

    lmbda: float = 1e-4
    granularity: Literal["weight", "neuron"] = "weight"
    twt: float = 0.05
    pwe: int = 5
    finetune: int = 5

    def __post_init__(self) -> None:
        _require(0 <= self.lmbda < 1, f"lmbda must be in [0, 1), not {self.lmbda}")
        _require(self.twt >= 0, f"twt must be >= 0, not {self.twt}")
        _require(self.pwe >= 1, f"pwe must be at least 1, not {self.pwe}")
        _require(self.finetune >= 0, f"finetune must be >= 0, not {self.finetune}")


@dataclass(frozen=True)
class NEqConfig:
    """Neurons at equilibrium.

    Attributes:
        eps: a neuron is at equilibrium when its velocity is below this.
        mu: memory of the velocity.
        warmup: epochs before anything is frozen.
        probe: number of training images on which outputs are compared.
    """

    eps: float = 1e-3
    mu: float = 0.5
    warmup: int = 1
    probe: int = 50

    def __post_init__(self) -> None:
        _require(self.eps >= 0, f"neq.eps must be >= 0, not {self.eps}")
        _require(self.probe >= 1, f"neq.probe must be at least 1 image, not {self.probe}")


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
            _require(getattr(self, name) >= 1, f"ship.{name} must be at least 1, not {getattr(self, name)}")


@dataclass(frozen=True)
class Recipe:
    """One round trip.

    Attributes:
        model: the network, by name and arguments.
        data: the images.
        optimizer: optimizer and schedule, the same for every method.
        epochs: passes over the training images, the same for every method.
        lobster, serene, neq: the methods.
        ship: coding and timing.
        methods: which rows of the table to run.
        seed: decides initial weights, batches, augmentation and draws.
        device: "auto", "cpu" or "cuda".
        precision: "32-true" or "bf16-mixed".
        channels_last: memory format of convolutional networks.
    """

    model: ModelSpec
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    epochs: int = 30
    lobster: PruningConfig = field(default_factory=PruningConfig)
    serene: PruningConfig = field(default_factory=lambda: PruningConfig(granularity="neuron"))
    neq: NEqConfig = field(default_factory=NEqConfig)
    ship: ShipConfig = field(default_factory=ShipConfig)
    methods: tuple[Method, ...] = METHODS
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    channels_last: bool = False

    def __post_init__(self) -> None:
        _require(self.epochs >= 1, f"epochs must be at least 1, not {self.epochs}")
        _require(len(self.methods) > 0, "methods must name at least one of: " + ", ".join(METHODS))
        for name in ("lobster", "serene"):
            finetune = getattr(self, name).finetune
            _require(
                finetune < self.epochs,
                f"{name}.finetune ({finetune}) must be less than epochs ({self.epochs}): nothing would be pruned",
            )


def recipe_names() -> list[str]:
    """The recipes that come with snello, by name."""
    return sorted(
        path.name.removesuffix(".yaml") for path in _folder().iterdir() if path.name.endswith(".yaml")
    )


def recipe_path(name_or_path: str) -> Path:
    """Where a recipe is: a file of the user's, or one that comes with snello.

    Raises:
        ConfigError: if there is no such recipe, with the names that exist.
    """
    path = Path(name_or_path)
    if path.is_file():
        return path
    if name_or_path in recipe_names():
        return Path(str(_folder() / f"{name_or_path}.yaml"))
    raise ConfigError(f"no recipe {name_or_path!r}: neither a file nor one of: {', '.join(recipe_names())}")


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe.

    Args:
        name_or_path: a name from :func:`recipe_names` or a YAML file.
        overrides: options as on the command line, ``["--epochs=3", "--data.root=/data"]``.

    Raises:
        ConfigError: for an unknown key, a value of the wrong type, or one out of range.
    """
    jsonargparse = require("jsonargparse", "train", "reading recipes")
    parser = recipe_parser()
    arguments = [f"--recipe={recipe_path(name_or_path)}", *overrides]
    # jsonargparse 4.49 renamed it.
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes
    try:
        parsed = instantiate(parser.parse_args(arguments))
    except (jsonargparse.ArgumentError, ValueError, TypeError) as error:
        raise ConfigError(f"recipe {name_or_path}: {' '.join(str(error).split())}") from error
    return Recipe(**{f.name: getattr(parsed, f.name) for f in fields(Recipe)})


def recipe_parser(**options: Any) -> Any:
    """A jsonargparse parser with one option for every field of a recipe."""
    jsonargparse = require("jsonargparse", "train", "reading recipes")
    parser = jsonargparse.ArgumentParser(exit_on_error=False, allow_abbrev=False, **options)
    parser.add_argument("--recipe", action="config", help="a YAML file with any of the options below")
    parser.add_class_arguments(Recipe, fail_untyped=False)
    return parser


def _folder() -> Any:
    return resources.files("snello.recipes")
