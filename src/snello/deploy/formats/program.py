"""torch.export: a graph of torch's operators in a `.pt2` file, without the model's code."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, final

import torch
from torch import nn

from snello.deploy._footprint import Footprint, macs_of, state_bytes
from snello.deploy._memory import PeakMemory, peak_memory_of
from snello.deploy._runners import random_inputs
from snello.deploy._verify import dynamic_batch, first_line, one_more, quiet, shapes
from snello.errors import ModelError
from snello.files import write_bytes
from snello.graph import class_name
from snello.neurons import outputs_first

from .format import Bind, Files, Format, Inputs
from .program_check import METADATA, check_program


@final
@dataclass(frozen=True)
class Program(Format):
    """A program of torch.export, which runs in torch as `torch.export.load(path).module()`.

    torch unpickles parts of such a file and evaluates others. A file with contents other than those
    of `write` is refused before torch reads it; this is a precaution, not a guarantee against
    malicious files.

    Source: https://docs.pytorch.org/docs/stable/export.html
    """

    name: ClassVar[str] = "torch-export"
    label: ClassVar[str] = "torch.export"
    suffix: ClassVar[str] = ".pt2"
    runtime: ClassVar[str] = "torch.export"

    def write(self, model: nn.Module, inputs: Inputs, files: Files) -> None:
        program = captured(model, inputs)
        program.example_inputs = None  # the example may be private data
        with quiet():
            torch.export.save(program, files[0])

    def load(self, files: Files, threads: int) -> Bind:
        # Format.runner has called check() before.
        module = _loaded(files[0]).module()

        def call(inputs: Inputs) -> object:
            with torch.inference_mode():
                return module(*inputs)

        return lambda inputs: partial(call, inputs)

    def check(self, path: Path) -> None:
        """Refuse a file that is missing or holds anything that torch could run as code."""
        super().check(path)
        check_program(path)

    def metadata(self, path: Path) -> dict[str, Any]:
        try:
            with zipfile.ZipFile(path) as archive:
                # The archive contains a single folder with an arbitrary name.
                names = [n for n in archive.namelist() if n.partition("/")[2] == METADATA]
                found = json.loads(archive.read(names[0])) if names else {}
        except (OSError, ValueError, RecursionError, zipfile.BadZipFile):
            return {}  # damaged, or written by another program
        return found if isinstance(found, dict) else {}

    def add_metadata(self, path: Path, facts: Mapping[str, Any]) -> bool:
        program, text = self.read(path), json.dumps(self.metadata(path) | dict(facts))
        data = io.BytesIO()
        with quiet():
            torch.export.save(program, data, extra_files={PurePosixPath(METADATA).name: text})
        write_bytes(path, data.getvalue())
        return True

    def inputs_of(self, path: Path, batch: int | None = None) -> Inputs:
        """Random inputs of the recorded shapes; a batch size that the file fixes wins."""
        program = self.read(path)
        names = set(program.graph_signature.user_inputs)
        sizes = []
        for node in program.graph.nodes:
            if node.op == "placeholder" and node.name in names:
                value = node.meta["val"]
                rest_is_dynamic = not all(isinstance(n, int) for n in value.shape[1:])
                if rest_is_dynamic or value.dtype != torch.float32:
                    raise ModelError(
                        f"{path}: input {node.name!r} is {value.dtype} of shape "
                        f"{tuple(value.shape)}; random inputs need float32 and fixed dimensions "
                        "except the batch: give its inputs where it is run"
                    )
                first = value.shape[0]
                sizes.append((first if isinstance(first, int) else batch or 1, *value.shape[1:]))
        return random_inputs(sizes)

    def footprint(self, path: Path) -> Footprint:
        program = self.read(path)
        names = dict.fromkeys(program.graph_signature.parameters)  # a shared one counts once
        parameters = [program.state_dict[name] for name in names]
        return Footprint(
            parameters=sum(p.numel() for p in parameters),
            nonzeros=sum(int(torch.count_nonzero(p)) for p in parameters),
            dead_neurons=_dead(program),
            macs=macs_of(program.module(), self.inputs_of(path), str(path)),
            bytes=state_bytes(program.state_dict.values()),
        )

    def peak_memory(self, path: Path, inputs: Inputs, threads: int) -> PeakMemory:
        module = self.read(path).module()  # threads do not change which tensors are alive
        held = [*module.parameters(), *module.buffers()]
        return peak_memory_of(module, held, tuple(x.detach().cpu() for x in inputs))

    def read(self, path: Path) -> torch.export.ExportedProgram:
        """Check and read a program.

        Raises:
            ModelError: if the file is missing, damaged, not a program, or could run code.
        """
        self.check(path)
        return _loaded(path)


def captured(
    model: nn.Module, inputs: Inputs, *, free_batch: bool = True
) -> torch.export.ExportedProgram:
    """Capture a model as a graph with torch.export.

    Args:
        model: in evaluation mode, on the CPU.
        inputs: positional inputs with the batch on dimension 0.
        free_batch: False fixes the batch size of the inputs, for runtimes that cannot vary it.

    Raises:
        ModelError: if the model cannot be captured.
    """
    # torch.export treats a dimension of size 1 as a constant.
    sample = one_more(inputs) if free_batch and inputs[0].shape[0] == 1 else inputs
    dynamic = dynamic_batch(model, sample) if free_batch else None
    try:
        with quiet(), torch.no_grad():
            return torch.export.export(model, sample, dynamic_shapes=dynamic)
    except Exception as error:  # capturing runs the model's own code
        batch = "with a free batch size" if free_batch else "with this batch size"
        raise ModelError(
            f"torch.export cannot capture {class_name(model)} for inputs of shape {shapes(sample)} {batch}: "
            f"{first_line(error)}"
        ) from error


def _loaded(path: Path) -> torch.export.ExportedProgram:
    try:
        with quiet():
            return torch.export.load(path)
    except Exception as error:  # torch raises various exceptions for a damaged file
        raise ModelError(
            f"{path} is damaged, or not a program of torch.export: {first_line(error)}"
        ) from error


def _dead(program: torch.export.ExportedProgram) -> int:
    """Number of dead neurons (all weights zero) of linear layers and convolutions, tied once."""
    known = program.graph_signature.inputs_to_parameters
    weights = {}
    for node in program.graph.nodes:
        name = getattr(node.target, "__name__", "")
        if (
            node.op == "call_function"
            and name.startswith(("linear.", "conv"))  # "linear.default", "conv2d.default", ...
            and len(node.args) > 1
        ):
            parameter = known.get(getattr(node.args[1], "name", ""))
            if parameter is not None:
                weight = program.state_dict[parameter]
                if "transpose" in name:
                    groups = int(node.args[6]) if len(node.args) > 6 else 1
                    weight = outputs_first(weight, groups)
                weights[parameter] = weight
    return sum(int((weight.flatten(1) == 0).all(1).sum()) for weight in weights.values())
