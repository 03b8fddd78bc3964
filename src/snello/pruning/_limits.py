"""Lower limits on the number of units that every layer keeps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from snello.errors import ConfigError, is_number, is_whole, nearest
from snello.neurons import is_within

from ._importance import Granularity

SHARES: dict[Granularity, float] = {"channel": 0.1, "neuron": 0.1, "weight": 0.001}
"""Share of a layer that is kept by default. Layers work with few weights, not with few neurons."""

HEAVY: dict[Granularity, float] = {"channel": 0.9, "neuron": 0.9, "weight": 0.99}
"""A plan warns if a layer would lose more than this share."""


@dataclass(frozen=True)
class LayerLimits:
    """Lower limits on what every layer keeps, for any amount. At least one unit is always kept.

    Attributes:
        keep_at_least: a share of the layer's units in [0, 1), or their number (an int); None: a
            tenth of the neurons or channels, a thousandth of the weights.
        max_ratio: the largest share of a layer that may be pruned, in [0, 1]: one for all layers,
            or layer name -> share. A name may be that of a module that contains layers.

    Raises:
        ConfigError: for numbers outside their range.
    """

    keep_at_least: float | int | None = None
    max_ratio: float | Mapping[str, float] = 1.0

    def __post_init__(self) -> None:
        _check_least(self.keep_at_least)
        by_layer = isinstance(self.max_ratio, Mapping)
        ratios: Mapping[str, Any] = self.max_ratio if by_layer else {"": self.max_ratio}  # type: ignore[assignment]
        for name, ratio in ratios.items():
            if not isinstance(name, str):
                raise ConfigError(f"max_ratio names layers by a text, not by {name!r}")
            if not is_number(ratio) or not 0 <= ratio <= 1:
                where = f" of layer {name!r}" if by_layer else ""
                raise ConfigError(f"max_ratio{where} is a share: a number in [0, 1], not {ratio!r}")

    def check_names(self, layers: Iterable[str]) -> None:
        """Check the names in `max_ratio`.

        Raises:
            ConfigError: for a name that is neither a prunable layer nor a module with one.
        """
        known = list(layers)
        for name in self.max_ratio if isinstance(self.max_ratio, Mapping) else ():
            if not any(is_within(layer, name) for layer in known):
                raise ConfigError(
                    f"max_ratio: no layer that is pruned is called {name!r}{nearest(name, known)}; "
                    f"the layers are: {', '.join(known)}"
                )

    def least(self, name: str, units: int, granularity: Granularity) -> int:
        """Number of units that a layer must keep.

        Args:
            name: the layer.
            units: number of its units.
            granularity: kind of the units, for the default.
        """
        given = SHARES[granularity] if self.keep_at_least is None else self.keep_at_least
        # Rounding can make a share times a count slightly larger than a whole number.
        kept = given if isinstance(given, int) else math.ceil(given * units - 1e-6)
        spared = units - math.floor(self._ratio(name) * units + 1e-6)
        return min(units, max(1, kept, spared))

    def _ratio(self, name: str) -> float:
        if not isinstance(self.max_ratio, Mapping):
            return self.max_ratio
        # The longest name is the most specific one: a layer's own precedes that of its parent.
        found = [given for given in self.max_ratio if is_within(name, given)]
        return self.max_ratio[max(found, key=len)] if found else 1.0


def protected(score: Tensor, least: int) -> Tensor:
    """Scores with the `least` highest ones set to infinity, so that no threshold prunes them.

    Args:
        score: score of each unit, any shape; zero if it is pruned already. Of equal scores the
            first are protected.
        least: number of units that must be kept; if fewer are left, all of them are protected.
    """
    flat = score.flatten()
    highest = flat.cpu().argsort(descending=True, stable=True)[:least].to(flat.device)
    raised = flat.clone()
    raised[highest] = torch.where(flat[highest] > 0, math.inf, flat[highest])
    return raised.reshape(score.shape)


def _check_least(given: object) -> None:
    if given is None:
        return
    share = isinstance(given, float) and 0 <= given < 1
    count = is_whole(given) and given >= 1
    if not share and not count:
        raise ConfigError(
            "keep_at_least is a share of a layer in [0, 1), or a number of units, at least 1, "
            f"not {given!r}"
        )
