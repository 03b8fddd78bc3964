"""Operations in place: what they overwrite, and where later nodes read the result."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, fx, nn

from snello.errors import ModelError

from .places import at_place


def follow_in_place_operations(module: fx.GraphModule) -> None:
    """Redirect later uses of a tensor to the in-place operation that overwrote it.

    The values are the same; the edges now show where they come from.
    """
    order = {node: i for i, node in enumerate(module.graph.nodes)}
    for node in module.graph.nodes:
        written = node.args[0] if node.args else None
        if isinstance(written, fx.Node) and _overwrites(module, node):
            for user in [user for user in written.users if order[user] > order[node]]:
                user.replace_input_with(written, node)


def _overwrites(module: nn.Module, node: fx.Node) -> bool:
    """True if an operation overwrites its first argument."""
    if node.op == "call_module":
        return bool(getattr(module.get_submodule(str(node.target)), "inplace", False))
    if node.op == "call_method":
        return _ends_in_underscore(str(node.target))
    name = getattr(node.target, "__name__", "")
    in_place = name in ("iadd", "isub", "imul", "itruediv") or _ends_in_underscore(name)
    return node.op == "call_function" and (in_place or bool(node.kwargs.get("inplace")))


def check_not_hidden(
    module: nn.Module, node: fx.Node, result: object, changed: Mapping[fx.Node, Tensor]
) -> None:
    """Check that what an operation has written is read as its result alone.

    Args:
        module: the graph.
        node: the operation.
        result: its value.
        changed: tensors that it changed, or of which it changed a view, and that are read later.

    Raises:
        ModelError: if one of them has the written memory: the edges of the graph do not show it.
    """
    known = isinstance(result, Tensor) and _overwrites(module, node)
    for other, value in changed.items():
        if not known or _overlap(result, value):  # type: ignore[arg-type]
            raise ModelError(
                f"torch.fx does not show what {node.name!r} writes in place{at_place(node)}: "
                f"{other.name!r} is read later and has the same memory."
            )


def _overlap(a: Tensor, b: Tensor) -> bool:
    """True if two strided tensors have an element in common."""
    if {a.layout, b.layout} != {torch.strided} or a.dtype != b.dtype or not a.numel():
        return False
    if a.untyped_storage().data_ptr() != b.untyped_storage().data_ptr():
        return False
    touched = torch.zeros(a.untyped_storage().nbytes() // a.element_size(), dtype=torch.bool)
    touched.as_strided(a.shape, a.stride(), a.storage_offset()).fill_(True)
    return bool(touched.as_strided(b.shape, b.stride(), b.storage_offset()).any())


def _ends_in_underscore(name: str) -> bool:
    """True of PyTorch's names of in-place operations; False of special methods."""
    return name.endswith("_") and not name.endswith("__")
