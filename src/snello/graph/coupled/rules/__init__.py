"""Rules: the labels of an operation's outputs from those of its inputs.

A rule is named after an operator of aten. It is called with the run, the arguments and the outputs
that were computed, and returns the `Shadow` of each tensor among the outputs (or one, where
the operator has one output). Operators that torch tags as pointwise share one rule; an operator
without a rule pins all labels of its operands.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from snello.graph.coupled.attention import rescaled
from snello.graph.coupled.products import products
from snello.graph.coupled.run import Run, Shadow
from snello.graph.coupled.statistics import STATISTICS

from . import contractions, images, indexing, movement, norms
from .base import RULES, Rule, tensors_in, unknown
from .movement import circular_pad as circular_pad
from .pointwise import POINTWISE, pointwise


def apply(run: Run, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Run an operation and label its outputs."""
    name = func.name().split("::")[-1].split(".")[0]
    labelled = any(axis for x in tensors_in((args, kwargs)) for axis in run.of(x).axes)
    if not labelled and name not in ("expand", "repeat"):
        out = func(*args, **kwargs)
        run.products.extend(products(run, name, args, out))
        return out
    # Statistics are computed before the operation runs, because it may overwrite its operands.
    kwargs = rescaled(run, name, args, kwargs)
    masked = STATISTICS[name](run, args, kwargs) if name in STATISTICS and run.removed else None
    out = masked if masked is not None else func(*args, **kwargs)
    shadows = rule_of(name, func)(run, args, kwargs, out)
    outs = tensors_in(out)
    shadows = [shadows] if isinstance(shadows, Shadow) else list(shadows)
    for tensor, shadow in zip(outs, shadows, strict=True):
        run.keep(tensor, shadow)
    run.products.extend(products(run, name, args, out))
    return out


def rule_of(name: str, func: Any) -> Rule:
    """The rule of an operator; an in-place operator (`add_`) has that of its functional form."""
    functional = name.rstrip("_") if name.endswith("_") and not name.startswith("_") else name
    for known in (name, functional):
        if known in RULES:
            return RULES[known]
    if torch.Tag.pointwise in func.tags or functional in POINTWISE:
        return pointwise
    return lambda run, args, kwargs, out: unknown(run, args, kwargs, out, name)


__all__ = ["apply", "circular_pad", "contractions", "images", "indexing", "movement", "norms"]
