"""Operations that select or sort values: the labels along the axis that they index are pinned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from snello.graph.coupled.run import Run, Shadow

from .base import (
    others_kept,
    rule,
    tensors_in,
    together_except,
    unknown,
    unlabelled,
)


@rule("index", "_unsafe_index")
def index(run: Run, args: Any, kwargs: Any, out: Any) -> Shadow:
    shadow, indices = run.of(args[0]), args[1]
    used = [i for i, value in enumerate(indices) if value is not None]
    dims = [
        d for i in used for d in (range(i, i + indices[i].dim()) if _boolean(indices[i]) else [i])
    ]
    kept = others_kept(run, args[0], dims, "indexing")
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
    return others_kept(run, args[0], [args[1]], "indexing")


@rule("gather", "scatter", "scatter_add", "index_add", "index_copy", "index_fill", "scatter_reduce")
def gather(run: Run, args: Any, kwargs: Any, out: Any) -> Shadow:
    tensors = [x for x in tensors_in((args, kwargs)) if x.dim() == out.dim()]
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
            return others_kept(run, args[0], range(len(indices)), "index_put")
        if all(x is not None for x in indices) and tail <= value.dim():
            kept = list(others_kept(run, args[0], range(len(shadow.axes) - tail), "index_put").axes)
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
    return others_kept(run, args[0], [args[1]], "softmax or a cumulative sum")


@rule("topk", "kthvalue")
def choice(run: Run, args: Any, kwargs: Any, out: Any) -> Shadow | Sequence[Shadow]:
    return last_ordering(run, (args[0], *args[2:]), kwargs, out)  # without the number of values


@rule("sort", "argsort", "mode")
def last_ordering(run: Run, args: Any, kwargs: Any, out: Any) -> Shadow | Sequence[Shadow]:
    return ordering(run, args, kwargs if len(args) > 1 else {"dim": -1, **kwargs}, out)


@rule("max", "min", "argmax", "argmin", "median", "amax", "amin", "any", "all", "logsumexp", "prod",
      "cummax", "cummin")  # fmt: skip
def ordering(run: Run, args: Any, kwargs: Any, out: Any) -> list[Shadow]:
    outs, x = tensors_in(out), args[0]
    named = [value for value in args[1:3] if type(value) is int or isinstance(value, (list, tuple))]
    dim = kwargs.get("dim", named[-1] if named else None)
    dims = range(x.dim()) if dim is None else [dim] if isinstance(dim, int) else dim
    if x.dim() == 0:
        return [unlabelled(y) for y in outs]
    kept = others_kept(run, x, dims, "a choice among channels")
    if outs[0].dim() == x.dim():
        return [kept for _ in outs]
    gone = {d % x.dim() for d in dims}
    axes = tuple(axis for i, axis in enumerate(kept.axes) if i not in gone)
    return [Shadow(axes, kept.weight) for _ in outs]
