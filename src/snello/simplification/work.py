"""Amounts of computation, counted without a machine in mind."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Work:
    """Computation for one example.

    Attributes:
        calls: operations in the graph.
        macs: multiply-accumulates.
        elementwise: elements through normalisation and activation.
        moved: elements copied, selected or added by index, where the positions of a channel follow
            each other in memory.
        moved_innermost: the same where the channels are innermost in memory (tokens).
    """

    calls: int = 0
    macs: int = 0
    elementwise: int = 0
    moved: int = 0
    moved_innermost: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.calls + other.calls,
            self.macs + other.macs,
            self.elementwise + other.elementwise,
            self.moved + other.moved,
            self.moved_innermost + other.moved_innermost,
        )

    def __mul__(self, times: int) -> Work:
        return Work(
            self.calls * times,
            self.macs * times,
            self.elementwise * times,
            self.moved * times,
            self.moved_innermost * times,
        )


@dataclass(frozen=True)
class Saving:
    """Effect of a change on what is stored and on what is computed.

    Attributes:
        numbers_before, numbers_after: numbers stored.
        work_before, work_after: for one example.
    """

    numbers_before: int
    numbers_after: int
    work_before: Work
    work_after: Work
