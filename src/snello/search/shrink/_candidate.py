"""Record of one candidate: what was predicted, and what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any, Literal

Precision = Literal["float32", "int8", "nnc"]


@dataclass(frozen=True)
class Candidate:
    """A network that was built and measured.

    Attributes:
        key: text that identifies it in the log.
        precision: "float32"; "int8" weights and activations, in ONNX; "nnc", a coded bitstream
            with a quantisation parameter per tensor.
        widths: dimension -> number of channels, for the narrowed dimensions.
        sparsity: share of the weights set to zero.
        distance: predicted distance of the outputs before recovery.
        predicted: predicted cost, in the unit of `cost`; None if there was no prediction.
        value: quality; None if it could not be built.
        drop: quality of the dense network minus its own.
        limit: upper limit of the drop, at 95 % confidence if `evaluate` returns values per sample.
        macs: multiply-accumulates of one sample.
        parameters: number of parameters.
        bytes: size of the float32 tensors, the int8 ONNX file or the bitstream.
        latency_ms: 10th percentile of the measured latency; None if it was not measured.
        memory: measured peak memory in bytes; None if it was not measured.
        cost: the cost that is minimised: milliseconds, operations, bytes or the caller's.
        passed: true if `limit` is within the bound.
        why: reason why it could not be built; empty if it was.
        seconds: CPU seconds spent on building and measuring it.
    """

    key: str
    precision: Precision
    widths: Mapping[str, int] = field(repr=False)
    sparsity: float
    distance: float
    predicted: float | None
    value: float | None
    drop: float | None
    limit: float | None
    macs: float
    parameters: int
    bytes: int | None
    latency_ms: float | None
    memory: int | None
    cost: float | None
    passed: bool
    why: str = ""
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """The record as data for `json`."""
        return {n: v for n, v in asdict(self).items() if n != "key"}

    @staticmethod
    def from_json(key: str, data: Mapping[str, Any]) -> Candidate:
        """The record of a line of the log."""
        names = {f.name for f in fields(Candidate)}
        return Candidate(key=key, **{n: v for n, v in data.items() if n in names})

    @staticmethod
    def is_record(data: Mapping[str, Any]) -> bool:
        """Return True if data has all fields of a record, but for the key and the defaults."""
        needed = {f.name for f in fields(Candidate) if f.default is MISSING}
        return needed - {"key", "predicted"} <= set(data)
