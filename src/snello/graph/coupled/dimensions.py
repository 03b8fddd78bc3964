"""The result of the analysis: dimensions, and the slices that belong to each of their indices."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from snello.errors import ConfigError, nearest


@dataclass(frozen=True)
class Member:
    """The slices of a parameter, buffer or attribute that are removed with indices of a dimension.

    Attributes:
        name: qualified name of a parameter or buffer, or of an integer attribute that holds a
            width.
        axis: axis of the parameter; of an attribute, the position in a tuple, or -1.
        role: `"write"` for rows that compute channels, `"read"` for columns that use them,
            `"scale"` for parameters that are combined with them element by element (norms,
            biases, embeddings of positions), `"size"` for an attribute.
        indices: for each index of the dimension, the indices along the axis that belong to it.
    """

    name: str
    axis: int
    role: str
    indices: tuple[tuple[int, ...], ...]

    def of(self, removed: Iterable[int]) -> list[int]:
        """Indices along the axis that belong to the removed indices of the dimension, sorted."""
        return sorted({i for index in removed for i in self.indices[index]})

    @property
    def span(self) -> int:
        """Length of the axis that the indices need: one more than the largest of them."""
        return 1 + max((max(own, default=-1) for own in self.indices), default=-1)

    def sums(self, values: Tensor) -> Tensor:
        """Sum a tensor over the slice of each index: shape (width,).

        Args:
            values: of the parameter's shape, or one for each entry of the axis.
        """
        along = values.transpose(0, self.axis).flatten(1).sum(1) if values.dim() > 1 else values
        owner, places = (index.to(along.device) for index in self._owner_and_place)
        return along.new_zeros(len(self.indices)).index_add_(0, owner, along[places])

    def spread(self, values: Tensor, length: int, elsewhere: float) -> Tensor:
        """Put the value of each index, shape (width,), at its places on the axis: shape (length,)."""
        owner, places = (index.to(values.device) for index in self._owner_and_place)
        return values.new_full((length,), elsewhere).index_copy_(0, places, values[owner])

    @cached_property
    def _owner_and_place(self) -> tuple[Tensor, Tensor]:
        """Index of the dimension and index along the axis, of every pair of the two."""
        pairs = [(index, place) for index, own in enumerate(self.indices) for place in own]
        owner, places = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).T
        return owner, places


@dataclass(frozen=True)
class Dimension:
    """A width of the model that can be reduced independently of the others.

    Index i is removed from all members or from none.

    Attributes:
        name: name of the first module that writes the channels; with `:heads` or `:head_dim`
            where they belong to attention.
        kind: `"channels"`, `"hidden"` (written by one layer, read by others), `"heads"`,
            `"head_dim"` or `"groups"` (of a convolution).
        width: number of indices.
        members: the slices and attributes that go with each index.
        norms: (module, operation) of every norm, mean or sum over these channels; after a cut it
            is one over the kept channels.
        pinned: why no index can be removed; None if any can, as long as one is left.
    """

    name: str
    kind: str
    width: int
    members: tuple[Member, ...]
    norms: tuple[tuple[str, str], ...] = ()
    pinned: str | None = None

    @property
    def parameters(self) -> tuple[Member, ...]:
        """The members that are parameters or buffers."""
        return tuple(member for member in self.members if member.role != "size")

    def protected(self, scores: Tensor) -> Tensor:
        """Scores of the indices, with infinity for those that must stay.

        Where a parameter has slices of some indices only, such as queries if keys and values are
        one dimension, the best of these indices stays: an empty parameter computes nothing.
        """
        found = scores.clone()
        for member in self.parameters:
            own = [index for index, slices in enumerate(member.indices) if slices]
            if 0 < len(own) < self.width:
                found[own[int(scores[own].argmax())]] = math.inf
        return found

    @property
    def writers(self) -> tuple[str, ...]:
        """Parameters whose slices compute the channels."""
        return tuple(member.name for member in self.members if member.role == "write")

    @property
    def readers(self) -> tuple[str, ...]:
        """Parameters whose slices use the channels."""
        return tuple(member.name for member in self.members if member.role == "read")


@dataclass(frozen=True)
class Coupling:
    """The channels of a model that can only be removed together, by dimension.

    Attributes:
        dimensions: every width that was found, in order of execution.
    """

    dimensions: tuple[Dimension, ...]

    @property
    def free(self) -> tuple[Dimension, ...]:
        """The dimensions from which indices can be removed."""
        return tuple(dimension for dimension in self.dimensions if dimension.pinned is None)

    def __getitem__(self, name: str) -> Dimension:
        for dimension in self.dimensions:
            if dimension.name == name:
                return dimension
        known = [dimension.name for dimension in self.dimensions]
        raise ConfigError(f"the model has no dimension {name!r}{nearest(name, known)}")

    def __str__(self) -> str:
        rows = [("dimension", "kind", "width", "writers", "readers", "norms", "pinned")]
        for d in self.dimensions:
            counts = (str(d.width), _short(d.writers), _short(d.readers), str(len(d.norms)))
            rows.append((d.name, d.kind, *counts, d.pinned or ""))
        widths = [max(len(row[i]) for row in rows) for i in range(6)]
        lines = ["  ".join([*map(str.ljust, row[:6], widths), row[6]]).rstrip() for row in rows]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """The coupling as data for `json`."""
        return asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Coupling:
        """The coupling that [`to_json`][snello.graph.coupled.Coupling.to_json] wrote."""
        return Coupling(tuple(_dimension(entry) for entry in data["dimensions"]))


def _dimension(data: Mapping[str, Any]) -> Dimension:
    members = tuple(
        Member(m["name"], m["axis"], m["role"], tuple(tuple(i) for i in m["indices"]))
        for m in data["members"]
    )
    norms = tuple((module, operation) for module, operation in data["norms"])
    return Dimension(data["name"], data["kind"], data["width"], members, norms, data["pinned"])


def _short(names: tuple[str, ...]) -> str:
    modules = list(dict.fromkeys(name.rpartition(".")[0] or name for name in names))
    return ", ".join(modules[:2]) + (f" +{len(modules) - 2}" if len(modules) > 2 else "")
