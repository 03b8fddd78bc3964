"""MACs of a model whose pruned weights are zero."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from snello.flops import weight_uses
from snello.graph import Example, Inputs, evaluation
from snello.neurons import spread_inputs, weighted_layers
from snello.wrappers import eagerly

from ._amount import Cost


def nonzero_macs(example_inputs: Example) -> Cost:
    """A cost: the MACs of one sample with neither a zero weight nor a dead input channel.

    An input channel is taken to be dead if it is exactly zero in all examples, at all positions.
    Only Linear layers and convolutions are counted, without biases.

    Args:
        example_inputs: inputs with the batch on dimension 0, preferably two samples or more, so
            that a channel that happens to be zero on one of them is not taken to be dead.
    """
    structure = Inputs.of(example_inputs)
    inputs = structure.tensors()

    def cost(model: nn.Module) -> float:
        total = 0.0

        def count(module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
            nonlocal total
            x = args[0] if args else next(iter(kwargs.values()))
            total += _macs(module, x, output) / len(inputs[0])

        handles = [
            module.register_forward_hook(count, with_kwargs=True)
            for module in weighted_layers(model).values()
        ]
        try:
            with evaluation(model), eagerly():
                structure.call(model)
        finally:
            for handle in handles:
                handle.remove()
        return total

    return cost


def _macs(layer: nn.Module, x: Tensor, output: Tensor) -> int:
    weight: Tensor = layer.weight  # type: ignore[assignment]
    channels = x.dim() - 1 if isinstance(layer, nn.Linear) else x.dim() - weight.dim() + 1
    live = (x != 0).movedim(channels, 0).flatten(1).any(1)
    used = (weight.detach() != 0) & spread_inputs(layer, live)
    return int(used.sum()) * weight_uses(layer, x, output)
