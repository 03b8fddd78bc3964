"""The rule of scaled dot-product attention.

1. Query and key share the axis over which they are contracted. The default scale depends on its
   width and is computed from the number of kept channels.
2. Key and value share positions; query, key, value, mask and output share heads.
3. With fewer heads of keys than of queries (grouped-query attention), each head of keys is removed
   together with the heads of queries that use it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from .labels import HEAD_DIM, HEADS, Axis
from .products import attention as products
from .run import Run, Shadow

_ARGUMENTS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")


def attention(
    run: Run, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Tensor:
    """Run attention, and label its output."""
    given = {**dict(zip(_ARGUMENTS, args, strict=False)), **kwargs}
    q, k, v = (given[name] for name in _ARGUMENTS[:3])
    given["scale"] = _scale(run, q, k, given.get("scale"))
    out: Tensor = function(**given)
    run.keep(out, joined(run, q, k, v, given.get("attn_mask"), out))
    run.products.extend(products(run, q, k, v, out))
    return out


def rescaled(
    run: Run, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Keyword arguments of an operator of attention, with the scale of the kept channels."""
    if not name.startswith("_scaled_dot_product") or not run.removed:
        return kwargs
    return {**kwargs, "scale": _scale(run, args[0], args[1], kwargs.get("scale"))}


def _scale(run: Run, q: Tensor, k: Tensor, given: float | None) -> float:
    """The user's scale, or `1 / sqrt(d)` for the number d of kept channels of a head."""
    if given is not None:
        return given
    kept = run.kept(run.of(q).axes[-1] or run.of(k).axes[-1])
    return float((q.shape[-1] if kept is None else max(1, sum(kept))) ** -0.5)


def joined(run: Run, q: Tensor, k: Tensor, v: Tensor, mask: object, out: Tensor) -> Shadow:
    """The labels of the output, after those of the inputs are joined."""
    qs, ks, vs = (run.of(x).axes for x in (q, k, v))
    why = run.reason("attention")
    width = run.labels.unify(qs[-1], ks[-1], why)
    run.statistic(width, "scaled_dot_product_attention")
    run.labels.flag(width, HEAD_DIM)
    run.labels.flag(vs[-1], HEAD_DIM)
    run.labels.unify(ks[-2], vs[-2], why)
    batch = [_heads(run, qs, ks, vs, q, k, i) for i in range(-out.dim(), -2)]
    if isinstance(mask, Tensor):
        _join_mask(run, mask, [*batch, qs[-2], ks[-2]])
    return Shadow((*batch, qs[-2], vs[-1]))


def _heads(
    run: Run,
    qs: Sequence[Axis],
    ks: Sequence[Axis],
    vs: Sequence[Axis],
    q: Tensor,
    k: Tensor,
    i: int,
) -> Axis:
    """The labels of axis i of the output, counted from its end: an axis of heads, or of images."""
    a, b, c = (axes[i] if len(axes) >= -i else None for axes in (qs, ks, vs))
    if not (a or b or c):
        return None
    n, m = q.shape[i], k.shape[i]
    if m == 1 < n:
        run.labels.flag(a, HEADS)
        return a
    b, c = (x and tuple(label for label in x for _ in range(n // m)) for x in (b, c))
    why = run.reason("the heads of attention")
    heads = run.labels.unify(run.labels.unify(a, b, why), c, why)
    run.labels.flag(heads, HEADS)
    return heads


def _join_mask(run: Run, mask: Tensor, axes: list[Axis]) -> None:
    labels = run.of(mask).axes
    for i in range(1, mask.dim() + 1):
        if mask.shape[-i] > 1:
            run.labels.unify(axes[-i], labels[-i], run.reason("the mask of attention"))
