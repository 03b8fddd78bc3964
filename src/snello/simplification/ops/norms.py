"""Norms with one parameter per channel, and PReLU: BatchNorm, InstanceNorm, LayerNorm, RMSNorm."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from snello.simplification.ir.channels import Layout, Signal
from snello.simplification.ir.plan import Slice

from .call import Call, sizes
from .channelwise import PerChannel
from .elementwise import bare_parameter
from .operation import Lowered, Operation, Placement, Wanted
from .registry import rule_for


@dataclass(frozen=True, eq=False)
class Affine(PerChannel):
    """A module with one entry per channel: BatchNorm in evaluation mode, PReLU.

    Attributes:
        name: qualified name of the module.
        scale: float64, shape (C,): a channel with scale 0 has a constant output. None if the output
            depends on the input in every channel.
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
    """BatchNorm in evaluation mode: scale and shift per channel.

    Subclasses may compute more, as long as each element depends on the same element alone.
    """
    operand, module = call.operand(1), call.module
    if operand is None or module is None or module.running_mean is None:
        return None
    scale, shift = affine_of(module)
    own = (call.node, (operand,), (1,), 1)
    if is_plain_batchnorm(module):
        return Affine(
            *own, lambda value: value * scale + shift, pointwise=True, name=call.name, scale=scale
        )
    function = _by_channel(module, sizes(operand))
    if function is None:
        return None
    # With scale zero, the output is constant only if the subclass does not use the input otherwise.
    inputs = torch.randn(
        4, len(scale), dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    outputs = function(100 * inputs)
    blind = (scale == 0) & (outputs == outputs[:1]).all(0)
    return Affine(*own, function, pointwise=True, name=call.name, scale=(~blind).double())


def is_plain_batchnorm(module: nn.Module) -> bool:
    """Return True for a BatchNorm with torch's own forward."""
    return isinstance(module, _BatchNorm) and type(module).forward is _BatchNorm.forward


def _by_channel(module: nn.Module, shape: tuple[int, ...]) -> Callable[[Tensor], Tensor] | None:
    """The function of a subclass of BatchNorm on one value per channel.

    None if an element of its output depends on other elements of the input. To find this out, the
    module is run in float64 on two random inputs that agree in half of their elements: the outputs
    must agree there, too.
    """
    twin = copy.deepcopy(module).double().cpu().eval()
    spatial = (3,) * (len(shape) - 2)
    generator = torch.Generator().manual_seed(0)
    x, other = (
        torch.randn(2, shape[1], *spatial, dtype=torch.float64, generator=generator)
        for _ in range(2)
    )
    kept = torch.rand(x.shape, generator=generator) < 0.5
    with torch.no_grad():
        outputs = [twin(given.clone()) for given in (x, torch.where(kept, x, other))]
    if any(y.shape != x.shape for y in outputs) or not torch.equal(
        outputs[0][kept], outputs[1][kept]
    ):
        return None

    def function(value: Tensor) -> Tensor:
        with torch.no_grad():
            found: Tensor = twin(value.reshape(-1, shape[1], *[1] * len(spatial)).clone())
        return found.reshape(value.shape)

    return function


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
    """Scale and shift of a BatchNorm in evaluation mode: float64 on the CPU, shape (C,) each."""
    mean, var = (getattr(module, f"running_{x}").detach().cpu().double() for x in ("mean", "var"))
    weight, bias = module.weight, module.bias
    scale = weight.detach().cpu().double() if isinstance(weight, Tensor) else torch.ones_like(mean)
    shift = bias.detach().cpu().double() if isinstance(bias, Tensor) else torch.zeros_like(mean)
    scale = scale / torch.sqrt(var + module.eps)  # type: ignore[operator, arg-type]
    return scale, shift - mean * scale


@rule_for(_InstanceNorm)
def instance_norm(call: Call) -> Operation | None:
    """InstanceNorm over the positions of each channel: a constant channel becomes its shift.

    Source: Ulyanov et al., Instance Normalization, arXiv:1607.08022.
    """
    operand, module = call.operand(1), call.module
    if operand is None or not isinstance(module, _InstanceNorm):
        return None
    own = (call.node, (operand,), (1,), 1)
    if module._get_no_batch_dim() + 1 != len(sizes(operand)):  # type: ignore[no-untyped-call]
        return None
    if module.running_mean is not None:  # the same as BatchNorm, in evaluation mode
        scale, shift = affine_of(module)
        return Affine(*own, lambda value: value * scale + shift, name=call.name, scale=scale)
    ones = torch.ones(sizes(operand)[1], dtype=torch.float64)
    weight = module.weight.detach().cpu().double() if module.affine else ones
    shifts = module.bias.detach().cpu().double() if module.affine else 0 * ones
    return Affine(*own, shifts.expand_as, name=call.name, scale=weight)


@dataclass(frozen=True, eq=False)
class AllChannels(Operation):
    """An operation such as LayerNorm that needs all channels of its operand, in any order.

    Attributes:
        norm: qualified name of the module, whose parameters per channel are reordered with the
            channels; None if it has none.
        parameters: qualified names of a functional norm's parameters with one entry per channel.
        ordered: whether the channels must be in the original order.
    """

    norm: str | None = None
    parameters: tuple[str, ...] = ()
    ordered: bool = False

    def propagate(self, *signals: Signal) -> Signal:
        return Signal.live(len(signals[0].constant))

    def live_inputs(self, useful: Tensor, signal: Signal, *signals: Signal) -> list[Tensor]:
        return [torch.ones_like(signals[0].constant)]

    def arrange(
        self, signal: Signal, useful: Tensor, *received: Layout, forced: Tensor | None = None
    ) -> Wanted:
        (layout,) = received
        everything = Layout.whole(layout.width)
        whole = everything if self.ordered else layout.extended(torch.ones_like(useful))
        return [whole], whole

    def lower(self, placement: Placement) -> Lowered:
        produced = placement.produced
        moved = not produced.is_natural
        kept = tuple(produced.order.tolist())
        return Lowered(
            norms={self.norm: kept} if moved and self.norm is not None else {},
            parameters={name: (Slice(0, kept),) for name in self.parameters} if moved else {},
            edits=self.adapters(placement),
        )


@rule_for(nn.LayerNorm, nn.RMSNorm)
def layer_norm(call: Call) -> Operation | None:
    """LayerNorm and RMSNorm over the channels alone."""
    module = call.module
    assert isinstance(module, (nn.LayerNorm, nn.RMSNorm))
    operand = call.known_operand(-1)
    if operand is None or call.shape is None or len(module.normalized_shape) != 1:
        return None
    axis = len(call.shape) - 1
    norm = call.name if module.elementwise_affine else None
    return AllChannels(call.node, (operand,), (axis,), axis, norm)


@rule_for(F.layer_norm, F.rms_norm)
def functional_layer_norm(call: Call) -> Operation | None:
    """`F.layer_norm` and `F.rms_norm` over the channels alone."""
    operand, over = call.known_operand(-1), call.argument(1, "normalized_shape")
    if operand is None or call.shape is None or not isinstance(over, (tuple, list)):
        return None
    if len(over) != 1:
        return None
    bias = call.argument(3, "bias") if call.node.target is F.layer_norm else None
    names = parameter_names(call, (call.argument(2, "weight"), bias))
    axis = len(call.shape) - 1
    return AllChannels(
        call.node, (operand,), (axis,), axis, parameters=names or (), ordered=names is None
    )


def parameter_names(call: Call, nodes: tuple[object, ...]) -> tuple[str, ...] | None:
    """Names of a functional norm's scale and shift; None if another operation reads one, too.

    Args:
        call: the call of the norm.
        nodes: its arguments scale and shift; None for one that is not given.
    """
    given = [node for node in nodes if node is not None]
    found = [bare_parameter(call, node, 0) for node in given if isinstance(node, fx.Node)]
    if len(found) != len(given) or any(parameter is None for parameter in found):
        return None
    return tuple(parameter.name for parameter in found if parameter is not None)
