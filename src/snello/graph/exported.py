"""Capture by torch.export: the operations that a model runs, whatever Python decides between them.

Layers of torch stay one call each, under their own names; parameters that are used by themselves
are attributes. The graph takes the tensors among the inputs, flat, and returns those among the
outputs, flat. It shows what the model computes, but it cannot take its place: Python's own
decisions are gone from it.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from . import aten
from ._tracer import Tracer
from .inputs import Inputs
from .modes import evaluation
from .places import copy_place


def export(model: nn.Module, inputs: Inputs) -> ExportedProgram:
    """Export a model in evaluation mode. The batch size stays free where the model lets it.

    Raises:
        Exception: whatever torch.export raises.
    """
    with evaluation(model), torch.no_grad(), _silent():
        return _program(_Tensors(model), inputs)


@contextmanager
def _silent() -> Iterator[None]:
    """Suppress the words of torch.export: attributes that a forward assigns, whole graphs that
    failed.
    """
    with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        warnings.simplefilter("ignore")
        yield


def translated(
    program: ExportedProgram, model: nn.Module, inputs: Inputs, *, in_words_of_fx: bool
) -> tuple[fx.GraphModule, dict[str, Any]]:
    """Turn a program of :func:`export` into a graph module with the layers of the model.

    Args:
        program: of the model.
        model: its layers are shared.
        inputs: those that it was exported with.
        in_words_of_fx: whether to write operations as functions and methods of torch, which rules
            know.

    Returns:
        The graph module, and the value of each placeholder.
    """
    graph = _Translation(program, model, in_words_of_fx).graph()
    root = copy.copy(model)
    constants = {
        name: value for name, value in program.constants.items() if isinstance(value, Tensor)
    }
    names = {_own_name(model, name): value for name, value in constants.items()}
    root._buffers = {**model._buffers, **{n: v for n, v in names.items() if not _held(model, n)}}
    module = fx.GraphModule(root, graph)
    graph.eliminate_dead_code()
    module.recompile()
    leaves = pytree.tree_leaves((inputs.args, dict(inputs.kwargs)))
    placeholders = [node.target for node in graph.nodes if node.op == "placeholder"]
    return module, dict(zip(placeholders, leaves, strict=True))


class _Tensors(nn.Module):
    """A model that returns the tensors among its outputs, flat.

    What is held in other objects, such as the cache of a language model, is left out.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any, **kwargs: Any) -> list[Tensor]:
        leaves = pytree.tree_leaves(self.model(*args, **kwargs))
        return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


_PREFIX = "model."


def _program(model: nn.Module, inputs: Inputs) -> ExportedProgram:
    """Export with free sizes; with fixed ones where that does not work."""
    args, kwargs = inputs.args, dict(inputs.kwargs)

    def free(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return None
        # The batch; of indices also their number. A free resolution can take minutes to reason
        # about.
        return dict.fromkeys(
            range(min(leaf.dim(), 1) if leaf.is_floating_point() else leaf.dim()), Dim.AUTO
        )

    shapes = {"args": pytree.tree_map(free, tuple(args)), "kwargs": pytree.tree_map(free, kwargs)}
    shapes = {name: value for name, value in shapes.items() if value}
    try:
        return torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)
    except Exception:
        return torch.export.export(model, args, kwargs, strict=False)


def _own_name(model: nn.Module, name: str) -> str:
    """Name in the model of a tensor of the program; a new one for a constant that the forward
    writes.
    """
    own = name.removeprefix(_PREFIX)
    return own if _held(model, own) else f"_tensor_constant_{own.replace('.', '_')}"


def _held(model: nn.Module, name: str) -> bool:
    """True if the model itself holds a tensor."""
    return isinstance(_found(model, name), Tensor)


def _found(model: nn.Module, name: str) -> object:
    """The attribute of a qualified name; None where there is none."""
    owner, _, attribute = name.rpartition(".")
    try:
        return getattr(model.get_submodule(owner), attribute, None)
    except AttributeError:
        return None


@dataclass
class _Call:
    """Nodes of one call of one layer.

    Attributes:
        path: name of the layer.
        nodes: its operations, in order.
        operands: nodes outside that they read, but for the parameters of the layer.
    """

    path: str
    nodes: list[fx.Node] = field(default_factory=list)
    operands: list[fx.Node] = field(default_factory=list)


class _Translation:
    """An exported program on the way to a graph of torch.fx."""

    def __init__(self, program: ExportedProgram, model: nn.Module, in_words_of_fx: bool) -> None:
        self.model, self.in_words_of_fx = model, in_words_of_fx
        signature = program.graph_signature
        lifted = signature.inputs_to_lifted_tensor_constants
        tensors = {**signature.inputs_to_parameters, **signature.inputs_to_buffers, **lifted}
        self.tensors: Mapping[str, str] = {
            n: _own_name(model, target) for n, target in tensors.items()
        }
        self.nodes = list(program.graph.nodes)
        self.new = fx.Graph()
        self.values: dict[fx.Node, fx.Node] = {}

    def graph(self) -> fx.Graph:
        """Translate node by node; a layer's operations become one call at the last of them."""
        folded = {call.nodes[-1]: call for call in self._calls()}
        inside = {node for call in folded.values() for node in call.nodes}
        for node in self.nodes:
            if node in folded:
                call = folded[node]
                (operand,) = call.operands
                self.values[node] = self.new.call_module(call.path, (self._value(operand),))
                copy_place(node, self.values[node])
            elif node not in inside:
                self._translate(node)
        return self.new

    def _translate(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            if node.name not in self.tensors:
                self.values[node] = self.new.placeholder(node.name)
        elif node.op == "output":
            self.new.output(fx.map_arg(node.args[0], self._value))
        else:
            kind, target, args, kwargs = (
                aten.written(node)
                if self.in_words_of_fx
                else (node.op, node.target, node.args, node.kwargs)
            )
            args, kwargs = fx.map_arg(args, self._value), fx.map_arg(kwargs, self._value)
            created = self.new.create_node(kind, target, args, kwargs, node.name)
            created.meta["nn_module_stack"] = {
                key: (path.removeprefix(_PREFIX), kind_of)
                for key, (path, kind_of) in (node.meta.get("nn_module_stack") or {}).items()
                if path.startswith(_PREFIX)
            }
            copy_place(node, created)
            self.values[node] = created

    def _value(self, node: fx.Node) -> fx.Node:
        if node.op == "placeholder" and node.name in self.tensors:
            return self.new.get_attr(self.tensors[node.name])
        return self.values[node]

    def _calls(self) -> Iterator[_Call]:
        """Calls of layers that read one tensor and give one."""
        calls: dict[str, _Call] = {}
        for node in self.nodes:
            for key, (path, _) in (node.meta.get("nn_module_stack") or {}).items():
                own = path.removeprefix(_PREFIX)
                if path.startswith(_PREFIX) and _is_layer(self.model, own):
                    calls.setdefault(key, _Call(own)).nodes.append(node)
                    break
        for call in calls.values():
            members = set(call.nodes)
            read_outside = [n for n in call.nodes if any(user not in members for user in n.users)]
            call.operands = self._operands(call)
            if read_outside == [call.nodes[-1]] and len(call.operands) == 1:
                yield call

    def _operands(self, call: _Call) -> list[fx.Node]:
        """Nodes outside of a layer that its operations read, but for its own parameters."""
        members = set(call.nodes)
        read = dict.fromkeys(a for node in call.nodes for a in node.all_input_nodes)
        layer = self.model.get_submodule(call.path)
        # By identity: a tied parameter has the name of another layer.
        own = {id(tensor) for tensor in (*layer.parameters(), *layer.buffers())}
        outside = [a for a in read if a not in members and id(self._tensor(a)) not in own]
        # Sizes are those of the tensor that is read.
        return [a for a in outside if isinstance(a.meta.get("val"), Tensor)]

    def _tensor(self, node: fx.Node) -> object:
        """The model's own tensor that a placeholder stands for; None for other nodes."""
        name = self.tensors.get(node.name)
        return None if name is None else _found(self.model, name)


_tracer = Tracer()


def _is_layer(model: nn.Module, path: str) -> bool:
    """True for a module that torch.fx does not trace into, either."""
    try:
        module = model.get_submodule(path)
    except AttributeError:
        return False
    return _tracer.is_leaf_module(module, path)
