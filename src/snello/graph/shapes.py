"""Shapes of the outputs of a graph's nodes, measured on example inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from .in_place import check_not_hidden
from .modes import evaluation
from .twins import same_numbers, tensors_of


def propagate_shapes(module: fx.GraphModule, arguments: Mapping[str, Any]) -> list[Tensor]:
    """Run the graph once in evaluation mode and note the shape of every tensor on its node.

    Args:
        module: the graph module; afterwards each layer is in its own mode, training or not, again.
        arguments: placeholder -> its value. Placeholders that are left out have their default.

    Raises:
        ModelError: for an operation in place that the graph does not show.

    Returns:
        The tensors among the outputs, with the same random numbers as in `outputs_of` the
        model, so that the two can be compared.
    """
    # A graph may write on its inputs.
    copies = pytree.tree_map_only(Tensor, torch.clone, dict(arguments))
    with evaluation(module), same_numbers():
        return tensors_of(_Shapes(module, copies).run())


class ByName(fx.Interpreter):
    """Runs a graph on a mapping, placeholder -> argument. A placeholder that is left out has its
    default, or None without one.
    """

    def __init__(self, module: fx.GraphModule, arguments: Mapping[str, Any]) -> None:
        super().__init__(module)
        self.arguments = arguments

    def placeholder(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # The interpreter's own lookup is by position and cannot bind keyword arguments.
        return self.arguments[target] if target in self.arguments else next(iter(args), None)


class _Shapes(ByName):
    def run_node(self, n: fx.Node) -> object:
        later = self.env.keys() - self.user_to_last_uses.get(n, [])
        read = {k: v for k in later if isinstance(v := self.env[k], Tensor)}
        versions = {k: v._version for k, v in read.items()}
        result = super().run_node(n)
        changed = {k: v for k, v in read.items() if v._version != versions[k]}
        check_not_hidden(self.module, n, result, changed)
        n.meta["snello_shape"] = tuple(result.shape) if isinstance(result, Tensor) else None
        return result


def shape_of(node: fx.Node) -> tuple[int, ...] | None:
    """Shape of a node's output on the example inputs; None where it is not one tensor."""
    return node.meta.get("snello_shape")


def known_shape(node: fx.Node) -> tuple[int, ...]:
    """As `shape_of`, for a node whose output must be one tensor: never None."""
    shape = shape_of(node)
    assert shape is not None
    return shape
