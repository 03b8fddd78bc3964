"""A pruned network and the dense one, run on the same inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from snello.errors import ConfigError, DataError
from snello.graph import Example, Inputs, evaluation, joined, unlabelled
from snello.neurons import parameter_owners


def check_alike(model: nn.Module, reference: nn.Module, verb: str) -> None:
    """Refuse networks of different architectures.

    Raises:
        ConfigError: naming a parameter that differs.
    """
    ours = {name: p.shape for name, p in model.named_parameters()}
    theirs = {name: p.shape for name, p in reference.named_parameters()}
    if odd := [n for n in ours.keys() | theirs.keys() if ours.get(n) != theirs.get(n)]:
        raise ConfigError(
            f"{verb}: parameter {min(odd)!r} differs in shape or is missing in one of the two "
            "networks: give the masked network, before it is simplified, and the dense one"
        )


def one_batch(model: nn.Module, batches: Iterable[Example], verb: str) -> Inputs:
    """All batches as one, on the model's device.

    Raises:
        DataError: if there is no batch, or one without samples.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    taken = list(unlabelled(batches, device))
    if not taken:
        raise DataError(f"{verb}: there is no batch to compare the two networks on")
    return joined(taken)


def tied(model: nn.Module, layers: Mapping[str, nn.Module]) -> dict[str, str]:
    """Layers with a parameter that another module has, too -> the reason not to change it."""
    owners = parameter_owners(model)
    return {
        name: "its weight or bias is tied to that of another module"
        for name, layer in layers.items()
        if any(owners[id(p)] > 1 for p in layer.parameters(recurse=False))
    }


def check_finite_output(name: str, output: Tensor, verb: str) -> None:
    """Refuse outputs that no weights can be fitted to.

    Raises:
        DataError: naming the layer.
    """
    if not bool(output.isfinite().all()):
        raise DataError(
            f"{verb}: the outputs of layer {name!r} before pruning are not finite: look for NaN in "
            "the batches and in the weights"
        )


def calls(model: nn.Module, layers: Mapping[str, nn.Module], inputs: Inputs) -> dict[str, int]:
    """Number of runs of each layer in a forward pass."""
    counts = dict.fromkeys(layers, 0)

    def counting(name: str) -> Any:
        def hook(*_: Any) -> None:
            counts[name] += 1

        return hook

    run_hooked(model, inputs, {name: counting(name) for name in layers})
    return counts


def run_hooked(model: nn.Module, inputs: Inputs, hooks: Mapping[str, Any]) -> None:
    """Run a model once, in evaluation mode, with a forward hook on some layers.

    The hooks get inputs that were passed by keyword behind the positional ones.
    """
    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda layer, args, kwargs, output, hook=hook: hook(
                layer, (*args, *kwargs.values()), output
            ),
            with_kwargs=True,
        )
        for name, hook in hooks.items()
    ]
    try:
        with evaluation(model):
            inputs.call(model)
    finally:
        for handle in handles:
            handle.remove()
