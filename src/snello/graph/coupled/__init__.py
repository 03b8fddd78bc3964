"""Coupled channels: groups of slices of parameters that can only be removed together.

A channel is read by several layers, scaled by norms and added to other channels. To remove it from
a network without index operations, every slice that belongs to it has to be removed.
[`coupling`][snello.graph.coupled.coupling] runs the model once, eagerly, with a label on every
index of every axis of its tensors. Views, slices and concatenations move labels; an elementwise
operation joins the labels of the elements that it combines; a contraction joins the labels of the
input with those of the weight's columns. Labels that were joined, directly or not, are one channel.
No tracing is needed, so that every model that runs can be analysed. The operands of an operation
without a rule are pinned: they keep their width, and the reason names the line of the user's code.

An axis that a view splits into (heads, head dimension) is a grid: a whole head can be removed, or
one dimension of every head; each is a [`Dimension`][snello.graph.coupled.Dimension]. After a cut, a
norm over the channels computes its statistics over the kept ones: this is how the pruned network is
defined.

    groups = coupling(model, images)
    print(groups)
    lean = cut(model, groups, {"layer1.0.conv1": [3, 7]}, images)

Similar in aim, by tracing the backward graph: DepGraph (Fang et al., 2023,
https://arxiv.org/abs/2301.12900).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from snello.graph.capture import does_not_run, together
from snello.graph.inputs import Example
from snello.wrappers import unwrapped

from .cut import Removed as Removed
from .cut import cut as cut
from .cut import zeroed as zeroed
from .dimensions import Coupling as Coupling
from .dimensions import Dimension as Dimension
from .dimensions import Member as Member
from .reference import reference as reference
from .run import Run
from .trial import tried
from .units import dimensions

__all__ = ["Coupling", "Dimension", "Member", "Removed", "coupling", "cut", "reference", "zeroed"]


def coupling(
    model: nn.Module,
    args: Example,
    kwargs: Mapping[str, Any] | None = None,
    *,
    trial: bool = True,
) -> Coupling:
    """Find the channels of a model that can only be removed together.

    Args:
        model: a module. It is not changed, and the result holds no reference to it.
        args: example inputs: a tensor, a tuple or list of positional arguments, a mapping of
            keyword arguments, or [`snello.graph.Inputs`][]. They are run in evaluation mode.
        kwargs: keyword arguments, in addition to those in `args`.
        trial: whether to cut some channels out of a copy and compare it with the masked one, in
            float64. It takes three more forwards and pins the dimensions whose width is fixed in
            the user's code. Without it, [`cut`][snello.graph.coupled.cut] finds them if it is given
            example inputs.

    Returns:
        Every dimension, with the slices that belong to each index.

    Raises:
        ModelError: if the model does not run on the inputs, or, tried, has no values (meta device).
        ConfigError: for example inputs of another kind.
    """
    model = unwrapped(model, "coupling")
    inputs = together(args, kwargs)
    try:
        run = Run(model).forward(inputs)
    except Exception as error:  # whatever an operation raises on inputs that do not fit it
        raise does_not_run(model, inputs, error) from error
    return tried(model, inputs, run) if trial else dimensions(run)
