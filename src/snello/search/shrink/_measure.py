"""Measurement of a candidate: size, latency and memory of what would be deployed."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from snello.deploy import export, file_runner, latencies, peak_memory, quantise
from snello.graph import Example, positional

REPEATS = 60
"""Timed calls of a candidate and of the dense network, in turns."""


class Bench:
    """Exports networks to ONNX and times them beside the dense one.

    The latency of a candidate is its ratio to the dense network's in the same interleaved run,
    times the dense network's latency of the first run: a machine that is busier now than it was
    then slows both down.

    Args:
        dense: the dense network.
        example: example inputs; latency is that of their batch.
        calibration: inputs for int8 ranges.
        threads: threads of ONNX Runtime.
    """

    def __init__(
        self, dense: nn.Module, example: Example, calibration: list[tuple[Tensor, ...]], threads: int
    ) -> None:  # fmt: skip
        self._dense, self._example, self._calibration = dense, example, calibration
        self._threads = threads
        self._folder = tempfile.TemporaryDirectory(prefix="snello-shrink-")
        self._reference: Path | None = None

    def exported(self, model: nn.Module, precision: str, name: str) -> Path:
        """An ONNX file of a network; the next one of this name replaces it."""
        folder = Path(self._folder.name)
        called, tensors = positional(model, self._example)
        plain = export(called, tensors, folder / f"{name}.onnx")
        if precision != "int8":
            return plain
        int8 = folder / f"{name}-int8.onnx"
        quantise(plain, int8, self._calibration or [tensors])
        return int8

    def times(self, files: Mapping[str, Path]) -> dict[str, float]:
        """10th percentiles of the latency of some files, interleaved with the dense network."""
        if self._reference is None:
            self._reference = self.exported(self._dense, "float32", "dense")
        _, tensors = positional(self._dense, self._example)
        runners = {
            name: file_runner(path, tensors, self._threads)
            for name, path in {"": self._reference, **files}.items()
        }
        found = latencies(runners, repeats=REPEATS, threads=self._threads)
        return {name: latency.p10_ms for name, latency in found.items()}

    def memory(self, path: Path) -> int | None:
        """Memory growth of a process that runs a file."""
        _, tensors = positional(self._dense, self._example)
        found = peak_memory(path, tensors, threads=self._threads)
        return None if found is None else found.bytes

    def close(self) -> None:
        """Remove the files."""
        self._folder.cleanup()
