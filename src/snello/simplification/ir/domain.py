"""The inputs and modes for which a captured graph was compared with the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from .records import Record

Training = Literal["same", "differs", "unchecked"]


@dataclass(frozen=True)
class Domain(Record):
    """The checks made before anything is planned.

    Attributes:
        shapes: the shape of each tensor among the inputs, in the order of the forward's signature;
            None for an axis along which another size was checked, too.
        batch: whether another batch size was checked; False if the model accepts only one.
        positions: whether another resolution or length was checked; False if the model accepts
            only one.
        training: "same" or "differs": the outputs of the graph in training mode, compared with
            those of the model for the same random numbers; "unchecked" if the model does not run in
            training mode, or if its own forward is kept.
    """

    shapes: tuple[tuple[int | None, ...], ...]
    batch: bool
    positions: bool
    training: Training = "unchecked"

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Domain:
        if data["training"] not in ("same", "differs", "unchecked"):
            raise ValueError(f"training {data['training']!r}")
        return super().from_dict(data)

    @property
    def is_limited(self) -> bool:
        """True if other sizes were not checked, or if the graph differs in training mode."""
        return not (self.batch and self.positions) or self.training == "differs"

    def holds(self, shapes: Sequence[Sequence[int]]) -> bool:
        """True unless tensor arguments of these shapes have a size that was not checked.

        Args:
            shapes: one per tensor, in the order of the forward's signature.
        """
        if [len(shape) for shape in shapes] != [len(shape) for shape in self.shapes]:
            return True  # other arguments than those of the example: nothing to compare with
        return all(
            known is None or known == size
            for own, given in zip(self.shapes, shapes, strict=True)
            for known, size in zip(own, given, strict=True)
        )

    def __str__(self) -> str:
        return ", ".join(
            f"({', '.join('any' if size is None else str(size) for size in shape)})"
            for shape in self.shapes
        )
