"""Distillation losses: distances of a network from its dense teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snello.errors import ConfigError, nearest
from snello.wrappers import OwnHook, unwrapped


def distillation(student: Tensor, teacher: Tensor, *, temperature: float = 4.0) -> Tensor:
    r"""Divergence of a network's class probabilities from those of its teacher.

    $$T^2 \, \mathrm{KL}\big(\mathrm{softmax}(t / T) \,\|\, \mathrm{softmax}(s / T)\big)$$

    The factor keeps gradients at the scale of cross-entropy for every temperature.

    Args:
        student: scores, shape `(B, classes, ...)`.
        teacher: scores of the same shape; no gradient flows into them.
        temperature: T, positive; small probabilities have more weight at higher temperatures.

    Returns:
        The mean over batch and positions, a scalar.

    Raises:
        ConfigError: for shapes that differ, or a temperature that is not positive.

    Source: Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network", 2015, section
    2, https://arxiv.org/abs/1503.02531.
    """
    for scores in (student, teacher):
        if not isinstance(scores, Tensor):
            raise ConfigError(
                f"distillation: scores are tensors, not a {type(scores).__name__}; pass its logits"
            )
    if student.shape != teacher.shape or student.dim() < 2:
        raise ConfigError(
            f"distillation: scores of shapes {tuple(student.shape)} and {tuple(teacher.shape)}; "
            "both must be (batch, classes, ...)"
        )
    if not temperature > 0:
        raise ConfigError(f"distillation: temperature must be positive, not {temperature}")
    logs = F.log_softmax(student / temperature, dim=1)
    targets = F.log_softmax(teacher.detach() / temperature, dim=1)
    divergence = F.kl_div(logs, targets, log_target=True, reduction="none").sum(1)
    return temperature**2 * divergence.mean()


class FeatureDistillation:
    r"""Distance between the attention maps of two networks.

    An attention map is the mean of the squared activations over channels, normalised per sample;
    the loss is the mean squared distance of two maps. The widths of the networks need not be equal,
    so that a lean network can be trained with the dense one as its teacher:

        features = FeatureDistillation(lean, dense, ["layer1", "layer2", "layer3"])
        loss = criterion(lean(x), y)
        with torch.no_grad():
            dense(x)
        loss = loss + 1000 * features.loss()

    Args:
        student: the network that is trained.
        teacher: the network that it learns from.
        layers: names of the modules whose outputs are compared, if they are the same in both; or a
            mapping from names in the student to names in the teacher. Outputs have shape
            `(B, C, ...)`, or `(B, tokens, C)` with `channels_last`.
        channels_last: whether channels are on the last axis.

    Raises:
        ConfigError: for a name that one of the networks does not have, and when a network runs,
            for an output that is no tensor or has no positions.

    Source: Zagoruyko and Komodakis, "Paying more attention to attention", ICLR 2017, eq. 2, with
    p = 2, https://arxiv.org/abs/1612.03928.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        layers: str | Sequence[str] | Mapping[str, str],
        *,
        channels_last: bool = False,
    ) -> None:
        names = [layers] if isinstance(layers, str) else layers
        pairs = dict(names) if isinstance(names, Mapping) else {name: name for name in names}
        if not pairs:
            raise ConfigError("FeatureDistillation: name at least one layer")
        self._axis = -1 if channels_last else 1
        self._pairs = pairs
        self._seen: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
        # All names are looked up before the first hook is registered.
        found = [
            (name, seen, _module(model, name))
            for model, own, seen in (
                (student, pairs.keys(), self._seen[0]),
                (teacher, pairs.values(), self._seen[1]),
            )
            for name in dict.fromkeys(own)
        ]
        self._handles = [
            module.register_forward_hook(OwnHook(_Keep(seen, name))) for name, seen, module in found
        ]

    def loss(self) -> Tensor:
        """Distance of the maps of the last forward passes, summed over layers: a scalar.

        The stored outputs are released, so that both networks must run again before the next call.

        Raises:
            ConfigError: before both networks have run, or if their maps differ in shape.
        """
        if len(self._seen[0]) < len(self._pairs) or len(self._seen[1]) < len(
            set(self._pairs.values())
        ):
            raise ConfigError("FeatureDistillation.loss: run student and teacher on a batch first")
        total = torch.zeros(())
        for ours, theirs in self._pairs.items():
            mine, wanted = self._map(self._seen[0][ours]), self._map(self._seen[1][theirs].detach())
            if mine.shape != wanted.shape:
                raise ConfigError(
                    f"FeatureDistillation: maps of {ours!r} and {theirs!r} have shapes "
                    f"{tuple(mine.shape)} and {tuple(wanted.shape)}: run both on the same batch, "
                    "and name layers of the same resolution"
                )
            total = total.to(mine) + (mine - wanted).square().mean()
        self._seen[0].clear()
        self._seen[1].clear()
        return total

    def _map(self, output: Tensor) -> Tensor:
        output = output.float() if output.element_size() < 4 else output  # squares overflow
        return F.normalize(output.square().mean(self._axis).flatten(1), dim=1)

    def remove(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()


def _module(model: nn.Module, name: str) -> nn.Module:
    modules: dict[str, nn.Module] = dict(unwrapped(model, "FeatureDistillation").named_modules())
    if name not in modules:
        raise ConfigError(
            f"FeatureDistillation: {type(model).__name__} has no module {name!r}"
            f"{nearest(name, modules)}"
        )
    return modules[name]


class _Keep:
    """Hook that keeps the last output of a module."""

    def __init__(self, seen: dict[str, Tensor], name: str) -> None:
        self._seen, self._name = seen, name

    def __call__(self, _module: nn.Module, _inputs: object, output: object) -> None:
        if not isinstance(output, Tensor):
            raise ConfigError(
                f"FeatureDistillation: {self._name!r} gives a {type(output).__name__}, not a tensor"
            )
        if output.dim() < 3:
            raise ConfigError(
                f"FeatureDistillation: {self._name!r} gives a shape of {tuple(output.shape)}; name "
                "layers whose outputs have positions, such as those before pooling"
            )
        self._seen[self._name] = output
