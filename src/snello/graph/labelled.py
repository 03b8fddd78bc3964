"""Calibration data, with labels or without, and the loss of a model on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeAlias, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree as pytree

from snello.errors import ConfigError, DataError

from .inputs import Example, Inputs

Labelled: TypeAlias = tuple[Any, Any]
"""A batch of inputs, as [`Inputs.of`][snello.graph.Inputs.of] takes them, and its targets."""
Loss: TypeAlias = Callable[[Any, Any], Tensor]
Batch = TypeVar("Batch")


def repeatable(batches: Iterable[Batch]) -> Iterable[Batch]:
    """Batches that can be iterated more than once: those of an iterator, in a list."""
    return list(batches) if isinstance(batches, Iterator) else batches


def labelled(batches: Iterable[Labelled], device: torch.device) -> Iterator[tuple[Inputs, Any]]:
    """Yield the inputs and targets of every batch, on a device.

    Raises:
        ConfigError: for a batch that is no pair.
        DataError: for a batch without samples.
    """
    for batch in batches:
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            what = (
                f"{len(batch)} values" if isinstance(batch, (tuple, list)) else type(batch).__name__
            )
            raise ConfigError(
                f"calibration batches are pairs of inputs and targets, (inputs, targets), not {what}"
            )
        targets = pytree.tree_map_only(Tensor, lambda tensor: tensor.to(device), batch[1])
        yield _checked(Inputs.of(batch[0])).map(lambda tensor: tensor.to(device)), targets


def unlabelled(batches: Iterable[Example], device: torch.device) -> Iterator[Inputs]:
    """Yield batches of inputs without targets, on a device.

    Raises:
        ConfigError: for a tensor in place of a list of batches, and for pairs that look like inputs
            and targets.
        DataError: for a batch without samples.
    """
    if isinstance(batches, Tensor):
        raise ConfigError(
            f"batches is a list of batches of inputs, not a tensor of shape {tuple(batches.shape)}: "
            "put it into a list"
        )
    for batch in batches:
        if isinstance(batch, (tuple, list)) and len(batch) == 2:
            first, second = batch
            tensors = isinstance(first, Tensor) and isinstance(second, Tensor)
            if tensors and second.dim() <= 1 < first.dim():
                raise ConfigError(
                    f"batches hold pairs of shapes {tuple(first.shape)} and {tuple(second.shape)}, "
                    "apparently inputs and targets; give only the inputs: (x for x, _ in loader)"
                )
        yield _checked(Inputs.of(batch)).map(lambda tensor: tensor.to(device))


def _checked(inputs: Inputs) -> Inputs:
    lengths = [len(tensor) for tensor in inputs.tensors() if tensor.dim()]
    if lengths and not any(lengths):
        raise DataError(f"a calibration batch has no samples: its shapes are {inputs.shapes}")
    return inputs


def loss_of(outputs: Any, targets: Any, loss: Loss | None) -> Tensor:
    """The loss of a batch.

    Args:
        outputs: of the model.
        targets: of the batch.
        loss: function of the two; None for the cross-entropy of scores of classes.

    Raises:
        ConfigError: for a loss that is no scalar, and outputs without scores if there is no `loss`.
    """
    value = F.cross_entropy(scores_of(outputs), targets) if loss is None else loss(outputs, targets)
    if not isinstance(value, Tensor) or value.numel() != 1:
        what = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ConfigError(f"loss gives a scalar tensor, the mean over a batch, not {what}")
    return value


def scores_of(outputs: Any) -> Tensor:
    """The tensor of scores in a model's outputs.

    Torchvision's segmentation networks return a mapping with `"out"`; Hugging Face models return
    an object or a mapping with `"logits"`.

    Raises:
        ConfigError: for outputs without scores.
    """
    if isinstance(outputs, Tensor):
        return outputs
    for name in ("out", "logits"):
        found = outputs.get(name) if isinstance(outputs, Mapping) else getattr(outputs, name, None)
        if isinstance(found, Tensor):
            return found
    raise ConfigError(
        f"the model returned a {type(outputs).__name__} without scores: return a tensor, or a "
        "mapping or an object with 'out' or 'logits', or give loss=, a function of outputs and "
        "targets, if there is one"
    )
