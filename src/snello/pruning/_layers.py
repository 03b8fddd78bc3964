"""The layers that may be pruned."""

from __future__ import annotations

from torch import nn

from snello.errors import ConfigError
from snello.neurons import LayerFilter, head, select_layers, weighted_layers


def prunable(model: nn.Module, exclude: LayerFilter | None) -> dict[str, nn.Module]:
    """The layers with weights, except the excluded ones; None excludes the head.

    Raises:
        ConfigError: if no layer is left.
    """
    layers = weighted_layers(model)
    default = [name] if (name := head(model)) is not None else []
    kept = select_layers(layers, default if exclude is None else exclude, "Pruner(exclude=...)")
    if not kept:
        why = (
            "its only Linear layer or convolution is the head, which exclude=() prunes, too"
            if exclude is None and layers
            else "none is left"
        )
        raise ConfigError(f"{type(model).__name__} has no layer to prune: {why}")
    return kept
