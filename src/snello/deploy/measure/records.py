"""Reader for profiles stored as JSON."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from snello.deploy._footprint import Footprint
from snello.deploy._memory import PeakMemory
from snello.errors import ConfigError
from snello.files import read_json

from .compare import Profile
from .latency import Latency


def read_profiles(path: str | os.PathLike[str]) -> tuple[Profile, ...]:
    """Read a result of `snello measure`: one profile, or several under `"models"`.

    Raises:
        ConfigError: if the file cannot be read or is not such a result.
    """
    data = read_json(path)
    try:
        return tuple(_profile(row) for row in data.get("models", [data]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"{path} is not a result of 'snello measure', or damaged: {error!r}"
        ) from error


def _profile(row: Mapping[str, Any]) -> Profile:
    paper, peak = row["footprint"], row["peak_memory"]
    return Profile(
        **{key: row[key] for key in ("name", "file", "sha256", "file_bytes", "bitstream_bytes")},
        footprint=None if paper is None else Footprint(**paper),
        peak_memory=None if peak is None else PeakMemory(**peak),
        latencies={runtime: Latency(**time) for runtime, time in row["latencies"].items()},
    )
