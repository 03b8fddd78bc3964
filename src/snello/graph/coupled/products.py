"""The matrix products of a run, with the labels of every axis that their cost is a product of.

Counted are the operations that torch's FLOP counter counts: matrix products, convolutions and
attention.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .labels import Axis, Vector

if TYPE_CHECKING:
    from .run import Run


@dataclass(frozen=True)
class Product:
    """One operation, whose multiply-accumulates are proportional to the lengths of some axes.

    Attributes:
        macs: its multiply-accumulates.
        axes: the labels of those of the axes that have any.
        weights: names of the parameters that it multiplies by.
    """

    macs: int
    axes: tuple[Vector, ...]
    weights: frozenset[str]


def products(run: Run, name: str, args: Sequence[Any], out: Any) -> Sequence[Product]:
    """The products that an operator of aten computes; none for operators that are not counted.

    Args:
        run: the run, after it has labelled the outputs.
        name: name of the operator.
        args: its arguments.
        out: what it returned.
    """
    if name.startswith("_scaled_dot_product"):
        return attention(run, args[0], args[1], args[2], out[0])
    return [_COUNTED[name](run, args, out)] if name in _COUNTED else ()


def attention(run: Run, q: Tensor, k: Tensor, v: Tensor, out: Tensor) -> Sequence[Product]:
    """The two products of attention: of queries with keys, and of their softmax with values."""
    pairs = out.numel() // max(out.shape[-1], 1) * k.shape[-2]
    shared = (*run.of(out).axes[:-1], run.of(k).axes[-2])
    return (
        _product(run, pairs * q.shape[-1], (*shared, run.of(q).axes[-1])),
        _product(run, pairs * v.shape[-1], (*shared, run.of(v).axes[-1])),
    )


def _matrices(first: int) -> Callable[[Run, Sequence[Any], Tensor], Product]:
    """Product of two matrices, of which the left one is the argument at this position."""

    def product(run: Run, args: Sequence[Any], out: Tensor) -> Product:
        left, right = args[first], args[first + 1]
        axes = (*run.of(out).axes, run.of(left).axes[-1])
        return _product(run, out.numel() * left.shape[-1], axes, left, right)

    return product


def _convolution(run: Run, args: Sequence[Any], out: Tensor) -> Product:
    x, weight, transposed = args[0], args[1], args[6]
    positions = x if transposed else out  # each of them meets every weight of its channel
    macs = positions.numel() * weight[0].numel()
    return _product(run, macs, (*run.of(positions).axes, run.of(weight).axes[1]), weight)


def _product(run: Run, macs: int, axes: Sequence[Axis], *operands: Tensor) -> Product:
    names = frozenset(name for operand in operands for name in run.sources(operand))
    return Product(macs, tuple(axis for axis in axes if axis is not None), names)


_COUNTED: dict[str, Callable[[Run, Sequence[Any], Tensor], Product]] = {
    **dict.fromkeys(("mm", "bmm", "linear"), _matrices(0)),
    **dict.fromkeys(("addmm", "baddbmm"), _matrices(1)),
    **dict.fromkeys(("convolution", "_convolution"), _convolution),
}
"""Name of an operator -> the product of its arguments and output."""
