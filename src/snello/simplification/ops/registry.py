"""The public registry of rules, which map calls to operations.

>>> @rule_for(MySwish)                       # a module class, a function, or the name of a tensor method
... def my_swish(call: Call) -> Operation | None:
...     operand = call.known_operand(axis=1)
...     return operand and Elementwise.of(call, operand, lambda v: v * torch.sigmoid(call.module.beta * v))
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from torch import nn
from torch.nn.utils import parametrize

from snello.graph import Graph, TargetTable

from .call import Call
from .operation import Operation

Matcher = Callable[[Call], Operation | None]
Pattern = Callable[[Graph], Iterator[Operation]]

_rules: TargetTable[Matcher] = TargetTable()
_patterns: list[Pattern] = []

Registered = TypeVar("Registered", bound=Any)


def register_rule(target: Any, matcher: Matcher) -> None:
    """Register a matcher, which returns the operation of a call, for the calls of a target.

    Args:
        target: a module class, a function, the name of a tensor method ("view"), or the dotted name
            of a class or function of a library that need not be installed ("package.module.Class").
        matcher: takes a `Call` and returns an `Operation`, or None to try the next
            matcher. The matcher that was registered last is tried first.
    """
    _rules.add(target, matcher)


def rule_for(*targets: Any) -> Callable[[Registered], Registered]:
    """Register a matcher, or an operation's class with a classmethod `match`, for some targets.

    Arguments as for [`register_rule`][snello.simplification.register_rule].
    """

    def register(matcher: Registered) -> Registered:
        for target in targets:
            register_rule(target, getattr(matcher, "match", matcher))
        return matcher

    return register


def register_pattern(pattern: Pattern) -> Pattern:
    """Register a search for operations that consist of several nodes, such as a channel shuffle.

    The pattern yields operations at the last of their nodes, with the earlier ones as `steps`.
    If an operand does not have its channels on the axis that the operation expects, or if a node
    outside of the pattern also reads a step, the nodes are matched one by one instead.
    """
    _patterns.append(pattern)
    return pattern


def patterns(graph: Graph) -> Iterator[Operation]:
    """Operations of a graph that consist of several nodes."""
    return (operation for pattern in _patterns for operation in pattern(graph))


def find_operation(call: Call) -> Operation | None:
    """Return the operation of a call; None if there is no rule for it.

    Layers that are called more than once have no operation, because each call might need another
    narrowing; nor have layers with a computed weight, which cannot be narrowed.
    """
    module = call.module
    has_state = module is not None and next(module.parameters(), None) is not None
    if (
        module is not None
        and has_state
        and (call.graph.is_shared(call.name) or not is_plain(module))
    ):
        return None
    found = (matcher(call) for matcher in _matchers(call))
    return next((operation for operation in found if operation is not None), None)


def _matchers(call: Call) -> list[Matcher]:
    if call.module is not None:
        return _rules.find_module(call.module)
    target = call.node.target
    if isinstance(target, str):
        return _rules.find_method(target) if call.node.op == "call_method" else []
    return _rules.find_function(target)


def is_plain(module: nn.Module) -> bool:
    """True if no weight inside is computed: no parametrisation, no mask of torch.nn.utils.prune."""
    return not any(parametrize.is_parametrized(m) or _is_computed(m) for m in module.modules())


def _is_computed(module: nn.Module) -> bool:
    """True if a weight or bias is a tensor that is not a parameter of the module."""
    names = ("weight", "bias", "in_proj_weight", "in_proj_bias")
    held = ((n, getattr(module, n, None)) for n in names)
    return any(hasattr(value, "shape") and n not in module._parameters for n, value in held)
