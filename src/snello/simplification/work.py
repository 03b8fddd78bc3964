"""Amounts of computation, independent of the machine."""

from __future__ import annotations

import operator
from dataclasses import astuple, dataclass


@dataclass(frozen=True)
class Work:
    """Computation for one example.

    Attributes:
        calls: number of operations in the graph.
        macs: number of multiply-accumulates.
        elementwise: number of elements that pass through norm and activation.
        moved: number of elements that are copied, selected or added by index, where the positions
            of a channel are contiguous in memory.
        moved_innermost: the same where the channels are innermost in memory (tokens).
    """

    calls: int = 0
    macs: int = 0
    elementwise: int = 0
    moved: int = 0
    moved_innermost: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(*map(operator.add, astuple(self), astuple(other)))

    def __mul__(self, times: int) -> Work:
        return Work(*(times * amount for amount in astuple(self)))


@dataclass(frozen=True)
class Saving:
    """Effect of a change on storage and on computation.

    Attributes:
        numbers_before, numbers_after: number of stored values.
        work_before, work_after: computation for one example.
    """

    numbers_before: int
    numbers_after: int
    work_before: Work
    work_after: Work
