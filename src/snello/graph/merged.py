"""Merging of the calls of a layer that a model calls several times.

A detection head runs on every level of a pyramid with the same weights. A channel of such a layer
can be removed if it is dead in all calls. The calls are merged into one node, which represents the
tensors of all calls: a fact about the node is one about each of them.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from .tape import Step, Tape, Value, mapped, renumbered


def one_of(*tensors: Tensor) -> Tensor:
    """Represent the tensors that one layer reads in several calls.

    A node of recorded graphs that is never run. It has no rule, so that its operands keep their
    full width.
    """
    raise NotImplementedError


def merged(tape: Tape, repeated: Iterable[str]) -> Tape:
    """Merge the calls of layers that are called several times.

    1. All calls of such a layer become one step, at the place of the first. The calls of a layer
       are not merged if they differ in arguments that are not tensors.
    2. Equal operations on results of merged steps are merged, too.
    3. Where the calls read different tensors, the merged step reads :func:`one_of` them. Only the
       first tensor is its operand, because the others may be computed from the layer's own output,
       in a recurrence. A second :func:`one_of` before the output reads the others.

    Args:
        tape: the recorded run of the model.
        repeated: names of the layers to merge.
    """
    names = {name for name in repeated if _alike(tape.steps, name)}
    classes = _classes(tape.steps, names)
    members: dict[int, list[Step]] = {}
    for step, own in zip(tape.steps, classes, strict=True):
        members.setdefault(own, []).append(step)
    merge = _Merge(classes)
    for number, steps in members.items():
        if steps[0].kind == "output":
            merge.read_the_rest()
        merge.add(number, steps)
    return replace(tape, steps=merge.steps)


def _alike(steps: Sequence[Step], name: str) -> bool:
    """True if all calls of a layer have the same arguments apart from tensors."""
    calls = (step for step in steps if step.kind == "call_module" and step.target == name)
    return len({repr(mapped((c.args, dict(c.kwargs)), _without_value)) for c in calls}) == 1


def _without_value(leaf: Any) -> Any:
    return Value if isinstance(leaf, Value) else leaf


def _classes(steps: Sequence[Step], names: set[str]) -> list[int]:
    """For each step, the number of the first step that it is merged with; its own if with none."""
    classes: list[int] = []
    known: dict[Hashable, int] = {}
    several: set[int] = set()  # classes that may represent several tensors
    for number, step in enumerate(steps):
        key: Hashable = number
        if step.kind == "call_module" and step.target in names:
            key = step.target
        elif any(classes[operand.step] in several for operand in step.operands):
            key = step.kind, step.target, repr(_of_classes(step, classes)), step.effect
        own = known.setdefault(key, number)
        if key != number:
            several.add(own)
        classes.append(own)
    return classes


def _of_classes(step: Step, classes: Sequence[int]) -> Any:
    """The arguments of a step, with the class of each operand in place of its step."""
    return renumbered((step.args, dict(step.kwargs)), classes)


class _Merge:
    """The builder of the merged tape.

    Attributes:
        steps: one for each class, and one for each :func:`one_of`.
        places: class -> the number of its step.
        rest: values that merged calls read, apart from the first of each operand.
    """

    def __init__(self, classes: Sequence[int]) -> None:
        self.classes = classes
        self.steps: list[Step] = []
        self.places: dict[int, int] = {}
        self.rest: list[Value] = []

    def add(self, number: int, members: Sequence[Step]) -> None:
        """Add the step of a class, given in order of its first member."""
        first = members[0]
        calls = zip(*(step.operands for step in members), strict=True)
        operands = iter([self._operand(values) for values in calls])
        args, kwargs = mapped(
            (first.args, dict(first.kwargs)),
            lambda leaf: next(operands) if isinstance(leaf, Value) else leaf,
        )
        self.places[number] = len(self.steps)
        self.steps.append(replace(first, args=args, kwargs=kwargs))

    def read_the_rest(self) -> None:
        """Add a step that reads :attr:`rest`, so that these values are used, at full width."""
        if self.rest:
            values = tuple(self._placed(value) for value in self.rest)
            self.steps.append(Step("call_function", one_of, values, effect=True))

    def _operand(self, values: Sequence[Value]) -> Value:
        """The operand of a merged step, given those of all calls."""
        distinct = list(dict.fromkeys(replace(v, step=self.classes[v.step]) for v in values))
        first = self._placed(distinct[0])
        if len(distinct) == 1:
            return first
        self.rest += distinct[1:]
        shape = self.steps[first.step].shapes.get(first.path)
        shapes = {} if shape is None else {(): shape}
        self.steps.append(Step("call_function", one_of, (first,), shapes=shapes))
        return Value(len(self.steps) - 1)

    def _placed(self, value: Value) -> Value:
        """A value of a class, renumbered to the step of the class in the merged tape."""
        return replace(value, step=self.places[value.step])
