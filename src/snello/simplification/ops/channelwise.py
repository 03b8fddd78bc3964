"""Operations that map each channel separately: pools, padding of positions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from snello.simplification.ir.channels import Layout, Signal

from .call import Call
from .operation import Operation, Wanted, join
from .registry import rule_for


@dataclass(frozen=True, eq=False)
class PerChannel(Operation):
    """An operation of one operand that computes each channel from the same channel alone.

    Attributes:
        function: maps constants, float64, shape (C,); None for the identity.
        only: the one value for which a constant channel stays constant: zero padding changes every
            other value at the border. None if any constant stays constant.
        pointwise: whether each position of the output depends on the same position alone. Then the
            function also maps values of shape (..., C).
    """

    function: Callable[[Tensor], Tensor] | None = None
    only: float | None = None
    pointwise: bool = False

    @classmethod
    def of(
        cls, call: Call, operand: fx.Node, axis: int | None = None, **attributes: Any
    ) -> PerChannel:
        """Make the operation of a call.

        Args:
            call: the call.
            operand: the tensor that is read. Its channels are on their known axis, else on axis 1.
            axis: axis of the channels in the output; None for that of the operand.
            attributes: attributes of the class.
        """
        own = call.axes.get(operand, 1)
        return cls(call.node, (operand,), (own,), own if axis is None else axis, **attributes)

    @property
    def channelwise(self) -> tuple[fx.Node, ...]:
        return self.operands

    @property
    def is_step(self) -> bool:
        return self.pointwise

    def map_values(self, values: Tensor) -> Tensor:
        return values if self.function is None else self.function(values)

    def propagate(self, *signals: Signal) -> Signal:
        (signal,) = signals
        constant = signal.constant
        if self.only is not None:
            constant = constant & (signal.value == self.only)
        return Signal.of(constant, self.map_values(signal.value))

    def live_inputs(self, useful: Tensor, signal: Signal, *signals: Signal) -> list[Tensor]:
        return [useful]

    def arrange(
        self, signal: Signal, useful: Tensor, *received: Layout, forced: Tensor | None = None
    ) -> Wanted:
        return join(self, useful, received)


_POOLS = (
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool1d,
    nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.Upsample,
    nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d, nn.ReplicationPad1d, nn.ReplicationPad2d,
    nn.ReplicationPad3d,
)  # fmt: skip
_POOL_FUNCTIONS = (
    F.max_pool1d, F.max_pool2d, F.max_pool3d, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d,
    F.adaptive_avg_pool3d, F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d,
    F.interpolate, torch.max_pool1d, torch.max_pool2d, torch.max_pool3d, torch.adaptive_avg_pool1d,
)  # fmt: skip
_AVERAGES = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)


@rule_for(*_POOLS, *_POOL_FUNCTIONS)
def pool(call: Call) -> Operation | None:
    """Pooling and padding that map a constant to the same constant."""
    operand = call.known_operand(1)
    return None if operand is None else PerChannel.of(call, operand)


@rule_for(*_AVERAGES)
def average_pool(call: Call) -> Operation | None:
    """Average pooling by a module."""
    assert call.module is not None
    return _average(call, call.module)


@rule_for(F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)
def functional_average_pool(call: Call) -> Operation | None:
    """Average pooling by a function, analysed as the module with the same arguments."""
    functions = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)
    kind: Any = _AVERAGES[functions.index(call.node.target)]  # type: ignore[arg-type]
    # The rule does not depend on the size of the windows, which may be computed: 1 replaces it.
    options = {
        name: value
        for name, value in call.node.kwargs.items()
        if name not in ("input", "kernel_size", "stride")
    }
    given = [1 if position < 2 else value for position, value in enumerate(call.node.args[1:])]
    if any(isinstance(value, fx.Node) for value in (*given, *options.values())):
        return None
    return _average(call, kind(*(given or [1]), **options))


def _average(call: Call, module: nn.Module) -> Operation | None:
    operand = call.known_operand(1)
    if operand is None:
        return None
    padding = module.padding if isinstance(module.padding, tuple) else (module.padding,)
    counted = any(padding) and bool(module.count_include_pad)
    # A divisor_override changes constants, and by another factor in windows that are cut off.
    odd = counted or getattr(module, "divisor_override", None) is not None
    return PerChannel.of(call, operand, only=0.0 if odd else None)


@rule_for(nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d)
def constant_pad(call: Call) -> Operation | None:
    """Padding of positions with one value, ZeroPad included."""
    operand = call.known_operand(1)
    assert call.module is not None
    return None if operand is None else PerChannel.of(call, operand, only=float(call.module.value))  # type: ignore[arg-type]


@rule_for("to", "float", "double", "half", "bfloat16", "type", "type_as")
def cast(call: Call) -> Operation | None:
    """Another dtype, which may round every constant but zero; or another memory format."""
    moving = call.moving_operand()
    if moving is None or call.shape is None:
        return None
    rounds = len(call.node.args) > 1 or set(call.node.kwargs) != {"memory_format"}
    return PerChannel.of(call, moving[0], only=0.0 if rounds else None)
