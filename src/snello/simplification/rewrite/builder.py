"""The builder, through which all appliers edit a captured graph."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx, nn


class Builder:
    """A graph module that is being edited.

    Plans refer to nodes by their names in the captured graph; the builder resolves these names even
    after nodes have been replaced.

    Args:
        lean: the graph module, changed in place.
    """

    def __init__(self, lean: fx.GraphModule) -> None:
        self.lean = lean
        self._nodes: dict[str, fx.Node] = {node.name: node for node in lean.graph.nodes}
        parameter = next(lean.parameters(), None)
        self._like = torch.zeros(0) if parameter is None else parameter

    def node(self, name: str) -> fx.Node:
        """Return the node of this name in the captured graph, or its replacement."""
        return self._nodes[name]

    def insert(
        self, name: str, module: nn.Module, after: fx.Node, operands: Sequence[fx.Node]
    ) -> fx.Node:
        """Insert a call of a new module, moved to the device and dtype of the first parameter."""
        dtype = self._like.dtype if self._like.is_floating_point() else None
        self.lean.add_submodule(name, module.to(device=self._like.device, dtype=dtype))
        with self.lean.graph.inserting_after(after):
            called: fx.Node = self.lean.graph.call_module(name, tuple(operands))
        return called

    def replace(self, name: str, by: fx.Node) -> None:
        """Replace a node by another one in all of its readers."""
        node = self._nodes[name]
        node.replace_all_uses_with(by)
        self._nodes = {key: by if value is node else value for key, value in self._nodes.items()}

    @staticmethod
    def give(reader: fx.Node, **operands: fx.Node) -> None:
        """Add keyword arguments to a call."""
        reader.kwargs = {**reader.kwargs, **operands}
