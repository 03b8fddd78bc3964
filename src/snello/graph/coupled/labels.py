"""Labels of channels: classes of labels, axes that are grids, and reasons to pin a label."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import TypeAlias

from .classes import Classes

Vector: TypeAlias = tuple[int, ...]
"""The labels along one axis of a tensor: a positive number for a channel, 0 for an index that is
not a channel and must stay, -1 for an index of a broadcast value, which fits any width."""

Axis: TypeAlias = Vector | None
"""The labels along one axis; None where all of them are 0."""

Reason: TypeAlias = Callable[[], str]
"""Returns the reason for a pin; called only where a label is pinned, as it walks the stack."""

HEADS, HEAD_DIM, GROUPS = "heads", "head_dim", "groups"


@dataclass(frozen=True)
class Grid:
    """An axis of rows and columns: its index `r * len(columns) + c` is row r, column c.

    An index is removed with its row or its column.

    Attributes:
        cells: labels of the axis.
        rows: labels of the rows.
        columns: labels of the columns.
    """

    cells: Vector
    rows: Vector
    columns: Vector

    def row(self, r: int) -> Vector:
        """Labels of one row."""
        return self.cells[r * len(self.columns) : (r + 1) * len(self.columns)]

    def column(self, c: int) -> Vector:
        """Labels of one column."""
        return self.cells[c :: len(self.columns)]


class Labels:
    """The labels of one run, with the classes that they form.

    Two labels are in one class if they are the same channel. A pinned label must stay; of several
    reasons the first is kept.

    Attributes:
        allocated: the axes for which labels were made, in order.
        grids: the axes that were divided or joined by a view.
        pins: label -> why it must stay.
        flags: label -> kind of its axis, such as `"heads"`.
    """

    def __init__(self) -> None:
        self._classes = Classes(1)  # label 0 is no channel
        self.allocated: list[Vector] = []
        self.grids: list[Grid] = []
        self.pins: dict[int, str] = {}
        self.flags: dict[int, str] = {}
        self._factors: dict[tuple[Vector, int], tuple[Axis, Axis]] = {}
        self._products: dict[tuple[Vector, Vector], Vector] = {}

    def fresh(self, count: int) -> Vector:
        """New labels for an axis of this length, each in a class of its own."""
        labels = tuple(self._classes.add(count))
        self.allocated.append(labels)
        return labels

    def find(self, label: int) -> int:
        """The representative of a label's class: its oldest label."""
        return self._classes.find(label)

    def roots(self) -> list[int]:
        """The representative of each label; the list is indexed by label."""
        return [self.find(label) for label in range(len(self._classes))]

    def pin(self, axis: Axis, reason: Reason) -> None:
        """Mark the labels of an axis as channels that must stay, with the reason."""
        labels = [label for label in axis or () if label > 0]
        if labels:
            why = reason()
            for label in labels:
                self.pins.setdefault(label, why)

    def flag(self, axis: Axis, part: str) -> None:
        """Note the kind of an axis, such as `"heads"`; of several notes the first is kept."""
        for label in axis or ():
            if label > 0:
                self.flags.setdefault(label, part)

    def unify(self, a: Axis, b: Axis, reason: Reason) -> Axis:
        """Join corresponding labels of two axes of one length, and return the labels of the result.

        A label is pinned where the other axis has an index that must stay (0).
        """
        if a is None or b is None:
            known = b if a is None else a
            self.pin(known, reason)
            return known if known and any(label > 0 for label in known) else None
        if a == b:
            return a
        self.pin(tuple(x for x, y in zip(a, b, strict=True) if y == 0), reason)
        self.pin(tuple(y for x, y in zip(a, b, strict=True) if x == 0), reason)
        return self.join(a, b)

    def join(self, a: Vector, b: Vector) -> Vector:
        """Like `unify`, but without pinning the labels that correspond to 0."""
        for x, y in zip(a, b, strict=True):
            if x > 0 and y > 0 and x != y:
                self._classes.join(x, y)
        return tuple(x if x > 0 else y if y > 0 else min(x, y) for x, y in zip(a, b, strict=True))

    def split(self, axis: Axis, sizes: Sequence[int]) -> list[Axis]:
        """Labels of the axes of these sizes into which a view divides an axis."""
        if axis is None or len(sizes) == 1:
            return [axis, *[None] * (len(sizes) - 1)]
        row, column = self._split(axis, sizes[0])
        return [row, *self.split(column, sizes[1:])]

    def _split(self, axis: Vector, rows: int) -> tuple[Axis, Axis]:
        """Labels of rows and columns; a grid, unless the labels repeat along one of the two."""
        columns = len(axis) // rows
        if rows == 1 or columns == 1:
            return (None, axis) if rows == 1 else (axis, None)
        first = axis[:columns]
        if axis == first * rows:
            return None, first
        if axis == _repeated(axis[::columns], columns):
            return axis[::columns], None
        key = axis, rows
        if key not in self._factors:
            grid = Grid(axis, self.fresh(rows), self.fresh(columns))
            self.grids.append(grid)
            self._factors[key] = grid.rows, grid.columns
            self._products[grid.rows, grid.columns] = axis
        return self._factors[key]

    def merge(self, axes: Sequence[Axis], sizes: Sequence[int]) -> Axis:
        """Labels of the axis into which a view joins several axes of these sizes."""
        merged, length = axes[-1], sizes[-1]
        # From the right, because split divides from the left: merging undoes a split exactly.
        for axis, size in zip(reversed(axes[:-1]), reversed(sizes[:-1]), strict=True):
            merged = self._merge(axis, size, merged, length)
            length *= size
        return merged

    def _merge(self, a: Axis, n: int, b: Axis, m: int) -> Axis:
        if not _labelled(a) and not _labelled(b):
            return None if a is None or b is None else (-1,) * (n * m)
        if a is None or not _labelled(a):
            return b and b * n
        if b is None or not _labelled(b):
            return _repeated(a, m)
        if (a, b) not in self._products:
            grid = Grid(self.fresh(n * m), a, b)
            self.grids.append(grid)
            self._products[a, b] = grid.cells
            self._factors[grid.cells, n] = (a, b)
        return self._products[a, b]

    def reshape(self, axes: Sequence[Axis], old: Sequence[int], new: Sequence[int]) -> list[Axis]:
        """Labels of a reshaped tensor.

        Args:
            axes: labels by axis of the tensor before.
            old: its shape.
            new: the shape after.
        """
        result: list[Axis] = [None] * len(new)
        if prod(old) == 0 or not any(axes):
            return result
        for before, after in matching(old, new):
            merged = self.merge([axes[i] for i in before], [old[i] for i in before])
            for i, axis in zip(after, self.split(merged, [new[i] for i in after]), strict=True):
                result[i] = axis
        return result

    def balance(self, axis: Axis, parts: int, reason: Reason) -> None:
        """Keep the number of equal parts of an axis: an index can only leave all parts at once."""
        if axis is not None and parts > 1 and len(axis) % parts == 0:
            self.pin(self._split(axis, parts)[0], reason)


def _labelled(axis: Axis) -> bool:
    return axis is not None and any(label > 0 for label in axis)


def _repeated(axis: Vector, times: int) -> Vector:
    return tuple(label for label in axis for _ in range(times))


def matching(old: Sequence[int], new: Sequence[int]) -> Iterable[tuple[list[int], list[int]]]:
    """Groups of axes with the same elements before and after a view; axes of length 1 are left out.

    >>> list(matching([2, 6, 1, 5], [2, 2, 3, 5]))
    [([0], [0]), ([1], [1, 2]), ([3], [3])]
    """
    left = [i for i, size in enumerate(old) if size != 1]
    right = [i for i, size in enumerate(new) if size != 1]
    while left and right:
        before, after = [left.pop(0)], [right.pop(0)]
        n, m = old[before[0]], new[after[0]]
        while n != m:
            if n < m:
                before.append(left.pop(0))
                n *= old[before[-1]]
            else:
                after.append(right.pop(0))
                m *= new[after[-1]]
        yield before, after
