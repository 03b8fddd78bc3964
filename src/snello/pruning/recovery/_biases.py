"""Biases that make up for the mean of what was pruned."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from snello.graph import Example
from snello.neurons import LayerFilter, dead_neurons, plain_layers, select_layers, weighted_layers
from snello.wrappers import unwrapped

from ._alike import calls, check_alike, check_finite_output, one_batch, run_hooked, tied


def correct_biases(
    model: nn.Module,
    reference: nn.Module,
    batches: Iterable[Example],
    *,
    exclude: LayerFilter = (),
) -> tuple[str, ...]:
    """Shift biases until the mean output of every neuron is what it was before pruning, in place.

    Layer after layer, in the order of the forward pass and each behind the layers corrected before.
    Cheaper than [`reconstruct`][snello.pruning.recovery.reconstruct], which moves the weights, too,
    and needs the bias no more.

    Args:
        model: the pruned network, before it is simplified.
        reference: the same architecture with the weights before pruning.
        batches: inputs without targets; all are run at once.
        exclude: layers that keep their biases.

    Returns:
        The layers corrected. Layers without a bias, with a computed or tied one, or that do not run
        exactly once per forward pass keep what they have, and so do dead neurons; behind a layer without a
        bias [`recalibrate`][snello.pruning.recovery.recalibrate] corrects the mean.

    Raises:
        ConfigError: for a reference of another architecture.
        DataError: if there is no batch, or if an output before pruning is not finite; nothing is
            changed then.

    Source: Nagel et al., "Data-free quantization through weight equalization and bias correction",
    ICCV 2019, section 4.2 and appendix D (empirical correction), there for quantisation.
    """
    model, reference = unwrapped(model, "correct_biases"), unwrapped(reference, "correct_biases")
    check_alike(model, reference, "correct_biases")
    inputs = one_batch(model, batches, "correct_biases")
    plain, _ = plain_layers(weighted_layers(model))
    chosen = select_layers(plain, exclude, "correct_biases")
    counts, shared = calls(reference, chosen, inputs), tied(model, chosen)
    names = [
        name
        for name, layer in chosen.items()
        if layer.bias is not None and counts[name] == 1 and name not in shared
    ]
    wanted: dict[str, Tensor] = {}

    def remember(name: str) -> Any:
        def hook(layer: nn.Module, _inputs: Any, output: Tensor) -> None:
            check_finite_output(name, output, "correct_biases")
            wanted[name] = _means(layer, output)

        return hook

    def correct(name: str) -> Any:
        def hook(layer: Any, _inputs: Any, output: Tensor) -> Tensor:
            shift = (wanted[name] - _means(layer, output)).to(output)
            shift.masked_fill_(dead_neurons(layer), 0)
            with torch.no_grad():
                layer.bias += shift.to(layer.bias)
            return output + shift.reshape(-1, *[1] * _trailing(layer, output))

        return hook

    run_hooked(reference, inputs, {name: remember(name) for name in names})
    run_hooked(model, inputs, {name: correct(name) for name in names})
    return tuple(names)


def _trailing(layer: nn.Module, output: Tensor) -> int:
    """Number of dimensions behind that of the neurons."""
    return 0 if isinstance(layer, nn.Linear) else output.dim() - 2


def _means(layer: nn.Module, output: Tensor) -> Tensor:
    """Mean output of each neuron, float64, shape `(neurons,)`."""
    axis = output.dim() - 1 - _trailing(layer, output)
    return output.detach().double().transpose(0, axis).flatten(1).mean(1)
