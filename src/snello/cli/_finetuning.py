"""Fine-tuning of the networks that a command makes: its options, and the function."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING

from ._inputs import refuse_without
from ._words import listed

if TYPE_CHECKING:
    from torch import nn

    from snello.lab.datasets import Splits


OPTIONS = (
    "--optimizer", "--lr", "--batch-size", "--augment", "--precision", "--distil", "--distil-features",
)  # fmt: skip
"""Options of a fine-tuning, without its length."""


def add_finetuning_arguments(parser: argparse.ArgumentParser, when: str) -> None:
    """Add the options that `fine_tuning` reads.

    Args:
        parser: the parser.
        when: the networks that are fine-tuned, for the help: "after each step".
    """
    parser.add_argument(
        "--finetune", type=int, default=0, metavar="EPOCHS", help=f"epochs of fine-tuning {when}; default: 0"
    )  # fmt: skip
    parser.add_argument(
        "--optimizer", choices=("SGD", "AdamW"), default="SGD", help="of fine-tuning; AdamW suits transformers, "
        "at a --lr near 0.001; default: SGD",
    )  # fmt: skip
    parser.add_argument("--lr", type=float, default=0.01, help="learning rate; default: 0.01")
    parser.add_argument(
        "--batch-size", type=int, default=128, help="images per step of fine-tuning; default: 128"
    )
    parser.add_argument(
        "--augment",
        choices=("none", "crop-flip"),
        help="default: as the recipe beside the model says, "
        "else crop-flip for colour images and none for grey ones, such as digits",
    )
    parser.add_argument("--precision", choices=("32", "bf16"), default="32", help="default: 32")
    parser.add_argument(
        "--distil", action="store_true", help="distil from the dense network while fine-tuning"
    )
    parser.add_argument(
        "--distil-features", default="", metavar="MODULES", help="modules whose outputs are to be "
        "like those of the dense network while fine-tuning, comma-separated",
    )  # fmt: skip


def fine_tuning(
    arguments: argparse.Namespace,
    dense: nn.Module,
    splits: Splits,
    say: Callable[[str], object],
) -> Callable[[nn.Module], object] | None:
    """Function that fine-tunes a network; None for zero epochs.

    Args:
        arguments: with `finetune`, `optimizer`, `lr`, `batch_size`, `distil`, `distil_features`,
            `augment`, `precision`, `seed`.
        dense: the dense network, the teacher of a distillation.
        splits: the dataset.
        say: called after each epoch with a line on it.

    Raises:
        ConfigError: for values outside their range, and for options of fine-tuning without it.
    """
    from snello.lab.training import FineTuning, augmentation_for, finetune
    from snello.wrappers import copied

    settings = FineTuning(
        epochs=arguments.finetune, optimizer=arguments.optimizer, lr=arguments.lr, batch_size=arguments.batch_size,
        distil=0.5 if arguments.distil else 0.0, augment=arguments.augment or augmentation_for(splits),
        features=tuple(listed(arguments.distil_features)), precision=arguments.precision,
        seed=arguments.seed or 0,
    )  # fmt: skip
    if not settings.epochs:
        refuse_without(arguments, "--finetune=EPOCHS", *OPTIONS)
        return None
    teacher = copied(dense).eval() if settings.distil or settings.features else None

    def report(epoch: int, loss: float) -> None:
        say(f"  fine-tuning: epoch {epoch} of {settings.epochs}, loss {loss:.4f}")

    def fit(network: nn.Module) -> None:
        finetune(network, splits, settings, teacher=teacher, report=report)

    fit.settings = asdict(settings)  # type: ignore[attr-defined]  # a resumed run needs the same
    return fit
