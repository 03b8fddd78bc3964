"""Removed channels as a plan: what model files record."""

from __future__ import annotations

from collections import defaultdict

from torch import nn

from snello.graph import Example, Inputs
from snello.pruning.channels import ChannelPlan
from snello.simplification import SimplificationPlan, plan_of
from snello.simplification.ir.plan import Slice


def as_plan(model: nn.Module, channels: ChannelPlan, example: Example) -> SimplificationPlan:
    """The removal of channels as a plan that files carry and :func:`snello.load` applies.

    Args:
        model: the network that the channels were chosen for.
        channels: what goes.
        example: its example inputs.
    """
    gone: dict[tuple[str, int], set[int]] = defaultdict(set)
    less: dict[tuple[str, int], set[int]] = defaultdict(set)
    for name, indices in channels.removed.items():
        for member in channels.coupling[name].members:
            table = less if member.role == "size" else gone
            table[member.name, member.axis].update(member.of(indices))
    tensors = {
        **dict(model.named_buffers(remove_duplicate=False)),
        **dict(model.named_parameters(remove_duplicate=False)),
    }
    slices: dict[str, tuple[Slice, ...]] = defaultdict(tuple)
    for (name, axis), lost in gone.items():
        kept = tuple(i for i in range(tensors[name].shape[axis]) if i not in lost)
        if lost:
            slices[name] += (Slice(axis, kept),)
    attributes: dict[str, int | tuple[int, ...]] = {}
    for (name, position), lost in less.items():
        owner, _, attribute = name.rpartition(".")
        value = attributes.get(name, getattr(model.get_submodule(owner), attribute))
        if isinstance(value, tuple):
            attributes[name] = tuple(
                n - len(lost) if i == position else n for i, n in enumerate(value)
            )
        else:
            attributes[name] = value - len(lost)
    return SimplificationPlan(
        input_shapes=Inputs.of(example).shapes,
        parameters=dict(slices),
        attributes=attributes,
        left_alone={d.name: d.pinned for d in channels.coupling.dimensions if d.pinned},
        representation="module",
        base=plan_of(model),
    )
