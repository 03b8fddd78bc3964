"""Integer and boolean results of floating-point values: kept boxes, largest scores, comparisons.

Two models that agree up to rounding can select different entries among equal scores. Therefore the
decisions of one model are repeated in the other. If the floating-point values that each decision
reads agree, any remaining difference of the outputs is a real one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from .inputs import tensors_in


@dataclass(frozen=True, eq=False)
class Decision:
    """An operation that computes integers or booleans from floating-point tensors.

    Attributes:
        read: the floating-point and complex tensors that it reads.
        result: the tensors that it returns.
    """

    read: tuple[Tensor, ...]
    result: tuple[Tensor, ...]


class Decisions(TorchFunctionMode):
    """Records the decisions of a model while it runs, or repeats those of another run.

    Args:
        known: decisions to repeat, in order; None to only record. If an operation reads tensors of
            the same shapes as the known decision, its integer and boolean results are replaced by
            the known ones; other results are kept unless their shape differs.

    Attributes:
        taken: the decisions of this run. Where an operation reads other shapes than the known
            decision, for example narrowed activations, the known decision is listed in its place,
            because there is nothing to compare.
    """

    def __init__(self, known: Sequence[Decision] | None = None) -> None:
        super().__init__()
        self.known = known
        self.taken: list[Decision] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        given = tensors_in(result)
        if not any(map(discrete, given)):
            return result
        read = [tensor for tensor in tensors_in((args, kwargs or {})) if not discrete(tensor)]
        return self._decided(read, given, result) if read else result

    def _decided(self, read: list[Tensor], given: list[Tensor], result: Any) -> Any:
        known = self._next()
        if known is not None and not _alike(known.read, read):
            self.taken.append(known)
            return result
        own = Decision(tuple(t.clone() for t in read), tuple(t.clone() for t in given))
        self.taken.append(own)
        return result if known is None else _repeated(result, known)

    def _next(self) -> Decision | None:
        number = len(self.taken)
        return self.known[number] if self.known and number < len(self.known) else None


def discrete(tensor: Tensor) -> bool:
    """True for a tensor of integers or booleans, which has no rounding."""
    return not (tensor.is_floating_point() or tensor.is_complex())


def _alike(known: Sequence[Tensor], read: Sequence[Tensor]) -> bool:
    return [tensor.shape for tensor in known] == [tensor.shape for tensor in read]


def _repeated(result: Any, known: Decision) -> Any:
    """A result with the integers and booleans of a known decision."""
    leaves, structure = pytree.tree_flatten(result)
    decided = iter(known.result)
    for place, leaf in enumerate(leaves):
        if not isinstance(leaf, Tensor):
            continue
        before = next(decided, leaf)
        # The values of sort and topk are those of this run, unless the known decision has another
        # number of them: later operations expect as many values as indices.
        if discrete(leaf) or leaf.shape != before.shape:
            leaves[place] = before.clone()
    return pytree.tree_unflatten(leaves, structure)
