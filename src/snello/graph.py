"""The traced graph of a model: who feeds whom.

The graph is torch.fx's, at module level: every leaf module of torch is one node, and so is every functional
call. It is traced once and read by whoever needs to know what follows a layer.

>>> graph = trace(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()))
>>> graph.norm_after("0")
'1'
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from snello.errors import ModelError
from snello.neurons import is_batchnorm, neuron_layers, tied_parameters


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if is_stochastic_depth(m):  # traced into, it would never be active in training again
            return True
        # snello's own primitives are single operations, like torch's; so is attention, torch's or torchvision's.
        own = bool(getattr(m, "snello_leaf", False)) or is_window_attention(m)
        return own or super().is_leaf_module(m, module_qualified_name)


def is_stochastic_depth(module: nn.Module | None) -> bool:
    """Whether it is a StochasticDepth, torchvision's or one like it."""
    return type(module).__name__ == "StochasticDepth"


def is_window_attention(module: nn.Module | None) -> bool:
    """Whether it is torchvision's (shifted) window attention of Swin, V1 or V2."""
    kind = type(module)
    names = ("ShiftedWindowAttention", "ShiftedWindowAttentionV2")
    return kind.__module__ == "torchvision.models.swin_transformer" and kind.__name__ in names


@dataclass(frozen=True)
class Graph:
    """A traced model.

    Attributes:
        module: the model as a graph module; it shares every submodule and parameter with the original.
        calls: module name -> the nodes that call it, in order of execution.
        tied: names of the modules that have a parameter which also lives elsewhere.
    """

    module: fx.GraphModule
    calls: dict[str, list[fx.Node]]
    tied: frozenset[str]

    @property
    def nodes(self) -> list[fx.Node]:
        """The nodes in order of execution."""
        return list(self.module.graph.nodes)

    def layer(self, node: fx.Node) -> nn.Module | None:
        """The module that a node calls; None for functional calls, inputs and outputs."""
        return self.module.get_submodule(str(node.target)) if node.op == "call_module" else None

    def is_shared(self, name: str) -> bool:
        """Whether a layer is called more than once, or one of its parameters also lives elsewhere."""
        return len(self.calls.get(name, [])) > 1 or name in self.tied

    def is_tied(self, parameter: str) -> bool:
        """Whether a parameter also goes by another name."""
        return parameter.rpartition(".")[0] in self.tied

    def norm_after(self, name: str) -> str | None:
        """The BatchNorm that alone reads this layer's output, channel by channel; None if there is none."""
        nodes = self.calls.get(name, [])
        if len(nodes) != 1 or len(nodes[0].users) != 1:
            return None
        reader = next(iter(nodes[0].users))
        module = self.layer(reader)
        if module is None or not is_batchnorm(module) or self.is_shared(str(reader.target)):
            return None
        return str(reader.target)


def trace(model: nn.Module, example_inputs: tuple[Tensor, ...] | Tensor | None = None) -> Graph:
    """Trace a model; with example inputs, every node also carries the shape of its output.

    Args:
        model: any module that torch.fx can trace. It is neither changed nor copied.
        example_inputs: inputs of the real shape and of any batch size. One forward in evaluation mode is run.

    Returns:
        The graph. Shapes are read with :func:`shape_of`.

    Raises:
        ModelError: if torch.fx cannot trace the model, with its reason.
    """
    tracer = _Tracer()
    try:
        graph = tracer.trace(model)
    except Exception as error:  # fx raises whatever the model's own code raises on a proxy
        raise ModelError(
            f"torch.fx cannot trace {type(model).__name__}: {error}. "
            "Usual causes are Python branches or loops over tensor values in forward()."
        ) from error
    module = fx.GraphModule(model, graph)
    _read_what_was_written(module)
    if example_inputs is not None:
        _propagate_shapes(module, as_inputs(example_inputs))
    calls: dict[str, list[fx.Node]] = {}
    names = {id(m): name for name, m in neuron_layers(module).items()}
    for node in graph.nodes:
        if node.op == "call_module":
            # The same module may be reached under two names: it is one layer all the same.
            target = names.get(id(module.get_submodule(node.target)), node.target)
            calls.setdefault(target, []).append(node)
    tied = {parameter.rpartition(".")[0] for group in tied_parameters(module) for parameter in group}
    return Graph(module, calls, frozenset(tied))


def _read_what_was_written(module: fx.GraphModule) -> None:
    """Whoever reads a tensor after it was overwritten reads the result of what overwrote it.

    The values are the same; but now every edge says which ones they are.
    """
    order = {node: i for i, node in enumerate(module.graph.nodes)}
    for node in module.graph.nodes:
        written = node.args[0] if node.args else None
        if isinstance(written, fx.Node) and _writes(module, node):
            for reader in [user for user in written.users if order[user] > order[node]]:
                reader.replace_input_with(written, node)


def _writes(module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether an operation overwrites its first argument."""
    if node.op == "call_module":
        return bool(getattr(module.get_submodule(str(node.target)), "inplace", False))
    if node.op == "call_method":
        return str(node.target).endswith("_") and not str(node.target).endswith("__")
    name = getattr(node.target, "__name__", "")
    in_place = name in ("iadd", "isub", "imul", "itruediv") or (
        name.endswith("_") and not name.endswith("__")
    )
    return node.op == "call_function" and (in_place or bool(node.kwargs.get("inplace")))


def as_inputs(example_inputs: tuple[Tensor, ...] | Tensor) -> tuple[Tensor, ...]:
    """Example inputs as a tuple of positional arguments."""
    return (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs)


def _propagate_shapes(module: fx.GraphModule, inputs: tuple[Tensor, ...]) -> None:
    try:
        with evaluation(module):
            _Shapes(module).run(*inputs)
    except Exception as error:
        shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
        reason = str(error).partition("\n")[0]
        raise ModelError(
            f"the model does not run on the example inputs of shape {shapes}: {reason}"
        ) from error


class _Shapes(fx.Interpreter):
    """Runs the graph and notes the shape of every tensor on its node."""

    def run_node(self, n: fx.Node) -> object:
        result = super().run_node(n)
        n.meta["snello_shape"] = tuple(result.shape) if isinstance(result, Tensor) else None
        return result


def shape_of(node: fx.Node) -> tuple[int, ...] | None:
    """Shape of a node's output on the example inputs; None where it is not one tensor."""
    return node.meta.get("snello_shape")


def known_shape(node: fx.Node) -> tuple[int, ...]:
    """:func:`shape_of` a node whose output is known to be one tensor."""
    shape = shape_of(node)
    assert shape is not None
    return shape


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; afterwards every module is in its own mode again."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """:func:`evaluation_mode`, without gradients."""
    with evaluation_mode(model), torch.no_grad():
        yield
