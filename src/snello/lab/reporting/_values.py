"""Formatting of numbers as text."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from snello.deploy import Latency


def as_json(value: Any) -> str:
    """A result as JSON text: see `plain`."""
    return json.dumps(plain(value), indent=1, ensure_ascii=False)


def plain(value: Any) -> Any:
    """A value of JSON: dataclasses become objects, tuples arrays, paths strings, NaN and inf null."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None  # browsers refuse JSON with NaN, and would draw no chart at all
    return str(value) if isinstance(value, Path) else value


def percent(share: float, digits: int = 2) -> str:
    """A share in [0, 1] as a percentage."""
    return f"{share * 100:.{digits}f} %"


def number(value: float | None) -> str:
    """A number in any unit: five significant digits, all of a large count; "-" for None."""
    return "-" if value is None else f"{value:.5g}" if abs(value) < 1e5 else f"{value:.0f}"


def megabytes(size: int) -> str:
    """Bytes in megabytes (10^6 bytes), with about three significant digits."""
    mega = size / 1e6
    return f"{mega:.2f}" if mega >= 1 else f"{mega:.3f}" if mega >= 0.1 else f"{mega:.4f}"


def milliseconds(latency: Latency) -> str:
    """Median of a latency in ms, and on a second line its 10th and 90th percentiles."""
    digits = 3 if latency.median_ms < 1 else 2
    low, high = (f"{value:.{digits}f}" for value in (latency.p10_ms, latency.p90_ms))
    return f"{latency.median_ms:.{digits}f}\n{low}-{high}"


def flops(count: float) -> str:
    """FLOPs with a unit prefix: k, M, G."""
    for factor, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= factor:
            return f"{count / factor:.2f} {unit}"
    return f"{count:.0f}"
