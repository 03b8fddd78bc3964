"""A PyTorch model as a program of torch.export (``.pt2``): a graph of torch's operators, no Python
code.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from snello.errors import ModelError
from snello.files import check_writable, writing
from snello.graph import as_inputs

from ._export import nested
from ._footprint import Footprint, macs_of, state_bytes
from ._memory import PeakMemory, peak_memory_of
from ._program_check import check_program
from ._runners import Runner, random_inputs, runner
from ._verify import (
    check_batch_sizes,
    checked_inputs,
    compare_outputs,
    first_line,
    flat,
    on_cpu,
    one_more,
    quiet,
    shapes,
)


def export_program(
    model: nn.Module, example_inputs: tuple[Tensor, ...] | Tensor, path: str | os.PathLike[str]
) -> Path:
    """Export a model to a program of torch.export: any batch size, evaluation mode, on the CPU.

    The file is saved, loaded again and compared with the model at two batch sizes before it
    appears. It runs wherever torch does, without the model's Python code:
    ``torch.export.load(path).module()(x)``.

    Args:
        model: any module that torch.export can capture. It is not touched.
        example_inputs: positional inputs; dimension 0 of each is the batch.
        path: the file to write, ``.pt2`` by custom; missing folders are made.

    Returns:
        The path of the file.

    Raises:
        ConfigError: if there is no input, or one without a batch.
        ModelError: if the model cannot be captured for any batch size, or if the loaded program's
            outputs differ by more than 1e-4 of the largest magnitude.
        OutputError: if the file cannot be written, with the path.

    Source: https://docs.pytorch.org/docs/stable/export.html
    """
    path = check_writable(path)
    inputs, clone = checked_inputs(example_inputs), on_cpu(model)
    check_batch_sizes(clone, inputs)
    program = captured(clone, inputs)
    program.example_inputs = None  # the example may be somebody's data
    with writing(path) as temporary:
        with quiet():
            torch.export.save(program, temporary)
        for batch in (inputs, one_more(inputs)):
            compare_outputs(clone, batch, _run(temporary), "torch.export")
    return path


def captured(
    model: nn.Module, inputs: tuple[Tensor, ...], *, free_batch: bool = True
) -> torch.export.ExportedProgram:
    """The graph of torch.export.

    Raises:
        ModelError: if there is none.
    """
    # A batch of one would be taken for a constant.
    sample = one_more(inputs) if free_batch and inputs[0].shape[0] == 1 else inputs
    dynamic = (
        nested(model, tuple({0: torch.export.Dim("batch")} for _ in sample)) if free_batch else None
    )
    try:
        with quiet(), torch.no_grad():
            return torch.export.export(model, sample, dynamic_shapes=dynamic)
    except Exception as error:  # capture runs the model's own code
        batch = "with a free batch size" if free_batch else "with this batch size"
        raise ModelError(
            f"torch.export cannot capture {type(model).__name__} for inputs of shape {shapes(sample)} {batch}: "
            f"{first_line(error)}"
        ) from error


def program_runner(path: str | os.PathLike[str], inputs: tuple[Tensor, ...] | Tensor) -> Runner:
    """A runner of a ``.pt2`` program.

    Args:
        path: the file.
        inputs: positional inputs with the batch on dimension 0.

    Raises:
        ModelError: if the file cannot be loaded or does not run on the inputs.
    """
    module, arguments = load_program(path).module(), as_inputs(inputs)

    def call() -> object:
        with torch.inference_mode():
            return module(*arguments)

    return runner("torch.export", arguments, None, call, str(path))


def program_inputs(path: str | os.PathLike[str], batch: int = 1) -> tuple[Tensor, ...]:
    """Random inputs of the shapes that a program states.

    Raises:
        ModelError: if the file cannot be loaded, or leaves a dimension other than the batch open,
            or takes anything but float32.
    """
    program = load_program(path)
    names = set(program.graph_signature.user_inputs)
    sizes = []
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in names:
            value = node.meta["val"]
            rest_open = not all(isinstance(n, int) for n in value.shape[1:])
            if rest_open or value.dtype != torch.float32:
                raise ModelError(
                    f"{path}: input {node.name!r} is {value.dtype} of shape {tuple(value.shape)}; only float32 with "
                    "no open dimension but the batch can be made up. Build its inputs yourself and use program_runner"
                )
            first = value.shape[0]
            sizes.append((first if isinstance(first, int) else batch, *value.shape[1:]))
    return random_inputs(sizes)


def program_footprint(path: str | os.PathLike[str], inputs: tuple[Tensor, ...]) -> Footprint:
    """What a program costs, as :func:`snello.deploy.footprint` counts a model.

    Raises:
        ModelError: if the file cannot be loaded or does not run on one sample.
    """
    program = load_program(path)
    parameters = [
        program.state_dict[name] for name in dict.fromkeys(program.graph_signature.parameters)
    ]
    return Footprint(
        parameters=sum(p.numel() for p in parameters),
        nonzeros=sum(int(torch.count_nonzero(p)) for p in parameters),
        dead_neurons=_dead(program),
        macs=macs_of(program.module(), inputs, str(path)),
        bytes=state_bytes([*program.state_dict.values()]),
    )


def program_peak_memory(path: str | os.PathLike[str], inputs: tuple[Tensor, ...]) -> PeakMemory:
    """Memory of one forward pass of a program, by counting the tensors that live at the same time.

    Raises:
        ModelError: if the file cannot be loaded or does not run on the inputs.
    """
    module = load_program(path).module()
    return peak_memory_of(module, [*module.parameters(), *module.buffers()], inputs)


def load_program(path: str | os.PathLike[str]) -> torch.export.ExportedProgram:
    """Read a program: the inverse of :func:`export_program`.

    torch unpickles parts of such a file and evaluates others. A file with more than
    :func:`export_program` writes is refused before torch reads it; that is a precaution, not a
    promise for hostile files.

    Raises:
        ModelError: if the file is missing, damaged, no program, or holds what could run code.
    """
    if not Path(path).is_file():
        raise ModelError(f"there is no file {path}")
    check_program(Path(path))
    return _loaded(path)


def _loaded(path: str | os.PathLike[str]) -> torch.export.ExportedProgram:
    try:
        with quiet():
            return torch.export.load(path)
    except Exception as error:  # torch raises many kinds on a damaged file
        raise ModelError(
            f"{path} is damaged, or no program of torch.export: {first_line(error)}"
        ) from error


def _dead(program: torch.export.ExportedProgram) -> int:
    """Neurons of linear and convolution operators whose weights are all zero, each weight once."""
    known = program.graph_signature.inputs_to_parameters
    weights = {}
    for node in program.graph.nodes:
        name = getattr(node.target, "__name__", "")
        if (
            node.op == "call_function"
            and name.startswith(("linear.", "conv"))
            and len(node.args) > 1
        ):
            parameter = known.get(getattr(node.args[1], "name", ""))
            if parameter is not None:
                # conv_transpose: (in, out/groups, *kernel), groups in args[6]
                groups = int(node.args[6]) if "transpose" in name and len(node.args) > 6 else 1
                weights[parameter] = (program.state_dict[parameter], "transpose" in name, groups)
    return sum(_dead_rows(*weight) for weight in weights.values())


def _dead_rows(weight: Tensor, transposed: bool, groups: int) -> int:
    if transposed:
        weight = weight.reshape(groups, -1, *weight.shape[1:]).transpose(1, 2).flatten(0, 1)
    return int((weight.flatten(1) == 0).all(1).sum())


def _run(path: Path) -> Callable[[tuple[Tensor, ...]], Sequence[Tensor]]:
    module = functools.cache(lambda: _loaded(path).module())  # written here: nothing to look for

    def run(inputs: tuple[Tensor, ...]) -> list[Tensor]:
        with torch.no_grad():
            return flat(module()(*inputs))

    return run
