"""A table of measured operations, with interpolation between neighbouring widths."""

from __future__ import annotations

import base64
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from math import log, prod
from typing import Any

from snello.deploy import _device_bench as bench
from snello.errors import ConfigError

from .nodes import operation_model
from .operation import Operation

BRANCHES = 6
"""Copies of an operation in the larger of its two models."""

Measure = Callable[[list[Operation]], Mapping[str, float]]


class OperationTable:
    """Times of operations on one device, in milliseconds.

    Args:
        times: key of an operation -> milliseconds.
        measure: function that measures further operations on the device; None if the device is not
            this machine. Then times between measured widths are interpolated.
        origin: the device, for messages.
    """

    def __init__(
        self, times: Mapping[str, float], measure: Measure | None = None, origin: str = "the table"
    ) -> None:
        self._measure, self._origin = measure, origin
        self.times: dict[str, float] = {}
        self._families: dict[Any, dict[tuple[int, ...], float]] = defaultdict(dict)
        self._add(times)

    def measured(self, operations: Iterable[Operation]) -> OperationTable:
        """Measure what is missing, if this machine is the device; returns this table."""
        left = list({o.key: o for o in operations if o.key not in self.times}.values())
        if left and self._measure is not None:
            self._add(self._measure(left))
        return self

    def __call__(self, operation: Operation) -> float:
        """Milliseconds of one run of an operation.

        Raises:
            ConfigError: if neither it nor a similar operation of other widths was measured.
        """
        known = self.times.get(operation.key)
        if known is not None:
            return known
        if self._measure is not None:
            return self.measured([operation]).times[operation.key]
        family, widths = _family(operation)
        points = self._families.get(family)
        if not points:
            raise ConfigError(
                f"{self._origin} has no operation like {operation.key!r}: profile the device with a "
                "kit of this network (snello bench-device kit model.pt --profile)"
            )
        return _between(points, widths)

    def sum(self, operations: Iterable[Operation]) -> float:
        """Milliseconds of several operations, one after the other."""
        return sum(self(operation) for operation in operations)

    def _add(self, times: Mapping[str, float]) -> None:
        for key, ms in times.items():
            family, widths = _family(Operation.from_key(key))
            self.times[key] = self._families[family][widths] = ms


def kit_entries(operations: Iterable[Operation]) -> list[dict[str, Any]]:
    """The models of operations as text, as `_device_bench.operation_times` takes them."""
    return [
        {
            "key": operation.key,
            "one": base64.b64encode(operation_model(operation, 1)).decode(),
            "many": base64.b64encode(operation_model(operation, BRANCHES)).decode(),
            "branches": BRANCHES,
        }
        for operation in {o.key: o for o in operations}.values()
    ]


def measured_here(operations: list[Operation], threads: int) -> dict[str, float]:
    """Times of operations on this machine.

    Raises:
        ConfigError: if ONNX Runtime cannot run one of them.
    """
    try:
        return bench.operation_times(kit_entries(operations), threads)
    except bench.KitError as error:
        raise ConfigError(f"the table of operations cannot be measured: {error}") from error


def _family(operation: Operation) -> tuple[Any, tuple[int, ...]]:
    """Split an operation into the part that all widths share, and its widths."""
    shape = operation.shape
    if operation.kind == "conv":
        samples, into, out, groups, *size = shape
        alone = groups > 1  # a depthwise convolution has one width
        fixed, widths = (samples, *size), ((into,) if alone else (into, out))
        per_group = into // groups if alone else 0
        return ("conv", alone, per_group, fixed, operation.options, operation.precision), widths
    if operation.kind == "linear":
        return ("linear", shape[0], operation.precision), shape[1:]
    return ("matmul", operation.precision), shape


def _between(points: Mapping[tuple[int, ...], float], widths: tuple[int, ...]) -> float:
    """Interpolation on the grid if its corners are known, else the nearest point, scaled."""
    corners: list[tuple[tuple[int, ...], float]] = [((), 1.0)]
    for axis, width in enumerate(widths):
        known = sorted({point[axis] for point in points})
        place = bisect_left(known, width)
        low, high = known[max(place - 1, 0)], known[min(place, len(known) - 1)]
        if high == width or low == high:
            sides = [(high, 1.0)]
        else:
            share = (width - low) / (high - low)
            sides = [(low, 1 - share), (high, share)]
        corners = [((*c, n), weight * w) for c, weight in corners for n, w in sides]
    inside = all(
        min(p[a] for p in points) <= n <= max(p[a] for p in points) for a, n in enumerate(widths)
    )
    if inside and all(corner in points for corner, _ in corners):
        return sum(points[corner] * weight for corner, weight in corners)
    nearest = min(
        points, key=lambda p: sum(abs(log(a / b)) for a, b in zip(p, widths, strict=True))
    )
    return points[nearest] * prod(widths) / prod(nearest)
