"""Extraction of the score tensor from a network's outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from snello.errors import ConfigError


def scores_of(outputs: Any) -> Tensor:
    """Extract the tensor of scores from the outputs of a network.

    Torchvision's segmentation networks return a mapping with `"out"`; Hugging Face models return
    an object or a mapping with `"logits"`.

    Raises:
        ConfigError: if the outputs contain no scores.
    """
    if isinstance(outputs, Tensor):
        return outputs
    for name in ("out", "logits"):
        found = outputs.get(name) if isinstance(outputs, Mapping) else getattr(outputs, name, None)
        if isinstance(found, Tensor):
            return found
    raise ConfigError(
        f"the network returned a {type(outputs).__name__} without scores: return a tensor, or a "
        "mapping or an object with 'out' or 'logits'"
    )
