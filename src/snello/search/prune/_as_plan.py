"""Conversion of removed channels to the plan that model files record."""

from __future__ import annotations

from torch import nn

from snello.graph import Example, Inputs
from snello.pruning.channels import ChannelPlan
from snello.simplification import SimplificationPlan, coupled_plan, plan_of


def as_plan(model: nn.Module, channels: ChannelPlan, example: Example) -> SimplificationPlan:
    """Convert a removal of channels to a plan that files store and
    [`snello.load`][snello.store.load] applies.

    Args:
        model: the network that the channels were chosen for.
        channels: the channels to remove.
        example: example inputs of the network.
    """
    inputs = Inputs.of(example)
    return coupled_plan(model, channels.coupling, channels.removed, inputs, plan_of(model))
