"""Operations element by element, and copies."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from snello.graph.coupled.run import Run, Shadow

from .base import (
    rule,
    tensors_in,
    together,
    unknown,
    unlabelled,
)

POINTWISE = {
    "hardswish", "hardsigmoid", "where", "masked_fill", "copy", "prelu", "_prelu_kernel", "rsub",
    "fill", "zero", "lerp", "addcmul", "addcdiv", "clamp", "relu6", "log_sigmoid", "isnan", "isinf",
    "isfinite", "nan_to_num", "dropout", "native_dropout", "bernoulli", "mish", "softplus", "rrelu",
}  # fmt: skip


def pointwise(run: Run, args: Any, kwargs: Any, out: Any) -> list[Shadow]:
    """Join the labels of the elements that are combined, after broadcasting."""
    outs = tensors_in(out)
    tensors = [x for x in tensors_in((args, kwargs)) if x.dim()]
    shadow = together(run, tensors, outs[0].shape)
    return [shadow for _ in outs]


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
    """The rule of operators whose result has no labels: it uses no value, or no channel."""
    return [unlabelled(x) for x in tensors_in(out)]
