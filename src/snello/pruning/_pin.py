"""Pinning: pruned weights stay exactly zero through the steps of any optimizer."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from snello.neurons import (
    Masks,
    apply_masks,
    computed,
    masked_parameters,
    masks_beside,
    qualified,
    weighted_layers,
)
from snello.optimizers import (
    Optimizers,
    StepFollower,
    check_trained,
    follow_steps,
    optimizers_of,
    parameters_of,
    unfollow_steps,
)
from snello.wrappers import unwrapped

_remembered: WeakKeyDictionary[nn.Module, Masks] = WeakKeyDictionary()


def pin(model: nn.Module, optimizer: Optimizers, masks: Masks | Callable[[], Masks]) -> Pin:
    """Apply the masks again after every step of any optimizer, and after every `load_state_dict`.

    Momentum, weight decay and Adam's moments would otherwise change a pruned weight. This also
    holds for optimizers that are created later, replace another or get more parameters. A copy of
    the model keeps the masks of the time when it was copied; `unpin(copy)` removes them.

    Args:
        model: the model with the parameters in `masks`. `DataParallel`,
            `DistributedDataParallel` and `torch.compile` are unwrapped: the names are those of
            the inner model.
        optimizer: the optimizer that trains it; a list if there are several; None if there is none
            yet. Every masked parameter that is trained must be in one of them. They are only
            checked, not stored.
        masks: the masks, of which a copy is kept, or a function that returns the present ones.

    Returns:
        The pin; after `pin.remove()` the weights can change again.

    Raises:
        ConfigError: for an optimizer of another model, a trained parameter in none of them, masks
            that do not fit the model, and a model whose parameters are sharded.
    """
    model = unwrapped(model, "pin")
    masks = masks if callable(masks) else masks_beside(model, masks)
    present = masks() if callable(masks) else masks
    watched = masked_parameters(model, present) if present else dict(model.named_parameters())
    optimizers = optimizers_of(optimizer, "pin")
    if present or not _holds_some(optimizers, watched):
        check_trained(watched, optimizers, "pin")
    return Pin(model, masks)


def _holds_some(optimizers: tuple[Optimizer, ...], parameters: dict[str, nn.Parameter]) -> bool:
    own = {id(parameter) for parameter in parameters.values()}
    return any(id(p) in own for optimizer in optimizers for p in parameters_of(optimizer))


def unpin(model: nn.Module) -> None:
    """Remove all pins of a model or of a copy of it, so that pruned weights can change again."""
    for pin in pins_of(unwrapped(model, "unpin")):
        pin.remove()


def pins_of(model: nn.Module) -> list[Pin]:
    """The active pins of a model."""
    hooks = list(model._load_state_dict_post_hooks.values())
    return [hook.pin for hook in hooks if isinstance(hook, _Loaded) and hook.pin is not None]


class Pin(StepFollower):
    """Masks that are kept on a model, until [`remove`][snello.pruning.Pin.remove] or until the
    model is deleted.

    Args:
        model: the model, unwrapped.
        masks: the masks, or a function that returns the present ones.
    """

    def __init__(self, model: nn.Module, masks: Masks | Callable[[], Masks]) -> None:
        self.source = masks
        self.inherited = False  # True if it was copied with its model, so that no pruner owns it
        self.overwritten: dict[str, Tensor] = {}
        self._model = ref(model)
        # A weak reference, because the model's hooks refer to this object.
        self._active = True
        self._handles: list[RemovableHandle] = [
            module.register_load_state_dict_post_hook(_Loaded(self, prefix))
            for prefix, module in model.named_modules()
            if module is model or module._parameters
        ]
        follow_steps(self)

    @property
    def masks(self) -> Masks:
        """The present masks."""
        return self.source() if callable(self.source) else self.source

    def remove(self) -> None:
        """Remove the hooks, so that pruned weights can change again."""
        self._active = False
        unfollow_steps(self)
        for handle in self._handles:
            handle.remove()
        self._handles, self.overwritten = [], {}

    def after(self, optimizer: Optimizer) -> None:
        """Apply the masks of the parameters that an optimizer has updated."""
        model, masks = self._model(), self.masks
        if model is None or not masks:
            return
        own = {id(parameter) for parameter in parameters_of(optimizer)}
        updated = {
            n: p
            for n, p in model.named_parameters(remove_duplicate=False)
            if id(p) in own and n in masks
        }
        if updated:
            self.overwritten = {}
            # Kept where the model is now: it may have been moved to another device since it was
            # pruned, and every later step would copy the masks there.
            masks.update({n: masks[n].to(p.device) for n, p in updated.items()})
            apply_masks(model, {name: masks[name] for name in updated})

    @torch.no_grad()
    def loaded(self, module: nn.Module, prefix: str) -> None:
        """Apply the masks of a module whose weights have just been loaded.

        If weights changed by this, a warning is given once the whole model is loaded.
        """
        model = self._model()
        if not self._active or model is None or _submodule(model, prefix) is not module:
            return  # a copy, or a part of one
        masks = self.masks
        for key, parameter in module._parameters.items():
            name = qualified(prefix, key)
            mask = masks.get(name)
            if parameter is not None and mask is not None and mask.shape == parameter.shape:
                self._zero_loaded(name, parameter, mask.to(parameter.device))
        if module is model and self.overwritten:
            warnings.warn(
                f"load_state_dict brought back weights that are pruned, in {next(iter(self.overwritten))!r} for "
                "one: they are zero again. If these weights belong to other masks, load the pruner's "
                "state_dict too; to keep them, call remove() of the pruner or pin before loading",
                stacklevel=4,
            )

    def _zero_loaded(self, name: str, parameter: nn.Parameter, mask: Tensor) -> None:
        if bool((parameter.detach()[~mask] != 0).any()):
            # Kept until the next step, because the pruner's state with other masks may be loaded
            # after the weights; see give_back.
            self.overwritten[name] = parameter.detach().clone()
            parameter.masked_fill_(~mask, 0)

    @torch.no_grad()
    def give_back(self) -> None:
        """Restore weights that were set to zero when they were loaded, before other masks apply."""
        model = self._model()
        parameters = {} if model is None else dict(model.named_parameters(remove_duplicate=False))
        for name, value in self.overwritten.items():
            parameters[name].copy_(value)
        self.overwritten = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Pin | None:
        """A pin of the copied model with copies of the masks; None if the model is not copied."""
        model = self._model()
        copied = memo.get(id(model))
        if model is None or not self._active or not isinstance(copied, nn.Module):
            return None
        if any(memo.get(id(p)) is p for p in model.parameters()):
            return None  # the copy shares the parameters, which this pin already masks
        twin = object.__new__(type(self))
        memo[id(self)] = twin
        twin.source = {name: mask.clone() for name, mask in self.masks.items()}
        # Its hooks are copied with the modules that have them.
        twin._model, twin._active, twin._handles, twin.overwritten = ref(copied), True, [], {}
        twin.inherited = True
        remember(copied, twin.source)
        follow_steps(twin)
        return twin


def _submodule(model: nn.Module, name: str) -> nn.Module | None:
    try:
        return model.get_submodule(name)
    except AttributeError:  # it has been replaced
        return None


class _Loaded:
    """Hook of a module that masks loaded weights.

    After pickling, or in a copy of a part of the model, the hook does nothing.
    """

    def __init__(self, pin: Pin | None = None, prefix: str = "") -> None:
        self.pin, self._prefix = pin, prefix

    def __call__(self, module: nn.Module, _incompatible_keys: Any) -> None:
        if self.pin is not None:
            self.pin.loaded(module, self._prefix)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Loaded:
        return _Loaded(copy.deepcopy(self.pin, memo), self._prefix)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Loaded, ()


def remember(model: nn.Module, masks: Masks) -> None:
    """Store the masks of a model, for a later pruner of the model."""
    _remembered[model] = masks


def remembered(model: nn.Module) -> Masks:
    """Masks of earlier pruners of this model or of its submodules.

    Entries whose weight is not zero any more are dropped from the masks.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    known = {
        qualified(prefix, name): mask
        for prefix, module in reversed(list(model.named_modules()))
        for name, mask in _remembered.get(module, {}).items()
    }
    found: Masks = {}
    for name, mask in known.items():
        parameter = parameters.get(name)
        if parameter is not None and parameter.shape == mask.shape:
            found[name] = mask.to(parameter.device) | (parameter.detach() != 0)
    return {name: mask for name, mask in found.items() if not bool(mask.all())}


def zero_masks(model: nn.Module) -> Masks:
    """Masks of the exact zeros of a model, for a pruned model whose masks are lost.

    `Pruner.adopt(zero_masks(model))` keeps it pruned. Layers without zero weights are left out,
    and so are layers whose weights are all zero, as these were probably initialised to zero.

    Returns:
        Masks of the weights of Linear layers and convolutions.
    """
    masks: Masks = {}
    for name, module in weighted_layers(unwrapped(model, "zero_masks")).items():
        if computed(module) is None:
            keep = module.weight.detach() != 0  # type: ignore[union-attr, operator]
            if bool(keep.any()) and not bool(keep.all()):
                masks[qualified(name, "weight")] = keep
    return masks
