"""A warning when a lean graph is called on inputs, or in a mode, for which it was not checked."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import torch
from torch import fx, nn

from snello.graph import tensors_in
from snello.simplification.ir.domain import Domain


def guard(lean: fx.GraphModule, domain: Domain | None) -> None:
    """Make a lean graph warn, once for each reason, when it is called outside of its domain.

    It is a warning and not an error, because the outputs may still be correct there. Graphs that
    were checked at other sizes and in both modes get no hook. Copies of the graph warn, too; a
    graph that was pickled does not.

    Args:
        lean: the graph module; a hook is added.
        domain: the domain in its plan; None adds no hook.
    """
    if domain is None or not domain.is_limited:
        return
    lean.register_forward_pre_hook(_Guard(domain), with_kwargs=True)
    lean._register_deepcopy_hook(_Again(domain))


class _Again:
    """Hook for `deepcopy` that adds the guard to a copy without forward pre-hooks."""

    def __init__(self, domain: Domain) -> None:
        self.domain = domain

    def __call__(self, lean: fx.GraphModule) -> None:
        if not lean._forward_pre_hooks:
            lean.register_forward_pre_hook(_Guard(self.domain), with_kwargs=True)


class _Guard:
    """Forward pre-hook that warns outside of the domain, once for each reason."""

    def __init__(self, domain: Domain) -> None:
        self.domain = domain
        self.said: set[str] = set()

    def __call__(self, lean: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
            return  # sizes are symbolic
        if lean.training and self.domain.training == "differs":
            self._say(
                "training",
                "this lean model is a captured graph, which in training mode does not compute what the model "
                "computes there (dropout, or outputs for training alone); keep_class=True keeps the model's "
                "own forward",
            )
        shapes = _shapes(lean, args, kwargs)
        if shapes is not None and not self.domain.holds(shapes):
            self._say(
                "sizes",
                f"this lean model was checked on inputs of shape {self.domain} and is called on "
                f"{', '.join(map(str, shapes))}: compare its outputs there with the original's, or simplify "
                "with example inputs of this shape",
            )

    def _say(self, kind: str, message: str) -> None:
        if kind not in self.said:
            self.said.add(kind)
            warnings.warn(message, stacklevel=5)


def _shapes(
    lean: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> list[tuple[int, ...]] | None:
    """Shapes of the tensors among the arguments, in the order of the signature."""
    try:
        bound = inspect.signature(lean.forward).bind(*args, **kwargs).arguments
    except TypeError:
        return None  # the call itself will raise
    return [tuple(x.shape) for x in tensors_in(list(bound.values()))]
