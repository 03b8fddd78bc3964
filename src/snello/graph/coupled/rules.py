"""Rules: the labels of an operation's outputs from those of its inputs.

A rule is named after an operator of aten. It is called with the run, the arguments and the outputs
that were computed, and returns the :class:`Shadow` of each tensor among the outputs (or one, where
the operator has one output). Operators that torch tags as pointwise share one rule; an operator
without a rule pins whatever it reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .attention import joined, rescaled
from .labels import GROUPS, HEAD_DIM, HEADS, Axis
from .run import READ, WRITE, Run, Shadow
from .statistics import STATISTICS, reduced_axes

Rule = Callable[[Run, Sequence[Any], Mapping[str, Any], Any], Shadow | Sequence[Shadow]]

RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    def register(function: Rule) -> Rule:
        for name in names:
            RULES[name] = function
        return function

    return register


def apply(run: Run, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Run an operation and label its outputs."""
    name = func.name().split("::")[-1].split(".")[0]
    if not any(run.of(x).axes for x in _tensors((args, kwargs))):
        return func(*args, **kwargs)
    # Before an operation in place changes what is read.
    kwargs = rescaled(run, name, args, kwargs)
    masked = STATISTICS[name](run, args, kwargs) if name in STATISTICS and run.removed else None
    out = masked if masked is not None else func(*args, **kwargs)
    shadows = _rule(name, func)(run, args, kwargs, out)
    outs = _tensors(out)
    shadows = [shadows] if isinstance(shadows, Shadow) else list(shadows)
    for tensor, shadow in zip(outs, shadows, strict=True):
        run.keep(tensor, shadow)
    return out


def _rule(name: str, func: Any) -> Rule:
    functional = name.rstrip("_") if name.endswith("_") and not name.startswith("_") else name
    for known in (name, functional):
        if known in RULES:
            return RULES[known]
    if torch.Tag.pointwise in func.tags or functional in _POINTWISE:
        return pointwise
    return lambda run, args, kwargs, out: unknown(run, args, kwargs, out, name)


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor)]


def _at(args: Sequence[Any], kwargs: Mapping[str, Any], i: int, name: str, default: Any) -> Any:
    return args[i] if len(args) > i else kwargs.get(name, default)


def _blank(tensor: Tensor) -> Shadow:
    return Shadow((None,) * tensor.dim())


def unknown(run: Run, args: Any, kwargs: Any, out: Any, name: str) -> list[Shadow]:
    """Pin everything that an operation without a rule reads."""
    for tensor in _tensors((args, kwargs)):
        for axis in run.of(tensor).axes:
            run.labels.pin(axis, run.reason(f"{name} has no rule"))
    return [_blank(tensor) for tensor in _tensors(out)]


# --- element by element -------------------------------------------------------------------------

_POINTWISE = {
    "hardswish", "hardsigmoid", "where", "masked_fill", "copy", "prelu", "_prelu_kernel", "rsub",
    "fill", "zero", "lerp", "addcmul", "addcdiv", "clamp", "relu6", "log_sigmoid", "isnan", "isinf",
    "isfinite", "nan_to_num", "dropout", "native_dropout", "bernoulli", "mish", "softplus", "rrelu",
}  # fmt: skip


def pointwise(run: Run, args: Any, kwargs: Any, out: Any) -> list[Shadow]:
    """Join the labels of elements that meet, after broadcasting."""
    outs = _tensors(out)
    tensors = [x for x in _tensors((args, kwargs)) if x.dim()]
    shadow = together(run, tensors, outs[0].shape)
    return [shadow for _ in outs]


def together(run: Run, tensors: Sequence[Tensor], shape: Sequence[int]) -> Shadow:
    """The labels of tensors that are combined element by element to a tensor of this shape."""
    axes: list[Axis] = []
    for i in range(-len(shape), 0):
        met = [run.of(x).axes[i] for x in tensors if x.dim() >= -i and x.shape[i] > 1]
        axis = met[0] if met else None
        for other in met[1:]:
            axis = run.labels.unify(axis, other, run.reason("a value of fixed size"))
        axes.append(axis)
    return Shadow(tuple(axes), all(run.of(x).weight for x in tensors))


@rule(
    "clone", "detach", "alias", "_to_copy", "contiguous", "lift_fresh", "lift", "positive", "zeros_like",
    "ones_like", "full_like", "empty_like", "rand_like", "randn_like", "triu", "tril", "as_strided_",
)  # fmt: skip
def identity(run: Run, args: Any, kwargs: Any, out: Any) -> Shadow:
    shadow = run.of(args[0])
    return shadow if args[0].shape == out.shape else _unknown_shape(run, args, out)


def _unknown_shape(run: Run, args: Any, out: Tensor) -> Shadow:
    return unknown(run, args[:1], {}, out, "a view by strides")[0]


@rule("new_zeros", "new_ones", "new_full", "new_empty", "new_empty_strided", "_assert_async", "is_nonzero",
      "item", "_local_scalar_dense", "equal", "is_same_size", "_assert_tensor_metadata")  # fmt: skip
def blank(run: Run, args: Any, kwargs: Any, out: Any) -> list[Shadow]:
    """The rule of operators that take no values from what they read, or no channels."""
    return [_blank(x) for x in _tensors(out)]


# --- movement -----------------------------------------------------------------------------------


@rule("view", "_unsafe_view", "reshape", "_reshape_alias", "reshape_copy", "view_copy")
def view(run: Run, args: Any, kwargs: Any, out: Any) -> Shadow:
    if isinstance(args[1], torch.dtype):
        return run.of(args[0])
    return reshaped(run, args[0], out.shape)


def reshaped(run: Run, x: Tensor, shape: Sequence[int]) -> Shadow:
    """Labels after a view, and the attributes by which the user's code may know the sizes."""
    shadow = run.of(x)
    axes = tuple(run.labels.reshape(shadow.axes, x.shape, shape))
    if tuple(x.shape) != tuple(shape):
        for axis in axes:
            run.mirror(axis)
    return Shadow(axes, shadow.weight)


@rule("permute")
def permute(run: Run, args: Any, kwargs: Any, out: Any) -> Shadow:
    shadow = run.of(args[0])
    return Shadow(tuple(shadow.axes[i] for i in args[1]), shadow.weight)


@rule("transpose", "t", "swapaxes")
def transpose(run: Run, args: Any, kwargs: Any, out: Any) -> Shadow:
    shadow = run.of(args[0])
    axes = list(shadow.axes)
    if len(axes) > 1:
        i, j = args[1:3] if len(args) > 1 else (0, 1)
        axes[i], axes[j] = axes[j], axes[i]
    return Shadow(tuple(axes), shadow.weight)


@rule("expand", "broadcast_to")
def expand(run: Run, args: Any, kwargs: Any, out: Any) -> Shadow:
    shadow, x = run.of(args[0]), args[0]
    axes: list[Axis] = []
    for i in range(-out.dim(), 0):
        inside = x.dim() >= -i
        if inside and x.shape[i] == out.shape[i]:
            axes.append(shadow.axes[i])
        else:
            axes.append((-1,) * out.shape[i])
    return Shadow(tuple(axes), shadow.weight)


@rule("unsqueeze")
def unsqueeze(run: Run, args: Any, kwargs: Any, out: Any) -> Shadow:
    shadow = run.of(args[0])
    axes = list(shadow.axes)
    axes.insert(args[1] % out.dim(), None)
    return Shadow(tuple(axes), shadow.weight)


@rule("squeeze")
def squeeze(run: Run, args: Any, kwargs: Any, out: Any) -> Shadow:
    shadow, x = run.of(args[0]), args[0]
    dims = range(x.dim()) if len(args) == 1 else args[1]
    gone = {i % x.dim() for i in ([dims] if isinstance(dims, int) else dims)}
    kept = [i for i in range(x.dim()) if i not in gone or x.shape[i] != 1]
    return Shadow(tuple(shadow.axes[i] for i in kept), shadow.weight)


@rule("slice", "narrow")
def slice_(run: Run, args: Any, kwargs: Any, out: Any) -> Shadow:
    x = args[0]
    dim = _at(args, kwargs, 1, "dim", 0) % x.dim()
    start = _at(args, kwargs, 2, "start", None)
    end, step = _at(args, kwargs, 3, "end", None), _at(args, kwargs, 4, "step", 1)
    shadow = run.of(x)
    axis = shadow.axes[dim]
    part = axis and axis[start:end:step]
    if axis is not None and part != axis:
        run.mirror(part)
        if start:
            run.mirror(axis[:start])
    return Shadow((*shadow.axes[:dim], part, *shadow.axes[dim + 1 :]), shadow.weight)


@rule("select")
def select(run: Run, args: Any, kwargs: Any, out: Any) -> Shadow:
    shadow = run.of(args[0])
    dim = args[1] % len(shadow.axes)
    run.labels.pin(shadow.axes[dim], run.reason("one index is selected"))
    return Shadow(shadow.axes[:dim] + shadow.axes[dim + 1 :], shadow.weight)


@rule("unbind")
def unbind(run: Run, args: Any, kwargs: Any, out: Any) -> list[Shadow]:
    shadow = run.of(args[0])
    dim = _at(args, kwargs, 1, "dim", 0) % len(shadow.axes)
    run.labels.pin(shadow.axes[dim], run.reason("an axis is taken apart"))
    one = Shadow(shadow.axes[:dim] + shadow.axes[dim + 1 :], shadow.weight)
    return [one for _ in out]


@rule("split", "split_with_sizes", "chunk", "split_copy", "split_with_sizes_copy")
def split(run: Run, args: Any, kwargs: Any, out: Any) -> list[Shadow]:
    shadow = run.of(args[0])
    dim = _at(args, kwargs, 2, "dim", 0) % len(shadow.axes)
    axis, start, result = shadow.axes[dim], 0, []
    if len({x.shape[dim] for x in out}) == 1:
        run.labels.balance(axis, len(out), run.reason("a split into parts"))
    for part in out:
        stop = start + part.shape[dim]
        labels = axis and axis[start:stop]
        run.mirror(labels)
        axes = (*shadow.axes[:dim], labels, *shadow.axes[dim + 1 :])
        result.append(Shadow(axes, shadow.weight))
        start = stop
    return result


@rule("cat", "concatenate")
def cat(run: Run, args: Any, kwargs: Any, out: Any) -> Shadow:
    parts = [x for x in args[0] if x.dim() == out.dim()]
    dim = _at(args, kwargs, 1, "dim", 0) % out.dim()
    others = together_except(run, parts, dim)
    axes = [run.of(x).axes[dim] or (0,) * x.shape[dim] for x in parts]
    joined = tuple(label for axis in axes for label in axis)
    weight = all(run.of(x).weight for x in parts)
    return Shadow((*others[:dim], joined if any(joined) else None, *others[dim + 1 :]), weight)


def together_except(run: Run, tensors: Sequence[Tensor], dim: int) -> list[Axis]:
    """Join the labels of tensors along every axis but one."""
    axes = list(run.of(tensors[0]).axes)
    for tensor in tensors[1:]:
        for i, axis in enumerate(run.of(tensor).axes):
            if i != dim:
                axes[i] = run.labels.unify(axes[i], axis, run.reason("a value of fixed size"))
    return axes


@rule("stack")
def stack(run: Run, args: Any, kwargs: Any, out: Any) -> Shadow:
    dim = _at(args, kwargs, 1, "dim", 0) % out.dim()
    axes = together_except(run, args[0], -1)
    return Shadow((*axes[:dim], None, *axes[dim:]), all(run.of(x).weight for x in args[0]))


@rule("repeat")
def repeat(run: Run, args: Any, kwargs: Any, out: Any) -> Shadow:
    x, times = args[0], args[1]
    shadow = run.of(x)
    axes: list[Axis] = [None] * (len(times) - x.dim()) + list(shadow.axes)
    sizes = [1] * (len(times) - x.dim()) + list(x.shape)
    for i, (n, size) in enumerate(zip(times, sizes, strict=True)):
        axis = axes[i]
        if n > 1:
            axes[i] = (-1,) * n if size == 1 else axis and axis * n
    return Shadow(tuple(axes), shadow.weight)


@rule("flip")
def flip(run: Run, args: Any, kwargs: Any, out: Any) -> Shadow:
    shadow = run.of(args[0])
    axes = list(shadow.axes)
    for dim in args[1]:
        axis = axes[dim]
        axes[dim] = axis and axis[::-1]
    return Shadow(tuple(axes), shadow.weight)


@rule("roll")
def roll(run: Run, args: Any, kwargs: Any, out: Any) -> Shadow:
    dims = _at(args, kwargs, 2, "dims", [])
    return _others_kept(run, args[0], dims or range(args[0].dim()), "roll")


@rule("constant_pad_nd", "reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "replication_pad1d",
      "replication_pad2d", "replication_pad3d", "_pad_circular")  # fmt: skip
def pad(run: Run, args: Any, kwargs: Any, out: Any) -> Shadow:
    x, widths = args[0], list(args[1])
    shadow = run.of(x)
    axes = list(shadow.axes)
    for i in range(len(widths) // 2):
        axis, left, right = axes[-1 - i], widths[2 * i], widths[2 * i + 1]
        if axis is not None and (left or right):
            inner = axis[max(0, -left) : len(axis) - max(0, -right)]
            axes[-1 - i] = (0,) * max(0, left) + inner + (0,) * max(0, right)
    return Shadow(tuple(axes), shadow.weight)


def _others_kept(run: Run, x: Tensor, dims: Sequence[int], name: str) -> Shadow:
    """Pin the labels along some axes; the others go through."""
    shadow = run.of(x)
    axes = list(shadow.axes)
    for dim in dims:
        run.labels.pin(axes[dim], run.reason(f"{name} along channels"))
        axes[dim] = None
    return Shadow(tuple(axes), shadow.weight)


@rule("unfold")
def unfold(run: Run, args: Any, kwargs: Any, out: Any) -> Shadow:
    kept = _others_kept(run, args[0], [args[1]], "unfold")
    return Shadow((*kept.axes, None), kept.weight)


@rule("im2col")
def im2col(run: Run, args: Any, kwargs: Any, out: Any) -> Shadow:
    axes = run.of(args[0]).axes
    channels = axes[-3]
    spread = channels and tuple(label for label in channels for _ in range(prod(args[1])))
    run.labels.pin(axes[-1], run.reason("positions"))
    return Shadow((*axes[:-3], spread, None))


@rule("col2im")
def col2im(run: Run, args: Any, kwargs: Any, out: Any) -> Shadow:
    x = args[0]
    channels = run.of(x).axes[-2]
    rows = run.labels.split(channels, [out.shape[-3], prod(args[2])])
    run.labels.pin(rows[1], run.reason("positions"))
    return Shadow((*run.of(x).axes[:-2], rows[0], None, None))


@rule("pixel_shuffle")
def pixel_shuffle(run: Run, args: Any, kwargs: Any, out: Any) -> Shadow:
    return _shuffle(run, args[0], args[1], out, out.shape[-3])


@rule("pixel_unshuffle")
def pixel_unshuffle(run: Run, args: Any, kwargs: Any, out: Any) -> Shadow:
    axes = run.of(args[0]).axes
    channels = axes[-3]
    spread = channels and tuple(label for label in channels for _ in range(args[1] ** 2))
    return Shadow((*axes[:-3], spread, None, None))


def _shuffle(run: Run, x: Tensor, factor: int, out: Tensor, channels: int) -> Shadow:
    axes = run.of(x).axes
    rows, inner = run.labels.split(axes[-3], [channels, factor**2])
    run.labels.pin(inner, run.reason("channels become positions"))
    return Shadow((*axes[:-3], rows, None, None))


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(run: Run, args: Any, kwargs: Any, out: Any) -> Shadow:
    axes = run.of(args[0]).axes
    groups, size = args[1], args[0].shape[1]
    rows, columns = run.labels.split(axes[1], [groups, size // groups])
    run.labels.pin(rows, run.reason("channel_shuffle"))
    merged = run.labels.merge([columns, rows], [size // groups, groups])
    return Shadow((axes[0], merged, *axes[2:]))


# --- indexing, sorting --------------------------------------------------------------------------


@rule("index", "_unsafe_index")
def index(run: Run, args: Any, kwargs: Any, out: Any) -> Shadow:
    shadow, indices = run.of(args[0]), args[1]
    used = [i for i, value in enumerate(indices) if value is not None]
    dims = [
        d for i in used for d in (range(i, i + indices[i].dim()) if _boolean(indices[i]) else [i])
    ]
    kept = _others_kept(run, args[0], dims, "indexing")
    left = [i for i in range(len(shadow.axes)) if i not in dims]
    new = out.dim() - len(left)
    together = used == list(range(used[0], used[-1] + 1))
    at = sum(i < used[0] for i in left) if together else 0
    axes = [kept.axes[i] for i in left]
    return Shadow((*axes[:at], *[None] * new, *axes[at:]), shadow.weight)


def _boolean(tensor: Tensor) -> bool:
    return tensor.dtype in (torch.bool, torch.uint8)


@rule("index_select")
def index_select(run: Run, args: Any, kwargs: Any, out: Any) -> Shadow:
    return _others_kept(run, args[0], [args[1]], "indexing")


@rule("gather", "scatter", "scatter_add", "index_add", "index_copy", "index_fill", "scatter_reduce")
def gather(run: Run, args: Any, kwargs: Any, out: Any) -> Shadow:
    tensors = [x for x in _tensors((args, kwargs)) if x.dim() == out.dim()]
    dim = args[1] % out.dim()
    for tensor in tensors:
        run.labels.pin(run.of(tensor).axes[dim], run.reason("indexing along channels"))
    axes = together_except(run, tensors, dim)
    return Shadow((*axes[:dim], None, *axes[dim + 1 :]))


@rule("index_put")
def index_put(run: Run, args: Any, kwargs: Any, out: Any) -> Shadow:
    indices, shadow = args[1], run.of(args[0])
    if all(x is None or run.of(x).axes == (None,) * x.dim() for x in indices):
        value = args[2]
        tail = len(shadow.axes) - sum(
            x.dim() if x is not None and _boolean(x) else 1 for x in indices
        )
        if value.dim() == 0:
            return _others_kept(run, args[0], range(len(indices)), "index_put")
        if all(x is not None for x in indices) and tail <= value.dim():
            kept = list(
                _others_kept(run, args[0], range(len(shadow.axes) - tail), "index_put").axes
            )
            for i in range(1, tail + 1):
                if value.shape[-i] > 1:
                    other = run.of(value).axes[-i]
                    kept[-i] = run.labels.unify(kept[-i], other, run.reason("index_put"))
            return Shadow(tuple(kept))
    return unknown(run, args, kwargs, out, "index_put")[0]


@rule(
    "_softmax",
    "softmax",
    "_log_softmax",
    "log_softmax",
    "cumsum",
    "cumprod",
    "_safe_softmax",
    "logcumsumexp",
)
def softmax(run: Run, args: Any, kwargs: Any, out: Any) -> Shadow:
    return _others_kept(run, args[0], [args[1]], "softmax or a cumulative sum")


@rule("sort", "topk", "max", "min", "argmax", "argmin", "kthvalue", "median", "mode", "argsort", "amax", "amin",
      "any", "all", "logsumexp", "prod", "cummax", "cummin")  # fmt: skip
def ordering(run: Run, args: Any, kwargs: Any, out: Any) -> list[Shadow]:
    outs, x = _tensors(out), args[0]
    named = [value for value in args[1:3] if type(value) is int or isinstance(value, (list, tuple))]
    dim = kwargs.get("dim", named[-1] if named else None)
    dims = range(x.dim()) if dim is None else [dim] if isinstance(dim, int) else dim
    if x.dim() == 0:
        return [_blank(y) for y in outs]
    kept = _others_kept(run, x, dims, "a choice among channels")
    if outs[0].dim() == x.dim():
        return [kept for _ in outs]
    gone = {d % x.dim() for d in dims}
    axes = tuple(axis for i, axis in enumerate(kept.axes) if i not in gone)
    return [Shadow(axes, kept.weight) for _ in outs]


# --- contractions -------------------------------------------------------------------------------


def contract(run: Run, a: Shadow, b: Shadow, i: int, j: int) -> tuple[Axis, Axis]:
    """Join the axes i of a and j of b that a product sums over.

    Returns:
        The labels of the rows of a and of the columns of b, the remaining axes.
    """
    run.labels.unify(
        a.axes[i], b.axes[j], run.reason("a matrix product with a value of fixed size")
    )
    left, right = a.axes[-3 - i], b.axes[-3 - j]
    if a.weight and b.weight:
        a = Shadow(a.axes)  # a learned query, say, that meets a layer
    _note_roles(run, a, a.axes[i], left)
    _note_roles(run, b, b.axes[j], right)
    if a.weight or b.weight:
        _mirror_layer(run, a.axes[i], right if b.weight else left)
    else:
        run.labels.flag(a.axes[i], HEAD_DIM)
        # Sums are over what a channel-wise softmax would have pinned.
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
    a, b = run.of(args[0]), run.of(args[1])
    return Shadow(contract(run, a, b, -1, -2), a.weight and b.weight)


@rule("addmm")
def addmm(run: Run, args: Any, kwargs: Any, out: Any) -> Shadow:
    return _plus(run, mm(run, args[1:3], {}, out), args[0], out)


def _plus(run: Run, shadow: Shadow, bias: Tensor, out: Tensor) -> Shadow:
    axes = list(shadow.axes)
    labels = run.of(bias).axes
    for i in range(1, bias.dim() + 1):
        if bias.shape[-i] > 1:
            axes[-i] = run.labels.unify(axes[-i], labels[-i], run.reason("a bias of fixed size"))
    return Shadow(tuple(axes), shadow.weight)


@rule("bmm")
def bmm(run: Run, args: Any, kwargs: Any, out: Any) -> Shadow:
    a, b = run.of(args[0]), run.of(args[1])
    batch = run.labels.unify(a.axes[0], b.axes[0], run.reason("the batch of a matrix product"))
    if not (a.weight or b.weight):
        run.labels.flag(batch, HEADS)
    rows, columns = contract(
        run, Shadow(a.axes[1:], a.weight), Shadow(b.axes[1:], b.weight), -1, -2
    )
    return Shadow((batch, rows, columns), a.weight and b.weight)


@rule("baddbmm")
def baddbmm(run: Run, args: Any, kwargs: Any, out: Any) -> Shadow:
    return _plus(run, bmm(run, args[1:3], {}, out), args[0], out)


@rule("linear")
def linear(run: Run, args: Any, kwargs: Any, out: Any) -> Shadow:
    x, weight = run.of(args[0]), run.of(args[1])
    matrix = Shadow((None, x.axes[-1]), x.weight)
    turned = Shadow((weight.axes[1], weight.axes[0]), weight.weight)
    _, columns = contract(run, matrix, turned, -1, -2)
    shadow = Shadow((*x.axes[:-1], columns), x.weight and weight.weight)
    bias = _at(args, kwargs, 2, "bias", None)
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
    2. Of several groups, a whole one goes, or the same column or row of all of them.
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


# --- norms and statistics -----------------------------------------------------------------------


@rule("native_batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm", "batch_norm",
      "_native_batch_norm_legit", "native_batch_norm_legit_no_training")  # fmt: skip
def batch_norm(run: Run, args: Any, kwargs: Any, out: Any) -> list[Shadow]:
    shadow = run.of(args[0])
    channels = shadow.axes[1]
    for value in args[1:5]:
        if isinstance(value, Tensor) and args[0].shape[1] > 1:
            why = run.reason("a norm of fixed size")
            channels = run.labels.unify(channels, run.of(value).axes[0], why)
    run.mirror(channels, ("num_features",))
    first = Shadow((shadow.axes[0], channels, *shadow.axes[2:]))
    return [first, *[_blank(x) for x in _tensors(out)[1:]]]


@rule("native_layer_norm", "_fused_rms_norm", "layer_norm", "rms_norm")
def layer_norm(run: Run, args: Any, kwargs: Any, out: Any) -> list[Shadow]:
    x, shape = args[0], args[1]
    affine = [value for value in args[2:4] if isinstance(value, Tensor)]
    shadow = together(run, [x, *affine], x.shape)
    for axis in shadow.axes[x.dim() - len(shape) :]:
        run.statistic(axis, "layer_norm")
        run.mirror(axis, ("normalized_shape",))
    return [Shadow(shadow.axes), *[_blank(y) for y in _tensors(out)[1:]]]


@rule("native_group_norm")
def group_norm(run: Run, args: Any, kwargs: Any, out: Any) -> list[Shadow]:
    """Whole groups go, or the same channel of all of them."""
    x, groups = args[0], args[6]
    shadow = run.of(x)
    channels = shadow.axes[1]
    for value in args[1:3]:
        if isinstance(value, Tensor) and x.shape[1] > 1:
            channels = run.labels.unify(channels, run.of(value).axes[0], run.reason("a norm"))
    rows, columns = run.labels.split(channels, [groups, x.shape[1] // groups])
    run.statistic(columns, "group_norm")
    run.mirror(rows, ("num_groups",))
    run.mirror(channels, ("num_channels",))
    first = Shadow((shadow.axes[0], channels, *shadow.axes[2:]))
    return [first, *[_blank(y) for y in _tensors(out)[1:]]]


@rule("mean", "sum", "var", "std", "var_mean", "std_mean", "linalg_vector_norm", "norm")
def reduction(run: Run, args: Any, kwargs: Any, out: Any) -> list[Shadow]:
    """A sum or mean over channels is one over the kept channels."""
    x, outs = args[0], _tensors(out)
    shadow, dims = run.of(x), reduced_axes(args, kwargs)
    for dim in dims:
        run.statistic(shadow.axes[dim], "a mean or sum")
    if outs[0].dim() == x.dim():
        axes = tuple(None if i in dims else axis for i, axis in enumerate(shadow.axes))
    else:
        axes = tuple(axis for i, axis in enumerate(shadow.axes) if i not in dims)
    return [Shadow(axes, shadow.weight) for _ in outs]


@rule("_weight_norm_interface")
def weight_norm(run: Run, args: Any, kwargs: Any, out: Any) -> list[Shadow]:
    dim = _at(args, kwargs, 2, "dim", 0)
    for i, axis in enumerate(run.of(args[0]).axes):
        if i != dim:
            run.labels.pin(axis, run.reason("the norm of a weight"))
    shadow = together(run, args[:2], args[0].shape)
    return [shadow, *[_blank(y) for y in _tensors(out)[1:]]]


@rule("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention",
      "_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention",
      "_scaled_dot_product_attention_math")  # fmt: skip
def attention(run: Run, args: Any, kwargs: Any, out: Any) -> list[Shadow]:
    mask = kwargs.get(
        "attn_mask", args[3] if len(args) > 3 and isinstance(args[3], Tensor) else None
    )
    outs = _tensors(out)
    return [joined(run, *args[:3], mask, outs[0]), *[_blank(x) for x in outs[1:]]]


# --- images -------------------------------------------------------------------------------------


def _spatial(count: int) -> Rule:
    def spatial(run: Run, args: Any, kwargs: Any, out: Any) -> list[Shadow]:
        axes = run.of(args[0]).axes
        for axis in axes[-count:]:
            run.labels.pin(axis, run.reason("positions of an image"))
        return [Shadow((*axes[:-count], *[None] * count)) for _ in _tensors(out)]

    return spatial


for _n in (1, 2, 3):
    for _name in (
        f"max_pool{_n}d_with_indices", f"max_pool{_n}d", f"avg_pool{_n}d", f"_adaptive_avg_pool{_n}d",
        f"adaptive_avg_pool{_n}d", f"adaptive_max_pool{_n}d", f"upsample_nearest{_n}d",
        f"_upsample_nearest_exact{_n}d", "mkldnn_max_pool2d",
    ):  # fmt: skip
        RULES[_name] = _spatial(_n)
for _name in (
    "upsample_bilinear2d",
    "upsample_bicubic2d",
    "_upsample_bilinear2d_aa",
    "_upsample_bicubic2d_aa",
):
    RULES[_name] = _spatial(2)
RULES["upsample_linear1d"], RULES["upsample_trilinear3d"] = _spatial(1), _spatial(3)


@rule("grid_sampler_2d", "grid_sampler", "grid_sampler_3d")
def grid_sampler(run: Run, args: Any, kwargs: Any, out: Any) -> Shadow:
    axes = run.of(args[0]).axes
    return Shadow((*axes[:2], *[None] * (out.dim() - 2)))


@rule("roi_align", "roi_pool")
def roi_align(run: Run, args: Any, kwargs: Any, out: Any) -> list[Shadow]:
    channels = run.of(args[0]).axes[1]
    return [Shadow((None, channels, None, None)) for _ in _tensors(out)]
