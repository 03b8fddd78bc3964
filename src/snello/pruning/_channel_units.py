"""Channels as the units of pruning: each with all slices that write, scale or read it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from snello.errors import ConfigError
from snello.graph import Example
from snello.graph.coupled import Coupling, Dimension, coupling
from snello.graph.coupled.cut import removed_slices
from snello.neurons import LayerFilter, Masks, computed, is_weighted, named_tensors

from ._layers import prunable
from ._limits import LayerLimits, protected
from ._normalise import Normalise, comparable
from .channels.importances import ChannelImportance, measured_scores


@dataclass(frozen=True)
class ChannelUnits:
    """The channels that may be pruned; the counterpart of `Units`.

    Attributes:
        model: the model they belong to.
        coupling: all dimensions of the model.
        layers: the dimensions that may be pruned, by name.
        left_alone: dimension that was not excluded -> why it keeps its width.
        round_to: number of which the widths that are left are multiples.
    """

    model: nn.Module
    coupling: Coupling
    layers: dict[str, Dimension]
    left_alone: dict[str, str] = field(default_factory=dict)
    round_to: int = 1

    @staticmethod
    def of(
        model: nn.Module,
        example: Example | None,
        exclude: LayerFilter | None,
        round_to: int = 1,
    ) -> ChannelUnits:
        """The dimensions of a model; those that an excluded layer writes are left out.

        Raises:
            ConfigError: without example inputs.
            ModelError: if the model does not run on them.
        """
        if example is None:
            raise ConfigError(
                "granularity='channel' needs example_inputs=, inputs that the model runs on: they "
                "show which channels go together"
            )
        found, kept = coupling(model, example), prunable(model, exclude)
        modules = dict(model.named_modules(remove_duplicate=False))
        layers: dict[str, Dimension] = {}
        left: dict[str, str] = {}
        for dimension in found.dimensions:
            writers = {name.rpartition(".")[0] for name in dimension.writers}
            owners = {member.name.rpartition(".")[0] for member in dimension.parameters}
            reasons = [reason for name in owners if (reason := computed(modules[name]))]
            if any(is_weighted(modules[w]) and w not in kept for w in writers):
                continue
            if dimension.norms:
                # Masked channels would still count in the statistics, so that none could be removed.
                module, operation = dimension.norms[0]
                reasons.append(
                    f"{operation} in {module or 'the model'} depends on their number: remove them "
                    "with snello.prune"
                )
            if dimension.pinned or reasons:
                left[dimension.name] = dimension.pinned or reasons[0]
            else:
                layers[dimension.name] = dimension
        return ChannelUnits(model, found, layers, left, round_to)

    @property
    def parameters(self) -> dict[str, str]:
        """Qualified names of the parameters that masks may name -> a dimension that masks them."""
        known = dict(self.model.named_parameters(remove_duplicate=False))
        return {
            member.name: name
            for name, dimension in self.layers.items()
            for member in dimension.parameters
            if member.name in known
        }

    @property
    def weights(self) -> list[str]:
        """Parameters whose zeros are pruned: those that write channels."""
        return list({name: None for d in self.layers.values() for name in d.writers})

    def scores(
        self,
        model: nn.Module,
        importance: ChannelImportance,
        normalise: Normalise | None = None,
        limits: LayerLimits | None = None,
    ) -> dict[str, Tensor]:
        """Dimension -> score of each channel, float64 on the CPU: zero for those that are pruned,
        infinite for those that limits protect, positive for all others.

        Raises:
            ConfigError: for importances that are negative or not finite.
        """
        given = measured_scores(importance, model, self.coupling)
        live = {
            name: given[name].masked_fill(self._dead(dimension), 0)
            for name, dimension in self.layers.items()
            if name in given
        }
        scaled = {n: in_blocks(s, self.round_to) for n, s in comparable(live, normalise).items()}
        if limits is None:
            return scaled
        return {
            name: protected(self.layers[name].protected(s), self.least(name, limits))
            for name, s in scaled.items()
        }

    def least(self, name: str, limits: LayerLimits) -> int:
        """Number of channels of a dimension that must stay."""
        least = limits.least(name, self.layers[name].width, "channel")
        return math.ceil(least / self.round_to) * self.round_to

    def masks(self, scores: dict[str, Tensor], threshold: float) -> Masks:
        """Masks of the channels above a threshold, over every parameter that they have a slice of."""
        removed = {
            name: ((score < threshold) | (score == 0)).nonzero().flatten().tolist()
            for name, score in scores.items()
        }
        parameters = dict(self.model.named_parameters(remove_duplicate=False))
        masks: Masks = {}
        for (name, axis), gone in removed_slices(self.coupling, removed).items():
            if name in parameters:
                weight = parameters[name]
                mask = masks.setdefault(name, torch.ones_like(weight, dtype=torch.bool))
                mask.index_fill_(axis, torch.tensor(sorted(gone), device=mask.device), False)
        return masks

    def _dead(self, dimension: Dimension) -> Tensor:
        """Channels whose writers are zero already: boolean, shape `(width,)`."""
        tensors = named_tensors(self.model)
        writers = [member for member in dimension.members if member.role == "write"]
        sizes = [
            member.sums(tensors[member.name].detach().abs()).cpu()
            for member in writers or dimension.parameters  # a parameter may be all that is scaled
        ]
        dead = torch.stack(sizes).sum(0) == 0
        # A dimension that is zero as a whole was probably initialised so, and is not yet trained.
        return dead & ~dead.all()


def in_blocks(score: Tensor, size: int) -> Tensor:
    """Scores with which any threshold leaves a multiple of a number of channels.

    The best `size` channels get their mean, and so do the next ones; what is left over are the
    worst.

    Args:
        score: score of each channel, shape `(width,)`; zero if it is pruned already.
        size: the number.
    """
    if size == 1:
        return score
    found = score.clone()
    order = score.argsort(descending=True, stable=True)[: int((score > 0).sum())]
    for block in order.split(size):  # type: ignore[no-untyped-call]
        found[block] = score[block].mean()
    return found
