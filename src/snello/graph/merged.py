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

    1. All calls of such a layer become one step, in the place of the first. Where an argument that
       is no tensor differs between them, all stay apart.
    2. Operations behind such calls become one step, too, if they call the same target with the
       same arguments, results of merged steps counting as the same: the ReLU of each level.
    3. Where the calls read different tensors, the step reads a `one_of` in their place. Its
       operand is the first tensor alone: in a recurrence, the others come from the layer itself,
       and would close a circle. Another `one_of`, just before the output, reads those, so
       that they stay at full width as well.

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
    """The class of each step: the number of the first step that it is merged with, or its own."""
    classes: list[int] = []
    known: dict[Hashable, int] = {}
    several: set[int] = set()  # classes whose result may stand for those of several steps
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
    """Arguments of a step whose values name the class of a step instead of the step."""
    return renumbered((step.args, dict(step.kwargs)), classes)


class _Merge:
    """The merged tape in the making.

    Attributes:
        classes: the class of each step of the old tape.
        steps: one for each class, and one for each `one_of`.
        numbers: class -> the number of its step among these.
        rest: what merged calls read, but for the first tensor of each operand; steps as classes.
    """

    def __init__(self, classes: Sequence[int]) -> None:
        self.classes = classes
        self.steps: list[Step] = []
        self.numbers: dict[int, int] = {}
        self.rest: list[Value] = []

    def add(self, number: int, members: Sequence[Step]) -> None:
        """Add the one step of a class. Classes come in the order of their first members, so that
        the step of what a first member reads is there already.
        """
        first = members[0]
        calls = zip(*(step.operands for step in members), strict=True)
        operands = iter([self._operand(values) for values in calls])
        args, kwargs = mapped(
            (first.args, dict(first.kwargs)),
            lambda leaf: next(operands) if isinstance(leaf, Value) else leaf,
        )
        self.numbers[number] = len(self.steps)
        self.steps.append(replace(first, args=args, kwargs=kwargs))

    def read_the_rest(self) -> None:
        """Add a step that reads `rest`, so that these values are used, at full width."""
        if self.rest:
            values = tuple(self._renumbered(value) for value in self.rest)
            self.steps.append(Step("call_function", one_of, values, effect=True))

    def _operand(self, values: Sequence[Value]) -> Value:
        """One operand of a merged step, from the values that its calls have there."""
        distinct = list(dict.fromkeys(replace(v, step=self.classes[v.step]) for v in values))
        first = self._renumbered(distinct[0])
        if len(distinct) == 1:
            return first
        self.rest += distinct[1:]
        shape = self.steps[first.step].shapes.get(first.path)
        shapes = {} if shape is None else {(): shape}
        self.steps.append(Step("call_function", one_of, (first,), shapes=shapes))
        return Value(len(self.steps) - 1)

    def _renumbered(self, value: Value) -> Value:
        """The value in the merged tape, of one whose step is a class."""
        return replace(value, step=self.numbers[value.step])
