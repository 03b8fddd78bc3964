"""Offset and slope between the sum of a table and the latency of whole networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class LatencyFit:
    """Latency of a network as `offset + slope * sum`, with the times of its operations added up.

    Attributes:
        offset: milliseconds per call.
        slope: latency per millisecond of the table.
        residual: largest relative deviation over the runs of the fit.
        runs: number of runs of whole networks.
    """

    offset: float
    slope: float
    residual: float
    runs: int

    def __call__(self, table_ms: float) -> float:
        """Predict the latency in milliseconds.

        Args:
            table_ms: sum of the times of the operations, in milliseconds.
        """
        return self.offset + self.slope * table_ms


def fit_latency(runs: Sequence[tuple[float, float]]) -> LatencyFit:
    """Fit offset and slope by least squares of the relative deviations.

    The offset is at least zero, and so is the slope. With one run, the offset is zero; without one,
    the slope is one, too.

    Args:
        runs: pairs (sum of the table, measured latency), both in milliseconds.
    """
    if not runs:
        return LatencyFit(0.0, 1.0, 0.0, 0)
    # Minimise the sum of ((a + s x) / y - 1)^2: normal equations with weights 1 / y^2.
    weights = [1 / y**2 for _, y in runs]
    n, sx, sy, sxx, sxy = (
        sum(w * value for w, value in zip(weights, values, strict=True))
        for values in (
            [1.0] * len(runs), [x for x, _ in runs], [y for _, y in runs],
            [x * x for x, _ in runs], [x * y for x, y in runs],
        )
    )  # fmt: skip
    determinant = n * sxx - sx * sx
    alike = determinant <= 1e-9 * n * sxx  # runs of one size say nothing about an offset
    slope = sxy / sxx if alike else (n * sxy - sx * sy) / determinant
    offset = 0.0 if alike else (sy - slope * sx) / n
    if offset < 0:
        slope, offset = sxy / sxx, 0.0
    if slope < 0:
        slope, offset = 0.0, sy / n
    residual = max(abs((offset + slope * x) / y - 1) for x, y in runs)
    return LatencyFit(offset, slope, residual, len(runs))
