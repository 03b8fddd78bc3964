"""Pruning and selective updates in one training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from snello.equilibrium import SelectiveUpdate
from snello.neurons import spread


@contextmanager
def frozen_rows_held(updates: SelectiveUpdate | None) -> Iterator[None]:
    """Restore the neurons that are not updated when the block ends.

    For a decay that reads the gradients of weights, as LOBSTER's: where none was computed it would
    find the loss insensitive to every weight, and nothing is known about them.
    """
    held = (
        [] if updates is None else [(p, rows, p.detach().clone()) for p, rows in _frozen(updates)]
    )
    yield
    with torch.no_grad():
        for parameter, rows, before in held:
            parameter.copy_(torch.where(rows, before, parameter))


def _frozen(updates: SelectiveUpdate) -> Iterator[tuple[Tensor, Tensor]]:
    """The parameters with frozen neurons, each with a boolean tensor that broadcasts over it."""
    for name, mask in updates.frozen.items():
        if bool(mask.any()):
            layer = updates.model.get_submodule(name)
            for key, parameter in layer.named_parameters(recurse=False):
                wide = key == "weight" and parameter.dim() > 1
                rows = spread(layer, mask) if wide else mask.view_as(parameter)
                yield parameter, rows.to(parameter.device)
