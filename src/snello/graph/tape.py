"""A tape: the operations that a model ran, in order, before they become a graph."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, fx, nn

from .places import note

Path = tuple[Any, ...]


@dataclass(frozen=True)
class Value:
    """A tensor of a tape.

    Attributes:
        step: number of the step that returns it.
        path: indices and keys that lead to it in the result of the step.
    """

    step: int
    path: Path = ()


@dataclass(frozen=True)
class Step:
    """One operation.

    Attributes:
        kind, target, args, kwargs: as `op`, `target`, `args` and `kwargs` of a node of
            torch.fx, with a `Value` for each tensor.
        shapes: path in the result -> shape, of each tensor in it.
        owner: name of the innermost module whose forward calls the operation.
        place: file and line of the user's code that calls the operation.
        effect: whether the step stays even if no step reads its result: it gives no tensor
            (`item`, `bool`), or writes on a parameter or a buffer.
    """

    kind: str
    target: Any
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    shapes: Mapping[Path, tuple[int, ...]] = field(default_factory=dict)
    owner: str = ""
    place: str | None = None
    effect: bool = False

    @property
    def operands(self) -> list[Value]:
        """The tensors that the operation reads, in order."""
        return [leaf for leaf in leaves((self.args, self.kwargs)) if isinstance(leaf, Value)]


@dataclass(frozen=True)
class Tape:
    """The record of one forward of a model.

    Attributes:
        steps: in order; the last one is the output.
        constants: name -> tensor that the forward reads, but that is no input, parameter or buffer
            and no result of a step, such as a plain attribute.
    """

    steps: Sequence[Step]
    constants: Mapping[str, Tensor]

    @property
    def output_shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the tensors in the output."""
        return [self.steps[value.step].shapes[value.path] for value in self.steps[-1].operands]


def mapped(structure: Any, function: Callable[[Any], Any]) -> Any:
    """Apply a function to every leaf of nested tuples, lists, mappings and slices."""
    if isinstance(structure, (tuple, list)):
        parts = [mapped(part, function) for part in structure]
        return parts if isinstance(structure, list) else tuple(parts)
    if isinstance(structure, Mapping):
        return {key: mapped(part, function) for key, part in structure.items()}
    if isinstance(structure, slice):
        return slice(
            *(mapped(part, function) for part in (structure.start, structure.stop, structure.step))
        )
    return function(structure)


def leaves(structure: Any) -> list[Any]:
    """The leaves of nested tuples, lists, mappings and slices, in order."""
    found: list[Any] = []
    mapped(structure, found.append)
    return found


def tensors_by_path(result: Any, path: Path = ()) -> Iterator[tuple[Path, Tensor]]:
    """The tensors in a result, with the indices and keys that lead to them."""
    if isinstance(result, Tensor):
        yield path, result
    elif isinstance(result, (tuple, list, Mapping)):
        items = result.items() if isinstance(result, Mapping) else enumerate(result)
        for key, part in items:
            yield from tensors_by_path(part, (*path, key))


def renumbered(structure: Any, numbers: Sequence[int] | Mapping[int, int]) -> Any:
    """The same structure, in which a value of step `i` is one of step `numbers[i]`."""

    def renamed(leaf: Any) -> Any:
        return replace(leaf, step=numbers[leaf.step]) if isinstance(leaf, Value) else leaf

    return mapped(structure, renamed)


def needed(tape: Tape) -> Tape:
    """Remove the steps that do not contribute to an output or an effect."""
    live = [step.effect or step.kind in ("placeholder", "output") for step in tape.steps]
    for number in reversed(range(len(live))):
        if live[number]:
            for operand in tape.steps[number].operands:
                live[operand.step] = True
    kept = [number for number, lives in enumerate(live) if lives]
    numbers = {old: new for new, old in enumerate(kept)}
    steps = [tape.steps[number] for number in kept]
    return replace(tape, steps=[_moved(step, numbers) for step in steps])


def _moved(step: Step, numbers: Mapping[int, int]) -> Step:
    args, kwargs = renumbered((step.args, dict(step.kwargs)), numbers)
    return replace(step, args=args, kwargs=kwargs)


def graph_of(tape: Tape, root: nn.Module) -> fx.GraphModule:
    """Turn a tape into a graph module that is read, not run.

    Layers and parameters are those of `root` itself, no copies. The constants of the tape are
    buffers beside them; shapes are those that the tape has noted.
    """
    held = copy.copy(root)
    held._buffers = {**root._buffers, **tape.constants}
    graph = fx.Graph()
    nodes: dict[Value, fx.Node] = {}
    for number, step in enumerate(tape.steps):
        args, kwargs = mapped(
            (step.args, dict(step.kwargs)),
            lambda leaf: _node(graph, nodes, tape, leaf) if isinstance(leaf, Value) else leaf,
        )
        node = graph.create_node(step.kind, step.target, args, kwargs)
        # The entry that torch.fx's tracer makes, for the innermost module: read by Graph.owner.
        node.meta["nn_module_stack"] = {step.owner: (step.owner, None)} if step.owner else {}
        node.meta["snello_shape"] = step.shapes.get(())
        note(node, step.place)
        nodes[Value(number)] = node
    return fx.GraphModule(held, graph)


def _node(graph: fx.Graph, nodes: dict[Value, fx.Node], tape: Tape, value: Value) -> fx.Node:
    """The node that gives a value. For a part of a step's result, the `getitem` nodes that lead
    to it are added, one for each key of its path.
    """
    if value not in nodes:
        whole = _node(graph, nodes, tape, Value(value.step, value.path[:-1]))
        node = graph.call_function(operator.getitem, (whole, value.path[-1]))
        node.meta["snello_shape"] = tape.steps[value.step].shapes.get(value.path)
        nodes[value] = node
    return nodes[value]
