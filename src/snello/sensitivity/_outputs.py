"""Scores of classes in a model's outputs, and the random choice among the classes."""

from __future__ import annotations

import torch
from torch import Tensor

from snello.errors import ConfigError
from snello.processes import Group, rank_and_size


def class_scores(outputs: Tensor, class_dim: int, who: str) -> Tensor:
    """One score per example and class: shape (B, C), attached to the graph.

    If there is an output at every pixel or token, the score of a class is the mean over positions,
    as after global average pooling.

    Args:
        outputs: (B, C), (B, C, ...) with `class_dim=1`, or (B, ..., C) with `class_dim=-1`.
        class_dim: the dimension of the classes.
        who: name of the caller, for the error.

    Raises:
        ConfigError: for outputs without a graph, or without such a dimension.
    """
    if not isinstance(outputs, Tensor):
        raise ConfigError(
            f"{who} needs a tensor of scores, not a {type(outputs).__name__}; pass its logits"
        )
    dims = outputs.dim()
    if (
        not outputs.requires_grad
        or not outputs.numel()
        or dims < 2
        or not class_dim % dims >= 1
        or not -dims < class_dim < dims
    ):
        raise ConfigError(
            f"{who} needs the outputs of a training forward with their graph, the batch first and the classes "
            f"on dimension {class_dim} (class_dim); got shape {tuple(outputs.shape)}, "
            f"requires_grad={outputs.requires_grad}"
        )
    return outputs if dims == 2 else outputs.movedim(class_dim, 1).flatten(2).mean(2)


def target_scores(outputs: Tensor, targets: Tensor, class_dim: int, ignore_index: int) -> Tensor:
    """The score of each example's target class: shape (B,), attached to the graph.

    With a target at every position, it is the mean over the positions that are not ignored.

    Raises:
        ConfigError: for targets of another shape or outside 0 ... C - 1.
    """
    if not isinstance(targets, Tensor):
        raise ConfigError(
            f"targets must be a tensor of class indices, not a {type(targets).__name__}"
        )
    outputs = outputs.movedim(class_dim, 1)
    ignored = targets == ignore_index
    fits = targets.shape == outputs.shape[:1] + outputs.shape[2:]
    if not fits or bool(
        ((targets < 0) | (targets >= outputs.shape[1])).logical_and(~ignored).any()
    ):
        raise ConfigError(
            f"targets must be class indices 0 ... {outputs.shape[1] - 1} of shape "
            f"{tuple(outputs.shape[:1] + outputs.shape[2:])} (or ignore_index={ignore_index}), "
            f"got shape {tuple(targets.shape)}"
        )
    # Ignored positions get a valid index for the lookup, and a score of zero after it.
    picked = outputs.gather(1, targets.masked_fill(ignored, 0).unsqueeze(1)).squeeze(1)
    picked = picked.masked_fill(ignored, 0).reshape(len(outputs), -1)
    return picked.sum(1) / (~ignored).reshape(len(outputs), -1).sum(1).clamp(min=1)


def generator(seed: int, call: int) -> torch.Generator:
    """Generator for one observation, seeded by the run's seed and the observation's number."""
    # Seeded for each observation, so that a checkpoint needs no state of a generator.
    return torch.Generator().manual_seed(seed * 1_000_003 + call)


def draw_classes(batch: int, classes: int, seed: int, call: int, group: Group) -> Tensor:
    """One class per example, uniformly: int64, shape (batch, 1), on the CPU.

    Every process draws for the joined batch and takes its own part: two processes with half a batch
    each draw the same classes as one process with the whole batch.
    """
    rank, size = rank_and_size(group)
    drawn = torch.randint(classes, (size * batch, 1), generator=generator(seed, call))
    return drawn[rank * batch : (rank + 1) * batch]


def wide(tensor: Tensor) -> torch.dtype:
    """dtype of sums: at least single precision."""
    return torch.promote_types(tensor.dtype, torch.float32)
