"""Pass 10: find the attributes of modules that hold widths, such as the number of heads."""

from __future__ import annotations

import torch.nn.functional as F
from torch import fx, nn

from snello.graph import known_shape
from snello.neurons import qualified
from snello.simplification.ir.edits import SetNumber
from snello.simplification.ir.plan import SimplificationPlan
from snello.simplification.ops.call import one_by_one
from snello.simplification.ops.splitting import SplitChannels

from .facts import Facts

_COUNTS = ("head", "group")
_WIDTHS = ("dim", "size", "width", "channel", "feature", "inner")


def attributes(model: nn.Module, facts: Facts, plan: SimplificationPlan) -> dict[str, int] | None:
    """Find the attributes from which a model's own code takes the literal sizes of a plan.

    1. A literal is a size argument of a view in the forward of some module. The integer attributes
       of that module with the old value and a suitable name get the new value.
    2. For a view that splits channels into heads, suitable names are those of counts (of heads or
       groups); for others, those of widths.

    The choice is by name, and is checked when the narrowed model is verified.

    Requires:
        ``operations`` and ``axes``.

    Ensures:
        Qualified name -> new value; None if a literal has no attribute, or if one attribute would
        need two values.
    """
    nodes = {node.name: node for node in facts.graph.nodes}
    found: dict[str, int] = {}
    for edit in plan.edits_of(SetNumber):
        names = _mirrors(model, facts, nodes[edit.node], edit) if edit.position >= 0 else []
        if not names or any(found.get(name, edit.value) != edit.value for name in names):
            return None
        found.update(dict.fromkeys(names, edit.value))
    return found


def _mirrors(model: nn.Module, facts: Facts, node: fx.Node, edit: SetNumber) -> list[str]:
    old = one_by_one(node.args[1:])[edit.position]
    if type(old) is not int:
        old = known_shape(node)[facts.axes[node]]
    splits = isinstance(facts.operations[node], SplitChannels) or node.target is F.group_norm
    owner = facts.graph.owner(node)
    held = vars(model.get_submodule(owner)).items()
    names = [
        name for name, value in held if type(value) is int and value == old and _fits(name, splits)
    ]
    return [qualified(owner, name) for name in names]


def _fits(name: str, splits: bool) -> bool:
    """True if an attribute's name is that of a count, for a split into heads, else of a width."""
    width = any(part in name for part in _WIDTHS)
    count = any(part in name for part in _COUNTS) or name in ("h", "nh")
    return count and not width if splits else width
