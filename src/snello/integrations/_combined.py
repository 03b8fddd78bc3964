"""Combination of pruning and selective updates in one training run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from snello.equilibrium import SelectiveUpdate
from snello.neurons import spread


@contextmanager
def frozen_rows_held(updates: SelectiveUpdate | None) -> Iterator[None]:
    """Restore the weights of frozen neurons at the end of the block.

    For a decay that depends on weight gradients, such as LOBSTER's. A frozen neuron's gradient is
    not computed; the decay would read it as zero sensitivity and shrink weights whose sensitivity
    is unknown.
    """
    held = (
        [] if updates is None else [(p, rows, p.detach().clone()) for p, rows in _frozen(updates)]
    )
    yield
    with torch.no_grad():
        for parameter, rows, before in held:
            parameter.copy_(torch.where(rows, before, parameter))


def _frozen(updates: SelectiveUpdate) -> Iterator[tuple[Tensor, Tensor]]:
    """Parameters with frozen neurons, each with a boolean mask broadcastable to its shape."""
    for name, mask in updates.frozen.items():
        if bool(mask.any()):
            layer = updates.freezer.layers[name]
            for key, parameter in layer.named_parameters(recurse=False):
                wide = key == "weight" and parameter.dim() > 1
                rows = spread(layer, mask) if wide else mask.view_as(parameter)
                yield parameter, rows.to(parameter.device)
