"""BatchNorm statistics of a network after pruning."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from snello.errors import ConfigError, DataError
from snello.graph import Example, Inputs, evaluation
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
        DataError: if there is no batch, or one with a single value per channel. After any error
            the statistics are as they were.

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
            for batch in batches:
                count += 1
                inputs_only(batch).map(lambda tensor: tensor.to(device)).call(model)
            if not count:
                raise DataError("recalibrate: there is no batch to estimate the statistics on")
        except Exception as error:
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


def inputs_only(batch: Example) -> Inputs:
    """Inputs of a model from one batch of calibration data.

    Raises:
        ConfigError: for a pair whose second tensor looks like targets.
    """
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        first, second = batch
        tensors = isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor)
        if tensors and second.dim() <= 1 < first.dim():
            raise ConfigError(
                f"batches hold pairs of shapes {tuple(first.shape)} and {tuple(second.shape)}, "
                "apparently inputs and targets; give only the inputs: (x for x, _ in loader)"
            )
    return Inputs.of(batch)
