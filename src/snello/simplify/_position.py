"""Constants that depend on the position: what zero padding makes of a constant, up to a pointwise convolution.

A convolution that pads with zeros makes of a constant one value inside and other values at the border: which one
depends on how many taps of its kernel hang over on each side, and on nothing else. Normalisations and activations
map those few values one by one, and a pointwise convolution adds them up. So it can hold the sums in a small table,
one entry for each of its neurons and each way to hang over, at every resolution; nobody computes the channels any
more. In MobileNets these are the depthwise filters whose input is dead.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from snello.graph import known_shape
from snello.neurons import padding_of

from ._draft import Draft
from ._plan import Overhang
from ._rule import Elementwise, PerChannel, Rule
from ._signal import Layout, Signal
from ._weighted import Affine, Weighted, pads_with_zeros


@dataclass(frozen=True, eq=False)
class Chain:
    """A convolution that pads, elementwise operations, and the pointwise convolution that alone reads them.

    Attributes:
        source, steps, reader: their rules, in order.
        channels: boolean, shape (C,): the channels that depend on the position alone.
        values: float64, shape (ways to hang over, C): what the reader receives in those channels; else 0.
    """

    source: Weighted
    steps: tuple[Rule, ...]
    reader: Weighted
    channels: Tensor
    values: Tensor

    def saves_bytes(self, neurons: int, channels: int) -> bool:
        """Whether a table is smaller than all that it replaces.

        Args:
            neurons: of the reader, that are computed.
            channels: how many of :attr:`channels` those read.
        """
        norms = sum(4 for step in self.steps if isinstance(step, Affine))
        return channels * (self.taps + norms + neurons) > neurons * len(self.values)

    @property
    def taps(self) -> int:
        """Weights of one neuron of the source."""
        return self.source.taps[0, 0].numel()

    def takes(self, read: Tensor) -> Tensor:
        """Which of the channels that the reader would read it need not."""
        return read & self.channels

    def settle(self, rules: dict[fx.Node, Rule], useful: Mapping[fx.Node, Tensor], taken: Tensor) -> None:
        """Nothing else is read instead."""

    def received(self, layout: Layout) -> Layout:
        """What the reader receives, without the values that absent channels would have at no position."""
        return Layout(layout.order, layout.fill.masked_fill(self.channels, 0))

    def emit(self, draft: Draft, layouts: Mapping[fx.Node, Layout]) -> None:
        """Give the reader its table, for the channels that it does not receive."""
        received, produced = layouts[self.reader.operands[0]], layouts[self.reader.node]
        absent = self.channels & ~received.present & self.reader.connected[0].any(0)
        if not absent.any() or not len(produced.order):
            return
        columns = absent.nonzero().flatten()
        weight = self.reader.taps[0, :, :, 0][produced.order][:, columns].double()
        name, plan = self.reader.name, draft.layers[self.reader.name]
        ways = len(self.values)
        draft.layers[name] = replace(plan, table=ways, folded=plan.folded + len(columns))
        draft.values[f"{name}.table"] = weight @ self.values[:, columns].T
        draft.overhang(self.source.operands[0], self.reader.node, overhang_of(self.source.module))


def chains(rules: Mapping[fx.Node, Rule], signals: Mapping[fx.Node, Signal]) -> dict[fx.Node, Chain]:
    """Pointwise convolution -> the chain that leads to it, where some channel depends on the position alone."""
    found = {}
    for node, rule in rules.items():
        if isinstance(rule, Weighted) and rule.is_pointwise and (chain := _chain(rule, rules, signals)):
            found[node] = chain
    return found


def _chain(
    reader: Weighted, rules: Mapping[fx.Node, Rule], signals: Mapping[fx.Node, Signal]
) -> Chain | None:
    steps: list[Rule] = []
    (node,) = reader.operands
    while len(node.users) == 1 and (step := rules.get(node)) is not None and _is_step(step):
        steps.insert(0, step)
        (node,) = step.operands
    source = rules.get(node)
    if len(node.users) != 1 or not isinstance(source, Weighted) or not _is_source(source):
        return None
    signal = signals.get(source.operands[0])
    if signal is None:
        return None
    groups, _, fan_in, _ = source.taps.shape
    fed = (source.connected & ~signal.constant.reshape(groups, 1, fan_in)).any(2).flatten()
    values = _values(source, signal)
    for step in steps:
        values = _mapped(step, values)
    channels = ~fed & ~signals[node].constant & values.isfinite().all(0)
    if not channels.any():
        return None
    return Chain(source, tuple(steps), reader, channels, torch.where(channels, values, 0))


def _is_step(rule: Rule) -> bool:
    """Whether each element of the output depends on the same element of one operand, and on nothing else."""
    if isinstance(rule, PerChannel):
        return rule.pointwise
    alone = isinstance(rule, Elementwise) and not (rule.unknown or rule.parameters or rule.shared)
    return alone and len(rule.operands) == 1 and known_shape(rule.node) == known_shape(rule.operands[0])


def _is_source(rule: Weighted) -> bool:
    conv = rule.module
    if isinstance(conv, _ConvTransposeNd) or not isinstance(conv, _ConvNd) or rule.border is not None:
        return False
    # More padding than kernel: some windows would see nothing at all.
    return pads_with_zeros(conv) and overhang_of(conv).is_partial


def overhang_of(conv: nn.Module) -> Overhang:
    """How a convolution's kernel can hang over the border. The record's names are the plan's to give."""
    assert isinstance(conv, _ConvNd)
    before, after = padding_of(conv)
    return Overhang(
        name="", operand="", reader="", kernel=tuple(conv.kernel_size), stride=tuple(conv.stride),
        dilation=tuple(conv.dilation), before=before, after=after,
    )  # fmt: skip


def _values(source: Weighted, signal: Signal) -> Tensor:
    """What the source makes of constants: float64, shape (ways to hang over, outputs).

    Ways are numbered as :class:`snello.simplify._lean_position.Overhangs` numbers them.
    """
    geometry = overhang_of(source.module)
    inside = [_taps_inside(*axis) for axis in zip(geometry.kernel, *geometry.cut, strict=True)]
    ways = [
        torch.stack(torch.meshgrid(*taps, indexing="ij")).all(0).flatten()
        for taps in itertools.product(*inside)
    ]
    return torch.stack(ways).double() @ source.contribution(signal.value).T + source.bias


def _taps_inside(kernel: int, before: int, after: int) -> list[Tensor]:
    """For each number of taps cut off before and after: boolean, shape (kernel,)."""
    taps = torch.arange(kernel)
    return [(taps >= i) & (taps < kernel - j) for i in range(before + 1) for j in range(after + 1)]


def _mapped(step: Rule, values: Tensor) -> Tensor:
    if isinstance(step, PerChannel):
        return values if step.function is None else step.function(values)
    assert isinstance(step, Elementwise)
    return step.function([values])
