"""Diagonal of the Fisher information: second-order cost of an error in each weight.

To second order, an error e in the weights changes the class probabilities by a Kullback-Leibler
divergence of ½ eᵀFe. Rounding errors of different weights are assumed independent, so that only the
diagonal of F matters: the mean square of ∂ log p(y | x) / ∂w, with y sampled from the model's own
probabilities. It needs no labels, and one backward pass covers all weights. For outputs that are
not classes, a sum with random signs replaces log p, which gives the mean squared difference.

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

from snello.graph import Example, Inputs, evaluation_mode
from snello.neurons import is_batchnorm
from snello.wrappers import copied

from ._probe import float_tensors

CHUNK = 32
"""Inputs per backward pass. Each pass has one random draw: small passes average over more draws."""


def fisher(model: nn.Module, batches: Sequence[Example], *, seed: int = 0) -> dict[str, Tensor]:
    """Second derivative of the outputs' distance (see `Probe`) with respect to each weight.

    Args:
        model: the model, which is copied.
        batches: calibration inputs with the batch on dimension 0.
        seed: seed of the random draws; torch's global generators do not change.

    Returns:
        Name of a tensor of the `state_dict` -> float64 tensor of its shape, on the CPU. It holds
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
                for output in float_tensors(_moved(inputs, device).call(twin))
            ]
            slopes = torch.autograd.grad(sum(drawn), list(leaves.values()), allow_unused=True)  # type: ignore[arg-type]
            for name, slope in zip(leaves, slopes, strict=True):
                if slope is not None:
                    total[name] += slope.double().cpu().square()
            count += len(inputs.tensors()[0])
    found = {name: value / count for name, value in total.items()}
    for name, parts in statistics.items():
        # Chain rule from the scale s to the variance, squared because gradients are squared.
        found[f"{name}.running_var"] *= parts.variance_factor.double().cpu().square()
    return {name: found[name] for name in model.state_dict(keep_vars=True) if name in found}


class _Statistics:
    """Auxiliary variables for BatchNorm statistics, for which torch computes no gradient.

    The input x is replaced by μ + (1 + s)(x - μ) - m. At m = s = 0, the derivative by m equals the
    one by the running mean, and the derivative by s times -1 / (2 (σ² + ε)) equals the one by the
    running variance.
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
    """Tensors to differentiate with respect to, under all their names in the `state_dict`."""
    leaves = {
        name: parameter.requires_grad_()
        for name, parameter in twin.named_parameters(remove_duplicate=False)
        if parameter.is_floating_point() and parameter.numel()
    }
    for name, parts in statistics.items():
        leaves[f"{name}.running_mean"], leaves[f"{name}.running_var"] = parts.mean, parts.scale
    return leaves


def _draw(output: Tensor, generator: torch.Generator) -> Tensor:
    """A random scalar; the mean square of its gradients is the second derivative."""
    if output.dim() == 2 and output.shape[1] > 1:
        log_p = output.double().log_softmax(1)
        chosen = torch.multinomial(log_p.detach().exp().cpu(), 1, generator=generator).to(
            output.device
        )
        return log_p.gather(1, chosen).sum()
    # With independent random signs, the mean square of the sum is the sum of squares.
    signs = (
        torch.randint(0, 2, output.shape, generator=generator).to(output.device, torch.float64) * 2
        - 1
    )
    per_input = output[0].numel()
    spread = output.detach().double().var(correction=0).clamp_min(torch.finfo(torch.float64).tiny)
    return (output.double() * signs).sum() * (2 / (per_input * spread)).sqrt()


def _chunks(batches: Sequence[Example]) -> Iterator[Inputs]:
    for batch in map(Inputs.of, batches):
        count = len(batch.tensors()[0])
        yield from (_part(batch, slice(start, start + CHUNK)) for start in range(0, count, CHUNK))


def _part(inputs: Inputs, part: slice) -> Inputs:
    return inputs.map(lambda x: x[part])


def _moved(inputs: Inputs, device: torch.device) -> Inputs:
    return inputs.map(lambda x: x.to(device))
