"""Proofs for ``removable.py``: constants, and channels that no output depends on.

Constants are *proved*, not sampled: the network runs in float64 on an input of NaN, and every
operation is told where its result does not depend on an operand (a zero weight, a factor that is
exactly zero). Whatever is still finite at the end cannot depend on the input, so no saturated
activation is taken for a constant. Paths are found in the backward pass of the same run, in which
every operation's derivative is replaced by "may it depend on this?" (weights by whether they are
non-zero, activations by the identity, a normalisation by all of its group): all non-negative, so
nothing cancels. Operations without a rule are refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

UNIFORM = 1e-9  # relative; only values that are proved independent of the input are compared


@dataclass
class Trace:
    """One call of a layer: what its rows and columns turned out to be.

    Attributes:
        weight: id of the weight tensor, which names the layer (a BatchNorm's running mean if it has
        none). connected: shape ``(groups, rows per group, columns per group)``: where the weight is
        not zero. constant: per row, shape ``(rows,)``: its output is one constant.
        constant_inputs: per column of all groups, shape ``(columns,)``.
        needed_border: per column: a surviving row of a depthwise layer sees this constant through
        zero padding. useful: per row: a path leads to an output. Filled by the backward pass.
    """

    weight: int
    connected: Tensor
    constant: Tensor
    constant_inputs: Tensor
    needed_border: Tensor
    useful: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.useful = torch.zeros_like(self.constant)

    @property
    def rows(self) -> Tensor:
        """The rows that survive, shape ``(rows,)``."""
        return self.useful & ~self.constant

    @property
    def columns(self) -> Tensor:
        """The columns that survive, shape ``(columns,)``."""
        groups = self.connected.shape[0]
        read = (self.connected & self.rows.reshape(groups, -1, 1)).any(1).flatten()
        return read & (~self.constant_inputs | self.needed_border)


def tensors_of(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    return (
        [t for item in value for t in tensors_of(item)] if isinstance(value, (list, tuple)) else []
    )


class _Depends(torch.autograd.Function):
    """A value that is already known, whose derivatives are the given masks."""

    @staticmethod
    def forward(
        ctx: Any, value: Tensor, back: Callable[[Tensor], tuple[Tensor | None, ...]], *inputs: Any
    ) -> Tensor:
        ctx.back = back
        return value.clone() if value.is_contiguous() else value.contiguous()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        grads = ctx.back(
            (grad != 0).to(grad.dtype)
        )  # ones and zeros: nothing can overflow or vanish
        return (None, None, *(None if g is None else (g != 0).to(g.dtype) for g in grads))


def _depends(
    value: Tensor, back: Callable[[Tensor], tuple[Tensor | None, ...]], *inputs: Any
) -> Tensor:
    return _Depends.apply(value, back, *inputs)


def _constants(x: Tensor, axis: int) -> Tensor:
    """One value per channel: the constant, or NaN where there is none."""
    flat = x.detach().movedim(axis, 0).flatten(1)
    low, high = flat.amin(1), flat.amax(1)
    uniform = high - low <= UNIFORM * torch.maximum(low.abs(), high.abs())  # False for NaN
    return torch.where(uniform, flat[:, 0], torch.nan)


def _along(values: Tensor, axis: int, like: Tensor | torch.Size) -> Tensor:
    """One value per channel, spread over a shape."""
    shape = like if isinstance(like, torch.Size) else like.shape
    view = [1] * len(shape)
    view[axis] = -1
    return values.reshape(view).expand(shape)


def _reached(grad: Tensor, axis: int) -> Tensor:
    return (grad != 0).movedim(axis, 0).flatten(1).any(1)


class Proof(TorchFunctionMode):
    """Runs a network on NaN; see the module's docstring. ``traces`` holds one record per call of a
    layer.
    """

    def __init__(self, borders: bool) -> None:
        super().__init__()
        self.borders = borders
        self.traces: list[Trace] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", str(func))
        plain = name.strip("_")
        if name.startswith("__") and plain[:1] in "ir" and plain[1:] in _OPERATORS:
            plain = plain[1:]
        tensors = [t for t in tensors_of([list(args), list(kwargs.values())]) if t.requires_grad]
        if plain in _LAYERS:
            return _layer(self, func, plain, *args, **kwargs)
        if not tensors:  # nothing that comes from the input: weights, tables, shapes
            return func(*args, **kwargs)
        if plain == "batch_norm":
            return _batch_norm(self.traces, *args, **kwargs)
        if plain in _RULES:
            return _RULES[plain](func, *args, **kwargs)
        result = func(*args, **kwargs)
        if plain not in _LINEAR and any(t.requires_grad for t in tensors_of(result)):
            raise NotImplementedError(f"the oracle has no rule for the operation {name!r}")
        return result


def _layer(
    run: Proof, func: Any, kind: str, x: Tensor, weight: Tensor, bias: Tensor | None = None, *rest: Any,
    **options: Any,
) -> Tensor:  # fmt: skip
    if not x.requires_grad:  # a layer over a table of positions: its readers still lead back to it
        x = x.detach().clone().requires_grad_()
    transposed, axis = "transpose" in kind, x.dim() - 1 if kind == "linear" else 1
    names = ["stride", "padding", "output_padding", "groups", "dilation"]
    names = names if transposed else ["stride", "padding", "dilation", "groups"]
    options |= dict(zip(names, rest, strict=False))
    groups = int(options.get("groups", 1))
    by_tap = weight.detach().flatten(2) if kind != "linear" else weight.detach().unsqueeze(-1)
    by_tap = by_tap.reshape(groups, -1, *by_tap.shape[1:])
    if transposed:
        by_tap = by_tap.transpose(1, 2)
    connected = (by_tap != 0).any(-1)
    inputs = _constants(x, axis)
    given = inputs.reshape(groups, -1)
    reads_live = (connected & given.isnan()[:, None]).any(-1)
    terms = by_tap * given.nan_to_num()[:, None, :, None]
    sums = terms.sum(2)
    inside = _always_inside(kind, weight, options)
    # A tap that is sometimes outside contributes to some positions and not to others.
    shifts = (sums.abs() > 1e-12 * terms.abs().sum(2)) & ~inside & run.borders
    values = sums.sum(-1).masked_fill(reads_live | shifts.any(-1), torch.nan).flatten()
    values = values if bias is None else values + bias.detach()
    one_column = torch.tensor(by_tap.shape[2] == 1)
    border = ((shifts.any(-1) & ~reads_live).any(1, keepdim=True) & one_column).expand(
        -1, by_tap.shape[2]
    )
    trace = Trace(id(weight), connected, ~values.isnan(), ~inputs.isnan(), border.flatten())
    run.traces.append(trace)
    meta = [
        t if t is None else torch.empty_like(t, device="meta") for t in (x.detach(), weight, bias)
    ]
    shape = func(*meta, **options).shape

    def back(grad: Tensor) -> tuple[Tensor]:
        trace.useful |= _reached(grad, axis)
        rows = (trace.rows).reshape(groups, -1, 1)
        return (_along((connected & rows).any(1).flatten().to(grad.dtype), axis, x),)

    return _depends(_along(values, axis, shape), back, x)


def _always_inside(kind: str, weight: Tensor, options: dict[str, Any]) -> Tensor:
    """Taps of the kernel that read the image, never the padding, at every position: shape
    ``(taps,)``.
    """
    kernel = weight.shape[2:]
    if kind == "linear":
        return torch.ones(1, dtype=torch.bool)

    def per_axis(key: str, default: int) -> list[Any]:
        value = options.get(key, default)
        if isinstance(value, (int, str)):
            return [value] * len(kernel)
        return list(value) * (len(kernel) if len(value) == 1 else 1)

    axes = zip(
        kernel, per_axis("stride", 1), per_axis("padding", 0), per_axis("dilation", 1), strict=True
    )
    inside = torch.ones(1, dtype=torch.bool)
    for taps, stride, padding, dilation in axes:
        if "transpose" in kind:
            here = torch.full((taps,), taps == 1 and stride == 1)
        else:
            reach = dilation * (taps - 1)
            before = {"same": reach // 2, "valid": 0}.get(padding, padding)
            here = torch.arange(taps) * dilation == before
            if padding != "same":
                here = (
                    here & (2 * before <= reach) if before else torch.ones(taps, dtype=torch.bool)
                )
        inside = (inside[:, None] & here).flatten()
    return inside


def _batch_norm(
    traces: list[Trace], x: Tensor, mean: Tensor | None, var: Tensor | None, weight: Tensor | None = None,
    bias: Tensor | None = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    if training or mean is None or var is None:
        raise NotImplementedError("the oracle has no rule for BatchNorm without running statistics")
    scale = (torch.ones_like(mean) if weight is None else weight) / (var + eps).sqrt()
    shift = torch.zeros_like(mean) if bias is None else bias
    value = (x.detach() - _along(mean, 1, x)) * _along(scale, 1, x)
    value = torch.where(_along(scale == 0, 1, x), 0.0, value) + _along(shift, 1, x)
    constant = ~_constants(value, 1).isnan()
    connected = (scale != 0).reshape(-1, 1, 1)
    trace = Trace(
        id(mean), connected, constant, ~_constants(x, 1).isnan(), torch.zeros_like(constant)
    )
    traces.append(trace)

    def back(grad: Tensor) -> tuple[Tensor]:
        trace.useful |= _reached(grad, 1)
        return (grad * _along(trace.rows & (scale != 0), 1, x),)

    return _depends(value, back, x)


# --- rules of the operations without weights
# ----------------------------------------------------------------


def _pointwise(func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    # On a copy: the original is not overwritten by functions that work in place.
    return _depends(func(x.detach().clone(), *args, **kwargs), lambda grad: (grad,), x)


def _same(func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return x  # dropout in evaluation mode


def _summed(grad: Tensor, like: Any) -> Tensor | None:
    return grad.sum_to_size(like.shape) if isinstance(like, Tensor) and like.requires_grad else None


def _sum(func: Any, a: Any, b: Any, *args: Any, **kwargs: Any) -> Tensor:
    value = torch.add(*(t.detach() if isinstance(t, Tensor) else t for t in (a, b)))
    return _depends(value, lambda grad: (_summed(grad, a), _summed(grad, b)), a, b)


def _difference(func: Any, a: Any, b: Any, *args: Any, **kwargs: Any) -> Tensor:
    value = torch.sub(*(t.detach() if isinstance(t, Tensor) else torch.tensor(t) for t in (a, b)))
    return _depends(value, lambda grad: (_summed(grad, a), _summed(grad, b)), a, b)


def _product(func: Any, a: Any, b: Any) -> Tensor:
    x, y = (
        t.detach() if isinstance(t, Tensor) else torch.tensor(t, dtype=torch.float64)
        for t in (a, b)
    )
    value = torch.where((x == 0) | (y == 0), 0.0, x * y)  # zero times anything, NaN included
    return _depends(value, lambda g: (_summed(g * (y != 0), a), _summed(g * (x != 0), b)), a, b)


def _quotient(func: Any, a: Any, b: Any) -> Tensor:
    x, y = (
        t.detach() if isinstance(t, Tensor) else torch.tensor(t, dtype=torch.float64)
        for t in (a, b)
    )
    value = torch.where((x == 0) & (y != 0), 0.0, x / y)
    return _depends(
        value, lambda g: (_summed(g.expand(g.shape), a), _summed(g * (x != 0), b)), a, b
    )


def _mix(value: Tensor, x: Tensor, dims: tuple[int, ...], scale: Tensor | None = None) -> Tensor:
    """A result whose every entry depends on all entries along ``dims``."""
    factor = torch.ones((), dtype=x.dtype) if scale is None else (scale != 0).to(x.dtype)
    return _depends(
        value, lambda grad: ((grad * factor).sum(dims, keepdim=True).expand(x.shape),), x
    )


def _softmax(func: Any, x: Tensor, dim: int = -1, *args: Any, **kwargs: Any) -> Tensor:
    result = _mix(torch.softmax(x.detach(), dim), x, (dim,))
    result.sums_to_one = dim in (-1, x.dim() - 1)  # read by _bilinear
    return result


def _normalize(
    func: Any, x: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, **kwargs: Any
) -> Tensor:
    value, zero = F.normalize(x.detach(), p, dim, eps), x.detach() == 0
    return _mix(torch.where(zero, 0.0, value), x, (dim,), ~zero)


def _layer_norm(
    func: Any,
    x: Tensor,
    shape: list[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    scale = torch.ones(tuple(shape), dtype=x.dtype) if weight is None else weight
    value = torch.where(
        scale == 0, 0.0, F.layer_norm(x.detach(), tuple(shape), None, None, eps) * scale
    )
    return _mix(value if bias is None else value + bias, x, tuple(range(-len(shape), 0)), scale)


def _group_norm(
    func: Any,
    x: Tensor,
    groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    scale = _along(torch.ones(x.shape[1], dtype=x.dtype) if weight is None else weight, 1, x)
    value = torch.where(scale == 0, 0.0, F.group_norm(x.detach(), groups, None, None, eps) * scale)

    def back(grad: Tensor) -> tuple[Tensor]:
        folded = (grad * (scale != 0)).unflatten(1, (groups, -1)).flatten(2)
        return (folded.sum(2, keepdim=True).expand(folded.shape).reshape(x.shape),)

    return _depends(value if bias is None else value + _along(bias, 1, x), back, x)


def _pool(func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Pooling by a maximum: a channel depends on itself, at whatever position."""
    value = func(x.detach(), *args, **kwargs)
    value = value[0] if isinstance(value, tuple) else value
    return _depends(value, lambda grad: (_along(_reached(grad, 1).to(grad.dtype), 1, x),), x)


def _bilinear(equation: str, a: Tensor, b: Tensor) -> Tensor:
    """A product summed over one letter, which for rows that sum to one averages the second
    factor.
    """
    x, y = a.detach(), b.detach()
    left, right, out = equation.replace("->", ",").split(",")
    x_some, y_some = (t.ne(0).to(t.dtype) for t in (x, y))
    value = torch.einsum(equation, x.nan_to_num(), y.nan_to_num())
    live = torch.einsum(equation, x.isnan().to(x.dtype), y_some)
    live = live + torch.einsum(equation, x_some, y.isnan().to(y.dtype))
    value = value.masked_fill(live > 0, torch.nan)
    if getattr(a, "sums_to_one", False):  # attention over keys that all say the same says that
        position = right.index(left[-1]) - len(right)
        low, high = y.amin(position, keepdim=True), y.amax(position, keepdim=True)
        same = (high - low <= UNIFORM * torch.maximum(low.abs(), high.abs())).expand(y.shape)
        rows = torch.full_like(x, 1 / x.shape[-1])
        average = torch.einsum(equation, rows, torch.where(same, y, 0.0))
        value = torch.where(torch.einsum(equation, rows, same.to(y.dtype)) > 0.5, average, value)
    varies = value.isnan().to(x.dtype)  # a constant leads back to nothing

    def back(grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        grad = grad * varies
        to_a = torch.einsum(f"{out},{right}->{left}", grad, y_some) if a.requires_grad else None
        to_b = torch.einsum(f"{left},{out}->{right}", x_some, grad) if b.requires_grad else None
        return to_a, to_b

    return _depends(value, back, a, b)


def _matmul(func: Any, a: Tensor, b: Tensor) -> Tensor:
    if a.shape[:-2] != b.shape[:-2]:
        raise NotImplementedError(
            f"the oracle multiplies stacks of equal shape, not {a.shape} and {b.shape}"
        )
    return _bilinear("...ij,...jk->...ik", a, b)


def _einsum(func: Any, equation: str, *operands: Tensor) -> Tensor:
    if len(operands) != 2:
        raise NotImplementedError("the oracle has no rule for einsum of other than two operands")
    return _bilinear(equation.replace(" ", ""), *operands)


_LAYERS = {"linear", *(f"conv{kind}{n}d" for kind in ("", "_transpose") for n in (1, 2, 3))}
_OPERATORS = {"add", "sub", "mul", "div", "truediv", "matmul"}
# Linear, with coefficients that are neither negative nor dependent on the values: autograd does
# them right.
_LINEAR = {
    "cat", "concat", "flatten", "reshape", "view", "view_as", "permute", "transpose", "swapaxes", "movedim", "stack",
    "contiguous", "clone", "mean", "sum", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d",
    "avg_pool1d", "avg_pool2d", "avg_pool3d", "roll", "expand", "expand_as", "pad", "chunk", "split", "unbind",
    "getitem", "squeeze", "unsqueeze", "unflatten", "repeat", "get", "to", "interpolate", "pixel_shuffle",
}  # fmt: skip
_ACTIVATIONS = [
    "relu", "relu6", "hardtanh", "hardswish", "hardsigmoid", "silu", "gelu", "sigmoid", "tanh", "elu", "selu", "mish",
    "leaky_relu", "softplus", "clamp", "exp", "abs", "neg", "sqrt", "logsigmoid", "hardshrink", "prelu",
]  # fmt: skip
_RULES: dict[str, Callable[..., Tensor]] = {
    **dict.fromkeys(_ACTIVATIONS, _pointwise),
    **dict.fromkeys(
        ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_dropout"),
        _same,
    ),
    **{f"{adaptive}max_pool{n}d": _pool for n in (1, 2, 3) for adaptive in ("", "adaptive_")},
    "add": _sum,
    "sub": _difference,
    "mul": _product,
    "multiply": _product,
    "div": _quotient,
    "truediv": _quotient,
    "softmax": _softmax,
    "normalize": _normalize,
    "layer_norm": _layer_norm,
    "group_norm": _group_norm,
    "matmul": _matmul,
    "bmm": _matmul,
    "einsum": _einsum,
}
