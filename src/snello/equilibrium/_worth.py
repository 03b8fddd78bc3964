"""A measured decision whether frozen neurons save time at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from snello.errors import check_option, check_state
from snello.graph import Inputs, tensors_of
from snello.processes import rank_and_size

from ._timing import time_backward, time_step, trial

if TYPE_CHECKING:
    from ._neq import SelectiveUpdate

REPEATS = 5
GLANCE = 2
"""Repeats of the first measurement, with most neurons frozen: a network worth it shows at once."""
FASTER = 0.95
"""Largest ratio of the two times that counts as a gain: a larger one may be noise."""
REFUSALS = 2
"""Measured losses after which nothing is tried any more."""
CHANGED = 0.25
"""Change of the frozen share after which a decision is measured again."""


@dataclass
class Worth:
    """Freeze only what makes a training step on the probe faster.

    Attributes:
        reason: why nothing is frozen now; empty if the masks are applied, or are empty.
        refusals: number of measured losses of time.
    """

    reason: str = ""
    refusals: int = 0
    _promising: bool = False
    _share: float | None = None
    _resting: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        check_option(
            rank_and_size()[1] == 1,
            "only_if_faster: times differ between processes; leave it out in distributed training",
        )

    @property
    def given_up(self) -> bool:
        """True after two losses of time: the probe need not run any more."""
        return self.refusals >= REFUSALS

    def state_dict(self) -> dict[str, Any]:
        """The last decision, so that a resumed run does not measure again and decide otherwise."""
        return {
            "reason": self.reason,
            "refusals": self.refusals,
            "promising": self._promising,
            "share": self._share,
            "resting": sorted(self._resting),
        }

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Refuse anything but a saved state.

        Raises:
            ConfigError: as [`check_state`][snello.errors.check_state] does.
        """
        kinds = {"reason": str, "refusals": int, "share": float | None, "resting": list[str]}
        check_state(state, kinds, "only_if_faster", {"promising": bool})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state that has been checked."""
        self.reason, self.refusals = state["reason"], state["refusals"]
        self._promising = state.get("promising", False)
        self._share, self._resting = state["share"], frozenset(state["resting"])

    def judged(
        self,
        update: SelectiveUpdate,
        inputs: Inputs,
        masks: Mapping[str, Tensor],
        macs: Mapping[str, float],
    ) -> Mapping[str, Tensor]:
        """The masks if they make a step faster, else none.

        A decision holds until the frozen share has changed by a quarter of all neurons, or other
        layers rest whole, so that the measurements cost a few steps of the training.

        Args:
            update: the selective update.
            inputs: of the probe.
            masks: those that the selection wants.
            macs: layer name -> multiply-accumulates of its forward pass.
        """
        neurons = sum(len(mask) for mask in masks.values())
        share = sum(int(mask.sum()) for mask in masks.values()) / max(neurons, 1)
        resting = frozenset(name for name, mask in masks.items() if bool(mask.all()))
        if not share:
            self.reason = ""
            return masks
        if not resting and not self._promising:
            self.reason = _loss_of_time(update, inputs, _most(masks), GLANCE)
            self._promising = not self.reason
            if self.reason:
                self.refusals = REFUSALS  # it would not pay later, either
                return {}
        if not resting and (saved := _saved(masks, macs)) < 1 - FASTER:
            self.reason = f"neurons that take {saved:.1%} of a step rest, too little to gain by: nothing is frozen"
            return {}
        known = self._share is not None and abs(share - self._share) < CHANGED
        if not known or resting != self._resting:
            self._share, self._resting = share, resting
            self.reason = _loss_of_time(update, inputs, masks, REPEATS)
            self.refusals += bool(self.reason)
        return {} if self.reason else masks


def _saved(masks: Mapping[str, Tensor], macs: Mapping[str, float]) -> float:
    """The most that neurons at rest can save of a step: weight gradients are a third of its work."""
    frozen = sum(macs.get(name, 0.0) * float(mask.float().mean()) for name, mask in masks.items())
    return frozen / max(sum(macs.values()), 1.0) / 3


def _most(masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Nine tenths of the neurons of every layer: about the most that a rule for neurons freezes."""
    return {
        name: torch.arange(len(mask), device=mask.device) < int(0.9 * len(mask))
        for name, mask in masks.items()
    }


def _loss_of_time(
    update: SelectiveUpdate, inputs: Inputs, masks: Mapping[str, Tensor], repeats: int
) -> str:
    """The two times, if a step with these masks is not faster; else an empty text."""
    with trial(update, masks):
        if update.optimizers:
            step = time_step(update, inputs, None, _loss, repeats).step
        else:
            step = time_backward(update, inputs, None, _loss, repeats)
    if step.ratio <= FASTER:
        return ""
    share = sum(int(m.sum()) for m in masks.values()) / sum(len(m) for m in masks.values())
    return (
        f"a step on the probe takes {step.sparse_ms:.3g} ms with {share:.0%} of the neurons frozen and "
        f"{step.dense_ms:.3g} ms without: nothing is frozen"
    )


def _loss(outputs: object, _targets: object) -> Tensor:
    # Any scalar of all outputs has a backward pass of the same cost.
    parts = [t.float().square().mean() for t in tensors_of(outputs) if t.is_floating_point()]
    return sum(parts[1:], start=parts[0])
