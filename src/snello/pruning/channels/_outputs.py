"""Outputs of the layers that write channels, and their products with gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from snello.graph import Inputs, Loss, evaluation_mode, loss_of, requiring_gradients
from snello.graph.coupled import Coupling


def output_products(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    inputs: Inputs,
    targets: Any,
    loss: Loss | None,
) -> dict[str, Tensor]:
    """`|sum of a * dL/da over positions|`, summed over samples and calls: shape (neurons,)."""
    seen: list[tuple[str, Tensor]] = []

    def keep(name: str) -> Callable[..., Tensor]:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
            seen.append((name, output))
            return output.clone()  # so that no operation in place changes what was kept

        return hook

    weights: list[Tensor] = [m.weight for m in layers.values()]  # type: ignore[misc]
    handles = [m.register_forward_hook(keep(name)) for name, m in layers.items()]
    try:
        with evaluation_mode(model), requiring_gradients(weights):
            value = loss_of(inputs.call(model), targets, loss)
            gradients = torch.autograd.grad(value, [out for _, out in seen], allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()
    found: dict[str, Tensor] = {}
    for (name, output), gradient in zip(seen, gradients, strict=True):
        if gradient is not None:
            product = channels_last(layers[name], output.detach() * gradient).double()
            # (B, positions, neurons), of which the positions may be none
            each = product.flatten(1, -2).sum(1) if product.dim() > 2 else product
            found[name] = found.get(name, 0) + each.abs().sum(0).cpu()
    return found


def writers(model: nn.Module, coupling: Coupling) -> list[tuple[str, nn.Module]]:
    """Linear and convolution layers that write channels which can be removed."""
    names = {
        name.rpartition(".")[0]: None
        for dimension in coupling.free
        for name in dimension.writers
        if name.endswith("weight")
    }
    found = [(name, model.get_submodule(name)) for name in names]
    return [(n, m) for n, m in found if isinstance(m, (nn.Linear, nn.modules.conv._ConvNd))]


def channels_last(layer: nn.Module, output: Tensor) -> Tensor:
    return output if isinstance(layer, nn.Linear) else output.transpose(1, -1)
