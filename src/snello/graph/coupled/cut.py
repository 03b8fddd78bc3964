"""Cut channels out of a model: narrower parameters, the same class."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import TypeAlias, TypeVar

import torch
from torch import nn

from snello.errors import ConfigError, ModelError
from snello.graph.inputs import Example, Inputs
from snello.graph.modes import evaluation
from snello.graph.places import where
from snello.neurons import named_tensors
from snello.wrappers import copied

from .dimensions import Coupling

M = TypeVar("M", bound=nn.Module)

Removed = Mapping[str, Iterable[int]]
"""Name of a dimension -> the indices to remove."""


def cut(model: M, coupling: Coupling, removed: Removed, example: Example | None = None) -> M:
    """Remove channels from a copy of a model.

    Every parameter and buffer that reads, writes or scales the channels gets narrower, and integer
    attributes that hold a width are reduced with it; the class and its forward stay as they are.

    Args:
        model: the model that was analysed.
        coupling: its coupling.
        removed: dimension -> indices to remove.
        example: inputs on which the result is run as a check of its shapes; None for no check.

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
    tensors = named_tensors(lean)
    for (name, axis), gone in _slices(coupling, chosen, sizes=False).items():
        tensor = tensors[name]
        kept = kept_indices(name, axis, tensor.shape[axis], gone)
        index = torch.tensor(kept, dtype=torch.long, device=tensor.device)
        tensor.data, tensor.grad = tensor.data.index_select(axis, index), None
    for (name, position), gone in _slices(coupling, chosen, sizes=True).items():
        owner, _, attribute = name.rpartition(".")
        value = getattr(lean.get_submodule(owner), attribute)
        set_size(lean, name, shortened(value, position, len(gone)))
    if example is not None:
        check_runs(lean, Inputs.of(example))
    return lean


def zeroed(model: M, coupling: Coupling, removed: Removed) -> M:
    """A copy of a model in which every parameter slice of some channels is zero."""
    masked = copied(model)
    tensors = named_tensors(masked)
    with torch.no_grad():
        for (name, axis), gone in removed_slices(coupling, removed).items():
            index = torch.tensor(sorted(gone), dtype=torch.long, device=tensors[name].device)
            tensors[name].index_fill_(axis, index, 0)
    return masked


def removed_slices(
    coupling: Coupling, removed: Removed, *, sizes: bool = False
) -> dict[tuple[str, int], set[int]]:
    """(parameter or buffer, axis) -> the indices to remove; (attribute, position), with `sizes`.

    Raises:
        ConfigError: as [`cut`][snello.graph.coupled.cut].
    """
    return _slices(coupling, _checked(coupling, removed), sizes=sizes)


def kept_indices(name: str, axis: int, width: int, gone: set[int]) -> list[int]:
    """The indices of an axis that stay, sorted.

    Raises:
        ConfigError: if none would stay.
    """
    if len(gone) == width:
        raise ConfigError(
            f"all {len(gone)} indices of {name!r} (axis {axis}) were to be removed, by "
            "dimensions that share it: keep at least one index of each"
        )
    return [i for i in range(width) if i not in gone]


Size: TypeAlias = int | tuple[int, ...]
"""The value of an attribute that holds a width, or several."""


def shortened(value: Size | list[int], position: int, less: int) -> Size:
    """The value of an attribute that holds a width after `less` indices were removed.

    Args:
        value: the width, or a tuple or list of numbers.
        position: index of the width in the tuple or list.
        less: number of removed indices.
    """
    if isinstance(value, int):
        return value - less
    return tuple(n - less if i == position else n for i, n in enumerate(value))


def set_size(model: nn.Module, name: str, value: Size) -> None:
    """Set an attribute that holds a width, by its qualified name; a list stays a list."""
    owner, _, attribute = name.rpartition(".")
    module = model.get_submodule(owner)
    if isinstance(value, tuple) and isinstance(getattr(module, attribute), list):
        setattr(module, attribute, list(value))
    else:
        setattr(module, attribute, value)


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
    """(parameter, axis) -> the indices to remove, from all dimensions together."""
    found: dict[tuple[str, int], set[int]] = defaultdict(set)
    for name, gone in chosen.items():
        for member in coupling[name].members:
            if (member.role == "size") is sizes and gone:
                found[member.name, member.axis].update(member.of(gone))
    return found


def check_runs(model: nn.Module, inputs: Inputs) -> object:
    """Run a narrowed model.

    Raises:
        ModelError: if it does not run; file and line are those of the user's code.
    """
    try:
        with evaluation(model):
            return inputs.map(torch.clone).call(model)
    except Exception as error:  # whatever an operation raises on shapes that do not fit
        raise ModelError(
            f"the narrower {type(model).__name__} does not run: "
            f"{str(error).partition(chr(10))[0]}{where(error, model)}. A size there does not follow the "
            "widths of the layers: take it from the shape of a tensor or from an attribute."
        ) from error
