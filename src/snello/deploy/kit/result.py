"""Results of a kit, read back from a device."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from typing import Any

from snello.deploy import _device_bench as bench
from snello.deploy.operations.operation import Precision
from snello.errors import ConfigError
from snello.files import read_json


@dataclass(frozen=True)
class DeviceTime:
    """Measurement of one file on a device: times in milliseconds, memory in bytes.

    Attributes:
        name, file, precision, bytes, sha256, source_sha256: see
            [`KitModel`][snello.deploy.KitModel].
        median_ms: median over the repeats.
        p10_ms: 10th percentile.
        p90_ms: 90th percentile.
        difference: largest difference from the reference outputs in the kit, relative to the
            largest magnitude.
        peak_bytes: memory growth of a separate process that loads and runs the file; None if
            unknown.
    """

    name: str
    file: str
    precision: Precision
    bytes: int
    sha256: str
    source_sha256: str | None
    median_ms: float
    p10_ms: float
    p90_ms: float
    difference: float
    peak_bytes: int | None


@dataclass(frozen=True)
class DeviceResult:
    """Result of `bench.py` on a device.

    Attributes:
        device: facts: `cpu`, `cores`, `os`, `machine`, versions, temperatures.
        threads: threads of ONNX Runtime.
        batch: samples per call.
        warmup: untimed calls.
        repeats: timed calls.
        models: one row per file.
    """

    device: dict[str, Any]
    threads: int
    batch: int
    warmup: int
    repeats: int
    models: tuple[DeviceTime, ...]


def read_device_result(path: str | os.PathLike[str]) -> DeviceResult:
    """Read the result of `bench.py`.

    Raises:
        ConfigError: if the file does not exist or is not such a result.
    """
    data = read_json(path)
    given = data.get("format") if isinstance(data, dict) else None
    if given != bench.FORMAT:
        raise ConfigError(f"{path} has the format {given!r}; this version reads {bench.FORMAT!r}")
    try:
        keys = [f.name for f in fields(DeviceTime)]
        times = tuple(DeviceTime(**{key: row[key] for key in keys}) for row in data["models"])
        counts = {key: int(data[key]) for key in ("threads", "batch", "warmup", "repeats")}
        return DeviceResult(device=dict(data["device"]), models=times, **counts)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{path} is not a result of a kit's bench.py, or damaged: {error!r}"
        ) from error
