"""Layers with neurons that may be frozen, and the reasons to leave the others alone."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from snello.errors import ConfigError
from snello.neurons import (
    CONVOLUTIONS,
    TRANSPOSED,
    computed,
    head,
    neuron_layers,
    parameter_owners,
    select_layers,
)

from ._uses import in_projections

WEIGHTED = (nn.Linear, *CONVOLUTIONS)

KINDS: dict[str, tuple[type[nn.Module], ...]] = {
    "conv": (*CONVOLUTIONS, *TRANSPOSED),
    "batchnorm": (_BatchNorm,),
    "layernorm": (nn.LayerNorm,),
    "linear": (nn.Linear,),
}
"""Kinds of layers whose neurons can be watched."""

EXCLUDED = "excluded by name"
HEAD = "the head: its neurons are the classes"
UNWANTED = "of a kind that is not watched"
CHOSEN = (EXCLUDED, HEAD, UNWANTED)
"""Reasons for which a layer is always updated, whatever rests in front of it."""

_WATCHABLE = tuple(kind for kinds in KINDS.values() for kind in kinds)
_AS_DOCUMENTED = (*WEIGHTED, *TRANSPOSED, nn.LayerNorm)


def monitored_layers(
    model: nn.Module, exclude: Iterable[str] = (), kinds: Iterable[str] | None = None
) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """The layers whose neurons are watched and may be frozen, and those that are not.

    Watched are Linear, convolutions, BatchNorm and LayerNorm with an affine transform, and the input
    projections of `MultiheadAttention`; never the head.

    Args:
        model: any module.
        exclude: names of layers to leave alone.
        kinds: names of `KINDS` to watch, or one of them; None for all.

    Returns:
        Layers by name, and for every other layer with neurons the reason why it is not watched.

    Raises:
        ConfigError: for an excluded name that no layer has, an unknown kind, when no layer is left,
            or when neurons of the model are frozen already.
    """
    wanted = _wanted(kinds)
    candidates = {**neuron_layers(model), **in_projections(model)}
    if held := [
        name for name, module in candidates.items() if hasattr(type(module), "_snello_plain")
    ]:
        raise ConfigError(
            f"NEq: neurons of layer {held[0]!r} are frozen by another NEq or SelectiveUpdate; call its remove() "
            "first: two of them would undo each other"
        )
    kept = select_layers(candidates, exclude, "NEq")
    watched: dict[str, nn.Module] = {}
    left: dict[str, str] = {}
    last, owners = head(model), parameter_owners(model)
    for name, module in candidates.items():
        if name not in kept:
            left[name] = EXCLUDED
        elif name == last:
            left[name] = HEAD
        elif reason := _unfit(module, owners):
            left[name] = reason
        elif not isinstance(module, wanted):
            left[name] = UNWANTED
        else:
            watched[name] = module
    if not watched:
        raise ConfigError(
            f"NEq: {type(model).__name__} has no layer to watch other than its head; "
            f"left alone: {left or 'nothing, the model has no layer with neurons'}"
        )
    return watched, left


def _wanted(kinds: Iterable[str] | None) -> tuple[type[nn.Module], ...]:
    """The classes of the kinds to watch."""
    named = [*KINDS] if kinds is None else [kinds] if isinstance(kinds, str) else list(kinds)
    if unknown := [kind for kind in named if kind not in KINDS]:
        raise ConfigError(
            f"kinds: {unknown[0]!r} is none of the kinds of layers: {', '.join(KINDS)}"
        )
    if not named:
        raise ConfigError(
            f"kinds: names no kind of layer; give some of {', '.join(KINDS)}, or None for all"
        )
    return tuple(layer for kind in named for layer in KINDS[kind])


def _unfit(module: nn.Module, owners: dict[int, int]) -> str | None:
    if not isinstance(module, _WATCHABLE):
        return f"{type(module).__name__} is not watched"
    if isinstance(module, TRANSPOSED) and module.groups > 1:
        # Axis 1 of its weight is an index within a group, which does not identify a neuron.
        return "the neurons of a grouped transposed convolution are on no axis of its weight"
    if reason := computed(module):
        return reason
    if any(owners[id(p)] > 1 for p in module.parameters(recurse=False)):
        # Freezing a row here would freeze it in the other module as well.
        return "one of its parameters is tied to another layer"
    if isinstance(module, _AS_DOCUMENTED) and not (
        _runs_as_documented(module) or _normalises_as_documented(module)
    ):
        return f"{type(module).__name__} computes its output in its own way"
    return None


def _runs_as_documented(module: nn.Module) -> bool:
    """Return true if the layer's forward is torch's, which sparse layers replace."""
    base = next(kind for kind in _AS_DOCUMENTED if isinstance(module, kind))
    methods = ("forward", "_conv_forward") if isinstance(module, CONVOLUTIONS) else ("forward",)
    same = all(getattr(type(module), method) is getattr(base, method) for method in methods)
    return same and not any(method in vars(module) for method in methods)


def _normalises_as_documented(module: nn.Module) -> bool:
    """Return true for a LayerNorm with an own forward, as timm's, that gives torch's outputs.

    Those with the channels on another axis do not: their neurons are elsewhere in the output.
    """
    if not isinstance(module, nn.LayerNorm) or "forward" in vars(module):
        return False
    shape = (2, 3, *module.normalized_shape)
    steps = torch.linspace(-1, 1, torch.Size(shape).numel(), device=module.weight.device)
    x = steps.square().reshape(shape).to(module.weight.dtype)
    try:
        with torch.no_grad():
            return torch.allclose(module.forward(x), nn.LayerNorm.forward(module, x))
    except (RuntimeError, TypeError, ValueError, IndexError):
        return False
