"""How a call in the graph is written: by position or by name, one by one or as a sequence, as function or module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import fx, nn

DROPOUTS: dict[Any, type[nn.Module]] = {
    F.dropout: nn.Dropout, F.dropout1d: nn.Dropout1d, F.dropout2d: nn.Dropout2d, F.dropout3d: nn.Dropout3d,
    F.alpha_dropout: nn.AlphaDropout, F.feature_alpha_dropout: nn.FeatureAlphaDropout,
}  # fmt: skip
"""Functional dropout -> the module that does the same."""


def argument(node: fx.Node, position: int, name: str, default: object = None) -> Any:
    """An argument of a call that may be given by position or by name."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def one_by_one(arguments: Sequence[Any]) -> tuple[Any, ...]:
    """Sizes or axes, which may be given as one sequence: ``view(2, 3)`` and ``view((2, 3))``."""
    nested = len(arguments) == 1 and isinstance(arguments[0], (tuple, list))
    return tuple(arguments[0] if nested else arguments)
