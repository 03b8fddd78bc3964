"""Matrix products and convolutions."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from snello.graph.coupled.labels import GROUPS, HEAD_DIM, HEADS, Axis
from snello.graph.coupled.run import READ, WRITE, Run, Shadow

from .base import (
    argument,
    rule,
)


def contract(run: Run, a: Shadow, b: Shadow, i: int, j: int) -> tuple[Axis, Axis]:
    """Join the labels of axis i of a and axis j of b, over which a matrix product sums.

    Args:
        run: the run.
        a: labels of the left matrix; the last two axes are used.
        b: labels of the right matrix.
        i: -1 or -2.
        j: -1 or -2.

    Returns:
        The labels of the remaining axis of a and of that of b.
    """
    run.labels.unify(
        a.axes[i], b.axes[j], run.reason("a matrix product with a value of fixed size")
    )
    left, right = a.axes[-3 - i], b.axes[-3 - j]
    if a.weight and b.weight:
        # Both are computed from parameters, for example a learned query and a layer's weight:
        # the left one is then the input.
        a = Shadow(a.axes)
    _note_roles(run, a, a.axes[i], left)
    _note_roles(run, b, b.axes[j], right)
    if a.weight or b.weight:
        _mirror_layer(run, a.axes[i], right if b.weight else left)
    else:
        run.labels.flag(a.axes[i], HEAD_DIM)
        # A channel of the right operand, too: a softmax would have pinned an axis of positions.
        run.labels.flag(right, HEAD_DIM)
    return left, right


def _note_roles(run: Run, weight: Shadow, inner: Axis, outer: Axis) -> None:
    if weight.weight:
        run.role(inner, READ)
        run.role(outer, WRITE)


def _mirror_layer(run: Run, inner: Axis, outer: Axis) -> None:
    run.mirror(inner, ("in_features", "nx", "embed_dim", "kdim", "vdim"))
    run.mirror(outer, ("out_features", "nf"))


@rule("mm")
def mm(run: Run, args: Any, kwargs: Any, out: Any) -> Shadow:
    return _product(run, *args[:2])


def _product(run: Run, left: Tensor, right: Tensor) -> Shadow:
    a, b = run.of(left), run.of(right)
    return Shadow(contract(run, a, b, -1, -2), a.weight and b.weight)


@rule("addmm")
def addmm(run: Run, args: Any, kwargs: Any, out: Any) -> Shadow:
    return _plus(run, _product(run, *args[1:3]), args[0], out)


def _plus(run: Run, shadow: Shadow, bias: Tensor, out: Tensor) -> Shadow:
    axes = list(shadow.axes)
    labels = run.of(bias).axes
    for i in range(1, bias.dim() + 1):
        if bias.shape[-i] > 1:
            axes[-i] = run.labels.unify(axes[-i], labels[-i], run.reason("a bias of fixed size"))
    return Shadow(tuple(axes), shadow.weight)


@rule("bmm")
def bmm(run: Run, args: Any, kwargs: Any, out: Any) -> Shadow:
    return _batched(run, *args[:2])


def _batched(run: Run, left: Tensor, right: Tensor) -> Shadow:
    a, b = run.of(left), run.of(right)
    batch = run.labels.unify(a.axes[0], b.axes[0], run.reason("the batch of a matrix product"))
    if not (a.weight or b.weight):
        run.labels.flag(batch, HEADS)
    rows, columns = contract(
        run, Shadow(a.axes[1:], a.weight), Shadow(b.axes[1:], b.weight), -1, -2
    )
    return Shadow((batch, rows, columns), a.weight and b.weight)


@rule("baddbmm")
def baddbmm(run: Run, args: Any, kwargs: Any, out: Any) -> Shadow:
    return _plus(run, _batched(run, *args[1:3]), args[0], out)


@rule("linear")
def linear(run: Run, args: Any, kwargs: Any, out: Any) -> Shadow:
    x, weight = run.of(args[0]), run.of(args[1])
    matrix = Shadow((None, x.axes[-1]), x.weight)
    turned = Shadow((weight.axes[1], weight.axes[0]), weight.weight)
    _, columns = contract(run, matrix, turned, -1, -2)
    shadow = Shadow((*x.axes[:-1], columns), x.weight and weight.weight)
    bias = argument(args, kwargs, 2, "bias", None)
    return shadow if bias is None else _plus(run, shadow, bias, out)


@rule("mv", "dot", "vdot")
def mv(run: Run, args: Any, kwargs: Any, out: Any) -> Shadow:
    a, b = run.of(args[0]), run.of(args[1])
    run.labels.unify(a.axes[-1], b.axes[-1], run.reason("a product with a value of fixed size"))
    return Shadow(a.axes[:-1], a.weight and b.weight)


@rule("embedding")
def embedding(run: Run, args: Any, kwargs: Any, out: Any) -> Shadow:
    weight = run.of(args[0])
    run.labels.pin(weight.axes[0], run.reason("the vocabulary of an embedding"))
    run.role(weight.axes[1], WRITE)
    run.mirror(weight.axes[1], ("embedding_dim",))
    return Shadow((*[None] * args[1].dim(), weight.axes[1]))


@rule("convolution", "_convolution", "mkldnn_convolution", "convolution_overrideable")
def convolution(run: Run, args: Any, kwargs: Any, out: Any) -> Shadow:
    """The rule of convolutions.

    1. Channels of the input are columns of the weight; rows of the weight are channels of the
       output (the other way round for a transposed convolution).
    2. With several groups, either a whole group is removed, or the same column or row of each.
    """
    x, weight, bias, transposed, groups = args[0], args[1], args[2], args[6], args[8]
    xs, ws = run.of(x), run.of(weight)
    for axis in (*xs.axes[2:], *ws.axes[2:]):
        run.labels.pin(axis, run.reason("the window of a convolution"))
    reads, writes = (ws.axes[0], ws.axes[1]) if transposed else (ws.axes[1], ws.axes[0])
    n = (x.shape[1], out.shape[1])
    if groups == 1:
        run.labels.unify(xs.axes[1], reads, run.reason("a convolution of a value of fixed size"))
        run.role(reads, READ)
        run.role(writes, WRITE)
        channels = writes
    else:
        channels = _grouped(run, xs.axes[1], ws, transposed, groups, n)
    run.mirror(xs.axes[1], ("in_channels",))
    run.mirror(channels, ("out_channels",))
    shadow = Shadow((xs.axes[0], channels, *[None] * (out.dim() - 2)))
    if bias is None:
        return shadow
    biases = (
        run.labels.unify(channels, run.of(bias).axes[0], run.reason("a bias")) if n[1] > 1 else None
    )
    return Shadow((xs.axes[0], biases, *shadow.axes[2:]))


def _grouped(
    run: Run, channels: Axis, weight: Shadow, transposed: bool, groups: int, n: tuple[int, int]
) -> Axis:
    why = run.reason("a grouped convolution of a value of fixed size")
    inputs = run.labels.split(channels, [groups, n[0] // groups])
    run.role(weight.axes[0], READ if transposed else WRITE)
    rows = run.labels.split(weight.axes[0], [groups, (n[0] if transposed else n[1]) // groups])
    together = run.labels.unify(inputs[0], rows[0], why)
    run.mirror(together, ("groups",))
    if n[0] > groups:
        run.labels.flag(together, GROUPS)
    if not transposed:
        if n[0] > groups:
            run.labels.unify(inputs[1], weight.axes[1], why)
            run.role(weight.axes[1], READ)
        return weight.axes[0]
    if n[0] > groups:
        run.labels.unify(inputs[1], rows[1], why)
    run.role(weight.axes[1], WRITE)
    return run.labels.merge([together, weight.axes[1]], [groups, n[1] // groups])
