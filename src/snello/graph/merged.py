"""Layers that a model calls several times become one call each.

A detection head runs on every level of a pyramid with the same weights. A channel of such a layer
can go if it is dead in all calls. So the calls are merged to one node, which stands for the
tensors of all of them: what holds for the node holds for each.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from graphlib import CycleError, TopologicalSorter
from typing import Any

from torch import Tensor

from .tape import Step, Tape, Value, mapped, renumbered


def one_of(*tensors: Tensor) -> Tensor:
    """Stand for the tensors that one layer reads in several calls.

    A node of recorded graphs, never run. No rule knows it: its operands stay at full width.
    """
    raise NotImplementedError


def merged(tape: Tape, repeated: Iterable[str]) -> Tape:
    """Merge the calls of layers that are called several times.

    1. All calls of such a layer are one step.
    2. So are operations that do the same with results of merged steps.
    3. Where the calls read different tensors, the step reads :func:`one_of` them.
    4. A layer that reads its own result, as in a recurrence, keeps its calls apart; so does one
       whose calls have other arguments than tensors that differ.

    Args:
        tape: of the model.
        repeated: names of the layers to merge.
    """
    names = set(repeated)
    names -= {name for name in names if not _alike(tape.steps, name)}
    while True:
        classes = _classes(tape.steps, names)
        try:
            order = list(_in_order(tape.steps, classes))
        except CycleError as error:
            names -= {tape.steps[number].target for number in error.args[1]}
            continue
        return replace(tape, steps=_quotient(tape.steps, classes, order))


def _alike(steps: Sequence[Step], name: str) -> bool:
    """True if all calls of a layer have the same arguments, but for the tensors."""
    calls = (step for step in steps if step.kind == "call_module" and step.target == name)
    return len({repr(mapped((c.args, dict(c.kwargs)), _without_value)) for c in calls}) == 1


def _without_value(leaf: Any) -> Any:
    return Value if isinstance(leaf, Value) else leaf


def _classes(steps: Sequence[Step], names: set[str]) -> list[int]:
    """For each step the first one that it is merged with: itself, if with none."""
    classes: list[int] = []
    known: dict[Hashable, int] = {}
    several: set[int] = set()  # classes that may stand for several tensors
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
    """Arguments with classes in place of steps."""
    return renumbered((step.args, dict(step.kwargs)), classes)


def _in_order(steps: Sequence[Step], classes: Sequence[int]) -> Iterator[int]:
    """Classes, each after those that it reads; otherwise in the order of their first steps.

    Raises:
        CycleError: if a class reads itself, directly or not.
    """
    read: dict[int, set[int]] = {number: set() for number in classes}
    for step, own in zip(steps, classes, strict=True):
        read[own] |= {classes[operand.step] for operand in step.operands}
    sorter = TopologicalSorter(read)
    sorter.prepare()
    ready: list[int] = []
    while sorter.is_active():
        for number in sorter.get_ready():
            heapq.heappush(ready, number)
        yield (number := heapq.heappop(ready))
        sorter.done(number)


def _quotient(steps: Sequence[Step], classes: Sequence[int], order: Sequence[int]) -> list[Step]:
    """One step for each class, numbered by its place, and one for each :func:`one_of`."""
    members: dict[int, list[Step]] = {}
    for step, own in zip(steps, classes, strict=True):
        members.setdefault(own, []).append(step)
    found: list[Step] = []
    places: dict[int, int] = {}
    for number in order:
        operands = _operands(found, [_renamed(s, classes, places) for s in members[number]])
        given = iter(operands)
        first = members[number][0]
        args, kwargs = mapped(
            (first.args, dict(first.kwargs)),
            lambda leaf, given=given: next(given) if isinstance(leaf, Value) else leaf,  # type: ignore[misc]
        )
        places[number] = len(found)
        found.append(replace(first, args=args, kwargs=kwargs))
    return found


def _renamed(step: Step, classes: Sequence[int], places: Mapping[int, int]) -> list[Value]:
    return [replace(value, step=places[classes[value.step]]) for value in step.operands]


def _operands(found: list[Step], calls: Sequence[Sequence[Value]]) -> list[Value]:
    """Operands of a merged step, those of all calls; adds a step where they differ."""
    operands = []
    for values in zip(*calls, strict=True):
        distinct = tuple(dict.fromkeys(values))
        if len(distinct) == 1:
            operands.append(distinct[0])
            continue
        shape = found[distinct[0].step].shapes.get(distinct[0].path)
        shapes = {} if shape is None else {(): shape}
        found.append(Step("call_function", one_of, distinct, shapes=shapes))
        operands.append(Value(len(found) - 1))
    return operands
