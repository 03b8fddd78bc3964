"""Pass 10: find the attributes of modules that hold widths, such as the number of heads."""

from __future__ import annotations

import torch.nn.functional as F
from torch import fx, nn

from snello.graph import known_shape
from snello.neurons import qualified
from snello.simplification.ir.edits import SetNumber
from snello.simplification.ir.plan import SimplificationPlan
from snello.simplification.ops.call import size_arguments
from snello.simplification.ops.heads import ZerosByHead
from snello.simplification.ops.splitting import SplitChannels

from .facts import Facts

_COUNTS = ("head", "group")
_WIDTHS = ("dim", "size", "width", "channel", "feature", "inner")


def attributes(model: nn.Module, facts: Facts, plan: SimplificationPlan) -> dict[str, int] | None:
    """Find the attributes, such as `num_heads`, that a model's own forward takes its sizes from.

    With new values in them, the model can keep its class: no literal is written into a graph.

    1. A number of the plan is an argument of a view, a split or `F.group_norm` in the forward of
       some module. The integer attributes of that module which have the number's old value, and
       a name that fits, take the new one.
    2. A name fits that speaks of a count (`num_heads`) where channels become heads or groups, and
       of a width (`dim`) elsewhere.

    This is a guess by value and name: verification of the narrowed model shows whether it holds.

    Requires:
        `operations` and `axes`.

    Ensures:
        Qualified name -> new value; None if no number has an attribute, or one attribute would need
        two values.
    """
    nodes = {node.name: node for node in facts.graph.nodes}
    found: dict[str, int] = {}
    numbers = plan.edits_of(SetNumber)
    for edit in numbers:
        # Position -1 is no argument, but a size that the forward reads: it has no attribute.
        names = _mirrors(model, facts, nodes[edit.node], edit) if edit.position >= 0 else []
        if any(found.get(name, edit.value) != edit.value for name in names):
            return None
        found.update(dict.fromkeys(names, edit.value))
    return found if found or not numbers else None


def _mirrors(model: nn.Module, facts: Facts, node: fx.Node, edit: SetNumber) -> list[str]:
    """Qualified names of the attributes that the number of an edit may come from."""
    old = size_arguments(node)[edit.position]
    if type(old) is not int:  # computed in the graph: its value is the measured width
        old = known_shape(node)[facts.axes[node]]
    counts = isinstance(facts.operations[node], (SplitChannels, ZerosByHead))
    counts = counts or node.target is F.group_norm
    owner = facts.graph.owner(node)
    held = vars(model.get_submodule(owner)).items()
    names = [
        name for name, value in held if type(value) is int and value == old and _fits(name, counts)
    ]
    return [qualified(owner, name) for name in names]


def is_width(name: str) -> bool:
    """True of names of widths, such as `in_channels`."""
    return any(part in name for part in _WIDTHS)


def _fits(name: str, counts: bool) -> bool:
    """True of names of counts, or else of widths. A `head_dim` is a width."""
    width = is_width(name)
    count = any(part in name for part in _COUNTS) or name in ("h", "nh")
    return count and not width if counts else width
