"""Capture by running the model: every operation of torch that it calls on real tensors, in order.

The forward runs once in Python, with every branch and loop that depends on values. Each call of a
layer of torch is one node. Numbers that the forward computes are literals of the graph; an
operation that turns values into numbers (`item`, `bool`, `tolist`) is a node without a rule,
so that its operand keeps its full width. The graph describes one run on one example; it cannot
replace the model.
"""

from __future__ import annotations

import enum
import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import MethodDescriptorType, WrapperDescriptorType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from snello.wrappers import unfused_layers

from ._tracer import Tracer
from .inputs import Inputs
from .modes import evaluation
from .places import calling_place
from .tape import Step, Tape, Value, leaves, mapped, tensors_by_path
from .twins import same_numbers, tensors_of


def record(model: nn.Module, inputs: Inputs) -> Tape:
    """Run a model once in evaluation mode and record its operations.

    Raises:
        Exception: any error of the forward.
    """
    given = inputs.map(torch.clone)
    with evaluation(model), same_numbers():
        recorder = _Recorder(model)
        for position, tensor in enumerate(given.tensors()):
            shapes = {(): tuple(tensor.shape)}
            recorder.add(Step("placeholder", f"input_{position}", shapes=shapes), tensor)
        with unfused_layers(), _hooked(model, recorder), recorder:
            output = given.call(model)
        found = [recorder.value(tensor) for tensor in tensors_of(output)]
    recorder.add(Step("output", "output", (found,)), None)
    return Tape(recorder.steps, recorder.constants)


def overwritten(before: Tensor, written: Tensor) -> Tensor:
    """Represent a tensor after an operation has written to memory that it shares.

    A node of recorded graphs that is never run.
    """
    raise NotImplementedError


class _Recorder(TorchFunctionMode):
    """Records a tape while a model runs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self.constants: dict[str, Tensor] = {}
        self.owners = [""]
        self.inside = 0  # calls of layers that are running: their operations are not recorded
        # Weak keys, so that activations are freed as early as without recording.
        self.values = WeakTensorKeyDictionary()
        self.held = WeakTensorKeyDictionary()
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            self.held[tensor] = name

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if self.inside or _reads_no_values(func):
            return func(*args, **kwargs)
        call = _Running(self, args, kwargs)
        result = func(*args, **kwargs)
        # An operation that returns its operand (``contiguous``, ``to``) is left out of the graph.
        if not call.gives_back(result):
            call.finish(*_in_words_of_fx(func, *call.written), result)
        return result

    def add(self, step: Step, result: Any) -> Value:
        """Append a step, and note that the tensors in its result come from it."""
        self.steps.append(step)
        number = len(self.steps) - 1
        for path, tensor in tensors_by_path(result):
            self.values[tensor] = Value(number, path)
        return Value(number)

    def value(self, tensor: Tensor) -> Value:
        """The value of a tensor; if no recorded step returned it, a get_attr step is added."""
        if tensor not in self.values:
            if tensor in self.held:
                name = self.held[tensor]
            else:
                name = f"_tensor_constant_{len(self.constants)}"
                self.constants[name] = tensor
            self.add(Step("get_attr", name, shapes={(): tuple(tensor.shape)}), tensor)
        known: Value = self.values[tensor]
        return known

    def overwrite(self, tensor: Tensor, value: Value) -> None:
        """Note that an operation has written to a tensor, and to all that share its memory."""
        memory = tensor.untyped_storage().data_ptr()
        for other in {id(t): t for t in (*self.values, *self.held)}.values():
            if other is not tensor and other.untyped_storage().data_ptr() == memory:
                before = self.value(other)
                shapes = {(): tuple(other.shape)}
                step = Step("call_function", overwritten, (before, value), shapes=shapes)
                self.add(step, other)
        self.values[tensor] = value

    def holds(self, tensor: Tensor) -> bool:
        """True if a tensor shares the memory of a parameter or a buffer."""
        memory = tensor.untyped_storage().data_ptr()
        return any(own.untyped_storage().data_ptr() == memory for own in self.held)


class _Running:
    """An operation that is running: the tensors that it reads, and those that it overwrites.

    It is made before the operation runs, because an overwritten tensor is found by its version.
    """

    def __init__(
        self, recorder: _Recorder, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        self.recorder = recorder
        self.owner = recorder.owners[-1]
        self.read = [leaf for leaf in leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        self.versions = [tensor._version for tensor in self.read]
        self.written = mapped((args, kwargs), self._argument)

    @property
    def changed(self) -> list[Tensor]:
        """Operands that were overwritten."""
        pairs = zip(self.read, self.versions, strict=True)
        return [tensor for tensor, version in pairs if tensor._version != version]

    def gives_back(self, result: Any) -> bool:
        """True if the result is an operand that was not overwritten."""
        return any(result is tensor for tensor in self.read) and not self.changed

    def finish(
        self, kind: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
    ) -> None:
        """Record the operation, unless it neither reads nor returns tensors."""
        changed = self.changed
        shapes = {path: tuple(tensor.shape) for path, tensor in tensors_by_path(result)}
        if not (self.read or shapes):
            return
        if changed and () not in shapes:
            shapes[()] = tuple(changed[0].shape)
        effect = not shapes or any(map(self.recorder.holds, changed))
        step = Step(kind, target, args, kwargs, shapes, self.owner, calling_place(), effect)
        value = self.recorder.add(step, result)
        for tensor in changed:
            self.recorder.overwrite(tensor, value)

    def _argument(self, leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return self.recorder.value(leaf)
        return leaf if isinstance(leaf, _LITERAL) or callable(leaf) else repr(leaf)


_LITERAL = (
    int, float, complex, str, type(None), type(...), enum.Enum, torch.dtype, torch.device,
    torch.layout, torch.memory_format,
)  # fmt: skip


@contextmanager
def _hooked(model: nn.Module, recorder: _Recorder) -> Iterator[None]:
    """Record each layer of torch as one step, and note in which module's forward the others run."""
    tracer = Tracer()
    with ExitStack() as hooks:
        for name, module in model.named_modules():
            layer = name and tracer.is_leaf_module(module, name)
            before, after = (_layer if layer else _inner)(recorder, name)
            hooks.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
            # Before the user's own hooks, so that their operations are recorded as steps.
            hook = module.register_forward_hook(after, with_kwargs=True, prepend=True)
            hooks.callback(hook.remove)
        yield


_Hooks = tuple[Callable[..., None], Callable[..., None]]


def _layer(recorder: _Recorder, name: str) -> _Hooks:
    """Hooks that record a call of a layer as one step."""
    calls: list[_Running] = []

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        recorder.inside += 1
        if recorder.inside == 1:
            calls.append(_Running(recorder, args, kwargs))

    def after(module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
        if recorder.inside == 1:
            call = calls.pop()
            written, options = call.written
            call.finish("call_module", name, written, options, result)
        recorder.inside -= 1

    return before, after


def _inner(recorder: _Recorder, name: str) -> _Hooks:
    """Hooks that note that a module's forward is running."""

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        recorder.owners.append(name)

    def after(module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
        recorder.owners.pop()

    return before, after


_ABOUT_SIZES = frozenset({
    "size", "dim", "ndimension", "numel", "nelement", "stride", "storage_offset", "element_size",
    "__len__", "__hash__", "type", "get_device", "data_ptr", "untyped_storage", "storage",
    "is_contiguous", "is_floating_point", "is_complex", "is_signed", "is_same_size", "is_tensor",
    "is_inference", "is_shared", "is_pinned", "result_type", "can_cast", "register_hook",
})  # fmt: skip
"""Functions and methods whose result does not depend on the values of a tensor."""

_TENSORS = frozenset({"T", "mT", "H", "mH", "data", "real", "imag", "grad"})
"""Attributes of a tensor that are tensors."""


def _reads_no_values(function: Callable[..., Any]) -> bool:
    name = getattr(function, "__name__", "")
    if name == "__get__":
        return _attribute(function) not in _TENSORS
    return name in _ABOUT_SIZES


def _attribute(getter: Any) -> str:
    return str(getattr(getattr(getter, "__self__", None), "__name__", ""))


_OPERATORS: Mapping[str, Callable[..., Any]] = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "div": operator.truediv,
    "true_divide": operator.truediv, "matmul": operator.matmul, "neg": operator.neg, "pow": operator.pow,
    "add_": operator.iadd, "sub_": operator.isub, "mul_": operator.imul, "div_": operator.itruediv,
    "__getitem__": operator.getitem, "__setitem__": operator.setitem, "__and__": operator.and_,
}  # fmt: skip
"""Methods that Python's operators call."""

_REVERSED: Mapping[str, Callable[..., Any]] = {
    "__rsub__": operator.sub, "__rdiv__": operator.truediv, "__rpow__": operator.pow,
    "__rmatmul__": operator.matmul,
}  # fmt: skip


def _in_words_of_fx(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[str, Any, tuple[Any, ...], dict[str, Any]]:
    """Kind of node, target and arguments that torch.fx would use for a call."""
    name = getattr(function, "__name__", "")
    if name == "__get__":
        return "call_function", getattr, (*args, _attribute(function)), {}
    if not _is_method(function, name):
        return "call_function", function, args, kwargs
    if name in _REVERSED:
        return "call_function", _REVERSED[name], args[::-1], {}
    if name in _OPERATORS and not kwargs:
        return "call_function", _OPERATORS[name], args, {}
    return "call_method", name, args, kwargs


def _is_method(function: Any, name: str) -> bool:
    if isinstance(function, (MethodDescriptorType, WrapperDescriptorType)):
        return True
    return getattr(Tensor, name, None) is function
