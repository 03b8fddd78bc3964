"""The decay of whole channels: one sensitivity per group of slices that are removed together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from snello.errors import ConfigError
from snello.graph.coupled import Coupling, Dimension, Member
from snello.neurons import named_tensors
from snello.wrappers import unwrapped

from ._decay import Sensitivity, insensitivity


class GroupDecay(Sensitivity):
    r"""Decay channels by the sensitivity of their group, so that layers can be narrowed.

    A channel of a residual stream is written by several layers and can be removed only if the
    slices of all of them are zero. Its sensitivity $S_g$ is the largest of its writers' mean
    sensitivities, and all slices that write or scale it decay by the same factor:
    $w \leftarrow w - \lambda\, w \max(0, 1 - S_g)$. Parameters that belong to no group do not
    decay. Prune with `Pruner(granularity="channel")` during or after training.

    The protocol is that of `method`:

        decay = GroupDecay(SeReNe(model, lmbda=1e-4), model, coupling(model, images))

    Args:
        method: method that measures the sensitivity: [`Lobster`][snello.sensitivity.Lobster],
            [`SeReNe`][snello.sensitivity.SeReNe] or
            [`OutputSensitivity`][snello.sensitivity.OutputSensitivity]. Its `lmbda` is used; its
            own decay is not applied.
        model: the model that `method` observes.
        groups: its channels, from [`snello.graph.coupled.coupling`][]; pinned dimensions are
            left out.

    Raises:
        ConfigError: if no dimension can be narrowed.

    Source: the sensitivities of Tartaglione et al. (2018, 2021, 2022); group-wise penalties for
    coupled channels: Fang et al., "DepGraph", CVPR 2023, section 3.3.
    """

    def __init__(self, method: Sensitivity, model: nn.Module, groups: Coupling) -> None:
        if not groups.free:
            reasons = "; ".join(f"{d.name}: {d.pinned}" for d in groups.dimensions)
            raise ConfigError(f"GroupDecay: no dimension of the model can be narrowed ({reasons})")
        super().__init__(method.lmbda)
        self.by_gradient = method.by_gradient
        self._method, self._groups = method, groups
        self._parameters = {
            name: value
            for name, value in named_tensors(unwrapped(model, "GroupDecay")).items()
            if isinstance(value, nn.Parameter)
        }

    def observe(self, outputs: Tensor, targets: Tensor | None = None) -> None:
        """Observe the network's outputs; see that of the method."""
        self._method.observe(outputs, targets)

    def sensitivity(self) -> dict[str, Tensor]:
        """Name of a dimension -> sensitivity of its channels, shape `(width,)`."""
        measured = self._method.sensitivity()
        found = {}
        for dimension in self._groups.free:
            means = [
                _mean(member, measured) for member in dimension.members if member.role == "write"
            ]
            known = [mean for mean in means if mean is not None]
            if known:  # its layers may be on several devices
                found[dimension.name] = torch.stack([k.to(known[0].device) for k in known]).amax(0)
        return found

    def _weights_and_insensitivities(self) -> tuple[list[Tensor], list[Tensor]]:
        self._method._weights_and_insensitivities()  # so that the method starts a new observation
        measured = self.sensitivity()
        if not measured:
            return [], []
        device = next(iter(measured.values())).device
        sound = [values.isfinite().all().to(device) for values in measured.values()]
        # Not finite where a gradient scaler has overflowed: the optimizer skips this step, too.
        if not torch.stack(sound).all():
            return [], []
        factors: dict[int, tuple[Tensor, Tensor]] = {}
        for name, share in zip(measured, insensitivity(list(measured.values())), strict=True):
            for parameter, factor in self._written(self._groups[name], share):
                if id(parameter) in factors:  # tied, or in several dimensions: the smaller factor
                    factor = torch.minimum(factors[id(parameter)][1], factor)
                factors[id(parameter)] = (parameter, factor)
        return (
            [parameter for parameter, _ in factors.values()],
            [factor.masked_fill(factor.isinf(), 0) for _, factor in factors.values()],
        )

    def _written(self, dimension: Dimension, share: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Parameters that write or scale the channels, with factors that broadcast over them;
        infinite for the rows of other dimensions.
        """
        for member in dimension.members:
            parameter = self._parameters.get(member.name)
            if parameter is None or not parameter.requires_grad or member.role == "read":
                continue
            rows = member.spread(share.to(parameter), parameter.shape[member.axis], torch.inf)
            shape = [-1 if axis == member.axis else 1 for axis in range(parameter.dim())]
            yield parameter, rows.reshape(shape)

    def state_dict(self) -> dict[str, Any]:
        return self._method.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._method.load_state_dict(state)

    def remove(self) -> None:
        self._method.remove()


def _mean(member: Member, measured: dict[str, Tensor]) -> Tensor | None:
    """Mean sensitivity of the slice of each index; None if the method does not measure it."""
    if member.name in measured:  # per weight
        values = measured[member.name]
        return member.sums(values) / member.sums(torch.ones_like(values)).clamp_min(1)
    neurons = measured.get(member.name.rpartition(".")[0])
    if neurons is None or len(neurons) < member.span:
        return None
    return member.sums(neurons) / member.sums(torch.ones_like(neurons)).clamp_min(1)
