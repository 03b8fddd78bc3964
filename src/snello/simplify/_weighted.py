"""The rules of layers that have neurons of their own: Linear, every convolution, Embedding; and the norms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import parametrize

from ._draft import Draft
from ._plan import LayerPlan
from ._primitives import FOLDED
from ._rule import PerChannel, Rule, Wanted
from ._signal import Layout, Signal

_POINTWISE = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True, eq=False)
class Producer(Rule):
    """A rule whose operation decides which channels exist."""

    name: str

    def produced(self, signal: Signal, useful: Tensor, kept_alive: Tensor | None) -> Layout:
        """Useful channels that are not constant; or those that must be kept for the sake of others."""
        order = kept_alive if kept_alive is not None else (useful & ~signal.constant).nonzero().flatten()
        return Layout(order, signal.value.index_fill(0, order, 0))

    def arrange(
        self, signal: Signal, useful: Tensor, *received: Layout, kept_alive: Tensor | None = None
    ) -> Wanted:
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Weighted(Producer):
    """Linear, convolutions and transposed convolutions, grouped or not.

    A convolution that was simplified before may have a second operand: the gate that it reads, as it is.

    Attributes:
        module: the layer.
    """

    module: nn.Module

    @cached_property
    def groups(self) -> int:
        """1 for Linear."""
        return self.module.groups if isinstance(self.module, _ConvNd) else 1

    @cached_property
    def taps(self) -> Tensor:
        """The weight by group: shape (groups, out per group, in per group, kernel positions), on the CPU."""
        weight: Tensor = self.module.weight.detach().cpu()  # type: ignore[union-attr, operator, assignment]
        if isinstance(self.module, _ConvTransposeNd):
            by_input = weight.reshape(self.groups, -1, weight.shape[1], *weight.shape[2:])
            return by_input.transpose(1, 2).flatten(3) if weight.dim() > 2 else by_input.transpose(1, 2)
        return weight.reshape(self.groups, len(weight) // self.groups, weight.shape[1], -1)

    @cached_property
    def connected(self) -> Tensor:
        """Whether any tap joins an output to an input: shape (groups, out per group, in per group)."""
        return (self.taps != 0).any(3)

    @property
    def bias(self) -> Tensor:
        """In float64, zeros where the layer has none: shape (out,)."""
        bias = self.module.bias
        if isinstance(bias, Tensor):
            return bias.detach().cpu().double()
        return torch.zeros(self.taps.shape[0] * self.taps.shape[1], dtype=torch.float64)

    @cached_property
    def folded(self) -> dict[str, Tensor]:
        """What a layer that was simplified before adds besides, by the name of its buffer: float64, shape (out, *)."""
        axis = 1 if isinstance(self.module, _ConvTransposeNd) else 0
        buffers = {name: getattr(self.module, name, None) for name in FOLDED}
        return {
            name: buffer.detach().cpu().double().movedim(axis, 0).flatten(1)
            for name, buffer in buffers.items()
            if isinstance(buffer, Tensor)
        }

    def _columns(self, name: str) -> int:
        return self.folded[name].shape[1] if name in self.folded else 0

    @property
    def is_pointwise(self) -> bool:
        """Whether it is a convolution that makes of each position the same position alone, of every channel."""
        conv = self.module
        if type(conv) not in _POINTWISE or not isinstance(conv, _ConvNd) or conv.groups > 1:
            return False
        return set(conv.kernel_size) == {1} == set(conv.stride) and not any(
            conv._reversed_padding_repeated_twice
        )

    @property
    def depends_on_position(self) -> bool:
        """Whether a constant input other than zero may give another value at another position.

        Zero padding cuts part of the kernel off at the border; a transposed convolution reaches each
        position through another subset of its kernel.
        """
        return isinstance(self.module, _ConvTransposeNd) or pads_with_zeros(self.module)

    def forward(self, *signals: Signal) -> Signal:
        signal = signals[0]
        groups, _, fan_in, _ = self.taps.shape
        varying = ~signal.constant
        if self.depends_on_position:
            varying = varying | (signal.value != 0)
        constant = ~(self.connected & varying.reshape(groups, 1, fan_in)).any(2).flatten()
        for folded in self.folded.values():
            constant &= (folded == 0).all(1)
        return Signal.of(constant, self.bias + self.contribution(signal.value.masked_fill(varying, 0)).sum(1))

    def contribution(self, value: Tensor) -> Tensor:
        """What constant inputs add through each kernel position: float64, shape (out, positions)."""
        groups, _, fan_in, _ = self.taps.shape
        value = value.reshape(groups, fan_in)
        if groups == 1:  # only the columns that matter: a layer can be large
            columns = value[0].nonzero().flatten()
            taps = self.taps[:, :, columns].double()
            return torch.einsum("goik,gi->gok", taps, value[:, columns]).flatten(0, 1)
        return torch.einsum("goik,gi->gok", self.taps.double(), value).flatten(0, 1)

    def reads(self, useful: Tensor, signal: Signal, *signals: Signal) -> list[Tensor]:
        # A constant neuron is not computed, so that it reads nothing.
        groups, fan_out = self.taps.shape[:2]
        needed = (useful & ~signal.constant).reshape(groups, fan_out, 1)
        gates = [needed.any().expand(len(gate.constant)) for gate in signals[1:]]
        return [(self.connected & needed).any(1).flatten(), *gates]

    def arrange(
        self, signal: Signal, useful: Tensor, *received: Layout, kept_alive: Tensor | None = None
    ) -> Wanted:
        layout, *gates = received
        produced = self.produced(signal, useful, kept_alive)
        if self.groups > 1:
            return self._arrange_groups(layout, produced)
        if len(produced.order) and not len(layout.order):
            layout = layout.arranged(torch.zeros(1, dtype=torch.long))  # no layer can read nothing at all
        # A gate's channels are where they were.
        whole = [Layout.whole(gate.width) if len(produced.order) else gate for gate in gates]
        return [layout, *whole], produced

    def _arrange_groups(self, layout: Layout, produced: Layout) -> Wanted:
        """Whole groups vanish; the inputs of those that stay follow each other, group by group."""
        groups, fan_out, fan_in, _ = self.taps.shape
        outputs = produced.present.reshape(groups, fan_out)
        present = layout.present.reshape(groups, fan_in)
        starving = outputs.any(1) & ~present.any(1)
        needed = torch.zeros_like(present)
        # All inputs constant, yet the output is not: it depends on the position, and needs its constants.
        needed[starving] = layout.fill.reshape(groups, fan_in)[starving] != 0
        needed[starving & ~needed.any(1), 0] = True
        layout = layout.extended(needed.flatten())
        group = layout.order // fan_in
        inputs = layout.order[outputs.any(1)[group]]
        if not _even(inputs // fan_in, produced.order // fan_out):
            return self._uneven(layout, produced)
        # The groups follow each other in the order in which their first inputs arrive.
        first = torch.full((groups,), len(group)).scatter_reduce(0, group, torch.arange(len(group)), "amin")
        inputs = inputs[torch.argsort(first[inputs // fan_in], stable=True)]
        by_group = torch.argsort(first[produced.order // fan_out], stable=True)
        return [layout.arranged(inputs)], Layout(produced.order[by_group], produced.fill)

    def _uneven(self, layout: Layout, produced: Layout) -> Wanted:
        """Groups of different sizes: a ragged convolution takes what there is, in any order."""
        if not isinstance(self.module, _ConvTransposeNd):
            return [layout], produced
        groups, fan_out, fan_in, _ = self.taps.shape
        alive = torch.zeros(groups, dtype=torch.bool).index_fill(0, produced.order // fan_out, True)
        inputs, outputs = (alive.repeat_interleave(n).nonzero().flatten() for n in (fan_in, fan_out))
        return [layout.arranged(inputs)], Layout(outputs, produced.fill.index_fill(0, outputs, 0))

    def emit(self, draft: Draft, received: Sequence[Layout], wanted: list[Layout], produced: Layout) -> None:
        super().emit(draft, received, wanted, produced)
        layout = wanted[0]
        constants = self.contribution(layout.fill)[produced.order]
        border = self.depends_on_position and bool((constants != 0).any())
        if "border" in self.folded:
            border, constants = True, constants + self.folded["border"][produced.order]
        bias = self.bias[produced.order]
        if not border:
            bias = bias + constants.sum(1)
        has_bias = isinstance(self.module.bias, Tensor) or bool((bias != 0).any())
        draft.layers[self.name] = LayerPlan(
            outputs=produced.width, inputs=layout.width,
            kept_outputs=tuple(produced.order.tolist()), kept_inputs=tuple(layout.order.tolist()),
            groups=self.groups, bias=has_bias, border=border, folded=int((layout.fill != 0).sum()),
            table=self._columns("table"), gated=self._columns("gated"),
        )  # fmt: skip
        if has_bias:
            draft.values[f"{self.name}.bias"] = bias
        if border:
            assert isinstance(self.module, _ConvNd)
            one = (1, len(bias)) if isinstance(self.module, _ConvTransposeNd) else (len(bias), 1)
            draft.values[f"{self.name}.border"] = constants.reshape(*one, *self.module.kernel_size)


@dataclass(frozen=True, eq=False)
class EmbeddingColumns(Producer):
    """An embedding: its neurons are the columns of its table; equal entries make one a constant."""

    module: nn.Embedding

    def forward(self, *signals: Signal) -> Signal:
        table = self.module.weight.detach().cpu().double()
        return Signal.of((table == table[:1]).all(0), table[0])

    def reads(self, useful: Tensor, signal: Signal, *signals: Signal) -> list[Tensor]:
        return []

    def arrange(
        self, signal: Signal, useful: Tensor, *received: Layout, kept_alive: Tensor | None = None
    ) -> Wanted:
        return [], self.produced(signal, useful, kept_alive)

    def emit(self, draft: Draft, received: Sequence[Layout], wanted: list[Layout], produced: Layout) -> None:
        if not produced.is_natural:
            draft.slice(f"{self.name}.weight", 1, produced.order)


@dataclass(frozen=True, eq=False)
class Affine(PerChannel):
    """A module with one entry per channel: BatchNorm in evaluation mode, PReLU.

    Attributes:
        name: of the module.
        scale: float64, shape (C,): a zero makes the output constant. None where no scale does.
    """

    name: str = ""
    scale: Tensor | None = None

    def forward(self, *signals: Signal) -> Signal:
        out = super().forward(*signals)
        if self.scale is None:
            return out
        assert self.function is not None
        blind = self.scale == 0
        constant = signals[0].constant | blind
        return Signal.of(constant, self.function(signals[0].value.masked_fill(blind, 0)))

    def reads(self, useful: Tensor, signal: Signal, *signals: Signal) -> list[Tensor]:
        return [useful if self.scale is None else useful & (self.scale != 0)]

    def emit(self, draft: Draft, received: Sequence[Layout], wanted: list[Layout], produced: Layout) -> None:
        super().emit(draft, received, wanted, produced)
        if not produced.is_natural:
            draft.norms[self.name] = tuple(produced.order.tolist())


def _even(*group_of: Tensor) -> bool:
    """Whether every group that occurs occurs equally often, in each list."""
    return all(len(set(torch.unique(g, return_counts=True)[1].tolist())) <= 1 for g in group_of)


def is_plain(module: nn.Module) -> bool:
    """Whether all weights in a module are plain parameters: no parametrisation, no mask of torch.nn.utils.prune."""
    return not any(parametrize.is_parametrized(m) or _is_computed(m) for m in module.modules())


def _is_computed(module: nn.Module) -> bool:
    """Whether a weight or bias is a tensor that is made of parameters by other names."""
    names = ("weight", "bias", "in_proj_weight", "in_proj_bias")
    return any(isinstance(getattr(module, n, None), Tensor) and n not in module._parameters for n in names)


def pads_with_zeros(module: nn.Module) -> bool:
    """Whether it is a convolution that puts zeros beside what it reads."""
    if not isinstance(module, _ConvNd) or module.padding_mode != "zeros":
        return False
    return module.padding != "valid" if isinstance(module.padding, str) else any(module.padding)


def affine_of(module: nn.Module) -> tuple[Tensor, Tensor]:
    """Scale and shift of a BatchNorm in evaluation mode, in float64 on the CPU: each of shape (C,)."""
    mean, var = (getattr(module, f"running_{x}").detach().cpu().double() for x in ("mean", "var"))
    weight, bias = module.weight, module.bias
    scale = weight.detach().cpu().double() if isinstance(weight, Tensor) else torch.ones_like(mean)
    shift = bias.detach().cpu().double() if isinstance(bias, Tensor) else torch.zeros_like(mean)
    scale = scale / torch.sqrt(var + module.eps)  # type: ignore[operator, arg-type]
    return scale, shift - mean * scale
