"""Modules with one parameter per channel: BatchNorm, PReLU, LayerNorm."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from snello.simplification.ir.channels import Layout, Signal

from .call import Call
from .channelwise import PerChannel
from .operation import Lowered, Operation, Placement, Wanted
from .registry import rule_for


@dataclass(frozen=True, eq=False)
class Affine(PerChannel):
    """A module with one entry per channel: BatchNorm in evaluation mode, PReLU.

    Attributes:
        name: of the module.
        scale: float64, shape (C,): a zero makes the output constant. None where no scale does.
    """

    name: str = ""
    scale: Tensor | None = None

    def propagate(self, *signals: Signal) -> Signal:
        out = super().propagate(*signals)
        if self.scale is None:
            return out
        blind = self.scale == 0
        constant = signals[0].constant | blind
        return Signal.of(constant, self.map_values(signals[0].value.masked_fill(blind, 0)))

    def live_inputs(self, useful: Tensor, signal: Signal, *signals: Signal) -> list[Tensor]:
        return [useful if self.scale is None else useful & (self.scale != 0)]

    def lower(self, placement: Placement) -> Lowered:
        produced = placement.produced
        norms = {} if produced.is_natural else {self.name: tuple(produced.order.tolist())}
        return Lowered(norms=norms, edits=self.adapters(placement))


@rule_for(_BatchNorm)
def batch_norm(call: Call) -> Operation | None:
    """BatchNorm in evaluation mode: scale and shift per channel."""
    operand, module = call.operand(1), call.module
    if operand is None or module is None or module.running_mean is None:
        return None
    scale, shift = affine_of(module)
    return Affine(
        call.node, (operand,), (1,), 1, lambda value: value * scale + shift, pointwise=True,
        name=call.name, scale=scale,
    )  # fmt: skip


@rule_for(nn.PReLU)
def prelu(call: Call) -> Operation | None:
    """PReLU with one slope for all channels, or with one for each."""
    operand, module = call.operand(1), call.module
    if operand is None or module is None:
        return None
    slope = module.weight.detach().cpu().double()  # type: ignore[union-attr, operator]

    def function(value: Tensor) -> Tensor:
        return torch.where(value > 0, value, slope * value)

    own = (call.node, (operand,), (1,), 1, function)
    if len(slope) == 1:
        return PerChannel(*own, pointwise=True)
    return Affine(*own, pointwise=True, name=call.name)


def affine_of(module: nn.Module) -> tuple[Tensor, Tensor]:
    """Return scale and shift of a BatchNorm in evaluation mode, in float64 on the CPU: each of shape (C,)."""
    mean, var = (getattr(module, f"running_{x}").detach().cpu().double() for x in ("mean", "var"))
    weight, bias = module.weight, module.bias
    scale = weight.detach().cpu().double() if isinstance(weight, Tensor) else torch.ones_like(mean)
    shift = bias.detach().cpu().double() if isinstance(bias, Tensor) else torch.zeros_like(mean)
    scale = scale / torch.sqrt(var + module.eps)  # type: ignore[operator, arg-type]
    return scale, shift - mean * scale


@dataclass(frozen=True, eq=False)
class AllChannels(Operation):
    """An operand whose channels meet (LayerNorm): every channel must be there, in any order.

    Attributes:
        norm: qualified name of a module with one parameter per channel, which takes them in any order.
    """

    norm: str | None = None

    def propagate(self, *signals: Signal) -> Signal:
        return Signal.live(len(signals[0].constant))

    def live_inputs(self, useful: Tensor, signal: Signal, *signals: Signal) -> list[Tensor]:
        return [torch.ones_like(signals[0].constant)]

    def arrange(
        self, signal: Signal, useful: Tensor, *received: Layout, forced: Tensor | None = None
    ) -> Wanted:
        (layout,) = received
        whole = layout.extended(torch.ones_like(useful))
        return [whole], whole

    def lower(self, placement: Placement) -> Lowered:
        produced = placement.produced
        moved = self.norm is not None and not produced.is_natural
        norms = {str(self.norm): tuple(produced.order.tolist())} if moved else {}
        return Lowered(norms=norms, edits=self.adapters(placement))


@rule_for(nn.LayerNorm)
def layer_norm(call: Call) -> Operation | None:
    """LayerNorm over the channels alone."""
    module = call.module
    assert isinstance(module, nn.LayerNorm)
    operand = call.known_operand(-1)
    if operand is None or call.shape is None or len(module.normalized_shape) != 1:
        return None
    axis = len(call.shape) - 1
    norm = call.name if module.elementwise_affine else None
    return AllChannels(call.node, (operand,), (axis,), axis, norm)
