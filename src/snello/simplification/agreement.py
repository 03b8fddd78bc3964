"""Comparison of a captured graph with its model: other sizes, and training mode."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx, nn

from snello.errors import reason_of
from snello.graph import Graph, Inputs, bind, differ, same_numbers, tensors_in, tensors_of
from snello.wrappers import computed_memo

from .ir.domain import Domain, Training
from .rewrite import sharing_parameters, wake_dropout
from .sizes import more_examples, shorter, smaller


@dataclass(frozen=True)
class Agreement:
    """Result of the comparison.

    Attributes:
        domain: the sizes and modes that were compared.
        fault: a sentence that names the inputs on which the graph differs from the model; None if
            it does not.
    """

    domain: Domain
    fault: str | None = None


def agreement(model: nn.Module, graph: Graph, inputs: Inputs) -> Agreement:
    """Compare a graph with its model at other sizes and in training mode.

    The sizes are another batch size, and another resolution or length. A size at which the model
    itself raises is skipped. A graph that is not runnable is not compared, because the model's own
    forward is kept; only the sizes that the model accepts are determined.

    Args:
        model: the model in evaluation mode. It is not changed; training mode is run on a copy.
        graph: graph of the model, captured on the example inputs, where their outputs agree.
        inputs: the example inputs.
    """
    example = shapes_of(model, inputs)
    shapes: list[list[int | None]] = [list(shape) for shape in example]
    checked: dict[str, bool] = {}
    last = inputs
    for label, other in _others(inputs):
        if other.shapes == inputs.shapes or all(checked.get(part) for part in label.split("+")):
            continue
        try:
            # On a copy, because some models store values that depend on the size (Swin's windows).
            expected = _run(sharing_parameters(model), other)
        except Exception:  # whatever the model's own code raises on a size that it does not take
            continue
        if graph.runnable and (fault := _fault(_twin(graph.module), other, expected)) is not None:
            return Agreement(_domain(shapes, checked), fault)
        checked.update(dict.fromkeys(label.split("+"), True))
        last = other
        for own, before, now in zip(shapes, example, shapes_of(model, other), strict=True):
            own[:] = [None if a != b else size for size, a, b in zip(own, before, now, strict=True)]
    checked.setdefault("positions", _same(smaller, inputs))
    domain = _domain(shapes, checked)
    if not graph.runnable:
        return Agreement(domain)
    return Agreement(replace(domain, training=_in_training(model, graph, last)))


def shapes_of(model: nn.Module, inputs: Inputs) -> list[tuple[int, ...]]:
    """Shapes of the tensors among the arguments, in the order of the forward's signature."""
    return [tuple(x.shape) for x in tensors_in(list(bind(model, inputs).values()))]


def _others(inputs: Inputs) -> Iterator[tuple[str, Inputs]]:
    """Inputs of other sizes, with the kinds of size that change: first both, then each alone."""
    yield "batch+positions", inputs.map(lambda x: more_examples(smaller(x)))
    yield "batch", inputs.map(more_examples)
    yield "positions", inputs.map(smaller)
    yield "positions", inputs.map(shorter)
    yield "positions", inputs.map(lambda x: smaller(x, 1, 2))


def _same(change: Callable[[Tensor], Tensor], inputs: Inputs) -> bool:
    """True if a change of size leaves the inputs unchanged, because they have no such axis."""
    return all(change(tensor).shape == tensor.shape for tensor in inputs.tensors())


def _domain(shapes: list[list[int | None]], checked: dict[str, bool]) -> Domain:
    own = tuple(tuple(shape) for shape in shapes)
    return Domain(own, checked.get("batch", False), checked.get("positions", False))


def _run(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    with same_numbers():
        return tensors_of(inputs.map(torch.clone).call(model))


def _fault(module: fx.GraphModule, inputs: Inputs, expected: list[Tensor]) -> str | None:
    shapes = ", ".join(map(str, inputs.shapes))
    try:
        found = _run(module.eval(), inputs)
    except Exception as error:  # an operation whose sizes are fixed in the graph
        kind, reason = type(error).__name__, reason_of(error)
        return f"on inputs of shape {shapes} the captured graph raises {kind}: {reason}"
    if differ(expected, found):
        return f"on inputs of shape {shapes} the captured graph has other outputs than the model"
    return None


def _in_training(model: nn.Module, graph: Graph, inputs: Inputs) -> Training:
    """Compare in training mode, on copies, because running statistics are updated."""
    try:
        expected = _run(sharing_parameters(model).train(), inputs)
    except Exception:  # a batch that is too small for its statistics, targets that are missing
        return "unchecked"
    try:
        twin = _twin(graph.module)
        wake_dropout(sharing_parameters(model).eval(), twin, graph.constants)
        twin.recompile()
        found = _run(twin.train(), inputs)
    except Exception:
        return "differs"
    return "differs" if differ(expected, found) else "same"


def _twin(module: fx.GraphModule) -> fx.GraphModule:
    """Copy a graph module that shares its parameters with the original."""
    shared = {id(parameter): parameter for parameter in module.parameters()}
    return copy.deepcopy(module, computed_memo(module) | shared)
