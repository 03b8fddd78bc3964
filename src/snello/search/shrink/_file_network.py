"""Exported files that are called as the network they were made from."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from snello.deploy import FileModel
from snello.errors import ConfigError
from snello.graph import Example, Inputs, evaluation


class FileNetwork(nn.Module):
    """A file that takes the arguments of a network, positional or by keyword, in any order.

    Its output has the structure of the network's if that holds one tensor, such as `logits` of an
    output of Hugging Face; otherwise it is the first tensor.

    Args:
        path: the file, exported with the example inputs.
        dense: the network that names and structure are taken from; it runs once.
        example: the example inputs.
    """

    def __init__(self, path: Path, dense: nn.Module, example: Example) -> None:
        super().__init__()
        self._file = FileModel(path)
        self._signature = inspect.signature(dense.forward)
        inputs = Inputs.of(example)
        # The file has its inputs in this order, and keywords are not in that of the signature.
        first = self._signature.bind_partial(*inputs.args).arguments
        self._names = (*first, *inputs.kwargs)
        with evaluation(dense):
            leaves, structure = pytree.tree_flatten(inputs.call(dense))
        self._structure = structure if len(leaves) == 1 else None

    def __deepcopy__(self, memo: dict[int, Any]) -> FileNetwork:
        return self  # a session of the runtime cannot be copied, nor changed

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the file.

        Raises:
            ConfigError: for a tensor that is not among the example inputs.
        """
        given = self._bound(args, kwargs)
        for name, value in given.items():
            if name not in self._names and isinstance(value, Tensor):
                raise ConfigError(
                    f"shrink: evaluate passes {name!r}, which the example inputs do not have: "
                    f"{', '.join(self._names)}; an int8 file takes these alone"
                )
        tensors = Inputs(tuple(given.get(name) for name in self._names)).tensors()
        found = self._file(*(x.cpu() for x in tensors)).to(tensors[0].device)
        return found if self._structure is None else pytree.tree_unflatten([found], self._structure)

    def _bound(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        found = dict(self._signature.bind(*args, **kwargs).arguments)
        for parameter in self._signature.parameters.values():
            if parameter.kind is parameter.VAR_KEYWORD:
                found.update(found.pop(parameter.name, {}))
        return found
