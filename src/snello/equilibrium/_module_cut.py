"""A network cut behind one of its modules, for models that torch.fx cannot trace.

The model's own forward runs. In front, it ends where the module returns; behind the cut, the module
returns the features, and the modules before it are not run: each returns NaN in the shape of its
output. So whatever else depended on them would be NaN, and the cut is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from snello.errors import ModelError
from snello.graph import evaluation, evaluation_mode

from ._features import Feature
from ._prefix import RestingPrefix, check


def module_prefix(
    model: nn.Module, frozen: Collection[Tensor], inputs: Sequence[Tensor]
) -> RestingPrefix | None:
    """Cut a network behind the last module at rest on whose output alone all behind it depends.

    Args:
        model: the model without wrappers, in the mode in which it is trained.
        frozen: the parameters of the layers of which all neurons are frozen.
        inputs: a batch of two samples, the model's positional arguments.

    Returns:
        The two parts, which share every module with the model; None if there is no such module.
    """
    calls = _calls(model, inputs)
    at_rest = _at_rest(calls, {id(p) for p in frozen})
    for last in reversed(range(len(at_rest))):
        skipped = at_rest[: last + 1]
        per_sample = all(t.shape[:1] == inputs[0].shape[:1] for t in skipped[-1].output)
        if per_sample and all(call.floating for call in skipped):
            found = _prefix(model, skipped, calls, inputs)
            if _holds(model, found, inputs):
                return found
    return None


@dataclass(frozen=True, eq=False)
class _Call:
    """A call of a module.

    Attributes:
        name: name of the module.
        module: the module.
        start: number of calls that had begun or ended before it.
        end: the same at its end.
        output: the tensors in its output.
        structure: of its output, with everything in it that is no tensor.
    """

    name: str
    module: nn.Module
    start: int
    end: int
    output: tuple[Tensor, ...]
    structure: tuple[list[Any], TreeSpec]

    @property
    def floating(self) -> bool:
        """True if all that it returns can be replaced by NaN."""
        return bool(self.output) and all(t.is_floating_point() and t.dim() for t in self.output)

    def returning(self, tensors: Iterator[Tensor]) -> Any:
        """Its output with other tensors."""
        leaves, spec = self.structure
        return tree_unflatten(
            [next(tensors) if isinstance(leaf, Tensor) else leaf for leaf in leaves], spec
        )


def _calls(model: nn.Module, inputs: Sequence[Tensor]) -> list[_Call]:
    """All calls of modules in evaluation mode, in the order in which they end."""
    found: list[_Call] = []
    open_calls: list[int] = []
    clock = iter(range(2**62))

    def begin(*_: object) -> None:
        open_calls.append(next(clock))

    def end(name: str) -> Callable[..., None]:
        def note(module: nn.Module, _args: object, output: object) -> None:
            leaves, spec = tree_flatten(output)
            tensors = tuple(leaf.detach() for leaf in leaves if isinstance(leaf, Tensor))
            call = _Call(name, module, open_calls.pop(), next(clock), tensors, (leaves, spec))
            found.append(call)

        return note

    with ExitStack() as stack:
        for name, module in model.named_modules():
            stack.callback(module.register_forward_pre_hook(begin).remove)
            stack.callback(module.register_forward_hook(end(name)).remove)
        stack.enter_context(evaluation(model))
        model(*inputs)
    return found


def _at_rest(calls: Sequence[_Call], frozen: Collection[int]) -> list[_Call]:
    """The calls with parameters that end before the first one that learns begins.

    Of calls inside one another only the outermost.
    """
    called = {call.module for call in calls}

    def learns(module: nn.Module) -> bool:
        own = _own_parameters(module, called)
        return any(p.requires_grad and id(p) not in frozen for p in own)

    limit = min((call.start for call in calls if learns(call.module)), default=0)
    whole = [call for call in calls if call.end < limit]
    outermost = [
        call
        for call in whole
        if not any(other.start < call.start and call.end < other.end for other in whole)
    ]
    return [call for call in outermost if any(True for _ in call.module.parameters())]


def _own_parameters(module: nn.Module, called: Collection[nn.Module]) -> Iterator[Tensor]:
    """Parameters that its forward uses itself: also those of submodules that are never called."""
    yield from module.parameters(recurse=False)
    for child in module.children():
        if child not in called:
            yield from _own_parameters(child, called)


def _prefix(
    model: nn.Module, skipped: Sequence[_Call], calls: Sequence[_Call], inputs: Sequence[Tensor]
) -> RestingPrefix:
    end = skipped[-1].end
    behind = dict.fromkeys(call.module for call in calls if call.start > end)
    before = [call.module for call in calls if call.end <= end and call.module not in behind]
    return RestingPrefix(
        _Front(model, skipped),
        _Rest(model, skipped, before, behind, len(inputs[0])),
        tuple(call.name for call in skipped),
        tuple(Feature.of(tensor) for tensor in skipped[-1].output),
        tuple(range(len(inputs))),
    )


class _Reached(BaseException):
    """The module behind which the network is cut has returned."""

    def __init__(self, output: object) -> None:
        self.output = output


class _Front(nn.Module):
    """The model up to the cut; its parameters and buffers are those before it."""

    def __init__(self, model: nn.Module, skipped: Sequence[_Call]) -> None:
        super().__init__()
        self._model = (model,)  # in a tuple: the rest of the model is not part of this one
        self.modules_before = nn.ModuleList(call.module for call in skipped)

    def forward(self, *inputs: Any) -> tuple[Tensor, ...]:
        def leave(_module: nn.Module, _args: object, output: object) -> None:
            raise _Reached(output)

        handle = self.modules_before[-1].register_forward_hook(leave)
        try:
            with evaluation_mode(self._model[0]):
                self._model[0](*inputs)
        except _Reached as reached:
            leaves, _ = tree_flatten(reached.output)
            return tuple(leaf for leaf in leaves if isinstance(leaf, Tensor))
        finally:
            handle.remove()
        raise ModelError(_NOT_CALLED)


class _Rest(nn.Module):
    """The model with features in the place of its front; its parameters are those behind the cut."""

    def __init__(
        self,
        model: nn.Module,
        skipped: Sequence[_Call],
        before: Sequence[nn.Module],
        behind: Iterable[nn.Module],
        batch: int,
    ) -> None:
        super().__init__()
        self._model, self._skipped, self._batch = (model,), tuple(skipped), batch
        self._before = tuple(before)
        self.modules_behind = nn.ModuleList(behind)

    def forward(self, *tensors: Tensor) -> Any:
        count = len(self._skipped[-1].output)
        features, inputs = tensors[:count], tensors[count:]
        reached: list[bool] = []

        def cut(*_: object, **__: object) -> Any:
            reached.append(True)
            return self._skipped[-1].returning(iter(features))

        returned: dict[nn.Module, Callable[..., Any]] = {
            call.module: self._nothing(call, len(inputs[0])) for call in self._skipped[:-1]
        }
        # Modules before the cut that are not skipped have no parameters, but may have statistics.
        with _replaced(returned | {self._skipped[-1].module: cut}), _evaluating(self._before):
            found = self._model[0](*inputs)
        if not reached:
            raise ModelError(_NOT_CALLED)
        return found

    def _nothing(self, call: _Call, samples: int) -> Callable[..., Any]:
        def stands_in(*_: object, **__: object) -> Any:
            return call.returning(
                torch.full((), torch.nan, dtype=t.dtype, device=t.device).expand(
                    samples if len(t) == self._batch else len(t), *t.shape[1:]
                )
                for t in call.output
            )

        return stands_in


@contextmanager
def _replaced(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Give modules another forward inside the block."""
    before = {module: vars(module).get("forward") for module in forwards}
    try:
        for module, forward in forwards.items():
            module.forward = forward
        yield
    finally:
        for module, own in before.items():
            if own is None:
                del module.forward
            else:
                module.forward = own


@contextmanager
def _evaluating(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Set single modules to evaluation mode inside the block."""
    training = [module for module in modules if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


def _holds(model: nn.Module, prefix: RestingPrefix, inputs: Sequence[Tensor]) -> bool:
    """Return true if the two parts compute the outputs of the model, for both sizes of a batch."""
    try:
        for batch in (inputs, [x[:1] for x in inputs]):
            check(model, prefix, batch)
    except Exception:  # a model's forward may raise anything where it gets NaN or other shapes
        return False
    return True


_NOT_CALLED = (
    "a layer at rest was not called: features are stored only of models that call the same layers in each step "
    "(layerdrop is 0)"
)
