"""One run of `prune`: the dense network, what a step removes, and the network after each step."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from snello.errors import ConfigError, ModelError
from snello.graph import Example, Inputs, evaluation
from snello.graph.coupled import Coupling, coupling
from snello.processes import copy_from_first, device_of_group, mean_over_processes
from snello.pruning import LayerLimits
from snello.pruning.channels import ChannelImportance, Keep, plan_channels
from snello.pruning.channels import measured_size as size_of
from snello.pruning.recovery import correct_biases, recalibrate, reconstruct
from snello.search.identity import name_of
from snello.simplification import apply, simplify

from ._arguments import quality_of
from ._as_plan import as_plan
from ._measured import Removal, choose_measured
from ._step import PruningStep


@dataclass(frozen=True)
class Choice:
    """Rule by which a step chooses what it removes; the fields are arguments of `prune`."""

    importance: str | ChannelImportance
    normalise: Any
    limits: LayerLimits | None
    round_to: int
    exclude: tuple[str, ...]
    measured: bool
    branches: bool

    def settings(self) -> dict[str, Any]:
        """The fields as plain values."""
        return {
            **vars(self),
            "importance": name_of(self.importance),
            "limits": None if self.limits is None else asdict(self.limits),
            "exclude": list(self.exclude),
        }

    def removal(
        self,
        model: nn.Module,
        example: Example,
        wanted: Keep,
        batches: Sequence[Example],
        *,
        widths: Mapping[str, int],
        groups: Coupling | None,
    ) -> Removal:
        """Choose what is removed from a network, until a share of it is left.

        Args:
            model: the network; it is not changed.
            example: its example inputs.
            wanted: share of this network to keep.
            batches: calibration inputs, for a choice by measurement.
            widths: widths of the dense network, of which the limits are shares.
            groups: coupled channels of the network, if they are known.
        """
        options: dict[str, Any] = {
            "importance": self.importance, "limits": self.limits, "round_to": self.round_to,
            "exclude": self.exclude, "widths": widths, "groups": groups,
        }  # fmt: skip
        if self.measured:
            return choose_measured(
                model, example, wanted, batches, branches=self.branches, **options
            )
        return Removal(plan_channels(model, example, wanted, normalise=self.normalise, **options))


class Run:
    """One call of `prune`: the dense network, and the steps from it.

    Args:
        model: the dense network; it is not changed.
        example: its example inputs.
        choice: how channels are chosen.
        batches: calibration inputs of this process.
        reconstruction, fit, evaluate: as in [`prune`][snello.search.prune.prune].

    Raises:
        ModelError: for a network without parameters or multiply-accumulates.
    """

    def __init__(
        self,
        model: nn.Module,
        example: Example,
        choice: Choice,
        batches: Sequence[Example],
        reconstruction: bool | Literal["biases"],
        fit: Callable[[nn.Module], object] | None,
        evaluate: Callable[[nn.Module], float] | None,
    ) -> None:
        self._model, self._example, self._batches = model, Inputs.of(example), batches
        self._choice, self._reconstruction = choice, reconstruction
        self._fit, self._evaluate = fit, evaluate
        self._dense = size_of(model, example)
        if not self._dense.macs:
            raise ModelError(
                f"{type(model).__name__} has no multiply-accumulates on the example inputs"
            )
        if not self._dense.parameters:
            raise ModelError(f"{type(model).__name__} has no parameters to remove, only buffers")

    def check_reachable(self, amount: Keep) -> None:
        """Check, without scores or training, that the channels can be narrowed to a share.

        Raises:
            ConfigError: if not. Branches are not tried, which may reach more.
        """
        if not self._choice.branches:
            unscored = replace(self._choice, importance=_equal, measured=False)
            unscored.removal(
                self._model, self._example, amount, (), widths=self._widths, groups=self._coupling
            )

    def dense_step(self, model: nn.Module) -> PruningStep:
        """The entry of the dense network.

        Raises:
            ConfigError: if its quality is not finite.
        """
        quality = self._quality(model)
        if quality is not None and not math.isfinite(quality):
            raise ConfigError(
                f"prune: evaluate gives {quality} for the network before pruning: give a network and "
                "a function whose quality is a finite number"
            )
        return PruningStep(0, 1.0, 1.0, 0, None, quality)

    def step(self, model: nn.Module, number: int, amount: Keep) -> tuple[nn.Module, PruningStep]:
        """Remove channels, recover and fine-tune.

        Args:
            model: the network after the previous step; it is not changed.
            number: number of the step, from 1.
            amount: share of the dense network to keep.

        Returns:
            The narrower network, and its entry of the table.
        """
        removal = self._choice.removal(
            model, self._example, self._relative(model, amount), self._batches,
            widths=self._widths,
            groups=self._coupling if number == 1 else None,
        )  # fmt: skip
        for text in removal.plan.warnings:
            warnings.warn(f"prune: step {number}: {text}", stacklevel=3)
        narrow = self._recovered(model, removal)
        cut = quality = self._quality(narrow)
        if self._fit is not None:
            self._fit(narrow)
            copy_from_first(narrow.state_dict().values())
            quality = self._quality(narrow)
        size = size_of(narrow, self._example)
        return narrow, PruningStep(
            number, size.macs / self._dense.macs, size.parameters / self._dense.parameters,
            sum(map(len, removal.plan.removed.values())), cut, quality,
            tuple(branch.name for branch in removal.branches),
        )  # fmt: skip

    @cached_property
    def _coupling(self) -> Coupling:
        """The coupled channels of the dense network."""
        return coupling(self._model, self._example)

    @property
    def _widths(self) -> dict[str, int]:
        """The widths of the dense network's dimensions that can be narrowed."""
        return {d.name: d.width for d in self._coupling.free}

    def _quality(self, model: nn.Module) -> float | None:
        """Evaluate a network with the caller's function, as a mean over the processes; None
        without one.
        """
        if self._evaluate is None:
            return None
        with evaluation(model):
            return mean_over_processes(quality_of(self._evaluate(model)), device_of_group())

    def _relative(self, model: nn.Module, target: Keep) -> Keep:
        """Convert a share of the dense network to a share of the current one."""
        now = size_of(model, self._example)
        shares = {
            "macs": now.macs / self._dense.macs,
            "parameters": now.parameters / self._dense.parameters,
        }
        wanted = {
            key: min(1.0, share / shares.get(key, 1.0))
            for key, share in vars(target).items()
            if share is not None
        }
        return Keep(**wanted)

    def _recovered(self, model: nn.Module, removal: Removal) -> nn.Module:
        """The network without channels and branches, recovered as far as is possible untrained."""
        plan, source = removal.plan, removal.zeroed_branches(model)
        if self._reconstruction:
            if normed := [n for n in plan.removed if plan.removed[n] and plan.coupling[n].norms]:
                raise ConfigError(
                    f"prune: reconstruction is not possible for dimension {normed[0]!r}, over which "
                    f"{plan.coupling[normed[0]].norms[0][0]!r} computes its statistics; use "
                    "reconstruction=False"
                )
            source = plan.zeroed(source)
            recover = correct_biases if self._reconstruction == "biases" else reconstruct
            recover(source, model, self._batches)
        narrow = apply(as_plan(model, plan, self._example), source)
        if removal.branches:
            narrow = simplify(narrow, self._example)
        if self._batches:
            recalibrate(narrow, self._batches)
        copy_from_first(narrow.state_dict().values())  # the processes have other batches
        return narrow


def _equal(_model: nn.Module, groups: Coupling) -> dict[str, Tensor]:
    """The same score for every channel."""
    return {dimension.name: torch.ones(dimension.width) for dimension in groups.free}
