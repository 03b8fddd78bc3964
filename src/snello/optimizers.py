"""The optimizers of a model: found in wrappers, checked, and followed step by step.

To hold weights at a value, every step that could change them has to be known. So a follower is
notified of the steps of *all* optimizers in the process, and looks at their parameters at that
moment: optimizers that are created later, replaced or extended need no attaching. The optimizers
that the user passes are only checked.

    class Pin(StepFollower):
        def after(self, optimizer): ...

    follow_steps(pin)                   # until the pin is deleted, or unfollow_steps(pin)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from .errors import ConfigError
from .wrappers import eager, forget_compiled

Optimizers = Optimizer | Iterable[Optimizer] | None
"""One optimizer, several, or none (yet); each may be in a wrapper's attribute `optimizer`."""


def optimizers_of(given: Any, what: str) -> tuple[Optimizer, ...]:
    """The optimizers of `torch.optim` among the user's argument.

    Args:
        given: an optimizer; several, in any iterable or mapping; or None. Wrappers such as
            Accelerate's or Lightning's are unwrapped by their attribute `optimizer`.
        what: the caller, for the error.

    Raises:
        ConfigError: for anything else, and for an empty list.
    """
    if given is None:
        return ()
    several = isinstance(given, Iterable) and not hasattr(given, "param_groups")
    items = list(given.values() if isinstance(given, Mapping) else given) if several else [given]
    if not items:
        raise ConfigError(
            f"{what}: the list of optimizers is empty; give None if there is none yet"
        )
    return tuple(_inside(item, what) for item in items)


def check_trained(
    parameters: Mapping[str, Tensor], optimizers: Iterable[Optimizer], what: str
) -> None:
    """Raise an error for trained parameters that none of the optimizers holds.

    Without optimizers, nothing is checked.

    Args:
        parameters: qualified name -> parameter.
        optimizers: the optimizers that the user passed.
        what: the caller, for the error.

    Raises:
        ConfigError: naming the first such parameter.
    """
    optimizers = list(optimizers)
    held = {id(p) for optimizer in optimizers for p in parameters_of(optimizer)}
    trained = {name: p for name, p in parameters.items() if p.requires_grad}
    missing = [name for name, p in trained.items() if id(p) not in held]
    if not optimizers or not missing:
        return
    if len(missing) == len(trained):
        raise ConfigError(
            f"{what}: the optimizer holds no parameter of these layers, {missing[0]!r} for one; build it from "
            "the parameters of this very model, not of a copy or of another"
        )
    raise ConfigError(
        f"{what}: no optimizer given holds parameter {missing[0]!r} ({len(missing)} of {len(trained)} are "
        "missing), though it is trained; give all optimizers of the model in a list, or freeze the parameter "
        "with requires_grad_(False)"
    )


def parameters_of(optimizer: Optimizer) -> list[Tensor]:
    """The parameters that an optimizer holds now."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _inside(given: Any, what: str) -> Optimizer:
    """The innermost optimizer of a wrapper."""
    found, seen = given, set()
    while id(found) not in seen and isinstance(inner := getattr(found, "optimizer", None), object):
        seen.add(id(found))
        if not hasattr(inner, "param_groups"):
            break
        found = inner
    if not isinstance(found, Optimizer):
        raise ConfigError(
            f"{what}: the optimizer is a {type(given).__name__}, neither a torch.optim.Optimizer nor a list of "
            "them; give None if there is none yet"
        )
    return found


# Following


class StepFollower:
    """Receiver of every step of every optimizer; its methods do nothing by default."""

    def before(self, optimizer: Optimizer, closure: bool) -> None:
        """Called before a step; with a closure, the step computes its own gradients."""

    def after(self, optimizer: Optimizer) -> None:
        """Called after the step has changed the parameters."""

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keep what it holds through a change of weights that is no optimizer step."""
        yield


_followers: WeakSet[StepFollower] = WeakSet()
_registered = False


def follow_steps(follower: StepFollower) -> None:
    """Notify a follower of every step from now on. Only a weak reference to it is kept."""
    global _registered  # noqa: PLW0603 - one pair of hooks for the process
    if not _registered:
        # Never removed: removing hooks while torch iterates over them would break the step.
        register_optimizer_step_pre_hook(_before)
        register_optimizer_step_post_hook(_after)
        forget_compiled()
        _registered = True
    _followers.add(follower)


def unfollow_steps(follower: StepFollower) -> None:
    """Stop notifying a follower."""
    _followers.discard(follower)


@contextmanager
def rows_kept() -> Iterator[None]:
    """Keep the rows that followers hold through a change inside the block that is no step.

    This is for a decay by the gradients of the loss. Those of frozen neurons are not computed: read
    as zero, they would shrink weights of which nothing is known.
    """
    with ExitStack() as stack:
        for follower in list(_followers):
            stack.enter_context(follower.kept())
        yield


# Eagerly: a compiled step would repeat what the followers did when it was traced.
@eager
@torch.no_grad()
def _before(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    closure = any(callable(value) for value in (*args[1:], *kwargs.values()))
    for follower in list(_followers):
        follower.before(optimizer, closure)


@eager
@torch.no_grad()
def _after(optimizer: Optimizer, _args: tuple[Any, ...], _kwargs: dict[str, Any]) -> None:
    for follower in list(_followers):
        follower.after(optimizer)
