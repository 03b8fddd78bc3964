"""Parameters and multiply-accumulates of a network with channels removed, without cutting it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import nn

from snello.errors import ModelError
from snello.flops import counted
from snello.graph import Example, Inputs, evaluation
from snello.graph.coupled import Coupling, Removed
from snello.graph.coupled.cut import removed_slices
from snello.graph.coupled.run import Run
from snello.graph.coupled.units import Units


@dataclass(frozen=True)
class Size:
    """Size of a network.

    Attributes:
        macs: multiply-accumulate operations of one sample.
        parameters: number of parameters.
    """

    macs: float
    parameters: int


class SizeModel:
    """Sizes of a network for any set of removed channels, without running it again.

    The sizes are those that [`measured_size`][snello.pruning.channels.measured_size] measures of
    the network without the channels.

    Args:
        model: the network; it is not changed.
        coupling: its coupling.
        example: example inputs.

    Raises:
        ModelError: if the model has no parameters.
    """

    def __init__(self, model: nn.Module, coupling: Coupling, example: Example) -> None:
        inputs = Inputs.of(example)
        self._parameters = {n: p.shape for n, p in model.named_parameters()}
        if not self._parameters:
            raise ModelError(f"{type(model).__name__} has no parameters to remove, only buffers")
        self._units, self._coupling = Units(Run(model).forward(inputs)), coupling
        self._batch = inputs.samples
        axes = {axis for p in self._units.run.products for axis in p.axes}
        self._axes = {axis: Counter(self._units.roots(axis)) for axis in axes}

    def __call__(self, removed: Removed, without: Collection[str] = ()) -> Size:
        """The size without some channels and some whole parameters."""
        left = {n: 0.0 if n in without else float(s.numel()) for n, s in self._parameters.items()}
        slices = removed_slices(self._coupling, removed)
        for (name, axis), gone in slices.items():
            if name in left:  # not a buffer
                left[name] *= 1 - len(gone) / self._parameters[name][axis]
        return Size(
            self._macs(self._units.removed(slices) | self._only_in(without), without),
            round(sum(left.values())),
        )

    def _macs(self, gone: set[int], without: Collection[str]) -> float:
        shares = {
            axis: 1 - sum(counts[x] for x in gone.intersection(counts)) / len(axis)
            for axis, counts in self._axes.items()
        }
        macs = sum(
            product.macs * math.prod(shares[axis] for axis in product.axes)
            for product in self._units.run.products
            if product.weights.isdisjoint(without)
        )
        return macs / self._batch

    def _only_in(self, parameters: Collection[str]) -> set[int]:
        """The channels that only these parameters have slices of."""
        inside: set[int] = set()
        outside: set[int] = set()
        for name, shadow in self._units.run.parameters.items() if parameters else ():
            own = inside if name in parameters else outside
            own.update(label for axis in shadow.axes for label in self._units.roots(axis))
        return inside - outside


def measured_size(model: nn.Module, example: Example) -> Size:
    """Size of a network, with the operations that torch runs counted, products in attention too.

    Raises:
        ModelError: if it does not run on the example inputs.
    """
    inputs = Inputs.of(example)
    try:
        with evaluation(model), counted(model) as counter:
            inputs.map(torch.clone).call(model)
    except Exception as error:  # the model's own code may raise anything
        raise ModelError(f"{type(model).__name__} does not run: {error}") from error
    macs = counter.get_total_flops() / 2 / inputs.samples
    return Size(macs, sum(p.numel() for p in model.parameters()))
