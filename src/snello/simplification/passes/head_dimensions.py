"""Pass 11: remove dimensions inside heads of attention, in a model of its own class."""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snello.errors import SnelloError
from snello.graph import Inputs
from snello.graph.coupled import Dimension, Member, coupling
from snello.graph.coupled.cut import shortened
from snello.neurons import is_weighted, qualified
from snello.simplification.ir.plan import LayerPlan, SimplificationPlan
from snello.simplification.ops.layers import has_inputs_first
from snello.simplification.rewrite import apply, write_values

from .facts import Facts
from .without_edits import producers

_PRODUCTS = {
    F.scaled_dot_product_attention, operator.matmul, torch.matmul, "matmul", "__matmul__", torch.bmm,
    "bmm", torch.baddbmm, "baddbmm", torch.einsum,
}  # fmt: skip
"""Products of queries with keys, and of scores with values."""

Values = Mapping[str, Tensor]
"""Key in the lean model's `state_dict` -> folded constants, float64."""


def head_dimensions(
    model: nn.Module, facts: Facts, inputs: Inputs, plan: SimplificationPlan, values: Values
) -> tuple[SimplificationPlan, Values] | None:
    """Narrow the heads of attention of a plan by the dimensions that are zero in all of them.

    The other passes remove heads as a whole. A dimension of a head is shared by all heads of a
    layer, and often by queries, keys and values, because one attribute holds its width. What
    belongs together is found by [`snello.graph.coupled.coupling`][] on the lean model.

    1. A dimension goes if all rows that compute it are zero, biases included: zero values give
       zero outputs, and a product of zeros adds nothing to a score.
    2. If no layer reads it, it is one of queries and keys alone: then the rows of all of its
       layers but one have to be zero, because a product with zero is zero.
    3. It stays if a norm computes statistics over it, or if anything but layers holds it.

    The scale of the scores must not follow the width: verification of the narrowed model shows
    whether it does.

    Args:
        model: the original.
        facts: facts about it.
        inputs: the example inputs.
        plan: a plan of the representation "module".
        values: its folded constants.

    Requires:
        All attributes of `facts`.

    Returns:
        The plan with narrower heads, and its values; None if there is nothing to narrow.
    """
    if not _worth_a_run(model, facts, plan):
        return None
    lean = apply(plan, model)
    write_values(lean, values)  # a neuron with nothing but folded constants is not zero
    try:
        found = coupling(lean, inputs, trial=False)
    except SnelloError:  # the plan is a guess, which verification refuses
        return None
    dead = _Dead(lean)
    slices: dict[tuple[str, int], set[int]] = defaultdict(set)
    for dimension in found.free:
        for member, gone in dead.slices(dimension):
            slices[member.name, member.axis].update(gone)
    return _Narrowed(lean, plan, values, slices).result() if slices else None


def _worth_a_run(model: nn.Module, facts: Facts, plan: SimplificationPlan) -> bool:
    """True if a layer before a product of attention keeps a neuron that is zero."""
    products = (node for node in facts.graph.nodes if node.target in _PRODUCTS)
    operands = {operand for node in products for operand in node.all_input_nodes}
    found = {producer for operand in operands for producer in producers(facts, operand)}
    names = sorted({str(node.target) for node in found if node.op == "call_module"})
    return any(_keeps_zeros(model.get_submodule(name), plan.layers.get(name)) for name in names)


def _keeps_zeros(layer: nn.Module, plan: LayerPlan | None) -> bool:
    if not _is_linear(layer):
        return False
    zero = zero_neurons(layer)
    return bool(zero.any() if plan is None else zero[list(plan.kept_outputs)].any())


def _is_linear(layer: nn.Module) -> bool:
    """True of linear layers and convolutions without groups."""
    known = is_weighted(layer) or has_inputs_first(layer)
    return known and getattr(layer, "groups", 1) == 1


def zero_neurons(layer: nn.Module) -> Tensor:
    """The neurons whose weights and bias are zero: boolean, shape (neurons,)."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    rows = weight.detach().transpose(0, int(has_inputs_first(layer))).flatten(1)
    zero = (rows == 0).all(1)
    bias = layer.bias
    return zero & (bias.detach() == 0) if isinstance(bias, Tensor) else zero


@dataclass
class _Dead:
    """The slices of a lean model that go with the dead indices of a dimension."""

    lean: nn.Module

    def slices(self, dimension: Dimension) -> Iterator[tuple[Member, list[int]]]:
        """The members with the indices that go; none if the dimension has to stay."""
        if dimension.kind != "head_dim" or not self._held_by_layers(dimension):
            return
        gone = self._indices(dimension)
        if len(gone) == dimension.width:  # attention is left with nothing to compute
            gone = gone[1:]
        for member in dimension.members if gone else ():
            yield member, member.of(gone)

    def _held_by_layers(self, dimension: Dimension) -> bool:
        norms = {operation for _, operation in dimension.norms}
        return norms <= {"scaled_dot_product_attention"} and all(
            self._layer(member) is not None for member in dimension.parameters
        )

    def _layer(self, member: Member) -> nn.Module | None:
        """The layer without groups of a weight or bias; None for other parameters."""
        owner, _, key = member.name.rpartition(".")
        layer = self.lean.get_submodule(owner)
        return layer if key in ("weight", "bias") and _is_linear(layer) else None

    def _indices(self, dimension: Dimension) -> list[int]:
        """The indices of the dimension that are zero: see cases 1 and 2."""
        writers = [m for m in dimension.parameters if m.role == "write"]
        if not writers:
            return []
        zero = torch.stack([self._zero(writer) for writer in writers])
        alive = (~zero).sum(0)
        allowed = 0 if dimension.readers or len(writers) < 2 else 1
        return (alive <= allowed).nonzero().flatten().tolist()

    def _zero(self, writer: Member) -> Tensor:
        """Boolean, shape (width of the dimension,)."""
        layer = self._layer(writer)
        assert layer is not None
        neurons = zero_neurons(layer)
        return torch.tensor([bool(neurons[list(own)].all()) for own in writer.indices])


@dataclass
class _Narrowed:
    """A plan for a lean model that loses some more slices."""

    lean: nn.Module
    plan: SimplificationPlan
    values: Values
    slices: Mapping[tuple[str, int], set[int]]

    def result(self) -> tuple[SimplificationPlan, Values] | None:
        """The plan and its values; None if a slice is not one of a layer's neurons or inputs."""
        layers, attributes = dict(self.plan.layers), dict(self.plan.attributes)
        values = dict(self.values)
        for (name, axis), gone in self.slices.items():
            owner, _, key = name.rpartition(".")
            module = self.lean.get_submodule(owner)
            if key == "weight":
                outputs = (axis == 0) != has_inputs_first(module)
                layer = layers.get(owner) or _whole(module)
                if layer.folds:
                    return None
                layers[owner] = _without(layer, gone, outputs=outputs)
                bias = qualified(owner, "bias")
                if outputs and bias in values:
                    values[bias] = values[bias][_others(len(values[bias]), gone)]
            elif key != "bias" and not _is_linear(module):  # a layer's own are set with it
                old = attributes.get(name, getattr(module, key))
                attributes[name] = shortened(old, axis, len(gone))
        return replace(self.plan, layers=layers, attributes=attributes), values


def _others(count: int, gone: Iterable[int]) -> list[int]:
    gone = set(gone)
    return [i for i in range(count) if i not in gone]


def _without(layer: LayerPlan, gone: set[int], *, outputs: bool) -> LayerPlan:
    kept = layer.kept_outputs if outputs else layer.kept_inputs
    stay = tuple(kept[i] for i in _others(len(kept), gone))
    return replace(layer, kept_outputs=stay) if outputs else replace(layer, kept_inputs=stay)


def _whole(module: nn.Module) -> LayerPlan:
    """The plan of a layer that keeps everything."""
    weight: Tensor = module.weight  # type: ignore[assignment]
    inputs_first = int(has_inputs_first(module))
    outputs, inputs = weight.shape[inputs_first], weight.shape[1 - inputs_first]
    bias = isinstance(module.bias, Tensor)
    return LayerPlan(outputs, inputs, tuple(range(outputs)), tuple(range(inputs)), 1, bias, 0)
