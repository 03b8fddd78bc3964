"""Editing of a captured graph, through which all appliers go."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx, nn


class Builder:
    """A graph module under edit.

    The nodes of the captured graph keep their names, by which a plan speaks of them, even after
    they have been replaced.

    Args:
        lean: changed in place.
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
        """Insert the call of a new module, on the device and in the dtype of the model."""
        dtype = self._like.dtype if self._like.is_floating_point() else None
        self.lean.add_submodule(name, module.to(device=self._like.device, dtype=dtype))
        with self.lean.graph.inserting_after(after):
            called: fx.Node = self.lean.graph.call_module(name, tuple(operands))
        return called

    def replace(self, name: str, by: fx.Node) -> None:
        """Let all readers of a node read another one."""
        node = self._nodes[name]
        node.replace_all_uses_with(by)
        self._nodes = {key: by if value is node else value for key, value in self._nodes.items()}

    @staticmethod
    def give(reader: fx.Node, **operands: fx.Node) -> None:
        """Give a call more keyword arguments."""
        reader.kwargs = {**reader.kwargs, **operands}
