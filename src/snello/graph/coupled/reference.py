"""The masked network against which a cut one is exact."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from snello.graph.inputs import Example, Inputs

from .cut import Removed, zeroed
from .dimensions import Coupling
from .run import Run
from .units import Unit, Units, families


def reference(
    model: nn.Module, coupling: Coupling, removed: Removed, example: Example
) -> list[Tensor]:
    """Compute the outputs of a model with channels masked.

    The masked channels are zero in every parameter; norms, means and the default scale of attention
    are taken over the kept channels, which is how the pruned network is defined. A network without
    the channels has the same outputs up to rounding.

    Args:
        model: the model that was analysed.
        coupling: its coupling.
        removed: dimension -> indices to mask.
        example: inputs of the shape that it was analysed with.

    Returns:
        The tensors among the outputs, in order.
    """
    inputs = Inputs.of(example)
    return Masking(Run(model).forward(inputs)).outputs(coupling, removed, inputs)


class Masking:
    """Masked forwards of one model.

    Args:
        run: a run of the model. Labels are numbered in order of execution, and so are the same in
            every run on inputs of these shapes.
    """

    def __init__(self, run: Run) -> None:
        self._model, self._units = run.model, Units(run)
        self.dimensions = {d.name: (d, members) for d, members in families(self._units)}

    @property
    def coupling(self) -> Coupling:
        """The coupling of the run."""
        return Coupling(tuple(dimension for dimension, _ in self.dimensions.values()))

    def outputs(self, coupling: Coupling, removed: Removed, inputs: Inputs) -> list[Tensor]:
        """The outputs with channels masked; see :func:`reference`."""
        gone: set[int] = set()
        for name, indices in removed.items():
            gone |= _classes(self.dimensions[name][1], indices)
        labels = frozenset(label for label, x in enumerate(self._units.classes) if x in gone)
        return Run(zeroed(self._model, coupling, removed), labels).forward(inputs).outputs


def _classes(units: list[Unit], indices: Iterable[int]) -> set[int]:
    return {x for index in indices for x in units[index].classes}
