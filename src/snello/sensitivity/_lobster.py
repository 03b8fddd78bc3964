"""LOBSTER: the sensitivity of the loss to a weight."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from snello.neurons import (
    LayerFilter,
    is_batchnorm,
    is_weighted,
    plain_layers,
    qualified,
    select_layers,
)
from snello.wrappers import unwrapped

from ._decay import Sensitivity, bounded, check_some_decay


class Lobster(Sensitivity):
    r"""Loss-based sensitivity regularisation, per weight.

    $$S(L, w) = \left| \frac{\partial L}{\partial w} \right|$$

    The gradient is that in `weight.grad` after `loss.backward()`, so that the method needs no
    extra pass. Call [`step`][snello.sensitivity.Lobster.step] after `optimizer.step()` and before
    the gradients are zeroed: the gradient is then that of the whole effective batch, accumulated,
    averaged over the processes of DistributedDataParallel, and unscaled by
    `scaler.step(optimizer)`. If gradients are clipped, the clipped ones are used. A parameter
    without a gradient does not decay, nor does a neuron that NEq has frozen.

    Args:
        model: its Linear, convolution and BatchNorm layers decay, weights and biases.
        lmbda: strength of the decay per step.
        exclude: layers that do not decay: their names or types, or a function of name and module.

    Attributes:
        left_alone: layer name -> why it does not decay: its weight is computed.

    Raises:
        ConfigError: for numbers outside their range, and a model without a layer that could decay.

    Source: Tartaglione et al., "Loss-based sensitivity regularization: towards deep sparse neural
    networks", Neural Networks 146 (2022), eq. 5-7.
    """

    by_gradient = True

    def __init__(self, model: nn.Module, lmbda: float = 1e-4, *, exclude: LayerFilter = ()) -> None:
        super().__init__(lmbda)
        model = unwrapped(model, "Lobster")
        layers = {name: m for name, m in model.named_modules() if is_weighted(m) or is_batchnorm(m)}
        check_some_decay(layers, model, "Lobster")
        plain, self.left_alone = plain_layers(
            select_layers(layers, exclude, "Lobster(exclude=...)")
        )
        # By identity: a tied parameter decays once.
        unique = {
            id(parameter): (qualified(name, key), parameter)
            for name, module in plain.items()
            for key, parameter in module.named_parameters(recurse=False)
        }
        self._parameters = dict(unique.values())
        self._seen = False

    def sensitivity(self) -> dict[str, Tensor]:
        """Parameter name -> `|dL/dw|`, shape of the parameter, for those that have a gradient."""
        return {name: gradient.abs() for name, (_, gradient) in self._with_gradients().items()}

    def _with_gradients(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Parameters and their gradients; a frozen parameter may have an old one."""
        return {
            name: (p, p.grad)
            for name, p in self._parameters.items()
            if p.grad is not None and p.requires_grad
        }

    def _weights_and_insensitivities(self) -> tuple[list[Tensor], list[Tensor]]:
        pairs = [(p, gradient) for p, gradient in self._with_gradients().values() if p.numel()]
        if not pairs:
            if not self._seen and any(p.requires_grad for p in self._parameters.values()):
                warnings.warn(
                    "Lobster.step: no parameter has a gradient, so none decays: call it after "
                    "optimizer.step() and before the gradients are zeroed",
                    stacklevel=4,  # the caller of step, which torch.no_grad wraps
                )
            self._seen = True  # once
            return [], []
        self._seen = True
        magnitudes = torch._foreach_abs([gradient for _, gradient in pairs])
        shares = bounded(magnitudes)
        # After an overflow the gradient scaler skips the optimizer step, so that the decay has to
        # be skipped, too. Shares of zero do so without synchronising with the device.
        # The largest magnitude is NaN or infinite if any is; the infinity norm is slow on CPUs.
        device = shares[0].device
        largest = torch._foreach_max(magnitudes)
        overflown = ~torch.stack([m.to(device, torch.float32) for m in largest]).isfinite().all()
        beside = {share.device: overflown.to(share.device) for share in shares}
        for share in shares:
            share.masked_fill_(beside[share.device], 0.0)
        return [p for p, _ in pairs], shares
