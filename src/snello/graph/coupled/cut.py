"""Cut channels out of a model: narrower parameters, the same class."""

from __future__ import annotations

import os
import traceback
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from snello.errors import ConfigError, ModelError
from snello.graph.inputs import Example, Inputs
from snello.graph.modes import evaluation
from snello.wrappers import copied

from .dimensions import Coupling

M = TypeVar("M", bound=nn.Module)

Removed = Mapping[str, Iterable[int]]
"""Name of a dimension -> the indices to remove."""


def cut(model: M, coupling: Coupling, removed: Removed, example: Example | None = None) -> M:
    """Remove channels from a copy of a model.

    Every parameter and buffer that reads, writes or scales the channels gets narrower, and integer
    attributes that mirror a width follow; the class and its forward stay as they are.

    Args:
        model: the model that was analysed.
        coupling: its coupling.
        removed: dimension -> indices to remove.
        example: inputs to run the result on, to see whether its shapes fit.

    Returns:
        The narrower model.

    Raises:
        ConfigError: for an unknown or pinned dimension, an index out of range, or if nothing would
            be left.
        ModelError: if the narrower model does not run on the example inputs, with the place in the
            user's code.
    """
    chosen = _checked(coupling, removed)
    lean = copied(model)
    tensors = {**dict(lean.named_parameters()), **dict(lean.named_buffers())}
    for (name, axis), gone in _slices(coupling, chosen, sizes=False).items():
        if len(gone) == tensors[name].shape[axis]:
            raise ConfigError(
                f"all {len(gone)} indices of {name!r} (axis {axis}) were to be removed, by "
                "dimensions that share it: keep at least one index of each"
            )
        tensors[name].data = _without(tensors[name].data, axis, gone)
        tensors[name].grad = None
    for (name, position), gone in _slices(coupling, chosen, sizes=True).items():
        _shorten(lean, name, position, len(gone))
    if example is not None:
        check_runs(lean, Inputs.of(example))
    return lean


def zeroed(model: M, coupling: Coupling, removed: Removed) -> M:
    """A copy of a model in which every parameter slice of some channels is zero."""
    masked = copied(model)
    tensors = {**dict(masked.named_parameters()), **dict(masked.named_buffers())}
    with torch.no_grad():
        for (name, axis), gone in removed_slices(coupling, removed).items():
            index = torch.tensor(sorted(gone), device=tensors[name].device)
            tensors[name].index_fill_(axis, index, 0)
    return masked


def removed_slices(coupling: Coupling, removed: Removed) -> dict[tuple[str, int], set[int]]:
    """(parameter or buffer, axis) -> the indices that go."""
    return _slices(coupling, _checked(coupling, removed), sizes=False)


def _checked(coupling: Coupling, removed: Removed) -> dict[str, list[int]]:
    chosen = {}
    for name, indices in removed.items():
        dimension, gone = coupling[name], sorted(set(indices))
        if gone and dimension.pinned is not None:
            raise ConfigError(f"dimension {name!r} cannot be cut: {dimension.pinned}")
        if gone and not (gone[0] >= 0 and gone[-1] < dimension.width):
            raise ConfigError(
                f"dimension {name!r} has {dimension.width} indices, and {gone[0]}..{gone[-1]} "
                "were to be removed; indices count from 0"
            )
        if gone and len(gone) == dimension.width:
            raise ConfigError(f"all {len(gone)} indices of dimension {name!r} were to be removed")
        chosen[name] = gone
    return chosen


def _slices(
    coupling: Coupling, chosen: Mapping[str, list[int]], *, sizes: bool
) -> dict[tuple[str, int], set[int]]:
    """(parameter, axis) -> the indices that go, from all dimensions together."""
    found: dict[tuple[str, int], set[int]] = defaultdict(set)
    for name, gone in chosen.items():
        for member in coupling[name].members:
            if (member.role == "size") is sizes and gone:
                found[member.name, member.axis].update(member.of(gone))
    return found


def _without(tensor: Tensor, axis: int, gone: set[int]) -> Tensor:
    kept = [i for i in range(tensor.shape[axis]) if i not in gone]
    return tensor.index_select(axis, torch.tensor(kept, dtype=torch.long, device=tensor.device))


def _shorten(model: nn.Module, name: str, position: int, less: int) -> None:
    path, _, attribute = name.rpartition(".")
    module = model.get_submodule(path)
    value = getattr(module, attribute)
    if position < 0:
        setattr(module, attribute, value - less)
    else:
        numbers = [n - less if i == position else n for i, n in enumerate(value)]
        setattr(module, attribute, type(value)(numbers))


def check_runs(model: nn.Module, inputs: Inputs) -> object:
    """Run a narrowed model.

    Raises:
        ModelError: if it does not run; file and line are those of the user's code.
    """
    try:
        with evaluation(model):
            return inputs.map(torch.clone).call(model)
    except Exception as error:  # whatever an operation raises on shapes that do not fit
        where = _place(error)
        raise ModelError(
            f"the narrower {type(model).__name__} does not run: "
            f"{str(error).partition(chr(10))[0]} ({where}). A size there does not follow the "
            "widths of the layers: take it from the shape of a tensor or from an attribute."
        ) from error


def _place(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    library = f"{Path(torch.__file__).parent}{os.sep}"
    own = [
        f
        for f in frames
        if not f.filename.startswith((library, f"{Path(__file__).parents[1]}{os.sep}"))
    ]
    last = (own or list(frames))[-1]
    return f"{last.filename}:{last.lineno}"
