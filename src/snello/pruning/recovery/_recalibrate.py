"""BatchNorm statistics of a network after pruning."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from snello.errors import DataError
from snello.graph import Example, evaluation, unlabelled
from snello.neurons import is_batchnorm


def recalibrate(model: nn.Module, batches: Iterable[Example]) -> int:
    """Estimate the running statistics of every BatchNorm again, in place.

    Means and variances are averages over all batches with equal weight; every other module is in
    evaluation mode. A BatchNorm that keeps no statistics is left alone.

    Args:
        model: changed in place; its modes are restored.
        batches: inputs without targets, in a form that the model accepts; a few thousand samples
            are enough.

    Returns:
        The number of BatchNorms estimated. Zero, without a forward pass, for a network that has
        none.

    Raises:
        ConfigError: if the batches seem to contain targets.
        DataError: if there is no batch, one without samples or with a single value per channel, or
            if a statistic is not finite. After any error the statistics are as they were.

    Source: Li et al., "EagleEye: fast sub-net evaluation for efficient neural network pruning",
    ECCV 2020, section 3.3, adaptive batch normalisation.
    """
    norms = [m for m in model.modules() if is_batchnorm(m) and m.running_mean is not None]
    if not norms:
        return 0
    momenta = [norm.momentum for norm in norms]
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    before = [{n: b.clone() for n, b in norm.named_buffers()} for norm in norms]
    count = 0
    with evaluation(model):
        try:
            for norm in norms:
                norm.reset_running_stats()  # type: ignore[operator]
                norm.momentum = None  # type: ignore[assignment]  # a plain average over batches
                norm.training = True
            for inputs in unlabelled(batches, device):
                count += 1
                inputs.call(model)
            if not count:
                raise DataError("recalibrate: there is no batch to estimate the statistics on")
            for norm in norms:
                if not (norm.running_mean.isfinite() & norm.running_var.isfinite()).all():  # type: ignore[union-attr, operator]
                    raise DataError(
                        "recalibrate: the statistics of a BatchNorm are not finite: look for NaN in "
                        "the inputs and in the weights"
                    )
        except BaseException as error:  # an interruption, too
            for norm, buffers in zip(norms, before, strict=True):
                norm.load_state_dict(buffers, strict=False)
            if "more than 1 value per channel" not in str(error):
                raise
            raise DataError(
                f"recalibrate: batch {count - 1} has one value per channel of a BatchNorm, which has "
                "no variance: give calibration inputs in batches of two samples or more"
            ) from error
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
    return len(norms)
