"""Measurements of a device, as a file that a search on another machine reads."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

from snello.deploy import _device_bench as bench
from snello.deploy._runners import check_threads
from snello.errors import ConfigError, is_number, require
from snello.files import read_json, write_text

from .fit import LatencyFit, fit_latency
from .operation import Operation, Precision
from .table import OperationTable, measured_here

MOST_THREADS = 4096
"""Most threads of a profile: a larger number is a damaged one."""


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
    def digest(self) -> str:
        """Short text that differs for profiles of other times, threads or networks."""
        content = json.dumps([self.threads, dict(self.times), list(map(asdict, self.models))])
        return hashlib.sha256(content.encode()).hexdigest()[:10]

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
        """Offset and slope from its whole networks of one precision.

        Networks without a single operation of the table say nothing about the slope, and are left
        out.
        """
        table = self.table()
        return fit_latency(
            [
                (table.sum(map(Operation.from_key, model.operations)), model.ms)
                for model in self.models
                if model.precision == precision and model.operations
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
    origin = "run bench.py with --profile, in a kit made with --profile"
    try:
        data = read_json(path)
    except ConfigError as error:
        raise ConfigError(f"{error}; {origin}") from error
    given = data.get("format") if isinstance(data, dict) else None
    if given != bench.PROFILE:
        raise ConfigError(f"{path} has the format {given!r}, a profile {bench.PROFILE!r}: {origin}")
    try:
        return _profile_of(data)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ConfigError(
            f"{path} is a damaged profile: {reason}; run bench.py --profile on the device again"
        ) from error


def _profile_of(data: Mapping[str, Any]) -> DeviceProfile:
    threads = data["threads"]
    if type(threads) is not int or not 1 <= threads <= MOST_THREADS:
        raise ValueError(f"threads={threads!r} is no number of threads")
    if not isinstance(data["device"], dict):
        raise ValueError(f"device={data['device']!r} holds no facts by name")
    times = {key: _positive(ms, key) for key, ms in data["times"].items()}
    for key in times:
        Operation.from_key(key)
    models = tuple(map(_model_of, data["models"]))
    return DeviceProfile(data["device"], threads, times, models, str(data.get("note", "")))


def _model_of(entry: Mapping[str, Any]) -> ProfiledModel:
    name, precision, operations = entry["name"], entry["precision"], entry["operations"]
    if precision not in get_args(Precision):
        raise ValueError(f"{name}: precision {precision!r} is none of {get_args(Precision)}")
    if not isinstance(operations, list):
        raise ValueError(f"{name}: operations={operations!r} is no list")
    for key in operations:
        Operation.from_key(key)
    return ProfiledModel(name, precision, _positive(entry["ms"], name), tuple(operations))


def _positive(ms: object, name: str) -> float:
    if not (is_number(ms) and 0 < ms < float("inf")):
        raise ValueError(f"{name}: {ms!r} is no time in milliseconds")
    return float(ms)


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
    check_threads(threads)
    require("onnxruntime", "onnx", "measuring latency")
    device = bench.describe()
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(home) / "snello" if cache is None else Path(cache)
    name = f"{device['cpu']} {device['cores']} {threads} {device['onnxruntime']}"
    path = folder / f"operations-{hashlib.sha256(name.encode()).hexdigest()[:12]}.json"
    known = _kept(path)

    def measure(operations: list[Operation]) -> Mapping[str, float]:
        found = measured_here(operations, threads)
        # Another process may have added its own meanwhile.
        known.update({**_kept(path), **found})
        DeviceProfile(device, threads, known, note="cache of snello").save(path)
        return found

    profile = DeviceProfile(device, threads, known)
    return profile, OperationTable(known, measure, "this machine")


def _kept(path: Path) -> dict[str, float]:
    """Times of a cache; none of a damaged one, which is measured again and written over."""
    try:
        return dict(read_profile(path).times) if path.is_file() else {}
    except ConfigError as error:
        warnings.warn(f"{error}: measured again", stacklevel=3)
        return {}
