"""Parameters and multiply-accumulates of a network with channels removed, without cutting it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from snello.errors import ModelError
from snello.flops import counted, weight_uses
from snello.graph import Example, Inputs, evaluation
from snello.graph.coupled import Coupling, Removed
from snello.graph.coupled.cut import removed_slices
from snello.neurons import is_weighted, qualified


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
    """Sizes of a network for any set of removed channels.

    The MACs of a weight are its number of entries times the number of positions at which it is
    used; products of two activations, as in attention, are not counted.

    Args:
        model: the network; it is not changed.
        coupling: its coupling.
        example: example inputs.
    """

    def __init__(self, model: nn.Module, coupling: Coupling, example: Example) -> None:
        self._parameters = dict(model.named_parameters())
        self._positions = _positions(model, Inputs.of(example))
        self._coupling = coupling

    def __call__(self, removed: Removed, without: Collection[str] = ()) -> Size:
        """The size without some channels and some whole parameters."""
        left: dict[str, float] = {
            n: 0.0 if n in without else float(p.numel()) for n, p in self._parameters.items()
        }
        for (name, axis), gone in removed_slices(self._coupling, removed).items():
            if name in left:  # not a buffer
                left[name] *= 1 - len(gone) / self._parameters[name].shape[axis]
        macs = sum(left[name] * times for name, times in self._positions.items())
        return Size(macs, round(sum(left.values())))


def measured_size(model: nn.Module, example: Example) -> Size:
    """Size of a network, with the operations that torch runs counted, products in attention too.

    Raises:
        ModelError: if it does not run on the example inputs.
    """
    inputs = Inputs.of(example)
    tensors = inputs.tensors()
    batch = len(tensors[0]) if tensors and tensors[0].dim() else 1
    try:
        with evaluation(model), counted() as counter:
            inputs.map(torch.clone).call(model)
    except Exception as error:  # the model's own code may raise anything
        raise ModelError(f"{type(model).__name__} does not run: {error}") from error
    return Size(counter.get_total_flops() / 2 / batch, sum(p.numel() for p in model.parameters()))


def _positions(model: nn.Module, inputs: Inputs) -> dict[str, float]:
    """Parameter name -> number of multiplications by each of its entries for one sample."""
    counts: dict[str, float] = defaultdict(float)
    batch = max(1, len(inputs.tensors()[0])) if inputs.tensors() else 1

    def counting(name: str) -> Any:
        def hook(module: Any, args: tuple[Any, ...], output: Any) -> None:
            if isinstance(module, nn.MultiheadAttention):
                query: Tensor = args[0]
                places = query.numel() // query.shape[-1]
                counts[f"{name}.in_proj_weight"] += places / batch
                counts[f"{name}.out_proj.weight"] += places / batch
                return
            counts[qualified(name, "weight")] += weight_uses(module, args[0], output) / batch

        return hook

    handles = [
        module.register_forward_hook(counting(name))
        for name, module in model.named_modules()
        if is_weighted(module) or isinstance(module, nn.MultiheadAttention)
    ]
    try:
        with evaluation(model):
            inputs.map(torch.clone).call(model)
    finally:
        for handle in handles:
            handle.remove()
    known = dict(model.named_parameters())
    return {name: times for name, times in counts.items() if name in known}
