"""Measurements of a device, as a file that a search on another machine reads."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from snello.deploy import _device_bench as bench
from snello.errors import ConfigError, require
from snello.files import write_text

from .fit import LatencyFit, fit_latency
from .operation import Operation, Precision
from .table import OperationTable, measured_here


@dataclass(frozen=True)
class ProfiledModel:
    """A whole network that was timed on the device.

    Attributes:
        name: name of the network.
        precision: "float32" or "int8".
        ms: 10th percentile of its latency, in milliseconds.
        operations: keys of its operations, in order.
    """

    name: str
    precision: Precision
    ms: float
    operations: tuple[str, ...]


@dataclass(frozen=True)
class DeviceProfile:
    """Times of operations and of whole networks on one device.

    Attributes:
        device: facts: `cpu`, `cores`, `machine`, `onnxruntime`, ...
        threads: threads of ONNX Runtime.
        times: key of an operation -> milliseconds.
        models: whole networks, which offset and slope are fitted to.
        note: remark of the person who made the profile, shown with every result.
    """

    device: dict[str, Any]
    threads: int
    times: Mapping[str, float] = field(repr=False)
    models: tuple[ProfiledModel, ...] = ()
    note: str = ""

    @property
    def label(self) -> str:
        """The device, its threads and its runtime in words."""
        return (
            f"{self.device.get('cpu', 'unknown')}, {self.threads} thread(s), ONNX Runtime "
            f"{self.device.get('onnxruntime', '?')}"
        )

    def table(self) -> OperationTable:
        """Its times, with interpolation between measured widths."""
        return OperationTable(self.times, None, f"the profile of {self.label}")

    def fit(self, precision: Precision = "float32") -> LatencyFit:
        """Offset and slope from its whole networks of one precision."""
        table = self.table()
        return fit_latency(
            [
                (table.sum(map(Operation.from_key, model.operations)), model.ms)
                for model in self.models
                if model.precision == precision
            ]
        )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it as JSON, atomically.

        Raises:
            OutputError: if the file cannot be written.
        """
        content = {"format": bench.PROFILE, **asdict(self)}
        return write_text(Path(path), json.dumps(content, indent=1))


def read_profile(path: str | os.PathLike[str]) -> DeviceProfile:
    """Read a profile that a kit's `bench.py --profile` or
    [`DeviceProfile.save`][snello.deploy.operations.DeviceProfile] wrote.

    Raises:
        ConfigError: if the file does not exist or is no profile.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        if data["format"] != bench.PROFILE:
            raise ConfigError(
                f"{path} has the format {data['format']!r}, a profile {bench.PROFILE!r}: run "
                "bench.py with --profile, in a kit made with --profile"
            )
        models = tuple(
            ProfiledModel(m["name"], m["precision"], float(m["ms"]), tuple(m["operations"]))
            for m in data["models"]
        )
        times = {str(key): float(ms) for key, ms in data["times"].items()}
        for key, ms in times.items():
            Operation.from_key(key)
            if not 0 < ms < float("inf"):
                raise ValueError(f"{key}: {ms} ms")
        return DeviceProfile(
            dict(data["device"]), int(data["threads"]), times, models, str(data.get("note", ""))
        )
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path} is no profile of a device, or damaged: {error!r}") from error


def this_device(
    threads: int = 1, cache: str | os.PathLike[str] | None = None
) -> tuple[DeviceProfile, OperationTable]:
    """This machine, with a table that measures operations when they are asked for.

    Args:
        threads: threads of ONNX Runtime.
        cache: folder in which measured times are kept, one file per CPU, number of threads and
            version of the runtime; None: `snello` in `$XDG_CACHE_HOME` or `~/.cache`.

    Raises:
        ConfigError: for a number of threads below one.
        MissingExtraError: without onnxruntime.
    """
    if threads < 1:
        raise ConfigError(f"threads={threads}: choose at least 1")
    require("onnxruntime", "onnx", "measuring latency")
    device = bench.describe()
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(home) / "snello" if cache is None else Path(cache)
    name = f"{device['cpu']} {device['cores']} {threads} {device['onnxruntime']}"
    path = folder / f"operations-{hashlib.sha256(name.encode()).hexdigest()[:12]}.json"
    known = dict(read_profile(path).times) if path.is_file() else {}

    def measure(operations: list[Operation]) -> Mapping[str, float]:
        found = measured_here(operations, threads)
        # Another process may have added its own meanwhile.
        kept = dict(read_profile(path).times) if path.is_file() else {}
        known.update({**kept, **found})
        DeviceProfile(device, threads, known, note="cache of snello").save(path)
        return found

    profile = DeviceProfile(device, threads, known)
    return profile, OperationTable(known, measure, "this machine")
