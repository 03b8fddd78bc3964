"""Products with the weights of layers, also where a module uses them without calling the layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sized
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from snello.flops import layer_macs


@dataclass(frozen=True, eq=False)
class WeightUse:
    """One product of an input with the weight of a layer.

    Attributes:
        layer: name of the layer.
        x: the input, as the layer would get it.
        output: the output, as the layer would return it, with the samples first.
        macs: multiply-accumulates.
        own: false if a bias is added that the layer does not have.
    """

    layer: str
    x: Tensor
    output: Tensor
    macs: int
    own: bool = True


def in_projections(model: nn.Module) -> dict[str, nn.Linear]:
    """The input projections of each `MultiheadAttention`, as Linear layers by the name `in_proj`.

    They share the attention's parameters, `in_proj_weight` of shape (3 E, E) and `in_proj_bias`.
    Those with keys or values of another size have three weights instead and are left out.
    """
    found = {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.MultiheadAttention):
            continue
        weight = module._parameters.get("in_proj_weight")
        bias = module._parameters.get("in_proj_bias")
        if weight is not None and (bias is None) is (module.in_proj_bias is None):
            layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
            layer.weight, layer.bias = weight, bias  # type: ignore[assignment]
            found[f"{name}.in_proj".lstrip(".")] = layer
    return found


class WeightUses(TorchFunctionMode):
    """Intercept every product of an input with a layer's weight, in any module."""

    PRODUCTS = frozenset({
        F.linear, F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d,
        F.conv_transpose3d,
    })  # fmt: skip

    def __init__(self, layers: Mapping[str, nn.Module], note: Callable[[WeightUse], None]) -> None:
        super().__init__()
        self._layers = {id(layer.weight): (name, layer) for name, layer in layers.items()}
        self._note = note

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if func in self.PRODUCTS:
            names = ("input", "weight", "bias")
            self._product(output, **{**kwargs, **dict(zip(names, args, strict=False))})
        elif func is F.multi_head_attention_forward:
            self._attention(args, output[0])
        return output

    def _product(
        self, output: Tensor, input: Tensor, weight: Any, bias: Any = None, **_: Any
    ) -> None:
        if id(weight) in self._layers:
            name, layer = self._layers[id(weight)]
            own = bias is None or layer.bias is not None
            self._note(WeightUse(name, input, output, layer_macs(layer, input, output), own))

    def _attention(self, args: Any, output: Tensor) -> None:
        query, key, value, width, _, weight, bias = args[:7]
        if id(weight) in self._layers:
            macs = (query.numel() + key.numel() + value.numel()) * width
            projected = _projected((query, key, value), weight, bias)
            self._note(
                WeightUse(self._layers[id(weight)][0], _samples_first(query), projected, macs)
            )
        if id(args[11]) in self._layers:
            own = args[12] is None or self._layers[id(args[11])][1].bias is not None
            first = _samples_first(output)
            macs = query.numel() * width
            self._note(WeightUse(self._layers[id(args[11])][0], first, first, macs, own))


def _projected(inputs: tuple[Tensor, ...], weight: Tensor, bias: Tensor | None) -> Tensor:
    """Queries, keys and values, shape (samples, positions, 3 E); a shorter sequence gets zeros."""
    biases = (None,) * 3 if bias is None else bias.chunk(3)
    parts = [
        _samples_first(F.linear(x, rows, b))
        for x, rows, b in zip(inputs, weight.chunk(3), biases, strict=True)
    ]
    longest = max(part.shape[1] for part in parts)
    return torch.cat([F.pad(p, (0, 0, 0, longest - p.shape[1])) for p in parts], dim=-1)


def _samples_first(sequence: Tensor) -> Tensor:
    """A sequence (L, N, E) or (L, E) as (N, L, E)."""
    return (sequence if sequence.dim() == 3 else sequence.unsqueeze(1)).transpose(0, 1)


class ParameterUses(TorchFunctionMode):
    """Note how much of a forward pass has run at the last use of every parameter.

    Attributes:
        last: parameter's id -> length of `done` at its last use by an operation.

    Args:
        model: the model that runs.
        done: grows during the forward pass.
    """

    def __init__(self, model: nn.Module, done: Sized) -> None:
        super().__init__()
        self.last: dict[int, int] = {}
        self._known, self._done = {id(p) for p in model.parameters()}, done

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for leaf in tree_leaves((args, kwargs)):
            if id(leaf) in self._known:
                self.last[id(leaf)] = len(self._done)
        return func(*args, **(kwargs or {}))
