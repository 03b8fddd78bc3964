"""Layers without a module: `F.linear` and `F.conv2d` with parameters that a module holds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd

from snello.simplification.ir.channels import Layout, Signal
from snello.simplification.ir.edits import SetNumber
from snello.simplification.ir.plan import Slice

from .call import CONVOLUTION_OPTIONS, Call, size_arguments, sizes
from .elementwise import bare_parameter
from .layers import Weighted
from .operation import Edit, Lowered, Placement, Wanted
from .registry import rule_for


@dataclass(frozen=True, eq=False)
class Functional(Weighted):
    """A layer whose parameters are narrowed where they are; its module stands for it here alone.

    Attributes:
        parameters: qualified names of the weight, and of the bias if there is one.
    """

    parameters: tuple[str, ...]

    @property
    def is_pointwise(self) -> bool:
        return False  # no place for a bypass

    def arrange(
        self, signal: Signal, useful: Tensor, *received: Layout, forced: Tensor | None = None
    ) -> Wanted:
        (layout,) = received
        # Constants are folded into the bias, if there is one, and if they are the same everywhere.
        if len(self.parameters) == 1 or self.depends_on_position:
            layout = layout.extended(layout.absent != 0)
        return super().arrange(signal, useful, layout, forced=forced)

    def lower(self, placement: Placement) -> Lowered:
        layout, produced = placement.wanted[0], placement.produced
        rows, columns = (tuple(x.order.tolist()) for x in (produced, layout))
        slices = [(Slice(0, rows), Slice(1, columns)), (Slice(0, rows),)]
        bias = self.bias + self.contribution(layout.absent).sum(1)
        return Lowered(
            parameters=dict(zip(self.parameters, slices, strict=False)),
            values=dict.fromkeys(self.parameters[1:], bias[produced.order]),
            edits=self.adapters(placement),
        )


@dataclass(frozen=True, eq=False)
class Depthwise(Functional):
    """A functional convolution with one filter for each channel."""

    def lower(self, placement: Placement) -> Lowered:
        lowered, kept = super().lower(placement), tuple(placement.produced.order.tolist())
        groups = SetNumber(self.node.name, len(size_arguments(self.node)) - 1, len(kept))
        own = () if placement.produced.is_natural else (Edit(groups),)
        return replace(
            lowered,
            parameters=dict.fromkeys(self.parameters, (Slice(0, kept),)),
            edits=(*lowered.edits, *own),
        )


@rule_for(F.linear)
def functional_linear(call: Call) -> Functional | None:
    """`F.linear` with parameters that nothing else reads."""
    if call.shape is None:
        return None
    return _functional(call, nn.Linear(1, 1, device="meta"), len(call.shape) - 1)


_CONVOLUTIONS: dict[Any, type[_ConvNd]] = {
    F.conv1d: nn.Conv1d, F.conv2d: nn.Conv2d, F.conv3d: nn.Conv3d,
}  # fmt: skip


@rule_for(*_CONVOLUTIONS)
def functional_convolution(call: Call) -> Functional | None:
    """`F.conv1d` to `F.conv3d` of a batch, ungrouped or depthwise, with parameters that nothing
    else reads.
    """
    options: dict[str, Any] = {
        name: call.argument(3 + i, name, default)
        for i, (name, default) in enumerate(CONVOLUTION_OPTIONS)
    }
    weight, operand = call.argument(1, "weight"), call.operand(1)
    shape = sizes(weight) if isinstance(weight, fx.Node) else ()
    if operand is None or len(shape) < 3 or len(shape) != len(call.shape or ()):
        return None
    inputs = sizes(operand)[1]
    options["groups"] = groups = inputs // shape[1]  # the argument may be a computed number
    if groups > 1 and not groups == inputs == shape[0]:
        return None
    kind: Any = _CONVOLUTIONS[call.node.target]
    layer = kind(inputs, shape[0], shape[2:], device="meta", **options)
    return _functional(call, layer, 1, Functional if groups == 1 else Depthwise)


def _functional(
    call: Call, layer: Any, axis: int, operation: type[Functional] = Functional
) -> Functional | None:
    operand = call.operand(axis)
    given = [call.argument(1, "weight"), call.argument(2, "bias")]
    nodes = [node for node in given if node is not None]
    found = [bare_parameter(call, node, 0) if isinstance(node, fx.Node) else None for node in nodes]
    names = [parameter.name for parameter in found if parameter is not None]
    if operand is None or len(names) < len(nodes):
        return None
    layer.weight, layer.bias = (*(_held(call, name) for name in names), None)[:2]
    own = (call.node, (operand,), (axis,), axis)
    return operation(*own, call.node.name, layer, tuple(names))


def _held(call: Call, name: str) -> nn.Parameter:
    owner, _, attribute = name.rpartition(".")
    held: Tensor = getattr(call.graph.module.get_submodule(owner), attribute)
    return nn.Parameter(held.detach(), requires_grad=False)
