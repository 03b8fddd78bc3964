"""Combination of pruning and selective updates in one training run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from snello.equilibrium import SelectiveUpdate


@contextmanager
def frozen_rows_held(updates: SelectiveUpdate | None) -> Iterator[None]:
    """Restore the weights of frozen neurons at the end of the block.

    For a decay that depends on weight gradients, such as LOBSTER's. A frozen neuron's gradient is
    not computed; the decay would read it as zero sensitivity and shrink weights whose sensitivity
    is unknown.
    """
    with nullcontext() if updates is None else updates.freezer.hold.kept():
        yield
