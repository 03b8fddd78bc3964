"""A point of the search: the widths of a network and its sparsity."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Point:
    """Widths and sparsity, before they are tried.

    Attributes:
        widths: dimension -> number of channels kept, for the narrowed dimensions.
        sparsity: share of the weights set to zero, in [0, 1).
    """

    widths: Mapping[str, int] = field(default_factory=dict)
    sparsity: float = 0.0

    @property
    def key(self) -> str:
        """Short text that identifies the point."""
        text = json.dumps([sorted(self.widths.items()), round(self.sparsity, 6)])
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def dense(self) -> bool:
        """True if nothing is removed."""
        return not self.widths and not self.sparsity


@dataclass(frozen=True)
class Group:
    """Choices of one group: a dimension's widths, or levels of sparsity.

    Attributes:
        name: the dimension; `SPARSITY` for the weights.
        levels: its choices, the dense one first; widths fall, shares of zeros rise.
        drops: distance of the outputs at each level, rising from 0.
    """

    name: str
    levels: tuple[Any, ...]
    drops: tuple[float, ...]
