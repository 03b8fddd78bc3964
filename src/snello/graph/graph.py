"""The captured graph of a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn

from snello.neurons import is_batchnorm


@dataclass(frozen=True)
class Graph:
    """A captured model.

    Attributes:
        module: the model as a graph module; it shares every submodule and parameter with the
            original.
        calls: module name -> the nodes that call it, in order of execution.
        tied: names of the modules that share a parameter with another module.
        constants: argument of the forward that the graph ignores -> the value with which it was
            captured.
        runnable: whether the graph module can replace the model: it has the model's signature and
            outputs, in training and in evaluation mode. If False, the graph only describes one run.
        reason: why the graph is not runnable: the error of torch.fx, with file and line. Empty if
            it is.
    """

    module: fx.GraphModule
    calls: dict[str, list[fx.Node]]
    tied: frozenset[str]
    constants: Mapping[str, Any] = field(default_factory=dict)
    runnable: bool = True
    reason: str = ""

    @property
    def nodes(self) -> list[fx.Node]:
        """The nodes in order of execution."""
        return list(self.module.graph.nodes)

    def layer(self, node: fx.Node) -> nn.Module | None:
        """The module that a node calls; None for functional calls, inputs and outputs."""
        return self.module.get_submodule(str(node.target)) if node.op == "call_module" else None

    def owner(self, node: fx.Node) -> str:
        """Name of the innermost module whose forward calls the operation; empty for the model."""
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        return str(stack[-1][0]) if stack else ""

    def is_shared(self, name: str) -> bool:
        """True if a layer is called more than once, or shares a parameter with another."""
        return len(self.calls.get(name, [])) > 1 or name in self.tied

    def is_tied(self, parameter: str) -> bool:
        """True if a parameter also has another name."""
        return parameter.rpartition(".")[0] in self.tied

    def norm_after(self, name: str) -> str | None:
        """The BatchNorm that is the only user of this layer's output; None if there is none."""
        nodes = self.calls.get(name, [])
        if len(nodes) != 1 or len(nodes[0].users) != 1:
            return None
        reader = next(iter(nodes[0].users))
        module = self.layer(reader)
        if module is None or not is_batchnorm(module) or self.is_shared(str(reader.target)):
            return None
        return str(reader.target)
