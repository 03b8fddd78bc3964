"""MACs of a model whose pruned weights are zero."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from snello.graph import Example, Inputs, evaluation
from snello.neurons import weighted_layers
from snello.wrappers import eagerly

from ._amount import Cost


def nonzero_macs(example_inputs: Example) -> Cost:
    """A cost: multiply-accumulates of one sample that involve neither a zero weight nor a dead
    input channel.

    An input channel counts as dead when it is exactly zero everywhere on the example inputs. Linear
    and convolution layers count, without biases.

    Args:
        example_inputs: positional inputs with the batch on dimension 0; two samples or more tell
            dead channels from those that happen to be zero on one.
    """
    structure = Inputs.of(example_inputs)
    inputs = structure.tensors()

    def cost(model: nn.Module) -> float:
        total = 0.0

        def count(module: nn.Module, given: tuple[Any, ...], output: Tensor) -> None:
            nonlocal total
            total += _macs(module, given[0], output) / len(inputs[0])

        handles = [m.register_forward_hook(count) for m in weighted_layers(model).values()]
        try:
            with evaluation(model), eagerly():
                structure.call(model)
        finally:
            for handle in handles:
                handle.remove()
        return total

    return cost


def _macs(module: nn.Module, x: Tensor, output: Tensor) -> int:
    weight = module.weight.detach() != 0  # type: ignore[union-attr, operator]
    if isinstance(module, nn.Linear):
        live = (x != 0).flatten(0, -2).any(0)
        return int((weight & live).sum()) * (output.numel() // module.out_features)
    live = (x != 0).transpose(0, 1).flatten(1).any(1)
    kernel = [1] * (weight.dim() - 2)
    if isinstance(
        module, _ConvTransposeNd
    ):  # (in, out/g, *k): every weight meets every input position
        return int((weight & live.reshape(-1, 1, *kernel)).sum()) * (x.numel() // x.shape[1])
    groups: int = module.groups  # type: ignore[assignment]
    by_output = live.reshape(groups, -1).repeat_interleave(len(weight) // groups, 0)
    return int((weight & by_output.reshape(*by_output.shape, *kernel)).sum()) * (
        output.numel() // len(weight)
    )
