"""The calls of a model's modules in a forward pass, and those that are at rest."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from snello.graph import evaluation, tensors_in


@dataclass(frozen=True, eq=False)
class Call:
    """A call of a module.

    Attributes:
        name: name of the module.
        module: the module.
        start: number of calls that had begun or ended before it.
        end: the same at its end.
        samples: of its batch.
        leaves: everything in its output, tensors as copies.
        structure: of its output.
    """

    name: str
    module: nn.Module
    start: int
    end: int
    samples: int
    leaves: tuple[Any, ...]
    structure: TreeSpec

    def each(self, leaf: object) -> bool:
        """Return true for a tensor with one entry per sample."""
        return (
            isinstance(leaf, Tensor)
            and leaf.is_floating_point()
            and leaf.shape[:1] == (self.samples,)
        )

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors in its output."""
        return tensors_in(self.leaves)

    @property
    def of_samples(self) -> list[Tensor]:
        """The tensors in its output with one entry per sample."""
        return [leaf for leaf in self.leaves if self.each(leaf)]

    def around(self, other: Call) -> bool:
        """Return true if another call happens within this one."""
        return self.start < other.start and other.end < self.end

    def returning(self, tensors: Iterator[Tensor]) -> Any:
        """Its output with other entries of the samples; what else is in it is the same for all."""
        leaves = [next(tensors) if self.each(leaf) else copied(leaf) for leaf in self.leaves]
        return tree_unflatten(leaves, self.structure)

    def nothing(self, samples: int) -> Any:
        """Its output with NaN in all tensors, for another number of samples."""
        leaves = [
            _nan(leaf, samples if self.each(leaf) else len(leaf))
            if isinstance(leaf, Tensor) and leaf.dim()
            else leaf
            for leaf in self.leaves
        ]
        return tree_unflatten(leaves, self.structure)


def copied(leaf: Any) -> Any:
    """A copy, since the model may go on with a tensor in place."""
    return leaf.detach().clone() if isinstance(leaf, Tensor) else leaf


def _nan(tensor: Tensor, samples: int) -> Tensor:
    # Not expanded from one entry: an operation in place may follow.
    return tensor.new_full((samples, *tensor.shape[1:]), torch.nan)


def calls_of(model: nn.Module, inputs: Sequence[Tensor]) -> list[Call]:
    """All calls of modules in evaluation mode, in the order in which they end."""
    found: list[Call] = []
    open_calls: list[int] = []
    clock = iter(range(2**62))

    def begin(*_: object) -> None:
        open_calls.append(next(clock))

    def end(name: str) -> Callable[..., None]:
        def note(module: nn.Module, _args: object, output: object) -> None:
            leaves, structure = tree_flatten(output)
            moments = open_calls.pop(), next(clock)
            copies = tuple(map(copied, leaves))
            found.append(Call(name, module, *moments, len(inputs[0]), copies, structure))

        return note

    with ExitStack() as stack:
        for name, module in model.named_modules():
            stack.callback(module.register_forward_pre_hook(begin).remove)
            # Before the user's hooks, which may change the output.
            stack.callback(module.register_forward_hook(end(name), prepend=True).remove)
        stack.enter_context(evaluation(model))
        model(*inputs)
    return found


def at_rest(calls: Sequence[Call], frozen: Collection[int]) -> list[Call]:
    """The calls with parameters that end before the first one that learns begins.

    Of calls inside one another only the outermost.
    """
    called = {call.module for call in calls}

    def learns(module: nn.Module) -> bool:
        own = _own_parameters(module, called)
        return any(p.requires_grad and id(p) not in frozen for p in own)

    limit = min((call.start for call in calls if learns(call.module)), default=0)
    whole = [call for call in calls if call.end < limit]
    outermost = [call for call in whole if not any(other.around(call) for other in whole)]
    return [call for call in outermost if any(True for _ in call.module.parameters())]


def borders(calls: Sequence[Call], resting: Sequence[Call]) -> list[int]:
    """Numbers of calls at rest: all, and those before each module that is at rest in part."""
    found = {len(resting)} if resting else set()
    for call in calls:
        if resting and call.around(resting[-1]):
            found.add(sum(other.end < call.start for other in resting))
    return sorted(found - {0})


def _own_parameters(module: nn.Module, called: Collection[nn.Module]) -> Iterator[Tensor]:
    """Parameters that its forward uses itself: also those of submodules that are never called."""
    yield from module.parameters(recurse=False)
    for child in module.children():
        if child not in called:
            yield from _own_parameters(child, called)
