"""Constants that depend on the position: what zero padding makes of a constant, up to a pointwise convolution.

A convolution that pads with zeros makes of a constant one value inside and other values at the border: which one
depends on how many taps of its kernel hang over on each side, and on nothing else. Normalisations and activations
map those few values one by one, and a pointwise convolution adds them up. So it can hold the sums in a small table,
one entry for each of its neurons and each way to hang over, at every resolution; nobody computes the channels any
more. In MobileNets these are the depthwise filters whose input is dead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from snello.graph import known_shape
from snello.neurons import padding_of

from ._draft import Draft
from ._lean_position import taps_inside
from ._plan import Overhang
from ._relief import Relief
from ._rule import Elementwise, PerChannel, Rule, signal_of
from ._signal import Layout, Signal
from ._weighted import Affine, Weighted, pads_with_zeros


@dataclass(frozen=True, eq=False)
class Chain(Relief):
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
        norms = sum(4 for step in self.steps if isinstance(step, Affine))
        return channels * (self.taps + norms + neurons) > neurons * len(self.values)

    @property
    def taps(self) -> int:
        """Weights of one neuron of the source."""
        return self.source.taps[0, 0].numel()

    def takes(self, read: Tensor) -> Tensor:
        return read & self.channels

    def received(self, layout: Layout) -> Layout:
        # Without the values that absent channels would have at no position.
        return Layout(layout.order, layout.fill.masked_fill(self.channels, 0))

    def emit(self, draft: Draft, layouts: Mapping[fx.Node, Layout]) -> None:
        # A table for the channels that the reader does not receive.
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
    (operand,) = reader.operands
    path = path_to(operand, rules) if len(operand.users) == 1 else None
    if path is None:
        return None
    channels, values = depending(*path, signals)
    return Chain(*path, reader, channels, values) if channels.any() else None


Path = tuple[Weighted, tuple[Rule, ...]]
"""A convolution that pads, and what follows it."""


def path_to(node: fx.Node, rules: Mapping[fx.Node, Rule]) -> Path | None:
    """The convolution whose outputs reach a node element by element, and nobody but it, if they do."""
    steps: list[Rule] = []
    while (step := rules.get(node)) is not None and is_step(step):
        steps.insert(0, step)
        (node,) = step.operands
        if len(node.users) != 1:
            return None
    return (step, tuple(steps)) if isinstance(step, Weighted) and _is_source(step) else None


def depending(
    source: Weighted, steps: Sequence[Rule], signals: Mapping[fx.Node, Signal]
) -> tuple[Tensor, Tensor]:
    """What depends on the position alone behind a convolution and some steps.

    Returns:
        Which channels do: boolean, shape (C,); and what they are: float64, shape (ways to hang over, C), else 0.
    """
    signal = signal_of(signals, source.operands[0], 1)
    groups, _, fan_in, _ = source.taps.shape
    fed = (source.connected & ~signal.constant.reshape(groups, 1, fan_in)).any(2).flatten()
    values = _values(source, signal)
    for step in steps:
        values = _mapped(step, values)
    channels = ~fed & ~signals[source.node].constant & values.isfinite().all(0)
    return channels, torch.where(channels, values, 0)


def is_step(rule: Rule) -> bool:
    """Whether each element of the output depends on the same element of one operand, and on nothing else."""
    if isinstance(rule, PerChannel):
        return rule.pointwise
    alone = isinstance(rule, Elementwise) and not (rule.unknown or rule.parameters or rule.shared)
    return alone and len(rule.operands) == 1 and known_shape(rule.node) == known_shape(rule.operands[0])


def _is_source(rule: Weighted) -> bool:
    conv = rule.module
    if isinstance(conv, _ConvTransposeNd) or not isinstance(conv, _ConvNd) or "border" in rule.folded:
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
    return taps_inside(geometry).double() @ source.contribution(signal.value).T + source.bias


def _mapped(step: Rule, values: Tensor) -> Tensor:
    if isinstance(step, PerChannel):
        return values if step.function is None else step.function(values)
    assert isinstance(step, Elementwise)
    return step.function([values])
