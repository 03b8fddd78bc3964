"""Runners: callables that run a model once, with the conditions of the run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from snello.errors import ConfigError, ModelError
from snello.graph import as_inputs, class_name
from snello.wrappers import copied

from ._verify import batch_of, first_line


@dataclass(frozen=True)
class Runner:
    """A model and its inputs, ready to run.

    Attributes:
        runtime: name of the runtime.
        batch: number of samples per call.
        device: device of the runtime, as torch names it.
        threads: number of threads of the runtime; None if torch's setting applies.
        call: function that runs the model once.
    """

    runtime: str
    batch: int
    device: str
    threads: int | None
    call: Callable[[], object] = field(repr=False)

    def __call__(self) -> object:
        return self.call()


def pytorch_runner(model: nn.Module, inputs: tuple[Tensor, ...] | Tensor) -> Runner:
    """Prepare a model to run in PyTorch, in evaluation mode and without autograd.

    Args:
        model: any module; it is copied.
        inputs: positional inputs with the batch on dimension 0, on the device of the model.

    Raises:
        ModelError: if the model does not run on the inputs.
    """
    arguments = as_inputs(inputs)
    clone = copied(model).eval()

    def call() -> object:
        with torch.inference_mode():
            return clone(*arguments)

    return runner("pytorch", arguments, None, call, class_name(model))


def compiled_runner(
    model: nn.Module, inputs: tuple[Tensor, ...] | Tensor, threads: int = 1
) -> Runner:
    """Prepare a model to run under `torch.compile`, as a single graph for fixed shapes.

    The model is compiled here, before timing, for a fixed number of threads, which torch writes
    into the generated code.

    Args:
        model: any module; it is copied.
        inputs: positional inputs with the batch on dimension 0, on the device of the model.
        threads: number of CPU threads to run with.

    Raises:
        ModelError: if the model cannot be compiled as one graph, or does not run on the inputs.
        ConfigError: without a C++ compiler, or for a number of threads below one.
    """
    check_threads(threads)
    arguments = as_inputs(inputs)
    # A graph break or too many recompilations would silently fall back to eager mode.
    compiled = torch.compile(copied(model).eval(), fullgraph=True, dynamic=False)

    def call() -> object:
        with torch.inference_mode():
            return compiled(*arguments)

    with torch_threads(threads):
        try:
            call()
        except Exception as error:  # torch.compile wraps any exception of its back ends
            raise _not_compiled(error, class_name(model)) from error
    return runner("torch.compile", arguments, threads, call, class_name(model))


def _not_compiled(error: Exception, name: str) -> Exception:
    # torch wraps the original error and keeps only its text.
    if "InvalidCxxCompiler" in str(error) or "No working C++ compiler" in str(error):
        return ConfigError(
            "torch.compile needs a C++ compiler and finds none: install one (Debian: apt-get "
            "install g++), set the environment variable CXX to its path, or leave torch.compile out"
        )
    return ModelError(f"torch.compile cannot compile {name} as one graph: {first_line(error)}")


def runner(
    runtime: str,
    inputs: tuple[Tensor, ...],
    threads: int | None,
    call: Callable[[], object],
    what: str,
    device: str | None = None,
) -> Runner:
    """Build a runner from a callable, after one trial run.

    Args:
        runtime: name of the runtime.
        inputs: inputs of the model, for the batch size and for messages.
        threads: number of threads of the runtime; None if torch's setting applies.
        call: function that runs the model once.
        what: name of the model or the file, for messages.
        device: device of the runtime; None for the device of the inputs.

    Raises:
        ModelError: if the trial run fails.
    """
    # An error here names the model; later it would interrupt a timing run of several models.
    try:
        call()
    except Exception as error:  # every runtime defines its own exceptions
        raise ModelError(
            f"{what} does not run on inputs of shape {[tuple(x.shape) for x in inputs]}: {error}"
        ) from error
    return Runner(runtime, batch_of(inputs), device or str(inputs[0].device), threads, call)


def random_inputs(shapes: Iterable[Iterable[int]]) -> tuple[Tensor, ...]:
    """Standard normal inputs of these shapes, with a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(tuple(shape), generator=generator) for shape in shapes)


@contextlib.contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Set torch's number of threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def check_threads(threads: int) -> None:
    """Raise a ConfigError for a number of threads below one."""
    if threads < 1:
        raise ConfigError(f"threads={threads}: choose at least 1")
