"""Removal of coupled channels that are zero everywhere, from the model's own class."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from snello.graph import Inputs
from snello.graph.coupled import Coupling, Dimension, Removed, coupling
from snello.graph.coupled.cut import Size, kept_indices, removed_slices, shortened
from snello.neurons import named_tensors
from snello.simplification.ir.plan import SimplificationPlan, Slice


def coupled_plan(
    model: nn.Module,
    groups: Coupling,
    removed: Removed,
    inputs: Inputs,
    base: SimplificationPlan | None,
) -> SimplificationPlan:
    """Convert a removal of channels to a plan that files store.

    Args:
        model: the network that the channels were chosen for.
        groups: its coupling.
        removed: dimension -> indices to remove.
        inputs: example inputs of the network.
        base: plan that made the network; None for a dense one.
    """
    tensors = named_tensors(model)
    slices: dict[str, tuple[Slice, ...]] = defaultdict(tuple)
    for (name, axis), gone in removed_slices(groups, removed).items():
        kept = kept_indices(name, axis, tensors[name].shape[axis], gone)
        slices[name] += (Slice(axis, tuple(kept)),)
    attributes: dict[str, Size] = {}
    for (name, position), gone in removed_slices(groups, removed, sizes=True).items():
        owner, _, attribute = name.rpartition(".")
        value = attributes.get(name, getattr(model.get_submodule(owner), attribute))
        attributes[name] = shortened(value, position, len(gone))
    return SimplificationPlan(
        input_shapes=inputs.shapes,
        parameters=dict(slices),
        attributes=attributes,
        left_alone={d.name: d.pinned for d in groups.dimensions if d.pinned},
        representation="module",
        base=base,
    )


def zero_channels(model: nn.Module, inputs: Inputs) -> tuple[Coupling, dict[str, list[int]]]:
    """The coupled channels of a model, and those whose slices are all zero.

    1. A channel is zero if every parameter slice that writes or scales it is.
    2. Dimensions over which a norm computes its statistics are left out: without their channels,
       the statistics are others. So are the dimensions of heads, on which the default scale of
       attention depends.

    Raises:
        ModelError: if the model does not run on the inputs.
    """
    groups = coupling(model, inputs, trial=False)  # the outputs are verified afterwards
    trained = dict(model.named_parameters(remove_duplicate=False))
    found = {}
    for dimension in groups.free:
        if dimension.norms or dimension.kind == "head_dim":
            continue
        gone = _zero(dimension, trained).nonzero().flatten().tolist()
        if 0 < len(gone) < dimension.width:
            found[dimension.name] = gone
    return groups, found


def _zero(dimension: Dimension, parameters: Mapping[str, Tensor]) -> Tensor:
    """Channels that are zero: boolean, shape (width,)."""
    sizes = [
        member.sums(parameters[member.name].detach().abs()).cpu()
        for member in dimension.parameters
        if member.role != "read" and member.name in parameters
    ]
    if not sizes:
        return torch.zeros(dimension.width, dtype=torch.bool)
    return torch.stack([size.double() for size in sizes]).sum(0) == 0
