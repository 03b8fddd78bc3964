"""Pass 12: find the module whose own forward does not take narrower tensors, and mend it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx, nn

from snello.errors import reason_of
from snello.graph import Graph, Inputs, evaluation, module_of_error, place_of_error
from snello.neurons import qualified

from .attributes import is_width
from .facts import Arrangement, Facts

REASON = "its forward does not take narrower tensors"
"""Beginning of the reason why operations of a module at fault are left alone."""


@dataclass(frozen=True)
class Fault:
    """An error of a narrowed model of its own class.

    Attributes:
        modules: qualified names of the module whose forward raised it and of all others of its
            class, which would raise it next.
        reason: the error, with file and line of the model's code.
    """

    modules: tuple[str, ...]
    reason: str

    def nodes(self, facts: Facts) -> list[fx.Node]:
        """The operations to leave alone.

        1. Those that the forward of a module calls by itself.
        2. Those in its submodules that read one of its inputs, whose shape it may take sizes from.
        """
        graph = facts.graph

        def involved(node: fx.Node, path: str) -> bool:
            if graph.owner(node) == path:
                return True
            return _inside(graph, node, path) and not all(
                _inside(graph, operand, path) for operand in node.all_input_nodes
            )

        return [node for node in graph.nodes if any(involved(node, path) for path in self.modules)]


def _inside(graph: Graph, node: fx.Node, path: str) -> bool:
    """True if an operation is called in the forward of a module or of one of its submodules."""
    return f"{graph.owner(node)}.".startswith(f"{path}." if path else "")


def fault(lean: nn.Module, inputs: Inputs) -> Fault | None:
    """Run a narrowed model on the example inputs; return the error of its forward, if any.

    1. The module at fault is the innermost one that is not one of torch's: a layer of torch that
       refuses its input got it from the module that called it.
    2. If only the model's own forward was running, that is at fault.
    """
    try:
        with torch.no_grad(), evaluation(lean):
            inputs.map(torch.clone).call(lean)
    except Exception as error:  # the model's own code may raise anything on narrower tensors
        return _located(lean, error)
    return None


def _located(lean: nn.Module, error: Exception) -> Fault:
    name = module_of_error(error, lean) or ""
    while name and type(lean.get_submodule(name)).__module__.startswith("torch.nn."):
        name = name.rpartition(".")[0]
    kind = type(lean.get_submodule(name))
    place = place_of_error(error)
    reason = f"{REASON}: {reason_of(error)}" + (f" (at {place})" if place else "")
    same = tuple(path for path, module in lean.named_modules() if type(module) is kind)
    return Fault(same, reason)


def mirrored_widths(
    model: nn.Module, facts: Facts, arrangement: Arrangement, modules: tuple[str, ...]
) -> dict[str, int]:
    """Attributes of modules that hold the width of a tensor which they are given narrower.

    A forward that compares `x.shape[1]` with `self.channels` reads no size that a graph shows.

    1. An integer attribute takes the width in the lean model if it has that of the original, and
       the name of a width.
    2. It stays if two inputs of the same width have different ones in the lean model.

    Returns:
        Qualified name -> new value.
    """
    found: dict[str, int] = {}
    for path in modules:
        widths = _widths_given(facts, arrangement, path)
        for name, value in vars(model.get_submodule(path)).items():
            new = widths.get(value, set()) if type(value) is int and is_width(name) else set()
            if len(new) == 1 and new != {value}:
                found[qualified(path, name)] = next(iter(new))
    return found


def _widths_given(facts: Facts, arrangement: Arrangement, path: str) -> dict[int, set[int]]:
    """Original width of each tensor that the forward of a module is given -> widths when lean."""
    found: dict[int, set[int]] = {}
    for node in facts.graph.nodes:
        if facts.graph.owner(node) != path:
            continue
        for operand in node.all_input_nodes:
            layout = arrangement.layouts.get(operand)
            if layout is not None and facts.graph.owner(operand) != path:
                found.setdefault(layout.width, set()).add(len(layout.order))
    return found
