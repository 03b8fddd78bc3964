"""Pass 2: propagate constants forwards."""

from __future__ import annotations

from dataclasses import replace

from torch import fx

from snello.simplification.ir.channels import Signal

from .facts import Facts, incoming
from .refused import rule_of


def constants(facts: Facts) -> Facts:
    """Find the channels that have the same value at every position and for every input.

    1. An operation maps the signals of its operands to that of its output.
    2. A tensor without an operation has no constant channel.

    Requires:
        `operations` and `axes`.

    Ensures:
        `signals`, for every node in `axes`.
    """
    signals: dict[fx.Node, Signal] = {}
    for node, operation in facts.operations.items():
        if node in facts.axes:
            with rule_of(node):
                signals[node] = operation.propagate(*incoming(operation, signals))
    return replace(facts, signals=signals)
