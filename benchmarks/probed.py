"""Parameters that a masked network could lose, found by running it: no rules, no graph.

Every linear layer, convolution and normalisation is called as usual, in float64, on random inputs; its
outputs are recorded, and so are the gradients of random combinations of the network's outputs.

* A *row* (neuron) can go if its output is one constant, the same for every input and at every position,
  or if the outputs' gradient at it is exactly zero.
* A *column* can go if its input is one constant, or if the gradient at it is exactly zero.
* The scale and shift of a normalised channel can go if what the normalisation gives is such a constant,
  or has no gradient.

Activations that are flat somewhere are replaced by smooth ones of the same value at zero for the probe:
otherwise a neuron that is silent on the probe's inputs would pass for a dead one. Weights that are used
by other operations than these (embeddings, tables of positions, layer scales, products with a bare
parameter) are not counted: a tool may remove more than 100 %.

It shares no code with ``snello.simplification``, nor with ``removable.py``, which proves what it counts
but has a rule for each operation.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

_SMOOTH: dict[str, Callable[..., Tensor]] = {
    "relu": F.silu, "relu6": F.silu, "hardswish": F.silu, "leaky_relu": F.silu, "hardtanh": F.silu,
    "hardsigmoid": torch.sigmoid,
}  # fmt: skip


@dataclass
class _Weighted:
    """Record of the calls of one weight: boolean masks over its rows and columns."""

    weight: Tensor
    transposed: bool
    groups: int
    has_bias: bool
    varying_out: Tensor | None = None
    varying_in: Tensor | None = None
    read_out: Tensor | None = None
    read_in: Tensor | None = None

    def count(self) -> int:
        """Parameters that can go."""
        rows = self._alive(self.varying_out, self.read_out)
        columns = self._alive(self.varying_in, self.read_in)
        own = self.weight.numel() + (len(rows) if self.has_bias else 0)
        taps = self.weight.numel() * self.groups // (len(rows) * len(columns))
        by_group = rows.reshape(self.groups, -1).sum(1) * columns.reshape(self.groups, -1).sum(1)
        return own - int(by_group.sum()) * taps - (int(rows.sum()) if self.has_bias else 0)

    @staticmethod
    def _alive(varying: Tensor | None, read: Tensor | None) -> Tensor:
        assert varying is not None
        return varying & read if read is not None else torch.zeros_like(varying)


@dataclass
class _Norm:
    """Record of the outputs of one normalisation."""

    entries: int
    varying: Tensor | None = None
    read: Tensor | None = None

    def count(self) -> int:
        assert self.varying is not None
        alive = self.varying & self.read if self.read is not None else self.varying & False
        return self.entries * int((~alive).sum())


def _either(known: Tensor | None, found: Tensor) -> Tensor:
    return found if known is None else known | found


class _Watch(torch.autograd.Function):
    """The identity; it hands the gradient to a function."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, note: Callable[[Tensor], None]) -> Tensor:
        ctx.note = note
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        ctx.note(gradient)
        return gradient, None


def _by_channel(x: Tensor, axis: int) -> Tensor:
    return x.movedim(axis, 0).flatten(1)


def _varies(x: Tensor, axis: int) -> Tensor:
    values = _by_channel(x.detach(), axis)
    return ((values - values[:, :1]).abs() > 1e-13 * values.abs().max()).any(1)


@dataclass
class _Probe:
    """Records of the calls of one model."""

    parameters: dict[int, str]
    weighted: dict[int, _Weighted] = field(default_factory=dict)
    norms: dict[int, _Norm] = field(default_factory=dict)

    def call(
        self, function: Callable[..., Tensor], x: Tensor, weight: Tensor, bias: Tensor | None,
        axis: int, groups: int, transposed: bool,
    ) -> Tensor:  # fmt: skip
        """Call a layer with a weight of the model; ``function`` takes the watched input."""
        own = self.weighted.setdefault(
            id(weight),
            _Weighted(weight, transposed, groups, bias is not None and id(bias) in self.parameters),
        )

        def note_input(gradient: Tensor) -> None:
            own.read_in = _either(own.read_in, (_by_channel(gradient, axis) != 0).any(1))

        def note_output(gradient: Tensor) -> None:
            own.read_out = _either(own.read_out, (_by_channel(gradient, axis) != 0).any(1))

        own.varying_in = _either(own.varying_in, _varies(x, axis))
        # An input without a gradient of its own still tells if the layer's weights are read.
        x = x if x.requires_grad else x.detach().requires_grad_(True)
        y = function(_Watch.apply(x, note_input))
        own.varying_out = _either(own.varying_out, _varies(y, axis))
        return _Watch.apply(y, note_output)  # type: ignore[no-any-return]

    def norm(self, y: Tensor, axes: tuple[int, ...], weight: Tensor, bias: Tensor | None) -> Tensor:
        """Watch the result of a normalisation with a scale of the model."""
        own = self.norms.setdefault(id(weight), _Norm(1 + (bias is not None)))

        def entries(t: Tensor) -> Tensor:
            return t.movedim(axes, tuple(range(len(axes)))).flatten(0, len(axes) - 1).flatten(1)

        def note(gradient: Tensor) -> None:
            own.read = _either(own.read, (entries(gradient) != 0).any(1))

        values = entries(y.detach())
        varying = ((values - values[:, :1]).abs() > 1e-13 * values.abs().max()).any(1)
        own.varying = _either(own.varying, varying)
        return _Watch.apply(y, note)  # type: ignore[no-any-return]


@contextlib.contextmanager
def _watched(probe: _Probe, model: nn.Module) -> Iterator[None]:
    """Route the functions of torch that layers call through the probe."""
    known = probe.parameters
    linear = F.linear

    def watched_linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if id(weight) not in known or input.dim() < 2:
            return linear(input, weight, bias)
        run = lambda x: linear(x, weight, bias)  # noqa: E731
        return probe.call(run, input, weight, bias, input.dim() - 1, 1, False)

    def conv(original: Callable[..., Tensor], transposed: bool) -> Callable[..., Tensor]:
        def watched(
            input: Tensor, weight: Tensor, bias: Tensor | None = None, *args: Any, **kwargs: Any
        ) -> Tensor:
            # After stride, padding and dilation; of a transposed one, output_padding.
            groups = args[3] if len(args) > 3 else kwargs.get("groups", 1)
            if id(weight) not in known or input.dim() != weight.dim():
                return original(input, weight, bias, *args, **kwargs)
            run = lambda x: original(x, weight, bias, *args, **kwargs)  # noqa: E731
            return probe.call(run, input, weight, bias, 1, groups, transposed)

        return watched

    def norm(original: Callable[..., Tensor], place: int) -> Callable[..., Tensor]:
        def watched(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            y = original(input, *args, **kwargs)
            weight = args[place] if len(args) > place else kwargs.get("weight")
            bias = args[place + 1] if len(args) > place + 1 else kwargs.get("bias")
            if weight is None or id(weight) not in known:
                return y
            axes = (
                (1,)
                if original.__name__ in ("batch_norm", "group_norm", "instance_norm")
                else tuple(range(y.dim() - weight.dim(), y.dim()))
            )
            return probe.norm(y, axes, weight, bias)

        return watched

    patches = {"linear": watched_linear}
    patches |= {f"conv{d}d": conv(getattr(F, f"conv{d}d"), False) for d in (1, 2, 3)}
    patches |= {
        f"conv_transpose{d}d": conv(getattr(F, f"conv_transpose{d}d"), True) for d in (1, 2, 3)
    }
    patches |= {
        name: norm(getattr(F, name), place)
        for name, place in (
            ("batch_norm", 2),
            ("instance_norm", 2),
            ("layer_norm", 1),
            ("group_norm", 1),
        )
    }

    def smooth(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda input, *args, **kwargs: function(input)

    def after(module: nn.Module, args: Any, y: Tensor) -> Tensor:
        return y

    with contextlib.ExitStack() as stack:
        for name, function in patches.items():
            stack.enter_context(mock.patch.object(F, name, function))
        for name, function in _SMOOTH.items():
            stack.enter_context(mock.patch.object(F, name, smooth(function)))
            for at in (torch, F, Tensor):
                for spelt in (name, name + "_"):
                    if hasattr(at, spelt):
                        stack.enter_context(mock.patch.object(at, spelt, smooth(function)))
        for module in model.modules():
            if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):
                stack.enter_context(mock.patch.object(module, "forward", _of_gpt2(probe, module)))
        yield


def _of_gpt2(probe: _Probe, module: Any) -> Callable[[Tensor], Tensor]:
    """Call of the layer that transformers calls Conv1D: its weight has its inputs first."""
    return lambda x: probe.call(
        lambda y: y @ module.weight + module.bias,
        x,
        module.weight,
        module.bias,
        x.dim() - 1,
        1,
        True,
    )


def probed(model: nn.Module, draw: Callable[[], Any], draws: int = 2) -> int:
    """Count the parameters that could go.

    Args:
        model: any module; it is not changed.
        draw: function that calls the given module on random inputs and returns its outputs:
            ``draw(model)``.
        draws: number of inputs.
    """
    model = copy.deepcopy(model).double().eval().requires_grad_(True)
    probe = _Probe({id(p): name for name, p in model.named_parameters()})
    with _watched(probe, model):
        for _ in range(draws):
            outputs = [t for t in pytree.tree_leaves(draw(model)) if isinstance(t, Tensor)]
            outputs = [t for t in outputs if t.requires_grad]
            torch.autograd.backward(outputs, [torch.randn_like(t) for t in outputs])
    return sum(own.count() for own in (*probe.weighted.values(), *probe.norms.values()))
