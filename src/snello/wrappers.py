"""Models inside wrappers, compiled models, and copies of models."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch._functorch import config as compilation
from torch.nn.parallel import DataParallel, DistributedDataParallel

from .errors import ConfigError, ModelError


def check_module(model: object, what: str) -> None:
    """Raise a ConfigError for anything but a module.

    Args:
        model: what was given for a model.
        what: the caller, for the error.
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(f"{what}: the model is a {type(model).__name__}, not a torch.nn.Module")


def check_values(model: nn.Module, what: str) -> None:
    """Raise a ModelError for a parameter on the meta device, which has a shape alone.

    Args:
        model: the model.
        what: the caller, for the error.
    """
    check_module(model, what)
    empty = next((name for name, p in model.named_parameters() if p.is_meta), None)
    if empty is not None:
        raise ModelError(
            f"{what}: parameter {empty!r} is on the meta device and has no values; move the model with "
            "to_empty(device=...) and load its weights"
        )


def check_not_scripted(model: nn.Module, what: str) -> None:
    """Raise a ConfigError for a model that is compiled by TorchScript, which has no Python code.

    Args:
        model: the model.
        what: the caller, for the error.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise ConfigError(
            f"{what}: the model, or a part of it, is compiled by TorchScript, which hides its layers; give the module "
            "it was made from"
        )


def unwrapped(model: nn.Module, what: str) -> nn.Module:
    """The module inside wrappers, whose names have no wrapper's prefix.

    Args:
        model: a module, or a wrapper around one.
        what: the caller, for the error.

    Raises:
        ConfigError: for anything but a module, and for one whose parameters are sharded (FSDP,
            tensor parallelism): no process holds a whole neuron of it.
    """
    check_module(model, what)
    *_, inner = _layers_of_wrapping(model)
    check_not_scripted(inner, what)
    if (name := _sharded(inner)) is not None:
        raise ConfigError(
            f"{what}: parameter {name!r} is sharded over processes, so that none of them holds a whole neuron; "
            "do this before the model is sharded, or train it with DistributedDataParallel"
        )
    return inner


def wrappers_of(model: nn.Module) -> list[nn.Module]:
    """The wrappers around a module, the outermost first."""
    *wrappers, _ = _layers_of_wrapping(model)
    return wrappers


def forget_compiled() -> None:
    """Drop the graphs of `torch.compile`, which does not notice added or removed hooks.

    Compiled models are compiled again at their next call. Without any, nothing happens.
    """
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()  # type: ignore[no-untyped-call]


def allow_second_backward() -> None:
    """Let compiled models compute gradients twice, as `retain_graph=True` asks of autograd.

    By default the first pass of their backward may overwrite what a second would need, which is refused.
    """
    if compilation.donated_buffer:
        compilation.donated_buffer = False
        forget_compiled()


F = TypeVar("F", bound=Callable[..., Any])


def eager(function: F) -> F:
    """Break the graph at a function under `torch.compile`: it runs between two compiled parts."""

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        # Not as a decorator, which would import the compiler: seconds for users who never compile.
        if torch.compiler.is_compiling():
            outside = torch.compiler.disable(function)  # type: ignore[no-untyped-call]
            return outside(*args, **kwargs)
        return function(*args, **kwargs)

    return cast(F, call)


M = TypeVar("M", bound=nn.Module)


def copied(model: M) -> M:
    """A deep copy of a model, also of one that holds computed tensors.

    Old weight norm and `torch.nn.utils.prune` keep the weight of the last forward as an attribute
    with a graph, which `copy.deepcopy` refuses. The copy has its values; the next forward
    computes it again.
    """
    return copy.deepcopy(model, computed_memo(model))


def doubled(model: M) -> M:
    """A deep copy of a model in float64, its complex parameters and buffers in complex128."""
    twin: M = copied(model)._apply(double)  # type: ignore[no-untyped-call]
    return twin


def double(tensor: Tensor) -> Tensor:
    """A tensor in float64, or complex128 if it is complex; one of whole numbers as it is."""
    if tensor.is_complex():
        return tensor.to(torch.complex128)
    return tensor.double() if tensor.is_floating_point() else tensor


def computed_memo(model: nn.Module) -> dict[int, Any]:
    """Memo with which `copy.deepcopy` copies a model that holds computed tensors."""
    return {
        id(value): value.detach().clone()
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }


class OwnHook:
    """A hook that belongs to one model: in a copy or a pickle of the model it does nothing.

    A plain function would still call its owner from the copy; a bound method would copy the owner,
    too.

    Args:
        function: the function to call; None: no call.
    """

    def __init__(self, function: Callable[..., Any] | None = None) -> None:
        self.function = function

    @eager  # traced, it would be compiled for each layer that has one
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return None if self.function is None else self.function(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return OwnHook, ()


@contextmanager
def eagerly() -> Iterator[None]:
    """Run compiled models eagerly inside the block, so that hooks added for it are called."""
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


@contextmanager
def gradients_required(parameters: Iterable[Tensor], required: bool) -> Iterator[None]:
    """Set `requires_grad` of parameters inside the block; afterwards each is as it was."""
    changed = [parameter for parameter in parameters if parameter.requires_grad is not required]
    for parameter in changed:
        parameter.requires_grad_(required)
    try:
        yield
    finally:
        for parameter in changed:
            parameter.requires_grad_(not required)


@contextmanager
def unfused_layers() -> Iterator[None]:
    """Run torch's transformer layers operation by operation inside the block.

    In evaluation mode they are one fused operation each, of nested tensors: the layers inside are
    not called, and counters do not know it.
    """
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def check_one_device(model: nn.Module, what: str) -> None:
    """Raise an error for `DataParallel` over several devices: hooks run on copies there.

    Raises:
        ConfigError: with the alternatives.
    """
    for wrapper in wrappers_of(model):
        if isinstance(wrapper, DataParallel) and len(wrapper.device_ids or ()) > 1:
            raise ConfigError(
                f"{what}: DataParallel runs copies of the layers on {len(wrapper.device_ids)} devices, where "
                "they cannot be observed; use DistributedDataParallel, or device_ids with one device"
            )


def _layers_of_wrapping(model: nn.Module) -> Iterator[nn.Module]:
    yield model
    while (inner := _inside(model)) is not None:
        model = inner
        yield model


def _inside(model: nn.Module) -> nn.Module | None:
    if isinstance(model, (DataParallel, DistributedDataParallel)):
        found: nn.Module = model.module
        return found
    # OptimizedModule, recognised by its child: importing its class would import the compiler.
    return dict(model.named_children()).get("_orig_mod")


def _sharded(model: nn.Module) -> str | None:
    """Name of the first parameter that is sharded over processes."""
    for name, module in model.named_modules():
        if type(module).__name__ == "FullyShardedDataParallel":
            return f"{name}.*" if name else "*"
    for name, parameter in model.named_parameters():
        if hasattr(parameter, "device_mesh") and hasattr(parameter, "placements"):
            return name
    return None
