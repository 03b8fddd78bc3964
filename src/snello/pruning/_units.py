"""The units of pruning: single weights, or whole neurons."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from snello.errors import ConfigError, ModelError
from snello.graph import Example, capture
from snello.neurons import (
    Masks,
    computed,
    dead_neurons,
    is_batchnorm,
    neuron_count,
    plain_layers,
    qualified,
    rows,
    spread,
)

from ._importance import Granularity, Importance
from ._limits import LayerLimits, protected
from ._normalise import Normalise, comparable


@dataclass(frozen=True)
class Units:
    """The weights or neurons that may be pruned.

    Attributes:
        granularity: "weight" or "neuron".
        layers: the layers, by name.
        norms: layer name -> the affine BatchNorm that is its only reader; empty for weights.
        left_alone: name of a layer that was not excluded -> why it is not pruned.
    """

    granularity: Granularity
    layers: dict[str, nn.Module]
    norms: dict[str, str]
    left_alone: dict[str, str] = field(default_factory=dict)

    @staticmethod
    def of(
        model: nn.Module,
        layers: dict[str, nn.Module],
        granularity: Granularity,
        example: Example | None = None,
    ) -> Units:
        """The units of some layers; layers whose weights are computed are left alone.

        Raises:
            ModelError: for neurons of a model with BatchNorm that does not run on the example, or,
                without one, that torch.fx cannot trace.
        """
        plain, left = plain_layers(layers)
        norms = _norms_after(model, plain, example) if granularity == "neuron" else {}
        for name, norm in norms.items():
            if reason := computed(model.get_submodule(norm)):
                left[name] = f"its norm {norm!r}: {reason}"
        plain = {name: module for name, module in plain.items() if name not in left}
        return Units(granularity, plain, {n: norm for n, norm in norms.items() if n in plain}, left)

    @property
    def parameters(self) -> dict[str, str]:
        """Qualified name of a parameter that may be masked -> the layer of its units."""
        found = {qualified(name, "weight"): name for name in self.layers}
        if self.granularity == "neuron":
            found |= {
                qualified(name, "bias"): name
                for name, m in self.layers.items()
                if m.bias is not None
            }
            found |= {
                qualified(norm, key): name
                for name, norm in self.norms.items()
                for key in ("weight", "bias")
            }
        return found

    @property
    def weights(self) -> list[str]:
        """Parameters whose zeros are pruned."""
        return [qualified(name, "weight") for name in self.layers]

    def dead(self, name: str) -> Tensor:
        """Units of a layer that are zero already: boolean, shape of the weight or (neurons,)."""
        module = self.layers[name]
        return _weight(module) == 0 if self.granularity == "weight" else dead_neurons(module)

    def scores(
        self,
        model: nn.Module,
        importance: Importance,
        normalise: Normalise | None = None,
        limits: LayerLimits | None = None,
    ) -> dict[str, Tensor]:
        """Layer name -> score of each unit: zero for those that are dead, infinite for those that
        limits protect, positive for all others.

        Raises:
            ConfigError: for importances of another shape, negative or not finite.
        """
        given = importance(model, self.granularity)
        found: dict[str, Tensor] = {}
        for name in self.layers:
            if name in given:
                score = self._checked(name, given[name].detach())
                score = score.clamp_min(torch.finfo(score.dtype).tiny)
                found[name] = score.masked_fill(self.dead(name), 0)
        scaled = comparable(found, normalise)
        if limits is None:
            return scaled
        return {name: protected(s, self.least(name, limits)) for name, s in scaled.items()}

    def count(self, name: str) -> int:
        """Number of units of a layer."""
        module = self.layers[name]
        return _weight(module).numel() if self.granularity == "weight" else neuron_count(module)

    def least(self, name: str, limits: LayerLimits) -> int:
        """Number of units that a layer must keep."""
        return limits.least(name, self.count(name), self.granularity)

    def _checked(self, name: str, score: Tensor) -> Tensor:
        module = self.layers[name]
        per_weight = score.shape == _weight(module).shape
        if self.granularity == "neuron" and per_weight and score.dim() > 1:
            score = rows(module, score).mean(1)
        shape = _weight(module).shape if self.granularity == "weight" else (neuron_count(module),)
        if tuple(score.shape) != tuple(shape):
            raise ConfigError(
                f"importance of layer {name!r}: shape {tuple(score.shape)} where granularity="
                f"{self.granularity!r} needs {tuple(shape)}"
            )
        if not bool((score >= 0).all()) or not bool(score.isfinite().all()):
            raise ConfigError(
                f"importance of layer {name!r}: scores must be finite and not negative"
            )
        return score

    def masks(self, scores: dict[str, Tensor], threshold: float) -> Masks:
        """Masks that keep the units at or above a threshold; units with score 0 stay pruned."""
        masks: Masks = {}
        for name, score in scores.items():
            keep, module = (score >= threshold) & (score > 0), self.layers[name]
            if self.granularity == "weight":
                masks[qualified(name, "weight")] = keep
                continue
            masks[qualified(name, "weight")] = (
                spread(module, keep).expand_as(_weight(module)).contiguous()
            )
            if module.bias is not None:
                masks[qualified(name, "bias")] = keep
            if norm := self.norms.get(name):
                masks[f"{norm}.weight"] = masks[f"{norm}.bias"] = keep
        return masks


def _norms_after(
    model: nn.Module, layers: dict[str, nn.Module], example: Example | None
) -> dict[str, str]:
    """Layer name -> the affine BatchNorm that is its only reader."""
    affine = {n for n, m in model.named_modules() if is_batchnorm(m) and m.weight is not None}
    if not affine or not layers:
        return {}
    try:
        graph = capture(model, example)
    except ModelError as error:
        if example is not None:
            raise
        raise ModelError(
            f"{error} Give example_inputs=, on which the BatchNorm behind each layer is found."
        ) from error
    found = {name: graph.norm_after(name) for name in layers}
    return {name: norm for name, norm in found.items() if norm is not None and norm in affine}


def _weight(module: nn.Module) -> Tensor:
    return module.weight.detach()  # type: ignore[union-attr, operator, return-value]
