"""What a pruner cannot hold, it points at."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from snello.neurons import Masks

from ._units import Units

CHANCE = 1e-3
"""A share of zeros below this is taken for chance: single precision has some zeros among many random numbers."""


def warn_of_unmasked_zeros(model: nn.Module, units: Units, masks: Masks) -> None:
    """Say so when weights of a model are zero and no mask holds them: it was pruned, and the masks are lost.

    Layers whose weights are all zero were more likely initialised so, and count as trained.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    free: dict[str, int] = {}
    for layer in units.layers:
        name = f"{layer}.weight" if layer else "weight"
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
    """Say so when there is a running average that looks like one of this model, and is not masked with it."""
    shapes = _shapes(model)
    for found in gc.get_objects():
        # By type(): isinstance would ask objects that only pretend to have a class.
        if not issubclass(type(found), AveragedModel):
            continue
        inner = found._modules.get("module")
        if inner is None or any(inner is known for known in followed) or _shapes(inner) != shapes:
            continue
        if _zero_alike(model, inner):
            continue
        warnings.warn(
            "Pruner: there is an AveragedModel with the parameters of this model; what is pruned lives on in it "
            "unless it is masked too: pruner.follow(average)",
            stacklevel=4,
        )
        return


def _zero_alike(model: nn.Module, average: nn.Module) -> bool:
    """Whether the average is zero wherever the model is."""
    pairs: list[tuple[Tensor, Tensor]] = list(zip(model.parameters(), average.parameters(), strict=True))
    with torch.no_grad():
        return not any(bool((a[w.to(a.device) == 0] != 0).any()) for w, a in pairs)


def _shapes(model: nn.Module) -> list[tuple[str, torch.Size]]:
    return [(name, parameter.shape) for name, parameter in model.named_parameters()]
