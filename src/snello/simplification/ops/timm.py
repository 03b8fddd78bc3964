"""Modules of timm, by name: it need not be installed."""

from __future__ import annotations

from snello.graph import register_leaf

from .call import Call
from .elementwise import identity
from .operation import Operation
from .registry import rule_for

# By its bare name, for the many copies of it. Traced into, it would never be active in training.
register_leaf("DropPath")


@rule_for("DropPath")
def drop_path(call: Call) -> Operation | None:
    """Stochastic depth does nothing in evaluation mode (Huang et al., ECCV 2016)."""
    if call.module is None or type(call.module).__name__ != "DropPath":
        return None  # a subclass, whose forward may differ
    return identity(call)
