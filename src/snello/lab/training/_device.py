"""The device and the precision of a recipe."""

from __future__ import annotations

import warnings

import torch

from snello.errors import ConfigError
from snello.lab.recipes import Recipe

AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
"""Precision of a recipe -> dtype for torch.autocast."""


def device_of(recipe: Recipe) -> str:
    """Device of a recipe: `"cuda"` or `"cpu"`."""
    if recipe.device != "auto":
        return recipe.device
    return "cuda" if torch.cuda.is_available() else "cpu"


def check_device(recipe: Recipe) -> None:
    """Refuse early the device settings that Lightning would replace or refuse after loading data.

    Warns of bfloat16 on a CPU that computes it in software.

    Raises:
        ConfigError: if no GPU is available for "cuda", "16-mixed" or `sync_batchnorm`.
    """
    device = device_of(recipe)
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "device is 'cuda', but torch sees no GPU: use --device=cpu or --device=auto"
        )
    if device == "cpu" and recipe.precision == "16-mixed":
        raise ConfigError("precision '16-mixed' needs a GPU: on the CPU use --precision=bf16-mixed")
    if recipe.precision == "bf16-mixed":
        warn_if_emulated(device)
    if device == "cpu" and recipe.sync_batchnorm:
        raise ConfigError(
            "sync_batchnorm needs GPUs: torch's SyncBatchNorm does not run on the CPU"
        )


def warn_if_emulated(device: str) -> None:
    """Warn of bfloat16 on an x86 CPU that computes it in software."""
    if device == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX2":
        warnings.warn(
            "this CPU (AVX2) has no instructions for bfloat16: a training step may take ten times as "
            "long as in float32",
            stacklevel=2,
        )
