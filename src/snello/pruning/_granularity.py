"""The three granularities: their units, and the importances that fit them."""

from __future__ import annotations

from typing import Any, get_args

from torch import nn

from snello.errors import ConfigError, check_count
from snello.graph import Example
from snello.neurons import LayerFilter

from ._channel_units import ChannelUnits
from ._importance import Granularity, Importance, importance_of
from ._layers import prunable
from ._units import Units
from .channels import ChannelImportance
from .channels.importances import importance_of as channel_importance_of


def importance_for(
    granularity: Granularity, importance: str | Importance | ChannelImportance
) -> Any:
    """An importance of weights and neurons, or of channels, by its name or as it is.

    Raises:
        ConfigError: for an unknown granularity or name.
    """
    if granularity not in get_args(Granularity):
        raise ConfigError(
            f"granularity is one of {', '.join(get_args(Granularity))}, not {granularity!r}"
        )
    if granularity == "channel":
        return channel_importance_of(importance)  # type: ignore[arg-type]
    return importance_of(importance)  # type: ignore[arg-type]


def units_for(
    model: nn.Module,
    granularity: Granularity,
    exclude: LayerFilter | None,
    example: Example | None,
    round_to: int,
) -> Units | ChannelUnits:
    """The units of a model that may be pruned.

    Raises:
        ConfigError: for a model without a layer to prune, for channels without example inputs, and
            for widths of anything else to round.
        ModelError: as `ChannelUnits.of` and `Units.of`.
    """
    check_count("round_to", round_to)
    if granularity == "channel":
        return ChannelUnits.of(model, example, exclude, round_to)
    if round_to != 1:
        raise ConfigError(f"round_to={round_to} rounds widths, for granularity='channel' alone")
    return Units.of(model, prunable(model, exclude), granularity, example)
