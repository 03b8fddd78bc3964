"""Predicted costs of a network at any widths."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from snello.deploy.operations import LatencyFit, Operation, OperationTable

from ._point import Point
from ._shapes import ShapeModel, Widths


class Cost(Protocol):
    """A predicted cost."""

    def total(self, point: Point) -> float:
        """The cost of a network."""

    def near(self, group: str, point: Point) -> float:
        """The part of the cost that changes with one group; another part may be missing."""


class OperationCost:
    """Sum over the operations, such as multiply-accumulates or times of a table.

    Args:
        shapes: shapes at any widths.
        of: cost of one operation.
        fit: offset and slope of the total; None for the plain sum.
    """

    def __init__(
        self,
        shapes: ShapeModel,
        of: Callable[[Operation], float],
        fit: LatencyFit | None = None,
    ) -> None:
        self._shapes, self._of, self._fit = shapes, of, fit

    def total(self, point: Point) -> float:
        """The cost of all operations."""
        plain = sum(map(self._of, self._shapes.operations(point.widths)))
        return plain if self._fit is None else self._fit(plain)

    def near(self, group: str, point: Point) -> float:
        """The cost of the operations that a dimension changes."""
        slope = 1.0 if self._fit is None else self._fit.slope
        return slope * sum(map(self._of, self._shapes.operations_near(group, point.widths)))


def latency_cost(
    shapes: ShapeModel, table: OperationTable, precision: str, fit: LatencyFit | None
) -> OperationCost:
    """Latency in milliseconds, from a table."""
    kind = "int8" if precision == "int8" else "float32"
    return OperationCost(shapes, lambda o: table(o.at(kind)), fit)  # type: ignore[arg-type]


class ByteCost:
    """Bytes of the tensors.

    Args:
        shapes: shapes at any widths.
        rates: tensor -> bytes per entry.
        sparse: share of zero weights -> factor of a tensor's bytes.
        weights: names of the tensors that are made sparse.
        overhead: bytes of the file that are no tensors.
    """

    def __init__(
        self,
        shapes: ShapeModel,
        rates: Mapping[str, float],
        sparse: Mapping[float, float],
        weights: Sequence[str] = (),
        overhead: float = 0.0,
    ) -> None:
        self._shapes, self._rates, self._sparse = shapes, rates, sparse
        self._weights, self._overhead = frozenset(weights), overhead

    def total(self, point: Point) -> float:
        """The bytes of all tensors, and of the rest of the file."""
        return self._overhead + self._sum(self._shapes.elements(point.widths), point)

    def near(self, group: str, point: Point) -> float:
        """The bytes of the tensors that a group changes."""
        if group == SPARSITY:
            return self.total(point)
        return self._sum(self._shapes.elements_near(group, point.widths), point)

    def _sum(self, elements: Mapping[str, float], point: Point) -> float:
        factor = self._sparse.get(point.sparsity, 1.0)
        return sum(
            count * self._rates.get(name, 0.0) * (factor if name in self._weights else 1.0)
            for name, count in elements.items()
        )


class SlopeCost:
    """A cost of any kind, linear in every width: from one measurement per dimension.

    Args:
        measure: cost of the network at some widths, measured.
        narrowest: dimension -> its narrowest width.
        dense: dimension -> its whole width.
    """

    def __init__(
        self, measure: Callable[[Widths], float], narrowest: Widths, dense: Widths
    ) -> None:
        self._dense = dict(dense)
        self._whole = measure({})
        self._slopes = {
            name: (self._whole - measure({name: width})) / max(dense[name] - width, 1)
            for name, width in narrowest.items()
        }

    def total(self, point: Point) -> float:
        """The cost, as if dimensions did not interact."""
        return self._whole - sum(
            slope * (self._dense[n] - point.widths.get(n, self._dense[n]))
            for n, slope in self._slopes.items()
        )

    def near(self, group: str, point: Point) -> float:
        """The part of one dimension."""
        return self._slopes.get(group, 0.0) * point.widths.get(group, self._dense.get(group, 0))


SPARSITY = "(weights)"
"""Name of the group whose levels are shares of zero weights."""
