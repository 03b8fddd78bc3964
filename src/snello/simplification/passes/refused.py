"""Operations whose rule failed: they are left alone, with the reason."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import fx


class RuleError(Exception):
    """A rule raised an error. Internal: the node then receives its inputs at full width.

    Attributes:
        node: the node whose rule failed.
        reason: the reason in the plan.
    """

    def __init__(self, node: fx.Node, error: Exception) -> None:
        self.node = node
        self.reason = f"its rule failed with {type(error).__name__}: {error}"
        super().__init__(f"{node.name}: {self.reason}")


@contextmanager
def rule_of(node: fx.Node) -> Iterator[None]:
    """Turn any error of a rule into `RuleError`.

    A rule may be the user's own; an error in it must not stop the simplification of the model.

    Raises:
        RuleError: for any error inside.
    """
    try:
        yield
    except RuleError:
        raise
    except Exception as error:
        raise RuleError(node, error) from error
