"""All measurements of one model, or of one exported file, in one call."""

from __future__ import annotations

import os
from pathlib import Path

from torch import nn

from snello.errors import ConfigError
from snello.graph import Example, Inputs, positional

from .compare import Profile, Subject, compare
from .counts import required_inputs


def measure(
    model: nn.Module | str | os.PathLike[str],
    example_inputs: Example | None = None,
    *,
    onnx: str | os.PathLike[str] | None = None,
    batch: int = 1,
    repeats: int = 50,
    warmup: int = 10,
    threads: int = 1,
) -> Profile:
    """Count and time a model, or an exported file of any format.

    Args:
        model: any module, which is not changed; or the path of a file.
        example_inputs: inputs with the batch to time on dimension 0, on the model's device; None
            for random inputs with the shapes recorded in a file.
        onnx: ONNX export of the model, to be timed on the CPU, interleaved with PyTorch.
        batch: batch size of a file; ignored where example inputs are given.
        repeats: number of timed calls of each runtime.
        warmup: number of untimed calls before them.
        threads: number of threads of each runtime.

    Raises:
        ModelError: if the model or the file does not run on the inputs.
        ConfigError: for an unknown suffix, a module without inputs, `onnx` with a file, or a
            batch, repeats, warmup or threads out of range.
        MissingExtraError: naming the extra that a runtime needs.
    """
    if isinstance(model, str | os.PathLike):
        if onnx is not None:
            raise ConfigError(
                f"onnx= is the export of a module, but {model} is a file: measure each file by "
                "itself, or both with snello.deploy.compare"
            )
        inputs = () if example_inputs is None else Inputs.of(example_inputs).tensors()
        subject = Subject(Path(model).name, inputs=inputs, file=Path(model))
    else:
        # Keyword inputs need a wrapper: runtimes call with positional ones.
        callable_model, inputs = positional(
            model, required_inputs(model, example_inputs, "measure")
        )
        export = None if onnx is None else Path(onnx)
        subject = Subject(type(model).__name__, callable_model, inputs, onnx=export)
    (profile,) = compare([subject], batch=batch, repeats=repeats, warmup=warmup, threads=threads)
    return profile
