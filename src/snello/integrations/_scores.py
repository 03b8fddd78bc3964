"""The scores in what a network returned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from snello.errors import ConfigError


def scores_of(outputs: Any) -> Tensor:
    """The tensor of scores in what a network returned.

    Torchvision's segmentation networks return a mapping with ``"out"``, others ``"logits"`` or an
    object that has them.

    Raises:
        ConfigError: if there is none.
    """
    if isinstance(outputs, Tensor):
        return outputs
    for name in ("out", "logits"):
        found = outputs.get(name) if isinstance(outputs, Mapping) else getattr(outputs, name, None)
        if isinstance(found, Tensor):
            return found
    raise ConfigError(
        f"the network returned a {type(outputs).__name__}, in which a sensitivity finds no scores: return a "
        "tensor, or a mapping or an object with 'out' or 'logits'"
    )
