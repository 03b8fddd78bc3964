"""Conversion of removed channels to the plan that model files record."""

from __future__ import annotations

from collections import defaultdict

from torch import nn

from snello.graph import Example, Inputs
from snello.graph.coupled.cut import kept_indices, removed_slices, shortened
from snello.neurons import named_tensors
from snello.pruning.channels import ChannelPlan
from snello.simplification import SimplificationPlan, plan_of
from snello.simplification.ir.plan import Slice


def as_plan(model: nn.Module, channels: ChannelPlan, example: Example) -> SimplificationPlan:
    """Convert a removal of channels to a plan that files store and
    [`snello.load`][snello.store.load] applies.

    Args:
        model: the network that the channels were chosen for.
        channels: the channels to remove.
        example: example inputs of the network.
    """
    tensors = named_tensors(model)
    slices: dict[str, tuple[Slice, ...]] = defaultdict(tuple)
    for (name, axis), gone in removed_slices(channels.coupling, channels.removed).items():
        kept = kept_indices(name, axis, tensors[name].shape[axis], gone)
        slices[name] += (Slice(axis, tuple(kept)),)
    attributes: dict[str, int | tuple[int, ...]] = {}
    sizes = removed_slices(channels.coupling, channels.removed, sizes=True)
    for (name, position), gone in sizes.items():
        owner, _, attribute = name.rpartition(".")
        value = attributes.get(name, getattr(model.get_submodule(owner), attribute))
        attributes[name] = shortened(value, position, len(gone))
    return SimplificationPlan(
        input_shapes=Inputs.of(example).shapes,
        parameters=dict(slices),
        attributes=attributes,
        left_alone={d.name: d.pinned for d in channels.coupling.dimensions if d.pinned},
        representation="module",
        base=plan_of(model),
    )
