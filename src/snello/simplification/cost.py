"""Cost models: the criterion by which dead neurons that cost index operations go or stay.

>>> simplify(model, x, prefer="latency")                  # a name
>>> simplify(model, x, prefer=LatencyCost(my_timings))        # timings of one's own machine
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from snello.errors import ConfigError

from .work import Saving, Work


class CostModel(ABC):
    """A criterion for the choices that simplification leaves open."""

    widens: ClassVar[bool] = True
    """True if dead neurons may be kept at all to avoid an index operation."""

    widens_in_part: ClassVar[bool] = False
    """True if the operands of one operation are widened one by one, even if some of them cannot be."""

    @abstractmethod
    def accepts(self, saving: Saving) -> bool:
        """Return True if a bypass with this effect is worth it."""

    @abstractmethod
    def keeps_dead(self, computed: Work, moved: Work) -> bool:
        """Return True if dead neurons had better stay.

        Args:
            computed: their computation.
            moved: the index operation without them.
        """


class BytesCost(CostModel):
    """Fewest numbers in the file: every dead neuron goes. Times are never looked at."""

    widens = False

    def accepts(self, saving: Saving) -> bool:
        return saving.numbers_before > saving.numbers_after

    def keeps_dead(self, computed: Work, moved: Work) -> bool:
        return False


@dataclass(frozen=True)
class Timings:
    """Nanoseconds on one machine. They only have to tell which of two amounts of work takes longer.

    Attributes:
        measured_on: machine, threads, batch size, dtype, and the script that measured.
        call: one more operation in the graph.
        mac: one multiply-accumulate of a convolution or a linear layer.
        elementwise: one element through BatchNorm and activation.
        moved, moved_innermost: one element; see :class:`Work`.
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
    """Least time: a dead neuron goes if that saves more than the index operations that it takes.

    Attributes:
        timings: of the machine that the network will run on.
    """

    timings: Timings = X86_CPU

    def accepts(self, saving: Saving) -> bool:
        fewer = saving.numbers_before > saving.numbers_after
        return fewer and self.timings.of(saving.work_before) > self.timings.of(saving.work_after)

    def keeps_dead(self, computed: Work, moved: Work) -> bool:
        return self.timings.of(computed) < self.timings.of(moved)


class PlainCost(CostModel):
    """No index operation that a layer can avoid by keeping dead neurons, and no bypass.

    For int8 runtimes and compilers, whose fused graphs index operations break apart.
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
    """Return a cost model by name, or as it is.

    Raises:
        ConfigError: for another name.
    """
    if isinstance(prefer, CostModel):
        return prefer
    if prefer not in COST_MODELS:
        names = ", ".join(COST_MODELS)
        raise ConfigError(f"prefer must be one of {names}, or a CostModel, not {prefer!r}")
    return COST_MODELS[prefer]
