"""A network cut behind its modules at rest, for models that torch.fx cannot trace.

The model's own forward runs. In front, it ends when the features have been computed: the outputs of
those modules on which the layers behind the cut depend. Behind it, these modules return the features,
and the other modules at rest are not run, either: each returns NaN in the shape of its output, so
that no result can depend on them unnoticed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from snello.errors import ModelError
from snello.graph import evaluation, evaluation_mode, tensors_of

from ._features import Feature
from ._flops import undisturbed
from ._module_calls import Call, at_rest, borders, calls_of, copied
from ._prefix import RestingPrefix, check, equal

SAVED = 0.75
"""Share of the layers of the deepest cut that another one with smaller features must save, too."""


def module_prefix(
    model: nn.Module, frozen: Collection[Tensor], inputs: Sequence[Tensor]
) -> RestingPrefix | None:
    """Cut a network behind its modules at rest.

    The deepest cut may lie within a block, where several tensors are needed; one in front of the
    block has smaller features, and saves nearly as much.

    Args:
        model: the model without wrappers, in the mode in which it is trained.
        frozen: the parameters of the layers of which all neurons are frozen.
        inputs: a batch of two samples, the model's positional arguments.

    Returns:
        The two parts, which share every module with the model; None if no output of a module at
        rest can be stored.
    """
    calls = calls_of(model, inputs)
    resting = at_rest(calls, {id(p) for p in frozen})
    cuts = [_Cut(model, resting[:count], calls) for count in borders(calls, resting)]
    with evaluation(model):
        outputs = tensors_of(model(*inputs))
        needed = {cut: cut.needed(cut.skipped, outputs, inputs) for cut in cuts}
    most = max((cut.layers for cut in cuts), default=0)

    def worth(cut: _Cut) -> tuple[bool, int, int]:
        entries = sum(tensor.numel() for call in needed[cut] for tensor in call.of_samples)
        return cut.layers < SAVED * most, entries, -cut.layers

    for cut in sorted(cuts, key=worth):
        found = cut.prefix(needed[cut], len(inputs))
        if found.features and _holds(model, found, inputs):
            return found
    return None


@dataclass(frozen=True, eq=False)
class _Cut:
    """The modules that are not run behind a cut.

    Attributes:
        model: the model.
        skipped: their calls, in order.
        calls: all calls.
    """

    model: nn.Module
    skipped: Sequence[Call]
    calls: Sequence[Call]

    @cached_property
    def before(self) -> list[nn.Module]:
        """The modules of the calls that end in front of the cut; once for each call."""
        return [call.module for call in self.calls if call.end <= self.skipped[-1].end]

    @cached_property
    def behind(self) -> set[nn.Module]:
        """The modules that are called behind the cut."""
        return {call.module for call in self.calls if call.start > self.skipped[-1].end}

    @property
    def layers(self) -> int:
        """Number of calls with parameters of their own that are not run."""
        own = (module.parameters(recurse=False) for module in self.before)
        return sum(any(True for _ in parameters) for parameters in own)

    def needed(
        self, among: Sequence[Call], outputs: Sequence[Tensor], inputs: Sequence[Tensor]
    ) -> list[Call]:
        """Those of some calls that the model's outputs depend on, beside the outputs of the others."""
        if self._idle(among, outputs, inputs):
            return []
        if len(among) == 1:
            return list(among)
        half = len(among) // 2
        return [
            *self.needed(among[:half], outputs, inputs),
            *self.needed(among[half:], outputs, inputs),
        ]

    def _idle(
        self, among: Sequence[Call], outputs: Sequence[Tensor], inputs: Sequence[Tensor]
    ) -> bool:
        if any(call.module._forward_hooks for call in among):
            return False  # what hooks note may enter a loss
        if not all(tensor.is_floating_point() for call in among for tensor in call.tensors):
            return False  # whole numbers have no NaN that would tell
        others = [call for call in self.skipped if call not in among]
        features = [tensor.clone() for call in others for tensor in call.of_samples]
        try:
            return equal(outputs, tensors_of(_Rest(self, others)(*features, *inputs)))
        except Exception:  # a model's forward may raise anything where it gets NaN
            return False

    def prefix(self, needed: Sequence[Call], inputs: int) -> RestingPrefix:
        """The two parts of the model, with the outputs of some calls as features."""
        return RestingPrefix(
            _Front(self.model, needed, self._ahead()),
            _Rest(self, needed),
            tuple(call.name for call in self.skipped),
            tuple(Feature.of(tensor) for call in needed for tensor in call.of_samples),
            tuple(range(inputs)),
            constants=any(len(call.of_samples) < len(call.tensors) for call in needed),
        )

    def _ahead(self) -> list[nn.Module]:
        """The modules whose own parameters and buffers the features may depend on."""
        before = {inner for module in self.before for inner in module.modules()}
        behind = {inner for module in self.behind for inner in module.modules()}
        return [m for m in self.model.modules() if m in before or m not in behind]


def _alone(module: nn.Module) -> nn.Module:
    """A module with the parameters and buffers of another one, without its submodules."""
    found = nn.Module()
    found._parameters, found._buffers = module._parameters, module._buffers
    return found


def _without(module: nn.Module, left_out: Set[nn.Module]) -> Iterator[nn.Module]:
    """The outermost submodules that have none of some modules in them."""
    for child in module.children():
        if not any(inner in left_out for inner in child.modules()):
            yield child
        elif child not in left_out:
            yield from _without(child, left_out)


class _Reached(BaseException):
    """All features are computed."""


class _Front(nn.Module):
    """The model up to the last feature; its parameters and buffers are those before the cut."""

    def __init__(
        self, model: nn.Module, needed: Iterable[Call], ahead: Iterable[nn.Module]
    ) -> None:
        super().__init__()
        self._model = (model,)  # in a tuple: the rest of the model is not part of this one
        self._needed = {call.module: call for call in needed}
        self.ahead = nn.ModuleList(map(_alone, ahead))

    def forward(self, *inputs: Any) -> tuple[Tensor, ...]:
        found: dict[nn.Module, list[Tensor]] = {}

        def note(module: nn.Module, _args: object, output: object) -> None:
            call = self._needed[module]
            pairs = zip(call.leaves, tree_leaves(output), strict=True)
            found[module] = [copied(now) for then, now in pairs if call.each(then)]
            if len(found) == len(self._needed):
                raise _Reached

        with ExitStack() as stack:
            for module in self._needed:
                # Before the user's hooks, which run behind the cut, too.
                stack.callback(module.register_forward_hook(note, prepend=True).remove)
            stack.enter_context(evaluation_mode(self._model[0]))
            try:
                self._model[0](*inputs)
            except _Reached:
                return tuple(tensor for module in self._needed for tensor in found[module])
        raise ModelError(_NOT_CALLED)


class _Rest(nn.Module):
    """The model with features in the place of its front; its parameters are those behind the cut."""

    def __init__(self, cut: _Cut, needed: Sequence[Call]) -> None:
        super().__init__()
        self._cut, self._needed = cut, tuple(needed)
        self._before = [module for module in cut.before if module not in cut.behind]
        skipped = frozenset(call.module for call in cut.skipped)
        # Also those that only a training calls, as an auxiliary classifier: their gradients are
        # averaged over the processes, too.
        self.modules_behind = nn.ModuleList(_without(cut.model, skipped))

    def forward(self, *tensors: Tensor) -> Any:
        count = sum(len(call.of_samples) for call in self._needed)
        features, inputs = iter(tensors[:count]), tensors[count:]
        outputs = {
            call.module: call.returning(features)
            if call in self._needed
            else call.nothing(len(inputs[0]))
            for call in self._cut.skipped
        }
        used: list[nn.Module] = []

        def returning(module: nn.Module) -> Callable[..., Any]:
            def forward(*_: object, **__: object) -> Any:
                used.append(module)
                return outputs[module]

            return forward

        # Modules before the cut that are not skipped have no parameters, but may have statistics.
        with (
            _replaced({module: returning(module) for module in outputs}),
            _evaluating(self._before),
        ):
            found = self._cut.model(*inputs)
        if len(used) != len(outputs) or set(used) != outputs.keys():
            raise ModelError(_NOT_CALLED)
        return found


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
    """Return true if the two parts compute the outputs of the model and can be trained."""
    try:
        for batch in (inputs, [x[:1] for x in inputs]):
            check(model, prefix, batch)
        return _trains(model, prefix, inputs)
    except Exception:  # a model's forward may raise anything where it gets NaN or other shapes
        return False


def _trains(model: nn.Module, prefix: RestingPrefix, inputs: Sequence[Tensor]) -> bool:
    """Return true if a training step behind the cut reads no NaN, and nothing in front of it.

    A training may take other ways than an evaluation: a penalty on the output of a resting module, a
    buffer in front of the cut that is updated, gradient checkpointing that computes a resting module
    again in the backward pass.
    """
    ahead = [(buffer, buffer.clone()) for buffer in prefix.front.buffers()]
    features = prefix.run_front(inputs)
    learning = [p for p in prefix.rest.parameters() if p.requires_grad]
    again: list[nn.Module] = []
    with undisturbed(model), ExitStack() as stack:
        outputs = tensors_of(prefix.run_rest(features, inputs))
        for name in prefix.modules:
            hook = model.get_submodule(name).register_forward_pre_hook
            stack.callback(hook(lambda module, _: again.append(module)).remove)
        sums = [x.sum() for x in outputs if x.requires_grad]
        gradients = torch.autograd.grad(sums, learning, allow_unused=True)
        still = all(torch.equal(now, then) for now, then in ahead)
    values = [*outputs, *(g for g in gradients if g is not None)]
    return still and not again and not any(bool(value.isnan().any()) for value in values)


_NOT_CALLED = (
    "a layer at rest was not called, or twice: features are stored only of models that call the same layers in "
    "each step (layerdrop is 0)"
)
