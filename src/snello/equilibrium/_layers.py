"""Which layers have neurons that may be frozen, and why the others are left alone."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from snello.errors import ConfigError
from snello.neurons import head, neuron_layers, select_layers

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
WEIGHTED = (nn.Linear, *CONVOLUTIONS)
_KINDS = (*WEIGHTED, nn.LayerNorm)


def monitored_layers(
    model: nn.Module, exclude: Iterable[str] = ()
) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """The layers whose neurons are watched and may be frozen, and those that are not.

    Watched are Linear, Conv1d/2d/3d, BatchNorm and LayerNorm with an affine transform; never the head.

    Args:
        model: any module.
        exclude: names of layers to leave alone.

    Returns:
        Layers by name, and for every other layer with neurons the reason why it always updates.

    Raises:
        ConfigError: for an excluded name that no layer has, or when no layer is left.
    """
    candidates = neuron_layers(model)
    kept = select_layers(candidates, exclude, "NEq")
    watched: dict[str, nn.Module] = {}
    left: dict[str, str] = {}
    last, owners = head(model), _owners(model)
    for name, module in candidates.items():
        if name not in kept:
            left[name] = "excluded by name"
        elif name == last:
            left[name] = "the head: its neurons are the classes"
        elif reason := _unfit(module, owners):
            left[name] = reason
        else:
            watched[name] = module
    if not watched:
        raise ConfigError(
            f"NEq: {type(model).__name__} has no layer to watch beside its head; "
            f"left alone: {left or 'nothing, the model has no layer with neurons'}"
        )
    return watched, left


def _owners(model: nn.Module) -> dict[int, int]:
    """Parameter identity -> in how many distinct modules it lives (a shared module counts once)."""
    owners: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    return owners


def _unfit(module: nn.Module, owners: dict[int, int]) -> str | None:
    if not isinstance(module, (*_KINDS, _BatchNorm)):
        return f"{type(module).__name__} is not watched"
    weight = module._parameters.get("weight")
    if weight is None:
        return "its weight is computed (parametrisation or pruning hook), not a parameter"
    if any(owners[id(p)] > 1 for p in module.parameters(recurse=False)):
        # Freezing a row here would freeze it in the other module as well.
        return "one of its parameters is tied to another layer"
    if isinstance(module, _KINDS) and not _runs_as_documented(module):
        return f"{type(module).__name__} computes its output in its own way"
    return None


def _runs_as_documented(module: nn.Module) -> bool:
    """Whether the layer's forward is torch's: what replaces it, or reads its channels, relies on that."""
    base = next(kind for kind in _KINDS if isinstance(module, kind))
    methods = ("forward", "_conv_forward") if isinstance(module, CONVOLUTIONS) else ("forward",)
    same = all(getattr(type(module), method) is getattr(base, method) for method in methods)
    return same and not any(method in vars(module) for method in methods)
