"""Example inputs: the positional and keyword arguments of a model's forward."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from snello.errors import ConfigError


def tensors_in(structure: object) -> list[Tensor]:
    """All tensors in nested containers, in order."""
    return [leaf for leaf in pytree.tree_leaves(structure) if isinstance(leaf, Tensor)]


# Tensors have no truth value, so that a generated __eq__ would raise.
@dataclass(frozen=True, eq=False)
class Inputs:
    """The arguments of one call of a model; tensors may be nested in lists and dictionaries.

    Attributes:
        args: positional arguments.
        kwargs: keyword arguments.

    >>> Inputs.of({"image": torch.zeros(2, 3), "sizes": [torch.zeros(2)]}).shapes
    ((2, 3), (2,))
    """

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def of(example: Example) -> Inputs:
        """Make arguments from the short forms that users write.

        Args:
            example: a tensor, one positional argument; a tuple or list, positional arguments; a
                mapping, keyword arguments; or Inputs, returned as they are.

        Raises:
            ConfigError: for anything else, and for keywords that are not strings.
        """
        if isinstance(example, Inputs):
            return example
        if isinstance(example, Tensor):
            return Inputs((example,))
        if isinstance(example, Mapping):
            if odd := [key for key in example if not isinstance(key, str)]:
                raise ConfigError(
                    "example inputs given as a mapping are keyword arguments, and "
                    f"{odd[0]!r} is no name; to pass a dictionary as one positional argument, "
                    "put it into a tuple: (batch,)"
                )
            return Inputs((), dict(example))
        if isinstance(example, (tuple, list)):
            return Inputs(tuple(example))
        raise ConfigError(
            "example inputs must be a tensor, a tuple or list of positional arguments or a mapping "
            f"of keyword arguments, not {type(example).__name__}"
        )

    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors, in order: positional arguments first."""
        return tuple(tensors_in((self.args, dict(self.kwargs))))

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shapes of [`tensors`][snello.graph.Inputs.tensors]."""
        return tuple(tuple(int(n) for n in tensor.shape) for tensor in self.tensors())

    @property
    def samples(self) -> int:
        """Number of samples: length of the first tensor; 1 without one, and for a scalar."""
        first = next(iter(self.tensors()), None)
        return max(1, len(first)) if first is not None and first.dim() else 1

    def in_order_of(self, first: Inputs) -> Inputs:
        """The same arguments, with the keywords in the order of others if they are the same."""
        if set(self.kwargs) != set(first.kwargs):
            return self
        return Inputs(self.args, {name: self.kwargs[name] for name in first.kwargs})

    def map(self, function: Callable[[Tensor], Any]) -> Inputs:
        """The same arguments with a function applied to every tensor."""
        args, kwargs = pytree.tree_map_only(Tensor, function, (self.args, dict(self.kwargs)))
        return Inputs(args, kwargs)

    def call(self, model: nn.Module) -> object:
        """The output of a model on these arguments."""
        return model(*self.args, **self.kwargs)


def joined(batches: Sequence[Inputs]) -> Inputs:
    """Some batches as one: their tensors concatenated, all other arguments those of the first."""
    first = batches[0]
    every = [batch.in_order_of(first).tensors() for batch in batches]
    parts = iter([torch.cat(tensors) for tensors in zip(*every, strict=True)])
    return first.map(lambda _: next(parts))


Example: TypeAlias = Tensor | Sequence[Any] | Mapping[str, Any] | Inputs
"""The forms of example inputs that [`Inputs.of`][snello.graph.Inputs.of] accepts."""


class Positional(nn.Module):
    """A model that is called with the tensors among its arguments, as one flat list.

    Args:
        model: the model.
        inputs: arguments with the structure that the model expects, and the values of all
            arguments that are not tensors.
    """

    def __init__(self, model: nn.Module, inputs: Inputs) -> None:
        super().__init__()
        self.model = model
        self._leaves, self._structure = pytree.tree_flatten((inputs.args, dict(inputs.kwargs)))
        plain = not inputs.args and all(isinstance(v, Tensor) for v in inputs.kwargs.values())
        self.names: list[str] | None = list(inputs.kwargs) if plain else None
        """Names of the tensors in order; None unless all are keyword arguments."""

    def forward(self, *tensors: Tensor) -> Any:
        given = iter(tensors)
        leaves = [next(given) if isinstance(leaf, Tensor) else leaf for leaf in self._leaves]
        args, kwargs = pytree.tree_unflatten(leaves, self._structure)
        return self.model(*args, **kwargs)


def positional(model: nn.Module, example: Example) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Return a model that takes its tensors as positional arguments, and these tensors.

    If all arguments are positional tensors already, it is the model itself; else a
    `Positional`.
    """
    inputs = Inputs.of(example)
    if not inputs.kwargs and all(isinstance(value, Tensor) for value in inputs.args):
        return model, inputs.args
    return Positional(model, inputs), inputs.tensors()


def class_name(model: nn.Module) -> str:
    """Name of a model's class, for messages; of the model inside a `Positional`."""
    return type(model.model if isinstance(model, Positional) else model).__name__


def as_inputs(example_inputs: tuple[Tensor, ...] | Tensor) -> tuple[Tensor, ...]:
    """Example inputs as a tuple of positional arguments."""
    return (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs)
