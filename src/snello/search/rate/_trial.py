"""Records of trials, and of the result of a search."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor, nn

from snello.codec import CodecSettings, quantised
from snello.wrappers import copied

Method = Literal["one qp", "per tensor"]


@dataclass(frozen=True)
class RateTrial:
    """One evaluated setting of the codec.

    Attributes:
        method: how the quantisation parameters were chosen.
        folded: true if the BatchNorms were folded first.
        settings: the codec settings.
        bytes: size of the NNC bitstream.
        value: value of the decoded model, from `evaluate`.
        passed: true if the value is within the bound.
    """

    method: Method
    folded: bool
    settings: CodecSettings = field(repr=False)
    bytes: int
    value: float
    passed: bool


@dataclass(frozen=True, eq=False)
class RateSearch:
    """The smallest bitstream found whose decoded model is within the bound.

    Attributes:
        model: the model to code: a copy, with its BatchNorms folded and its biases corrected if
            that gave the smallest stream. Its weights are not quantised yet.
        settings: the settings to code it with.
        bytes: size of the NNC stream of `model` with `settings`; the `.snello` container adds
            its manifest.
        before: value of the original model, from `evaluate`.
        after: value of the decoded model.
        bound: the worst value allowed.
        method: how the quantisation parameters were chosen.
        folded: true if the BatchNorms are folded.
        one_qp: the best trial with one quantisation parameter for all weights; None if none passed.
        per_tensor: the best trial with one per tensor; None if none passed, or none was smaller
            than `one_qp`.
        trail: all trials, in order.
        evaluations: number of calls of `evaluate`, including the one for the original model.
        probes: number of forward passes over the calibration inputs to measure costs.
    """

    model: nn.Module = field(repr=False)
    settings: CodecSettings = field(repr=False)
    bytes: int
    before: float
    after: float
    bound: float
    method: Method
    folded: bool
    one_qp: RateTrial | None = field(repr=False)
    per_tensor: RateTrial | None = field(repr=False)
    trail: tuple[RateTrial, ...] = field(repr=False)
    evaluations: int
    probes: int

    def decoded(self) -> nn.Module:
        """A copy of `model` with decoded weights, as it was evaluated."""
        return with_tensors(self.model, quantised(coded_tensors(self.model), self.settings))


def coded_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers to code in the NNC bitstream: floating-point and not empty."""
    return {
        name: value.detach()
        for name, value in model.state_dict().items()
        if isinstance(value, Tensor) and value.is_floating_point() and value.numel()
    }


def with_tensors(model: nn.Module, tensors: dict[str, Tensor]) -> nn.Module:
    """A copy of the model with other values in some of its tensors."""
    twin = copied(model)
    fill(twin, tensors)
    return twin


def fill(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Copy values into a model, in place."""
    # The decoder returns a scalar with shape (1,).
    own = model.state_dict()
    for name, value in tensors.items():
        own[name].copy_(value.reshape(own[name].shape))


def passes(value: float, bound: float, higher_is_better: bool) -> bool:
    """Return true if a value is within the bound; NaN never is."""
    return value >= bound if higher_is_better else value <= bound


Evaluate = Callable[[nn.Module], float]
"""Loss or accuracy of a model."""
