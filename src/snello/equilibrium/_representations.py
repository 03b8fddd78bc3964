"""Selections of layers whose outputs keep the relations between the probe's samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from snello.errors import ConfigError, check_state

from ._selection import WatchedLayer, copied, whole_layers


class Plasticity:
    r"""Freeze layers whose outputs keep the similarities between samples from step to step.

    For the outputs $A$ of a layer on the probe, one row per sample, $G$ is $A A^\top$ with rows of
    length one. The plasticity of the layer is $\lVert G^t - G^{t-1} \rVert_F^2 / n^2$ for $n$
    samples, and it rests while this is below `eps`. Whole layers rest or learn; give it to
    [`Settled`][snello.equilibrium.Settled] to let them rest from the input on.

    Egeria compares with a quantised copy of the network that is renewed from time to time, and
    freezes when the plasticity is flat; here the copy is the network at the last step.

    Args:
        eps: bound on the plasticity; 0 freezes nothing.

    Raises:
        ConfigError: for a negative bound.

    Source: Wang et al., "Egeria: efficient DNN training with knowledge-guided layer freezing",
    EuroSys 2023, https://arxiv.org/abs/2201.06227; Tung, Mori, "Similarity-preserving knowledge
    distillation", ICCV 2019.
    """

    observes = True

    def __init__(self, eps: float = 1e-6) -> None:
        self.eps = _bound(eps)
        self._last: dict[str, Tensor] = {}
        self._plasticity: dict[str, float] = {}

    @property
    def plasticity(self) -> dict[str, float]:
        """Layer name -> plasticity at the last step; empty before the first."""
        return dict(self._plasticity)

    def observe(self, outputs: Mapping[str, Tensor]) -> None:
        """Compare the probe's outputs, shape (samples, channels, positions), with the last ones."""
        now = {name: _unit(_gram(values)) for name, values in outputs.items()}
        self._plasticity = {
            name: float((gram - self._last[name].to(gram)).square().mean())
            for name, gram in now.items()
            if name in self._last
        }
        self._last = now

    def select(
        self, layers: Mapping[str, WatchedLayer], similarities: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Freeze the layers below the bound; see [`Selection`][snello.equilibrium.Selection]."""
        return whole_layers(layers, [n for n, p in self._plasticity.items() if p < self.eps])

    def state_dict(self) -> dict[str, Any]:
        """The relations between samples at the last step, and the plasticities."""
        return {"last": copied(self._last), "plasticity": self.plasticity}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state.

        Raises:
            ConfigError: if it is not a state of this rule.
        """
        kinds = {"last": dict[str, Tensor], "plasticity": dict[str, float]}
        check_state(state, kinds, type(self).__name__)
        last, plasticity = copied(state["last"]), dict(state["plasticity"])
        self._last, self._plasticity = last, plasticity


class StableCKA:
    """Freeze layers whose similarity to the start of the training has stopped changing.

    The similarity is linear CKA (centred kernel alignment, in [0, 1]) between the outputs on the
    probe at the start and now. A layer rests while it changes by less than `eps` from step to
    step. Whole layers rest or learn, as with [`Plasticity`][snello.equilibrium.Plasticity].

    Args:
        eps: bound on the change; 0 freezes nothing.

    Raises:
        ConfigError: for a negative bound.

    Source: Kornblith et al., "Similarity of neural network representations revisited", ICML 2019,
    https://arxiv.org/abs/1905.00414; its use for freezing: SimFreeze, in
    https://arxiv.org/abs/2401.16694.
    """

    observes = True

    def __init__(self, eps: float = 1e-3) -> None:
        self.eps = _bound(eps)
        self._start: dict[str, Tensor] = {}
        self._cka: dict[str, float] = {}
        self._change: dict[str, float] = {}

    @property
    def cka(self) -> dict[str, float]:
        """Layer name -> CKA to the start; 1 at the start."""
        return dict(self._cka)

    def observe(self, outputs: Mapping[str, Tensor]) -> None:
        """Compare the probe's outputs, shape (samples, channels, positions), with the first."""
        now = {name: _centred(_gram(values)) for name, values in outputs.items()}
        if not self._start:
            self._start = now
        cka = {name: _alignment(gram, self._start[name].to(gram)) for name, gram in now.items()}
        self._change = {n: abs(c - self._cka[n]) for n, c in cka.items() if n in self._cka}
        self._cka = cka

    def select(
        self, layers: Mapping[str, WatchedLayer], similarities: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Freeze the layers below the bound; see [`Selection`][snello.equilibrium.Selection]."""
        return whole_layers(layers, [n for n, change in self._change.items() if change < self.eps])

    def state_dict(self) -> dict[str, Any]:
        """The relations between samples at the start, the similarities and their changes."""
        return {"start": copied(self._start), "cka": self.cka, "change": dict(self._change)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state.

        Raises:
            ConfigError: if it is not a state of this rule.
        """
        numbers = dict[str, float]
        kinds = {"start": dict[str, Tensor], "cka": numbers, "change": numbers}
        check_state(state, kinds, type(self).__name__)
        start, cka, change = copied(state["start"]), dict(state["cka"]), dict(state["change"])
        self._start, self._cka, self._change = start, cka, change


def _bound(eps: float) -> float:
    if not eps >= 0:
        raise ConfigError(f"eps: must be at least 0, not {eps}")
    return eps


def _gram(outputs: Tensor) -> Tensor:
    rows = outputs.flatten(1).double()
    return rows @ rows.t()


def _unit(gram: Tensor) -> Tensor:
    return torch.nn.functional.normalize(gram, dim=1)


def _centred(gram: Tensor) -> Tensor:
    return gram - gram.mean(0) - gram.mean(1, keepdim=True) + gram.mean()


def _alignment(one: Tensor, other: Tensor) -> float:
    """CKA of two centred Gram matrices; 1 if both are zero, 0 if one is."""
    norms = float(one.norm() * other.norm())
    return float((one * other).sum()) / norms if norms else float(torch.equal(one, other))
