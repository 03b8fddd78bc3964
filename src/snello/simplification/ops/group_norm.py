"""GroupNorm, from which whole groups can be removed.

Source: Wu and He, Group Normalization, ECCV 2018.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from snello.simplification.ir.channels import Layout, Signal
from snello.simplification.ir.edits import SetNumber
from snello.simplification.ir.plan import Slice

from .call import Call, sizes
from .norms import AllChannels, parameter_names
from .operation import Edit, Lowered, Operation, Placement, Wanted
from .registry import rule_for


@dataclass(frozen=True, eq=False)
class GroupNorm(Operation):
    """Normalisation over groups of channels: the channels of a group are kept or removed together.

    Attributes:
        groups: number of groups.
        scale, shift: float64, shape (C,).
        eps: constant added to the variance.
        norm: qualified name of the module; None for the function.
        parameters: qualified names of the function's parameters with one entry per channel.
    """

    groups: int
    scale: Tensor
    shift: Tensor
    eps: float
    norm: str | None = None
    parameters: tuple[str, ...] = ()

    def _groups(self, channels: Tensor) -> Tensor:
        return channels.reshape(self.groups, -1)

    def _whole(self, channels: Tensor) -> Tensor:
        """True for all channels of the groups of which any channel is in the mask."""
        return self._groups(channels).any(1).repeat_interleave(len(channels) // self.groups)

    def propagate(self, *signals: Signal) -> Signal:
        (signal,) = signals
        value = self._groups(signal.value)
        variance = value.var(1, unbiased=False, keepdim=True)
        normalised = (value - value.mean(1, keepdim=True)) / torch.sqrt(variance + self.eps)
        fixed = ~self._whole(~signal.constant)
        blind = self.scale == 0
        found = normalised.flatten().masked_fill(blind, 0) * self.scale + self.shift
        return Signal.of(fixed | blind, found)

    def live_inputs(self, useful: Tensor, signal: Signal, *signals: Signal) -> list[Tensor]:
        return [self._whole(useful & ~signal.constant)]

    def sources(self, channels: Tensor) -> list[Tensor]:
        return [self._whole(channels)]

    def arrange(
        self, signal: Signal, useful: Tensor, *received: Layout, forced: Tensor | None = None
    ) -> Wanted:
        (layout,) = received
        known = self.propagate(layout.absence)
        # In the original order, because the norm takes consecutive channels as a group.
        order = self._whole(layout.present | (useful & ~known.constant)).nonzero().flatten()
        return [layout.arranged(order)], Layout(order, known.value.index_fill(0, order, 0))

    def lower(self, placement: Placement) -> Lowered:
        produced, edits = placement.produced, self.adapters(placement)
        if produced.is_natural or produced.is_empty:
            return Lowered(edits=edits)
        kept = tuple(produced.order.tolist())
        if self.norm is not None:
            return Lowered(norms={self.norm: kept}, edits=edits)
        count = len(kept) * self.groups // produced.width
        return Lowered(
            parameters={name: (Slice(0, kept),) for name in self.parameters},
            edits=(*edits, Edit(SetNumber(self.node.name, 0, count))),
        )


@rule_for(nn.GroupNorm)
def group_norm(call: Call) -> Operation | None:
    """`nn.GroupNorm`."""
    operand, module = call.operand(1), call.module
    assert isinstance(module, nn.GroupNorm)
    if operand is None:
        return None
    if module.num_groups == 1:
        norm = call.name if module.affine else None
        return AllChannels(call.node, (operand,), (1,), 1, norm)
    scale, shift = _affine((module.weight, module.bias), module.num_channels)
    return GroupNorm(
        call.node, (operand,), (1,), 1, module.num_groups, scale, shift, module.eps, call.name
    )


@rule_for(F.group_norm)
def functional_group_norm(call: Call) -> Operation | None:
    """`F.group_norm` with a literal number of groups and parameters that only it reads."""
    operand, groups = call.known_operand(1), call.node.args[1:2]
    if operand is None or not groups or type(groups[0]) is not int:
        return None
    nodes = (call.argument(2, "weight"), call.argument(3, "bias"))
    names = parameter_names(call, nodes)
    own = (call.node, (operand,), (1,), 1)
    if groups[0] == 1:
        return AllChannels(*own, parameters=names or (), ordered=names is None)
    if names is None:
        return None
    eps = call.argument(4, "eps", 1e-5)
    scale, shift = _affine([_tensor(call, node) for node in nodes], sizes(operand)[1])
    return GroupNorm(*own, groups[0], scale, shift, float(eps), parameters=names)


def _tensor(call: Call, node: object) -> Tensor | None:
    """The value of a parameter of which a node is, possibly, a view; None for other arguments."""
    while isinstance(node, fx.Node) and node.op != "get_attr":
        (node,) = node.all_input_nodes
    if not isinstance(node, fx.Node):
        return None
    owner, _, attribute = str(node.target).rpartition(".")
    tensor: Tensor = getattr(call.graph.module.get_submodule(owner), attribute)
    return tensor


def _affine(given: Sequence[Tensor | None], channels: int) -> tuple[Tensor, Tensor]:
    weight, bias = (None if t is None else t.detach().cpu().double() for t in given)
    ones = torch.ones(channels, dtype=torch.float64)
    return ones if weight is None else weight, 0 * ones if bias is None else bias
