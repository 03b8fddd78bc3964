"""What is tried, and what came of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor, nn

from snello.codec import CodecSettings, quantised
from snello.wrappers import copied

Method = Literal["one qp", "per tensor"]


@dataclass(frozen=True)
class Trial:
    """One setting that was tried.

    Attributes:
        method: how the quantisation parameters were chosen.
        folded: whether the BatchNorms were folded first.
        settings: what it was.
        bytes: of the NNC stream.
        value: what ``evaluate`` said of the decoded model.
        passed: whether that was within the bound.
    """

    method: Method
    folded: bool
    settings: CodecSettings = field(repr=False)
    bytes: int
    value: float
    passed: bool


@dataclass(frozen=True, eq=False)
class RateSearch:
    """The smallest bitstream that was found to keep the bound.

    Attributes:
        model: what to code: a copy of the model, with its BatchNorms folded and its biases
            corrected where that won. Its weights are not quantised yet.
        settings: how to code it.
        bytes: of the NNC stream of ``model`` under ``settings``; the ``.snello`` container adds its
        manifest. before: what ``evaluate`` said of the model.
        after: what it said of the decoded model.
        bound: the worst value allowed.
        method: how the quantisation parameters were chosen.
        folded: whether the BatchNorms were folded.
        one_qp: the best trial with one quantisation parameter for all weights; None if none passed.
        per_tensor: the best trial with one per tensor; None if none passed, or none was smaller
        than ``one_qp``. trail: everything that was evaluated, in order.
        evaluations: calls of ``evaluate``, the one of the model itself included.
        probes: runs of the calibration inputs, to find out what each tensor's precision is worth.
    """

    model: nn.Module = field(repr=False)
    settings: CodecSettings = field(repr=False)
    bytes: int
    before: float
    after: float
    bound: float
    method: Method
    folded: bool
    one_qp: Trial | None = field(repr=False)
    per_tensor: Trial | None = field(repr=False)
    trail: tuple[Trial, ...] = field(repr=False)
    evaluations: int
    probes: int

    def decoded(self) -> nn.Module:
        """A copy of ``model`` with the weights that the decoder will give: the model that was
        evaluated.
        """
        return with_tensors(self.model, quantised(coded_tensors(self.model), self.settings))


def coded_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a model that go into the NNC stream: floating and not empty, parameters and
    buffers.
    """
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
    """Copy values into a model, in place. A tensor of zero dimensions comes from the decoder as one
    of one.
    """
    own = model.state_dict()
    for name, value in tensors.items():
        own[name].copy_(value.reshape(own[name].shape))


def passes(value: float, bound: float, higher_is_better: bool) -> bool:
    """Whether a value keeps the bound. NaN does not keep any."""
    return value >= bound if higher_is_better else value <= bound


Evaluate = Callable[[nn.Module], float]
"""Loss or accuracy of a model."""
