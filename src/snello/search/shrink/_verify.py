"""Verification of candidates: every number of a record is measured here."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from snello.codec import CodecSettings
from snello.deploy import file_bytes, footprint, peak_memory
from snello.errors import ConfigError, DivergenceError, ModelError
from snello.files import read_json_object, write_text
from snello.graph import Example
from snello.pruning.channels import measured_size
from snello.search.rate import RateSearch
from snello.timing import cpu_seconds

from ._candidate import Candidate, Precision
from ._coded import coded, settings_from_json, settings_to_json
from ._file_network import FileNetwork
from ._front import FrontPoint
from ._judge import Judge, Verdict
from ._measure import Bench
from ._networks import Networks
from ._point import Point


@dataclass(frozen=True)
class Task:
    """The request of a search.

    Attributes:
        minimise: "latency", "macs", "bytes", "memory", or a function from a network to its cost.
        bound: largest allowed upper limit of the drop.
        here: true if latency is measured on this machine.
    """

    minimise: str | Callable[[nn.Module], float]
    bound: float
    here: bool


class Verifier:
    """Builds and measures candidates.

    Args:
        task: what the search asks for.
        networks: builder of networks.
        judge: quality of networks.
        bench: timing of exported networks.
        example: example inputs.
        calibration: inputs of the rate search.
        folder: folder of the search; None if nothing is written.
    """

    def __init__(
        self, task: Task, networks: Networks, judge: Judge, bench: Bench, example: Example,
        calibration: Sequence[Example], folder: Path | None,
    ) -> None:  # fmt: skip
        self._task, self._networks, self._judge, self._bench = task, networks, judge, bench
        self._example, self._calibration, self._folder = example, calibration, folder
        self._settings: dict[str, CodecSettings] = {}
        self.reference: float | None = None  # latency of the dense network, in milliseconds

    def __call__(self, at: FrontPoint, precision: Precision) -> Candidate:
        """Build, evaluate and measure a candidate, in the precision to deploy it in."""
        begin = cpu_seconds()
        key = f"{precision}-{at.point.key}"
        try:
            network = self._networks(at.point)
        except (ModelError, DivergenceError) as error:  # the latter of the fine-tuning
            seconds = round(cpu_seconds() - begin, 2)
            return replace(_unmeasured(key, precision, at), why=str(error), seconds=seconds)
        size = measured_size(network, self._example)
        found = _unmeasured(key, precision, at, size.macs, size.parameters)
        try:
            found = self._measured(found, network, at)
        except ModelError as error:  # of the exporter, the quantiser or the judge
            found = replace(found, why=str(error))
        return replace(found, seconds=round(cpu_seconds() - begin, 2))

    def stream(self, key: str, point: Point) -> tuple[nn.Module, CodecSettings]:
        """The network of a bitstream and the settings to code it with; searched if not known."""
        model, settings = self._networks.stored(f"coded-{key}"), self._stored_settings(key)
        if model is not None and settings is not None:
            return model, settings
        network = self._networks(point)
        search = self._coded(key, network, point, self._judge(network).limit)
        return search.model, search.settings

    def _stored_settings(self, key: str) -> CodecSettings | None:
        if self._folder is None:
            return self._settings.get(key)
        path = self._folder / f"coded-{key}.json"
        if not path.is_file():
            return None
        remedy = f"remove the folder {self._folder}, or choose another one"
        content = read_json_object(path, remedy)
        try:
            return settings_from_json(content)
        except (ValueError, TypeError) as error:  # a ConfigError is a ValueError
            raise ConfigError(f"{path} is damaged: {remedy}") from error

    def _coded(self, key: str, network: nn.Module, point: Point, used: float) -> RateSearch:
        search = coded(
            network, self._judge, self._task.bound, used, self._calibration,
            sparse=point.sparsity > 0,
        )  # fmt: skip
        self._networks.store(f"coded-{key}", search.model)
        self._settings[key] = search.settings
        if self._folder is not None:
            content = json.dumps(settings_to_json(search.settings))
            write_text(self._folder / f"coded-{key}.json", content)
        return search

    def _measured(self, found: Candidate, network: nn.Module, at: FrontPoint) -> Candidate:
        found = (
            self._as_stream(found, network, at.point)
            if found.precision == "nnc"
            else self._as_file(found, network)
        )
        cost = self._cost(found, network, at)
        passed = found.limit is not None and found.limit <= self._task.bound
        return replace(found, cost=cost, passed=passed)

    def _as_stream(self, found: Candidate, network: nn.Module, point: Point) -> Candidate:
        before = self._judge(network)
        if before.limit > self._task.bound:  # quantisation would only add to it
            return _judged(found, before)
        search = self._coded(found.key, network, point, before.limit)
        return _judged(replace(found, bytes=search.bytes), self._judge(search.decoded()))

    def _as_file(self, found: Candidate, network: nn.Module) -> Candidate:
        minimise, int8 = self._task.minimise, found.precision == "int8"
        timed = minimise == "latency" and self._task.here
        if not (int8 or timed or minimise == "memory"):
            found = replace(found, bytes=footprint(network, self._example).bytes)
            return _judged(found, self._verdict(found, network))
        path = self._bench.exported(network, found.precision, "candidate")
        found = replace(
            found, bytes=file_bytes(path) if int8 else footprint(network, self._example).bytes
        )
        if minimise == "memory":
            found = replace(found, memory=self._memory(path, network))
        if timed:
            times = self._bench.times({"candidate": path})
            assert self.reference is not None
            found = replace(found, latency_ms=times["candidate"] * self.reference / times[""])
        judged = FileNetwork(path, network, self._example) if int8 else network
        return _judged(found, self._verdict(found, judged))

    def _verdict(self, found: Candidate, network: nn.Module) -> Verdict:
        if found.precision == "float32" and not found.widths and not found.sparsity:
            return Verdict(self._judge.value, 0.0, 0.0)  # the one that drops are measured from
        return self._judge(network)

    def _memory(self, path: Path, network: nn.Module) -> int | None:
        found = self._bench.memory(path)
        if found is not None:
            return found
        tensors = peak_memory(network, self._example)  # where processes cannot be measured
        return None if tensors is None else tensors.bytes

    def _cost(self, found: Candidate, network: nn.Module, at: FrontPoint) -> float | None:
        minimise = self._task.minimise
        if callable(minimise):
            return cost_of(minimise, network)
        if minimise == "latency" and not self._task.here:
            return at.cost  # the device is elsewhere: its profile is all that is known
        known: dict[str, Any] = {
            "latency": found.latency_ms, "macs": found.macs, "bytes": found.bytes,
            "memory": found.memory,
        }  # fmt: skip
        return None if known[minimise] is None else float(known[minimise])


def cost_of(function: Callable[[nn.Module], Any], network: nn.Module) -> float:
    """The cost of a network by the caller's function.

    Raises:
        ConfigError: if it returns no finite number.
    """
    found = function(network)
    try:
        cost = float(found)
    except (TypeError, ValueError, RuntimeError):
        cost = math.nan
    if not math.isfinite(cost):
        raise ConfigError(
            f"shrink: the function minimise returned {found!r}; return a finite number, lower is better"
        )
    return cost


def _judged(found: Candidate, verdict: Verdict) -> Candidate:
    return replace(found, value=verdict.value, drop=verdict.drop, limit=verdict.limit)


def _unmeasured(
    key: str, precision: Precision, at: FrontPoint, macs: float = 0, parameters: int = 0
) -> Candidate:
    """The record of a point of which nothing but the size is known yet."""
    return Candidate(
        key=key, precision=precision, widths=dict(at.point.widths), sparsity=at.point.sparsity,
        distance=at.distance, predicted=None, value=None, drop=None, limit=None, macs=macs,
        parameters=parameters, bytes=None, latency_ms=None, memory=None, cost=None, passed=False,
    )  # fmt: skip
