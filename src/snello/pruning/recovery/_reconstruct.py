"""Least-squares fit of weights, which compensates for pruned inputs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snello.errors import ConfigError
from snello.graph import Example
from snello.neurons import (
    LayerFilter,
    dead_neurons,
    padding_of,
    plain_layers,
    rows,
    select_layers,
    weighted_layers,
)
from snello.wrappers import unwrapped

from ._alike import calls, check_alike, check_finite_output, one_batch, run_hooked, tied

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Reconstruction:
    """Result of [`reconstruct`][snello.pruning.recovery.reconstruct].

    Attributes:
        errors: layer name -> error of its outputs before and after, squared and relative to the
            variance of the reference's outputs.
        left_alone: layer name -> reason.
    """

    errors: Mapping[str, tuple[float, float]]
    left_alone: Mapping[str, str]

    def __str__(self) -> str:
        lines = [f"{name}: {a:.3g} -> {b:.3g}" for name, (a, b) in self.errors.items()]
        return "\n".join(lines + [f"{name}: {why}" for name, why in self.left_alone.items()])


def reconstruct(
    model: nn.Module,
    reference: nn.Module,
    batches: Iterable[Example],
    *,
    exclude: LayerFilter = (),
    damping: float = 1e-2,
    samples: int = 8192,
    seed: int = 0,
) -> Reconstruction:
    r"""Fit the remaining weights to the outputs of the network before pruning, in place.

    In the order of the forward pass, with the inputs that the layers fitted before compute, the
    weights W of each layer are set to

    $$\arg\min_{W'} \|Y - X W'^\top\|^2 + \lambda \|W' - W\|^2$$

    with its present inputs X, the reference's outputs Y, and λ the damping times the mean square of
    an input. Weights that are exactly zero stay zero, and dead neurons stay dead.

    Args:
        model: the pruned network, changed in place, before it is simplified.
        reference: the same architecture with the weights before pruning.
        batches: inputs without targets. They are concatenated and run at once; 256 to 1024 samples
            are enough.
        exclude: layers that keep their weights.
        damping: strength of the pull towards the present weights, positive.
        samples: number of rows of X for each layer, at least twice the number of weights of a
            neuron. Positions of feature maps are drawn at random to reach it.
        seed: seed of that draw.

    Returns:
        Errors before and after. Layers are left alone if they do not run exactly once per forward,
        if their weight is computed or tied, if they are transposed convolutions, or if their
        neurons have lost different inputs (pruning of single weights).

    Raises:
        ConfigError: for a reference of another architecture, or a damping that is not positive.
        DataError: if there is no batch, or if an output before pruning is not finite; nothing is
            changed then.

    Source: He, Zhang and Sun, "Channel pruning for accelerating very deep neural networks", ICCV
    2017, eq. 3, without its selection of channels; damped.
    """
    if not 0 < damping < math.inf:
        raise ConfigError(f"reconstruct: damping must be positive, not {damping}")
    model, reference = unwrapped(model, "reconstruct"), unwrapped(reference, "reconstruct")
    check_alike(model, reference, "reconstruct")
    inputs = one_batch(model, batches, "reconstruct")
    layers, left = plain_layers(weighted_layers(model))
    chosen = select_layers(layers, exclude, "reconstruct")
    left |= {name: why for name, m in chosen.items() if (why := _odd(m)) is not None}
    left |= tied(model, chosen)
    counts = calls(reference, chosen, inputs)
    left |= {n: f"it runs {c} times in a forward pass" for n, c in counts.items() if c != 1}
    fits = {
        name: _Fit(name, layer, damping, samples, seed)
        for name, layer in chosen.items()
        if name not in left
    }
    run_hooked(reference, inputs, {name: fit.see_reference for name, fit in fits.items()})
    run_hooked(model, inputs, {name: fit.solve for name, fit in fits.items()})
    return Reconstruction({name: fit.errors for name, fit in fits.items()}, left)


class _Fit:
    """The fit of one layer: hooks that record its target outputs, then solve for its weights."""

    def __init__(
        self, name: str, layer: nn.Module, damping: float, samples: int, seed: int
    ) -> None:
        self._name, self._damping, self._seed = name, damping, seed
        weight: Tensor = layer.weight  # type: ignore[assignment]
        self._samples = max(samples, 2 * weight[0].numel())
        self._positions: list[tuple[int, ...]] = []
        self._targets = torch.empty(0)
        self.errors = (0.0, 0.0)

    def see_reference(self, layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Hook of the reference's layer: draw positions, and store the outputs there."""
        check_finite_output(self._name, output, "reconstruct")
        space = output.shape[2:] if isinstance(layer, _CONVOLUTIONS) else output.shape[1:-1]
        wanted = min(math.prod(space), -(-self._samples // max(1, output.shape[0])))
        generator = torch.Generator().manual_seed(self._seed)
        drawn = torch.randperm(math.prod(space), generator=generator)[:wanted]
        corners = list(product(*map(range, space)))
        self._positions = [corners[int(i)] for i in drawn]
        self._targets = self._at_positions(layer, output)

    def _at_positions(self, layer: nn.Module, output: Tensor) -> Tensor:
        """Outputs at the drawn positions: shape (positions · B, neurons)."""
        return torch.cat([output[at] for at in self._indices(layer)]).double()

    def _indices(self, layer: nn.Module) -> list[Any]:
        """Index of each position in an output; channels are second in that of a convolution."""
        channels = (slice(None),) if isinstance(layer, _CONVOLUTIONS) else ()
        return [(slice(None), *channels, *where) for where in self._positions]

    def _inputs_at(self, layer: Any, values: Tensor) -> Tensor:
        """Inputs of a neuron at each position: shape (groups, positions · B, fan-in)."""
        if isinstance(layer, nn.Linear):
            return torch.cat([values[at] for at in self._indices(layer)])[None].double()
        before, after = padding_of(layer)
        sides = [side for pair in zip(before[::-1], after[::-1], strict=True) for side in pair]
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        padded = F.pad(values, sides, mode=mode)
        patches = []
        for where in self._positions:
            window = tuple(
                slice(at * step, at * step + gap * (size - 1) + 1, gap)
                for at, step, gap, size in zip(
                    where, layer.stride, layer.dilation, layer.kernel_size, strict=True
                )
            )
            patches.append(padded[(slice(None), slice(None), *window)])
        joined = torch.cat(patches).double()
        return joined.reshape(len(joined), layer.groups, -1).transpose(0, 1)

    def solve(self, layer: Any, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        """Hook of the pruned layer: fit its weights, and return the output that they compute."""
        alive = ~dead_neurons(layer)
        groups = getattr(layer, "groups", 1)
        residual = self._targets - self._at_positions(layer, output)
        patches = self._inputs_at(layer, inputs[0])
        weight = rows(layer, layer.weight.detach())
        change = torch.zeros_like(weight, dtype=torch.float64)
        shift = torch.zeros(len(weight), dtype=torch.float64, device=weight.device)
        members = torch.arange(len(weight), device=weight.device).reshape(groups, -1)
        for own, read in zip(members, patches, strict=True):
            own = own[alive[own]]
            support = (weight[own] != 0).any(0)
            if not len(own) or not support.any():
                continue
            found, offset = self._least_squares(
                read[:, support], residual[:, own], layer.bias is not None
            )
            change[own[:, None], support.nonzero()[:, 0]] = found
            shift[own] = offset
        with torch.no_grad():
            layer.weight += change.to(weight.dtype).reshape(layer.weight.shape)
            if layer.bias is not None:
                layer.bias += shift.to(weight.dtype)
        fitted: Tensor = layer.forward(*inputs)
        spread = (self._targets - self._targets.mean(0))[:, alive].square().mean().clamp_min(1e-30)
        rest = (self._targets - self._at_positions(layer, fitted))[:, alive].square().mean()
        self.errors = (
            float(residual[:, alive].square().mean() / spread),
            float(rest / spread),
        )
        self._targets = torch.empty(0)
        return fitted

    def _least_squares(self, read: Tensor, residual: Tensor, bias: bool) -> tuple[Tensor, Tensor]:
        """Changes of weights (neurons, inputs) and biases (neurons,) that explain a residual."""
        # A bias accounts for the means: only deviations from them are fitted by weights.
        centre = read.mean(0) if bias else torch.zeros_like(read[0])
        height = residual.mean(0) if bias else torch.zeros_like(residual[0])
        varying = read - centre
        gram = varying.T @ varying
        scale = gram.diagonal().mean()
        if not scale > 0:
            return torch.zeros_like(gram[:1]).expand(residual.shape[1], -1), height
        gram.diagonal().add_(self._damping * scale)
        found = torch.linalg.solve(gram, varying.T @ (residual - height)).T
        return found, height - found @ centre


def _odd(layer: nn.Module) -> str | None:
    """Reason why a layer is not fitted; None if it is."""
    if not isinstance(layer, (nn.Linear, *_CONVOLUTIONS)):
        return f"a {type(layer).__name__} is not fitted"
    weight = rows(layer, layer.weight.detach())
    groups = getattr(layer, "groups", 1)
    for own in weight.reshape(groups, -1, weight.shape[1]):
        live = own[(own != 0).any(1)]
        if len(live) and not (live[:, (live != 0).any(0)] != 0).all():
            return "its neurons have lost different inputs"
    return None
