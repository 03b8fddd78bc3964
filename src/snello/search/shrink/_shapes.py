"""Shapes of tensors and operations as functions of the widths, without cutting the network."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import nn

from snello.deploy.operations import Operation, operations_of
from snello.errors import ModelError
from snello.graph import Example, Inputs
from snello.graph.coupled import Coupling, cut
from snello.neurons import named_tensors
from snello.search.prune import Branch

Widths = Mapping[str, int]
"""Dimension -> number of channels that are kept; the whole width if it is missing. A residual branch
is a dimension of width 1, or 0 if it is removed."""

Slopes = dict[int, dict[str, float]]
"""Axis -> dimension -> indices of the axis that belong to one channel."""


def branch_name(branch: Branch) -> str:
    """Name of a branch among the dimensions."""
    return f"{branch.name}:branch"


@dataclass(frozen=True)
class _Entry:
    """A tensor or an operation.

    Attributes:
        shape: its shape in the dense network.
        slopes: how its axes follow the widths.
        branches: the residual branches without which it does not exist.
        operation: the operation; None for a tensor.
    """

    shape: tuple[int, ...]
    slopes: Slopes
    operation: Operation | None = None
    branches: set[str] = field(default_factory=set)

    def exists(self, widths: Widths) -> bool:
        """False if a branch that it belongs to is removed."""
        return all(widths.get(name, 1) for name in self.branches)


class ShapeModel:
    """Shapes of a network at any widths, from one cut per dimension.

    An axis loses a fixed number of indices per channel. Where two dimensions share an axis side by
    side, their losses add up; where they form a grid, such as heads and their dimensions, the kept
    shares are multiplied.

    Args:
        model: the dense network.
        coupling: its coupling.
        example: example inputs, as in deployment.
        branches: residual branches, each a dimension of width 1 that may be 0.

    Raises:
        ModelError: if the network runs other operations after a channel was removed.
    """

    def __init__(
        self,
        model: nn.Module,
        coupling: Coupling,
        example: Example,
        branches: Sequence[Branch] = (),
    ) -> None:
        inputs = Inputs.of(example)
        self.dense = {d.name: d.width for d in coupling.free if d.width > 1}
        operations = operations_of(model, inputs)
        tensors = {name: tuple(t.shape) for name, t in named_tensors(model).items()}
        entries = [_Entry(shape, {}) for shape in tensors.values()]
        entries += [_Entry(o.shape, {}, o) for o in operations]
        for name in self.dense:
            lean = cut(model, coupling, {name: [0]})
            shapes = [tuple(t.shape) for t in named_tensors(lean).values()]
            narrow = operations_of(lean, inputs)
            if [o.kind for o in narrow] != [o.kind for o in operations]:
                raise ModelError(
                    f"{type(model).__name__} runs other operations without one channel of {name!r}: exclude it"
                )  # fmt: skip
            for entry, shape in zip(entries, shapes + [o.shape for o in narrow], strict=True):
                _add(entry.slopes, entry.shape, shape, name)
        self._tensors = dict(zip(tensors, entries[: len(tensors)], strict=True))
        self._operations = entries[len(tensors) :]
        for branch in branches:
            self._mark(branch, coupling)

    def _mark(self, branch: Branch, coupling: Coupling) -> None:
        """Note which tensors and operations a branch consists of."""
        name = branch_name(branch)
        modules = {tensor.rpartition(".")[0] for tensor in branch.within}
        for tensor, entry in self._tensors.items():
            if tensor.rpartition(".")[0] in modules:  # buffers, too
                entry.branches.add(name)
        inside = {d.name for d in coupling.dimensions if branch.contains(d)}
        own = [e for e in self._operations if any(_reads(e, dimension) for dimension in inside)]
        if not own:  # a single layer: any operation of its shape has the same cost
            weights = [
                e.shape for n, e in self._tensors.items() if n in branch.within and len(e.shape) > 1
            ]
            own = [e for e in self._operations if not e.branches and _computes(e, weights)][:1]
        for entry in own:
            entry.branches.add(name)
        self.dense[name] = 1

    def elements(self, widths: Widths) -> dict[str, float]:
        """Number of entries of every parameter and buffer."""
        return {name: self._elements(entry, widths) for name, entry in self._tensors.items()}

    def operations(self, widths: Widths) -> list[Operation]:
        """The operations, in order."""
        return [self._operation(e, widths) for e in self._operations if e.exists(widths)]

    def elements_near(self, dimension: str, widths: Widths) -> dict[str, float]:
        """As `elements`, of the tensors that a dimension changes."""
        near = {n: e for n, e in self._tensors.items() if _reads(e, dimension)}
        return {name: self._elements(entry, widths) for name, entry in near.items()}

    def operations_near(self, dimension: str, widths: Widths) -> list[Operation]:
        """As `operations`, of those that a dimension changes."""
        near = [e for e in self._operations if _reads(e, dimension) and e.exists(widths)]
        return [self._operation(e, widths) for e in near]

    def _elements(self, entry: _Entry, widths: Widths) -> float:
        if not entry.exists(widths):
            return 0.0
        product = 1.0
        for size in self._shape(entry, widths):
            product *= size
        return product

    def _operation(self, entry: _Entry, widths: Widths) -> Operation:
        assert entry.operation is not None
        return replace(entry.operation, shape=self._shape(entry, widths))

    def _shape(self, entry: _Entry, widths: Widths) -> tuple[int, ...]:
        found = list(entry.shape)
        for axis, slopes in entry.slopes.items():
            whole = entry.shape[axis]
            gone = {
                n: s * (self.dense[n] - widths.get(n, self.dense[n])) for n, s in slopes.items()
            }
            if sum(s * self.dense[n] for n, s in slopes.items()) <= whole + 0.5:
                left = whole - sum(gone.values())
            else:
                left = float(whole)
                for lost in gone.values():
                    left *= 1 - lost / whole
            found[axis] = max(1, round(left))
        return tuple(found)


def _reads(entry: _Entry, dimension: str) -> bool:
    return dimension in entry.branches or any(
        dimension in slopes for slopes in entry.slopes.values()
    )


def _computes(entry: _Entry, weights: Sequence[tuple[int, ...]]) -> bool:
    """True if an operation has the channels of one of some weights, outputs first."""
    o = entry.operation
    if o is None or o.kind == "matmul":
        return False
    groups = o.shape[3] if o.kind == "conv" else 1
    return any(o.shape[1:3] == (w[1] * groups, w[0]) for w in weights)


def _add(slopes: Slopes, whole: tuple[int, ...], less: tuple[int, ...], name: str) -> None:
    for axis, (before, after) in enumerate(zip(whole, less, strict=True)):
        if before != after:
            slopes.setdefault(axis, defaultdict(float))[name] = float(before - after)
