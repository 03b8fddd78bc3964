"""Capture of a model's graph: by torch.fx, or by recording a run."""

from __future__ import annotations

import inspect
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, fx, nn

from snello.errors import ModelError, reason_of
from snello.neurons import neuron_layers, tied_parameters
from snello.wrappers import unwrapped

from ._signature import bind, left_out, selecting
from ._tracer import Tracer
from .graph import Graph
from .in_place import follow_in_place_operations
from .inputs import Example, Inputs
from .merged import merged
from .modes import containers_restored
from .places import place_of_error, where
from .recorded import record
from .shapes import propagate_shapes
from .tape import graph_of, needed
from .twins import differ, outputs_of


def capture(
    model: nn.Module,
    args: Example | None = None,
    kwargs: Mapping[str, Any] | None = None,
    *,
    constants: Mapping[str, Any] | None = None,
    whole_stateless: bool = False,
) -> Graph:
    """Capture the graph of a model; with example inputs, also the shape of every output.

    torch.fx is tried first, because its graph computes sizes from its inputs as the model does.
    Where it cannot trace a model, or takes another path through it than the model itself (their
    outputs are compared), the operations that run on the example inputs are recorded, with the
    sizes of this run as literals; see `Graph.runnable`. Several calls of one layer, for example on
    the levels of a pyramid, are then merged into one node.

    Example inputs also fix the arguments that select a branch of the forward: None, booleans and
    strings, passed or left to their default, keep their value, so that `if mask is not None`
    takes the branch that the model takes. Other arguments left to their default stay arguments of
    the graph if torch.fx can trace the forward with them, and otherwise keep their value. The
    captured module has the signature of the model and ignores the arguments that keep their value:
    they are listed in `Graph.constants`.

    Args:
        model: a module, which is neither changed nor copied. Without example inputs it must be
            one that torch.fx can trace.
        args: inputs of the real shape and of any batch size: a tensor, a tuple or list of
            positional arguments, a mapping of keyword arguments, or
            [`Inputs`][snello.graph.Inputs]. One forward in evaluation mode is run. None for a graph
            without shapes, in which every argument is traced.
        kwargs: keyword arguments, in addition to those in `args`.
        constants: argument -> value that it keeps, where example inputs do not fix it. Pass
            `Graph.constants` of an earlier capture to capture the
            same branches again.
        whole_stateless: keep modules without parameters and buffers as one node each.

    Returns:
        The graph. Shapes are read with [`shape_of`][snello.graph.shape_of].

    Raises:
        ModelError: if the model does not run on the example inputs; if torch.fx cannot trace it
            and there are no example inputs, or a run cannot be recorded, or its output is empty.
        ConfigError: for example inputs of another kind.
    """
    model = unwrapped(model, "capture")
    inputs = None if args is None and kwargs is None else together(args, kwargs)
    with containers_restored(model):
        return _captured(model, inputs, constants or {}, whole_stateless)


def _captured(
    model: nn.Module, inputs: Inputs | None, constants: Mapping[str, Any], whole: bool
) -> Graph:
    if inputs is None:
        module, kept = _traced(model, None, constants, whole)
        follow_in_place_operations(module)
        return _graph(module, kept)
    arguments = _bound(model, inputs)
    expected = _outputs(model, inputs)
    try:
        module, kept = _traced(model, arguments, constants, whole)
        follow_in_place_operations(module)
        found = propagate_shapes(module, arguments)
    except Exception as error:  # fx raises whatever the model's own code raises on a proxy
        return _recorded(model, inputs, error)
    if differ(expected, found):
        other = ModelError(
            f"torch.fx takes another path through {type(model).__name__} than the model itself: "
            "their outputs differ on the example inputs."
        )
        return _recorded(model, inputs, other)
    return _graph(module, kept)


def _outputs(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    try:
        return outputs_of(model, inputs)
    except Exception as error:  # whatever an operation raises on inputs that do not fit it
        raise does_not_run(model, inputs, error) from error


def _recorded(model: nn.Module, inputs: Inputs, error: Exception) -> Graph:
    """Capture by running the model, where torch.fx cannot.

    Raises:
        ModelError: if a run cannot be recorded either (with the reason of torch.fx), or if no
            output tensor has an element.
    """
    try:
        tape = needed(record(model, inputs))
    except Exception as second:
        raise ModelError(
            f"{error} A run of it cannot be recorded either: {reason_of(second)}{where(second, model)}"
        ) from second
    if not any(map(math.prod, tape.output_shapes)):
        raise ModelError(
            f"{type(model).__name__} gives {_listed(tape.output_shapes)} on the example inputs, so that "
            "no change of it could be verified. Give inputs on which it finds something, or lower "
            "its score threshold."
        )
    counts = Counter(step.target for step in tape.steps if step.kind == "call_module")
    repeated = [name for name, count in counts.items() if count > 1 and _holds(model, name)]
    module = graph_of(merged(tape, repeated), model)
    return _graph(module, {}, runnable=False, reason=_told(error))


def _told(error: BaseException) -> str:
    """The first line of an error of torch.fx, with the line of the model's code that raised it."""
    place = place_of_error(error.__cause__ or error)
    first = reason_of(error).rstrip(". ")
    return first if place is None or place in first else f"{first} (at {place})"


def _listed(shapes: Sequence[tuple[int, ...]]) -> str:
    """The empty output of a model, for an error message."""
    return f"empty tensors, {', '.join(map(str, shapes))}," if shapes else "no tensor"


def _holds(model: nn.Module, name: str) -> bool:
    """True if a layer has weights or statistics."""
    return bool(model.get_submodule(name).state_dict())


def _graph(
    module: fx.GraphModule, constants: dict[str, Any], *, runnable: bool = True, reason: str = ""
) -> Graph:
    tied = {name.rpartition(".")[0] for group in tied_parameters(module) for name in group}
    return Graph(module, _calls(module), frozenset(tied), constants, runnable, reason)


def together(args: Example | None, kwargs: Mapping[str, Any] | None) -> Inputs:
    """Example inputs with further keyword arguments."""
    inputs = Inputs() if args is None else Inputs.of(args)
    return Inputs(inputs.args, {**inputs.kwargs, **(kwargs or {})})


def _bound(model: nn.Module, inputs: Inputs) -> dict[str, Any]:
    try:
        return bind(model, inputs)
    except TypeError as error:
        raise does_not_run(model, inputs, error) from error


Traced = tuple[fx.GraphModule, dict[str, Any]]


def _traced(
    model: nn.Module, arguments: Mapping[str, Any] | None, known: Mapping[str, Any], whole: bool
) -> Traced:
    """Trace a model.

    Args:
        model: the model.
        arguments: placeholder -> example argument; None to trace every argument.
        known: placeholder -> value to keep, unless the example arguments fix another.
        whole: keep modules without state as one node each.

    Returns:
        The graph module, and the arguments that are constant in it.
    """
    defaults = {} if arguments is None else left_out(model, arguments)
    constants = {**known, **selecting({**defaults, **(arguments or {})})}
    options = {"whole_containers": arguments is None, "whole_stateless": whole}
    try:
        graph = Tracer(constants, **options).trace(model)
    except Exception as error:  # fx raises whatever the model's own code raises on a proxy
        if defaults.keys() <= constants.keys():
            raise _cannot_trace(model, error) from error
        # Defaults stay arguments of the graph where torch.fx can trace them. Here it cannot: the
        # forward needs the number itself, as in "for _ in range(steps)".
        constants |= defaults
        try:
            graph = Tracer(constants, **options).trace(model)
        except Exception as second:
            raise _cannot_trace(model, second) from second
    return fx.GraphModule(model, graph), constants


def _cannot_trace(model: nn.Module, error: Exception) -> ModelError:
    return ModelError(
        f"torch.fx cannot trace {type(model).__name__}: {error}{where(error, model)}. "
        "Usual causes are Python branches or loops over tensor values in forward(), and optional inputs, "
        f"which are known to be left out only beside example inputs{_inner_wrapper(model)}."
    )


def does_not_run(model: nn.Module, inputs: Inputs, error: Exception) -> ModelError:
    """The error for a model that raises one on its example inputs, with the place and advice."""
    shapes = ", ".join(map(str, inputs.shapes))
    reason = reason_of(error)
    unbound = isinstance(error, TypeError) and "argument" in reason
    keywords = (
        "; the forward takes "
        + str(inspect.signature(model.forward))
        + ": pass optional inputs by keyword, "
        "as in {'x': x, 'mask': mask}"
    )
    return ModelError(
        f"the model does not run on the example inputs of shape {shapes}: {reason}"
        f"{where(error, model)}{keywords if unbound else ''}{_inner_wrapper(model)}"
    )


def _inner_wrapper(model: nn.Module) -> str:
    """Advice to unwrap a submodule, if one is a wrapper such as DataParallel; else empty."""
    for name, module in model.named_modules():
        inside = _INSIDE.get(type(module).__name__)
        if name and inside is not None:
            return (
                f"; {name!r} is a {type(module).__name__}, which hides the layers inside: "
                f"give {name}.{inside} in its place"
            )
    return ""


_INSIDE = {
    "DataParallel": "module", "DistributedDataParallel": "module", "OptimizedModule": "_orig_mod",
}  # fmt: skip
"""Wrapper -> attribute with the wrapped module. `capture` itself unwraps the whole model."""


def _calls(module: fx.GraphModule) -> dict[str, list[fx.Node]]:
    """Module name -> the nodes that call it, in order of execution."""
    calls: dict[str, list[fx.Node]] = {}
    names = {id(layer): name for name, layer in neuron_layers(module).items()}
    for node in module.graph.nodes:
        if node.op == "call_module":
            # A module that is reached under two names is one layer.
            target = names.get(id(module.get_submodule(node.target)), node.target)
            calls.setdefault(target, []).append(node)
    return calls
