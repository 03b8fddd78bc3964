"""Operations whose rule failed: they are left alone, with the reason."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import fx


class RuleError(Exception):
    """A rule raised an error; internal, the node gets its inputs at full width instead.

    Attributes:
        node: the node whose rule it is.
        reason: for the plan.
    """

    def __init__(self, node: fx.Node, error: Exception) -> None:
        self.node = node
        self.reason = f"its rule failed with {type(error).__name__}: {error}"
        super().__init__(f"{node.name}: {self.reason}")


@contextmanager
def rule_of(node: fx.Node) -> Iterator[None]:
    """Turn any error of a rule into :class:`RuleError`.

    A rule may be the user's own; a fault in it costs savings, never the model.

    Raises:
        RuleError: for any error inside.
    """
    try:
        yield
    except RuleError:
        raise
    except Exception as error:
        raise RuleError(node, error) from error
