"""Cost models, which decide whether removing a dead neuron is worth the index operations it takes.

>>> simplify(model, x, prefer="latency")                  # a name
>>> simplify(model, x, prefer=LatencyCost(my_timings))        # timings of your own machine
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from snello.errors import ConfigError

from .work import Saving, Work


class CostModel(ABC):
    """A criterion for the decisions of simplification that do not change the outputs."""

    widens: ClassVar[bool] = True
    """True if dead neurons may be kept to avoid an index operation."""

    widens_in_part: ClassVar[bool] = False
    """True if dead neurons are kept in those operands of an operation that allow it, even if the
    other operands do not; else in all of them or in none."""

    @abstractmethod
    def accepts(self, saving: Saving) -> bool:
        """Return True if a bypass with this effect is to be used."""

    @abstractmethod
    def keeps_dead(self, computed: Work, moved: Work) -> bool:
        """Return True if dead neurons are to be kept.

        Args:
            computed: the work of computing them.
            moved: the work of the index operations that their removal takes.
        """


class BytesCost(CostModel):
    """Fewest stored numbers: every dead neuron is removed, even if index operations cost time."""

    widens = False

    def accepts(self, saving: Saving) -> bool:
        return saving.numbers_before > saving.numbers_after

    def keeps_dead(self, computed: Work, moved: Work) -> bool:
        return False


@dataclass(frozen=True)
class Timings:
    """Nanoseconds on one machine, precise enough to tell which of two amounts of work is longer.

    Attributes:
        measured_on: machine, threads, batch size, dtype, and the script that measured.
        call: one more operation in the graph.
        mac: one multiply-accumulate of a convolution or a linear layer.
        elementwise: one element through BatchNorm and activation.
        moved, moved_innermost: one element; see `Work`.
    """

    measured_on: str
    call: float
    mac: float
    elementwise: float
    moved: float
    moved_innermost: float

    def of(self, work: Work) -> float:
        """Time of an amount of work, in nanoseconds."""
        return (
            work.calls * self.call
            + work.macs * self.mac
            + work.elementwise * self.elementwise
            + work.moved * self.moved
            + work.moved_innermost * self.moved_innermost
        )


X86_CPU = Timings(
    measured_on="x86 CPU with AVX-512, one thread, batch 1, float32 (benchmarks/index_operations.py)",
    call=8_000.0,
    mac=1 / 35,
    elementwise=0.3,
    moved=0.15,
    moved_innermost=0.7,
)


@dataclass(frozen=True)
class LatencyCost(CostModel):
    """Least time: a dead neuron is removed if this saves more than its index operations take.

    Attributes:
        timings: timings of the machine that the network will run on.
    """

    timings: Timings = X86_CPU

    def accepts(self, saving: Saving) -> bool:
        fewer = saving.numbers_before > saving.numbers_after
        return fewer and self.timings.of(saving.work_before) > self.timings.of(saving.work_after)

    def keeps_dead(self, computed: Work, moved: Work) -> bool:
        return self.timings.of(computed) < self.timings.of(moved)


class PlainCost(CostModel):
    """Fewest index operations: dead neurons are kept where this avoids one, and no bypass is used.

    For int8 runtimes and compilers, because index operations prevent the fusion of operations.
    """

    widens_in_part = True

    def accepts(self, saving: Saving) -> bool:
        return False

    def keeps_dead(self, computed: Work, moved: Work) -> bool:
        return True


COST_MODELS: dict[str, CostModel] = {
    "bytes": BytesCost(),
    "latency": LatencyCost(),
    "plain": PlainCost(),
}
"""Name -> cost model."""


def cost_model(prefer: str | CostModel) -> CostModel:
    """Return the cost model of a name; a cost model is returned unchanged.

    Raises:
        ConfigError: for another name.
    """
    if isinstance(prefer, CostModel):
        return prefer
    if prefer not in COST_MODELS:
        names = ", ".join(COST_MODELS)
        raise ConfigError(f"prefer must be one of {names}, or a CostModel, not {prefer!r}")
    return COST_MODELS[prefer]
