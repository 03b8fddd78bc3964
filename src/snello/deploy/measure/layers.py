"""Where the time of a forward goes: width, operations and milliseconds of every layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from snello.deploy._runners import torch_threads
from snello.deploy._verify import shapes
from snello.errors import ModelError
from snello.flops import counted
from snello.graph import Example, Inputs, class_name
from snello.graph.modes import evaluation
from snello.neurons import is_weighted, neuron_count
from snello.timing import take_turns, work_seconds

from .counts import required_inputs
from .latency import check_counts

BETWEEN = "(between layers)"
"""Name of the row with all that no layer computes: sums, reshapes, functional operations."""


@dataclass(frozen=True)
class LayerProfile:
    """One layer, or all that is computed between layers.

    Attributes:
        name: name of the module; `"(between layers)"` for the rest.
        kind: class of the module.
        width: number of neurons; None for a layer without.
        parameters: number of its own parameters.
        macs: multiply-accumulates of one sample.
        median_ms: median of the times of a forward, in milliseconds: CPU time on the CPU, so that
            other processes do not count, and wall-clock time elsewhere. A layer that is called
            several times has the sum.
    """

    name: str
    kind: str
    width: int | None
    parameters: int
    macs: int
    median_ms: float


def profile_layers(
    models: Mapping[str, tuple[nn.Module, Example]],
    *,
    repeats: int = 20,
    warmup: int = 3,
    threads: int = 1,
) -> dict[str, tuple[LayerProfile, ...]]:
    """Count and time the layers of several models in PyTorch, in turns in one run.

    A layer is a module that calls no other one in its forward. Fused runtimes divide their time in
    other ways.

    Args:
        models: name -> model and example inputs with the batch on dimension 0.
        repeats: number of timed forwards of each model.
        warmup: number of untimed forwards before them.
        threads: torch's number of threads during the run.

    Returns:
        Name -> its layers in the order of their first call, then the row of the rest.

    Raises:
        ModelError: if a model does not run on its inputs.
        ConfigError: for a model without example inputs, or counts out of range.
    """
    check_counts(repeats=(repeats, 1), warmup=(warmup, 0), threads=(threads, 1))
    runs = {
        name: _Run(model, Inputs.of(required_inputs(model, example, "profile_layers")))
        for name, (model, example) in models.items()
    }
    with ExitStack() as open_, torch_threads(threads):
        for run in runs.values():
            open_.enter_context(run.watched())
        times = take_turns(list(runs), lambda name: runs[name].timed(), repeats, warmup)
    return {name: run.rows(times[name]) for name, run in runs.items()}


@dataclass
class _Run:
    """A model whose calls of modules are timed."""

    model: nn.Module
    inputs: Inputs
    _open: list[tuple[float, bool]] = field(default_factory=list)
    _times: dict[str, float] = field(default_factory=dict)
    _watching: bool = False

    def __post_init__(self) -> None:
        # Once: the clock is read between layers.
        tensors = self.inputs.tensors()
        self._device = next((t.device for t in tensors), torch.device("cpu"))
        try:
            with evaluation(self.model):
                self.inputs.call(self.model)
        except Exception as error:  # the model's own code may raise anything
            raise ModelError(
                f"{class_name(self.model)} does not run on inputs of shape {shapes(tensors)}: {error}"
            ) from error

    @contextmanager
    def watched(self) -> Iterator[None]:
        handles = []
        for name, module in self.model.named_modules():
            if name:
                handles += [
                    module.register_forward_pre_hook(self._enter),
                    module.register_forward_hook(self._leave(name)),
                ]
        try:
            with evaluation(self.model):
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, module: nn.Module, arguments: Any) -> None:
        if not self._watching:
            return
        if self._open:  # the caller is no leaf
            self._open[-1] = (self._open[-1][0], False)
        self._open.append((self._now(), True))

    def _leave(self, name: str) -> Callable[..., None]:
        def leave(module: nn.Module, arguments: Any, output: Any) -> None:
            if not self._watching:
                return
            started, leaf = self._open.pop()
            if leaf:
                self._times[name] = self._times.get(name, 0.0) + self._now() - started

        return leave

    def _now(self) -> float:
        return work_seconds(self._device)

    def timed(self) -> dict[str, float]:
        """Seconds of each layer in one forward; of another forward under the empty name.

        The whole is timed without the clocks between layers, which would count as its rest.
        """
        self._times, self._watching = {}, True
        self._open.clear()
        self.inputs.call(self.model)
        self._watching = False
        started = self._now()
        self.inputs.call(self.model)
        return {**self._times, "": self._now() - started}

    def rows(self, times: list[dict[str, float]]) -> tuple[LayerProfile, ...]:
        one = self.inputs.map(_first)
        with evaluation(self.model), counted(self.model) as counter:
            one.call(self.model)
        flops = {name: sum(c.values()) // 2 for name, c in counter.get_flop_counts().items()}
        prefix, layers = type(self.model).__name__, [name for name in times[-1] if name]
        found = [
            _row(
                name,
                self.model.get_submodule(name),
                flops.get(f"{prefix}.{name}", 0),
                median(turn.get(name, 0.0) for turn in times),
            )
            for name in layers
        ]
        whole = median(turn[""] for turn in times)
        rest = LayerProfile(
            BETWEEN,
            "",
            None,
            sum(p.numel() for p in self.model.parameters()) - sum(row.parameters for row in found),
            flops.get("Global", 0) - sum(row.macs for row in found),
            max(0.0, 1e3 * whole - sum(row.median_ms for row in found)),
        )
        return (*found, rest)


def _row(name: str, module: nn.Module, macs: int, seconds: float) -> LayerProfile:
    return LayerProfile(
        name,
        type(module).__name__,
        neuron_count(module) if is_weighted(module) else None,
        sum(p.numel() for p in module.parameters()),
        macs,
        1e3 * seconds,
    )


def _first(tensor: Tensor) -> Tensor:
    return tensor[:1] if tensor.dim() else tensor
