"""Warnings about pruned weights that no mask keeps at zero."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from snello.neurons import Masks

from ._channel_units import ChannelUnits
from ._units import Units

CHANCE = 1e-3
"""A smaller share of zeros is ignored: float32 has exact zeros among many random numbers."""


def warn_of_unmasked_zeros(model: nn.Module, units: Units | ChannelUnits, masks: Masks) -> None:
    """Warn if weights of a model are zero without a mask: its masks may have been lost.

    Layers whose weights are all zero are ignored, as these were probably initialised to zero.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    free: dict[str, int] = {}
    for name in units.weights:
        zeros = parameters[name].detach() == 0
        if not bool(zeros.all()):
            if name in masks:
                zeros &= masks[name].to(zeros.device)
            count = int(zeros.sum())
            if count > 1 and count > CHANCE * zeros.numel():
                free[name] = count
    if free:
        warnings.warn(
            f"Pruner: {sum(free.values())} weights are exactly zero and no mask holds them, {next(iter(free))!r} "
            "has some: training will move them. If the model was pruned before, load the state_dict of its "
            "pruner, or call pruner.adopt(snello.pruning.zero_masks(model))",
            stacklevel=3,
        )


def warn_of_averages(model: nn.Module, followed: Sequence[nn.Module]) -> None:
    """Warn if there is a running average of a model that is not masked with it.

    A running average is recognised as a module whose only child `module` has the class and the
    parameter shapes of the model, as in torch's AveragedModel and timm's ModelEma.

    Args:
        model: the model.
        followed: averages that are masked already.
    """
    shapes = _shapes(model)
    for found in gc.get_objects():
        inner = _averaged(found)
        if inner is None or inner is model or any(inner is known for known in followed):
            continue
        if type(inner) is not type(model) or _shapes(inner) != shapes or _zero_alike(model, inner):
            continue
        kind = type(found).__name__
        warnings.warn(
            f"Pruner: there is an {kind} with the parameters of this model; what is pruned lives on in it "
            "unless it is masked too: pruner.follow(average)",
            stacklevel=4,
        )
        return


def _averaged(found: object) -> nn.Module | None:
    """The copy inside an average; None for anything else."""
    # By type(), because isinstance runs code of proxy objects that define __class__.
    kind = type(found)
    if not issubclass(kind, nn.Module) or issubclass(kind, (DataParallel, DistributedDataParallel)):
        return None
    children = vars(found).get("_modules") or {}  # missing while __init__ runs
    inner = children.get("module") if len(children) == 1 else None
    return inner if isinstance(inner, nn.Module) else None


def _zero_alike(model: nn.Module, average: nn.Module) -> bool:
    """Return True if the average is zero wherever the model is."""
    pairs: list[tuple[Tensor, Tensor]] = list(
        zip(model.parameters(), average.parameters(), strict=True)
    )
    with torch.no_grad():
        return not any(bool((a[w.to(a.device) == 0] != 0).any()) for w, a in pairs)


def _shapes(model: nn.Module) -> list[tuple[str, torch.Size]]:
    return [(name, parameter.shape) for name, parameter in model.named_parameters()]
