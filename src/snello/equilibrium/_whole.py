"""Modules that use parameters without calling a watched layer, and rest with the layers around them.

Window attention multiplies with the weights of its `qkv` and `proj` itself, and
`MultiheadAttention` has a weight of its own. Replacing the forward of these layers would have no
effect. If all neurons of such a layer are frozen, the module around it runs on a stand-in with
detached parameters, so that no gradient of them is computed. If only some are frozen, the dense
gradient is computed and masked.

Parameters in no watched layer have no neurons that a rule decides on: class tokens, embeddings,
tables of relative positions, RMSNorms. They rest as soon as all layers that run before their last
use do (the first layer, if none does), or all layers in their module: otherwise the backward pass
would have to reach them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from snello.neurons import neuron_layers
from snello.wrappers import eager

from ._sparse import sparse_class
from ._uses import in_projections


@dataclass(frozen=True, eq=False)
class Whole:
    """A module that uses parameters inside of it itself.

    Attributes:
        module: the module.
        lent: name of each layer that it uses without calling it -> names of the layer's parameters,
            relative to the module.
        own: name of each of its parameters in no watched layer -> sets of layers; it rests as soon
            as all layers of one of them do.
    """

    module: nn.Module
    lent: Mapping[str, tuple[str, ...]]
    own: Mapping[str, tuple[frozenset[str], ...]]

    def resting(self, frozen: Collection[str]) -> tuple[str, ...]:
        """Names of the parameters that get no gradient while these layers are frozen whole."""
        lent = [key for layer, keys in self.lent.items() if layer in frozen for key in keys]
        return (*lent, *self._own(frozen))

    def own_parameters(self, frozen: Collection[str]) -> Iterator[Tensor]:
        """The parameters in no watched layer that rest while these layers are frozen whole."""
        yield from (self.module._parameters[key] for key in self._own(frozen))  # type: ignore[misc]

    def _own(self, frozen: Collection[str]) -> list[str]:
        still = set(frozen)
        return [key for key, sets in self.own.items() if any(needed <= still for needed in sets)]


def wholes(
    model: nn.Module,
    watched: Mapping[str, nn.Module],
    lent: Collection[str],
    fronts: Mapping[int, frozenset[str]],
    always: Collection[str],
) -> tuple[Whole, ...]:
    """The modules of a model that use parameters themselves.

    Args:
        model: any module.
        watched: the layers whose neurons may be frozen.
        lent: names of those that are used without being called.
        fronts: parameter's id -> the watched layers that run before its last use.
        always: names of the layers that are always updated.
    """
    every = {**neuron_layers(model), **in_projections(model)}
    kept = [*watched, *always]
    taken = {id(p) for name in kept for p in every[name].parameters(recurse=False)}
    found = []
    for name, module in model.named_modules():
        if name in kept:
            continue
        inside = {layer for layer in every if layer.startswith(f"{name}.")}
        used = {
            layer: _names(module, every[layer])
            for layer in lent
            if layer in watched and layer.rpartition(".")[0] == name
        }
        free = {k: p for k, p in module.named_parameters(recurse=False) if id(p) not in taken}
        alone = inside <= watched.keys() and _few(free, [every[layer] for layer in inside])
        around = [frozenset(inside)] if alone else []
        own = {
            key: (*around, fronts[id(p)]) if id(p) in fronts else (*around,)
            for key, p in free.items()
        }
        if used or any(own.values()):
            found.append(Whole(module, used, own))
    return tuple(found)


def _names(module: nn.Module, layer: nn.Module) -> tuple[str, ...]:
    wanted = {id(p) for p in layer.parameters(recurse=False)}
    return tuple(key for key, p in module.named_parameters() if id(p) in wanted)


def _few(own: Mapping[str, Tensor], layers: Collection[nn.Module]) -> bool:
    """Return true if these are fewer parameters than those of the layers.

    If they are not, they are probably weights of neurons that nothing observes.
    """
    inside = {id(p): p.numel() for layer in layers for p in layer.parameters(recurse=False)}
    return sum(p.numel() for p in own.values()) < sum(inside.values())


@dataclass(frozen=True, eq=False)
class _Attached:
    names: tuple[str, ...]
    gates: list[RemovableHandle]
    owner: object


_attached: WeakKeyDictionary[nn.Module, _Attached] = WeakKeyDictionary()
"""Kept outside the modules, so that copies of a module do not have it."""


def attach_whole(whole: Whole, frozen: Collection[str], owner: object = None) -> None:
    """Compute no gradient of a module's resting parameters; without any, restore the module.

    Args:
        whole: the module.
        frozen: names of the layers of which all neurons are frozen.
        owner: kept alive as long as the parameters rest; it must not refer to the module.
    """
    module = whole.module
    detach_whole(module)
    names = whole.resting(frozen)
    if not names:
        return
    gates = [
        p.register_post_accumulate_grad_hook(_erase)  # type: ignore[no-untyped-call]
        for p in whole.own_parameters(frozen)
        if p.requires_grad
    ]
    _attached[module] = _Attached(names, gates, owner)
    plain: Any = type(module)
    module.__class__ = sparse_class(plain, _forward)


def detach_whole(module: nn.Module) -> None:
    """Restore the class of a module, and remove its hooks."""
    module.__class__ = getattr(type(module), "_snello_plain", type(module))
    attached = _attached.pop(module, None)
    for gate in () if attached is None else attached.gates:
        gate.remove()


def _erase(parameter: Tensor) -> None:
    if parameter.grad is not None:
        parameter.grad.detach().zero_()


_CHANGED = ("_parameters", "_modules")


@eager
def _forward(self: Any, *args: Any, **kwargs: Any) -> Any:
    plain, attached = self._snello_plain, _attached.get(self)
    if (
        attached is None
        or not torch.is_grad_enabled()
        or torch._C._are_functorch_transforms_active()
    ):
        return plain.forward(self, *args, **kwargs)
    stand_in = _stand_in(self, attached.names)
    before = dict(vars(stand_in))
    try:
        return plain.forward(stand_in, *args, **kwargs)
    finally:
        # What the forward notes in attributes of the module is kept.
        now = vars(stand_in)
        vars(self).update(
            {k: v for k, v in now.items() if k not in _CHANGED and before.get(k) is not v}
        )


def _stand_in(module: Any, names: Collection[str]) -> Any:
    """A shallow copy of a module in which the named parameters are detached."""
    copy = object.__new__(getattr(type(module), "_snello_plain", type(module)))
    parameters = {
        key: p.detach() if p is not None and key in names else p
        for key, p in module._parameters.items()
    }
    below = {
        key: [name.partition(".")[2] for name in names if name.startswith(f"{key}.")]
        for key in module._modules
    }
    modules = {
        key: _stand_in(child, below[key]) if below[key] else child
        for key, child in module._modules.items()
    }
    vars(copy).update({**vars(module), "_parameters": parameters, "_modules": modules})
    return copy
