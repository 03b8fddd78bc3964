"""LOBSTER: the sensitivity of the loss to a weight."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from snello.neurons import is_batchnorm, is_weighted, select_layers

from ._decay import Sensitivity, insensitivity


class Lobster(Sensitivity):
    r"""Loss-based sensitivity regularisation, per weight.

    .. math:: S(L, w) = \left| \frac{\partial L}{\partial w} \right|

    The gradient is the one that ``loss.backward()`` has already left in ``weight.grad``, so the method costs
    no extra pass. Call :meth:`step` after ``optimizer.step()`` and before the gradients are zeroed; clipped
    or scaled gradients are taken as they are. A parameter without a gradient is left alone: nothing is known
    about it.

    Args:
        model: its Linear, convolution and BatchNorm layers decay, weights and biases.
        lmbda: strength of the decay per step.
        exclude: names of layers that do not decay.

    Source: Tartaglione et al., "Loss-based sensitivity regularization: towards deep sparse neural networks",
    Neural Networks 146 (2022), eq. 5-7.
    """

    def __init__(self, model: nn.Module, lmbda: float = 1e-4, *, exclude: Iterable[str] = ()) -> None:
        super().__init__(lmbda)
        layers = {name: m for name, m in model.named_modules() if is_weighted(m) or is_batchnorm(m)}
        unique = {
            id(parameter): (f"{name}.{key}", parameter)
            for name, module in select_layers(layers, exclude, "Lobster(exclude=...)").items()
            for key, parameter in module.named_parameters(recurse=False)
        }
        self._parameters = dict(unique.values())

    def sensitivity(self) -> dict[str, Tensor]:
        """Parameter name -> ``|dL/dw|``, shape of the parameter, for those that have a gradient."""
        return {name: p.grad.abs() for name, p in self._parameters.items() if p.grad is not None}

    def _weights_and_insensitivities(self) -> tuple[list[Tensor], list[Tensor]]:
        pairs = [(p, p.grad) for p in self._parameters.values() if p.grad is not None]
        if not pairs:
            return [], []
        magnitudes = torch._foreach_abs([gradient for _, gradient in pairs])
        return [p for p, _ in pairs], insensitivity(magnitudes)
