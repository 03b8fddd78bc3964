"""The diagonal of the Fisher information: the cost of an error in each weight, to second order.

An error e in the weights changes the class probabilities by a Kullback-Leibler divergence of
½ eᵀFe. Rounding errors of different weights are independent, so only the diagonal of F counts: the
mean square of ∂ log p(y | x) / ∂w with y drawn from the model's own probabilities. It needs no
labels, and one backward pass serves all weights. For outputs that are not classes, random signs in
place of y give the mean squared difference.

Source: Choi et al., "Towards the limit of network quantization", ICLR 2017,
https://arxiv.org/abs/1612.01543, section 3 (there the diagonal of the Hessian of the loss); drawing
y: Kunstner et al., "Limitations of the empirical Fisher approximation for natural gradient
descent", NeurIPS 2019, https://arxiv.org/abs/1905.12558.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from snello.graph import as_inputs, evaluation_mode
from snello.neurons import is_batchnorm
from snello.wrappers import copied

from ._probe import Batch, float_tensors

CHUNK = 32
"""Inputs per backward pass: one draw per pass, so small passes give a better average."""


def fisher(model: nn.Module, batches: Sequence[Batch], *, seed: int = 0) -> dict[str, Tensor]:
    """Second derivative of the outputs' distance (see :class:`Probe`) by each weight alone.

    Args:
        model: it is copied.
        batches: calibration inputs; the batch is their first dimension.
        seed: seed of the draws; torch's generators are not touched.

    Returns:
        Name of a tensor of the ``state_dict`` -> float64 tensor of its shape, on the CPU. It holds
        parameters, and running mean and variance of BatchNorms; other buffers have no known
        derivative.
    """
    twin = copied(model)
    statistics = {name: _Statistics(m) for name, m in twin.named_modules() if _has_statistics(m)}
    leaves = _leaves(twin, statistics)
    total = {name: torch.zeros(leaf.shape, dtype=torch.float64) for name, leaf in leaves.items()}
    generator = torch.Generator().manual_seed(seed)
    count = 0
    with evaluation_mode(twin), torch.enable_grad():
        for inputs in _chunks(batches):
            device = next((leaf.device for leaf in leaves.values()), torch.device("cpu"))
            drawn = [
                _draw(output, generator)
                for output in float_tensors(twin(*(x.to(device) for x in inputs)))
            ]
            slopes = torch.autograd.grad(sum(drawn), list(leaves.values()), allow_unused=True)  # type: ignore[arg-type]
            for name, slope in zip(leaves, slopes, strict=True):
                if slope is not None:
                    total[name] += slope.double().cpu().square()
            count += len(inputs[0])
    found = {name: value / count for name, value in total.items()}
    for name, parts in statistics.items():
        # The chain rule from the scale s to the variance, squared like the gradients.
        found[f"{name}.running_var"] *= parts.variance_factor.double().cpu().square()
    return {name: found[name] for name in model.state_dict(keep_vars=True) if name in found}


class _Statistics:
    """Stand-ins for the statistics of a BatchNorm, for which torch computes no gradient.

    With input μ + (1 + s)(x - μ) - m in the place of x, the slope of m is that of the running mean,
    and that of s, times -1 / (2 (σ² + ε)), is that of the running variance.
    """

    def __init__(self, module: Any) -> None:
        mean: Tensor = module.running_mean
        self.mean = torch.zeros_like(mean).requires_grad_()
        self.scale = torch.zeros_like(mean).requires_grad_()
        self.variance_factor = -0.5 / (module.running_var + module.eps)
        module.register_forward_pre_hook(self._before)

    def _before(self, module: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x, *rest = inputs
        view = [1, -1, *[1] * (x.dim() - 2)]
        centre = module.running_mean.view(view)
        return (x + (x - centre) * self.scale.view(view) - self.mean.view(view), *rest)


def _has_statistics(module: nn.Module) -> bool:
    return is_batchnorm(module) and getattr(module, "running_mean", None) is not None


def _leaves(twin: nn.Module, statistics: dict[str, _Statistics]) -> dict[str, Tensor]:
    """Tensors to differentiate by, under all their names in the ``state_dict``."""
    leaves = {
        name: parameter.requires_grad_()
        for name, parameter in twin.named_parameters(remove_duplicate=False)
        if parameter.is_floating_point() and parameter.numel()
    }
    for name, parts in statistics.items():
        leaves[f"{name}.running_mean"], leaves[f"{name}.running_var"] = parts.mean, parts.scale
    return leaves


def _draw(output: Tensor, generator: torch.Generator) -> Tensor:
    """A random scalar, the mean square of whose gradients is the second derivative."""
    if output.dim() == 2 and output.shape[1] > 1:
        log_p = output.double().log_softmax(1)
        chosen = torch.multinomial(log_p.detach().exp().cpu(), 1, generator=generator).to(
            output.device
        )
        return log_p.gather(1, chosen).sum()
    # The mean square of a sum with random signs is the sum of squares.
    signs = (
        torch.randint(0, 2, output.shape, generator=generator).to(output.device, torch.float64) * 2
        - 1
    )
    per_input = output[0].numel()
    spread = output.detach().double().var(correction=0).clamp_min(torch.finfo(torch.float64).tiny)
    return (output.double() * signs).sum() * (2 / (per_input * spread)).sqrt()


def _chunks(batches: Sequence[Batch]) -> Iterator[tuple[Tensor, ...]]:
    for batch in batches:
        yield from zip(*(torch.split(x, CHUNK) for x in as_inputs(batch)), strict=True)
