"""The outputs that a network with removed channels must have, from the masked network."""

from __future__ import annotations

from torch import Tensor, nn

from snello.graph.inputs import Example, Inputs

from .cut import Removed, removed_slices, zeroed
from .dimensions import Coupling
from .run import Run
from .units import Units


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
        example: inputs, of any shape.

    Returns:
        The tensors among the outputs, in order.
    """
    inputs = Inputs.of(example)
    units = Units(Run(model).forward(inputs))
    return masked_outputs(model, units, coupling, removed, inputs)


def masked_outputs(
    model: nn.Module, units: Units, coupling: Coupling, removed: Removed, inputs: Inputs
) -> list[Tensor]:
    """[`reference`][snello.graph.coupled.reference] with the units of an earlier run on inputs of
    these shapes.

    Labels are numbered in order of execution, so that they are the same in every run.
    """
    gone = units.removed(removed_slices(coupling, removed))
    removed_labels = frozenset(label for label, x in enumerate(units.classes) if x in gone)
    masked = zeroed(model, coupling, removed)
    return Run(masked, removed_labels).forward(inputs).outputs
