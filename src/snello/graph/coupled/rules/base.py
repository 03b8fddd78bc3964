"""The registry of rules, and functions that several rules use."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from snello.graph.coupled.labels import Axis
from snello.graph.coupled.run import Run, Shadow
from snello.graph.inputs import tensors_in as tensors_in

Rule = Callable[[Run, Sequence[Any], Mapping[str, Any], Any], Shadow | Sequence[Shadow]]

RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a function as the rule of operators of aten, by their names without overload."""

    def register(function: Rule) -> Rule:
        for name in names:
            RULES[name] = function
        return function

    return register


def argument(
    args: Sequence[Any], kwargs: Mapping[str, Any], i: int, name: str, default: Any
) -> Any:
    """The argument that an operator takes at position i or by name."""
    return args[i] if len(args) > i else kwargs.get(name, default)


def unlabelled(tensor: Tensor) -> Shadow:
    return Shadow((None,) * tensor.dim())


def unknown(run: Run, args: Any, kwargs: Any, out: Any, name: str) -> list[Shadow]:
    """Pin all labels of the operands of an operation without a rule."""
    for tensor in tensors_in((args, kwargs)):
        for axis in run.of(tensor).axes:
            run.labels.pin(axis, run.reason(f"{name} has no rule"))
    return [unlabelled(tensor) for tensor in tensors_in(out)]


def together(run: Run, tensors: Sequence[Tensor], shape: Sequence[int]) -> Shadow:
    """Join the labels of tensors that an elementwise operation broadcasts to a shape."""
    axes: list[Axis] = []
    for i in range(-len(shape), 0):
        met = [run.of(x).axes[i] for x in tensors if x.dim() >= -i and x.shape[i] > 1]
        axis = met[0] if met else None
        for other in met[1:]:
            axis = run.labels.unify(axis, other, run.reason("a value of fixed size"))
        axes.append(axis)
    return Shadow(tuple(axes), all(run.of(x).weight for x in tensors))


def together_except(run: Run, tensors: Sequence[Tensor], dim: int) -> list[Axis]:
    """Join the labels of tensors along every axis but one."""
    axes = list(run.of(tensors[0]).axes)
    for tensor in tensors[1:]:
        for i, axis in enumerate(run.of(tensor).axes):
            if i != dim:
                axes[i] = run.labels.unify(axes[i], axis, run.reason("a value of fixed size"))
    return axes


def others_kept(run: Run, x: Tensor, dims: Sequence[int], name: str) -> Shadow:
    """Pin the labels along some axes; the result has those of the other axes."""
    shadow = run.of(x)
    axes = list(shadow.axes)
    for dim in dims:
        run.labels.pin(axes[dim], run.reason(f"{name} along channels"))
        axes[dim] = None
    return Shadow(tuple(axes), shadow.weight)
