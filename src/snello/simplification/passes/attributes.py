"""Pass 10: find the attributes of modules that mirror widths, such as the number of heads."""

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
    """Find the attributes by which a model's own code takes the numbers that a plan would write
    into a graph.

    1. A number belongs to a view in the forward of some module. The integers of that module that
      have the
       number's old value, and a name that speaks of heads or of a width, take the new one.
    2. Where a view splits channels into heads, names of counts come into question, elsewhere names
      of widths.

    Whether they are the right ones shows when the narrowed model is verified.

    Requires:
        ``operations`` and ``axes``.

    Ensures:
        Qualified name -> new value; None if no number has an attribute, or one attribute would need
        two values.
    """
    nodes = {node.name: node for node in facts.graph.nodes}
    found: dict[str, int] = {}
    numbers = plan.edits_of(SetNumber)
    for edit in numbers:
        names = _mirrors(model, facts, nodes[edit.node], edit) if edit.position >= 0 else []
        if any(found.get(name, edit.value) != edit.value for name in names):
            return None
        found.update(dict.fromkeys(names, edit.value))
    return found if found or not numbers else None


def _mirrors(model: nn.Module, facts: Facts, node: fx.Node, edit: SetNumber) -> list[str]:
    old = size_arguments(node)[edit.position]
    if type(old) is not int:
        old = known_shape(node)[facts.axes[node]]
    counted = isinstance(facts.operations[node], (SplitChannels, ZerosByHead))
    counted = counted or node.target is F.group_norm
    owner = facts.graph.owner(node)
    held = vars(model.get_submodule(owner)).items()
    names = [
        name for name, value in held if type(value) is int and value == old and _fits(name, counted)
    ]
    return [qualified(owner, name) for name in names]


def _fits(name: str, splits: bool) -> bool:
    width = any(part in name for part in _WIDTHS)
    count = any(part in name for part in _COUNTS) or name in ("h", "nh")
    return count and not width if splits else width
