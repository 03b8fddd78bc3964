"""Runners: callables that run a model once, with a record of how."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from snello.errors import ConfigError, ModelError
from snello.graph import as_inputs
from snello.wrappers import copied

from ._verify import batch_of, first_line


@dataclass(frozen=True)
class Runner:
    """A model and its inputs, ready to run.

    Attributes:
        runtime: what runs it.
        batch: number of samples per call.
        device: where it runs, as torch names it.
        threads: threads that the runtime was built with; None where the caller's setting holds.
        call: runs it once.
    """

    runtime: str
    batch: int
    device: str
    threads: int | None
    call: Callable[[], object] = field(repr=False)

    def __call__(self) -> object:
        return self.call()


def pytorch_runner(model: nn.Module, inputs: tuple[Tensor, ...] | Tensor) -> Runner:
    """Make a model ready to run in PyTorch: evaluation mode, no autograd.

    Args:
        model: any module; a copy of it as it is now is run.
        inputs: positional inputs with the batch on dimension 0, on the device of the model.

    Raises:
        ModelError: if the model does not run on the inputs.
    """
    arguments = as_inputs(inputs)
    clone = copied(model).eval()

    def call() -> object:
        with torch.inference_mode():
            return clone(*arguments)

    return runner("pytorch", arguments, None, call, type(model).__name__)


def compiled_runner(
    model: nn.Module, inputs: tuple[Tensor, ...] | Tensor, threads: int = 1
) -> Runner:
    """Compile a model with ``torch.compile``: one whole graph, for these shapes alone.

    It is compiled before it is timed, and for one number of threads, which torch writes into the
    code.

    Args:
        model: any module; a copy of it as it is now is run.
        inputs: positional inputs with the batch on dimension 0, on the device of the model.
        threads: number of CPU threads that it will run with.

    Raises:
        ModelError: if the model cannot be compiled as one graph, or does not run on the inputs.
        ConfigError: where there is no C++ compiler, or for a number of threads below one.
    """
    check_threads(threads)
    arguments = as_inputs(inputs)
    # A graph that breaks, or is compiled too often, would fall back to eager mode without a word.
    compiled = torch.compile(copied(model).eval(), fullgraph=True, dynamic=False)

    def call() -> object:
        with torch.inference_mode():
            return compiled(*arguments)

    with torch_threads(threads):
        try:
            call()
        except Exception as error:  # torch.compile wraps whatever its back ends raise
            raise _not_compiled(error, type(model).__name__) from error
    return runner("torch.compile", arguments, threads, call, type(model).__name__)


def _not_compiled(error: Exception, name: str) -> Exception:
    # torch wraps the reason in an error of its own, by text alone.
    if "InvalidCxxCompiler" in str(error) or "No working C++ compiler" in str(error):
        return ConfigError(
            "torch.compile needs a C++ compiler and finds none: install one (Debian: apt-get install g++), name it in "
            "the environment variable CXX, or leave torch.compile out"
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
    """Make a runner of a callable, after trying it once.

    Args:
        runtime: what runs it.
        inputs: what it is run on, for the batch size and the messages.
        threads: threads that the runtime was built with; None where the caller's setting holds.
        call: runs it once.
        what: the model or the file, for messages.
        device: where it runs; None for where the inputs are.

    Raises:
        ModelError: if it does not run.
    """
    # Better once now than in the middle of a timing run.
    try:
        call()
    except Exception as error:  # every runtime has exceptions of its own
        raise ModelError(
            f"{what} does not run on inputs of shape {[tuple(x.shape) for x in inputs]}: {error}"
        ) from error
    return Runner(runtime, batch_of(inputs), device or str(inputs[0].device), threads, call)


def random_inputs(shapes: Iterable[Iterable[int]]) -> tuple[Tensor, ...]:
    """Standard normal inputs of these shapes, always the same."""
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(tuple(shape), generator=generator) for shape in shapes)


@contextlib.contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Set torch's thread count within the block."""
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
