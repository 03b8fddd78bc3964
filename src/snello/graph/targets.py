"""A table of values keyed by the operations of a graph: classes, functions, methods, names."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

from torch import nn

from snello.errors import ConfigError

V = TypeVar("V")


class TargetTable(Generic[V]):
    """Values keyed by what a node calls.

    A key is one of:

    1. a class: its instances and those of its subclasses;
    2. a function;
    3. a qualified name, `"package.module.ClassOrFunction"`: the same as the class or function
       itself, which need not be importable;
    4. a bare name, `"view"`: the tensor method, or any class, of that name.

    Lookups return every match. Those of the most derived class come first; for one class, the
    latest added comes first, so that users can override built-in entries.

    >>> table = TargetTable[str]()
    >>> table.add(nn.Module, "any module")
    >>> table.add("torch.nn.modules.linear.Linear", "a linear layer")
    >>> table.find_module(nn.Linear(2, 3))
    ['a linear layer', 'any module']
    """

    def __init__(self) -> None:
        self._entries: dict[Hashable, list[tuple[int, V]]] = {}
        self._count = 0

    def add(self, target: type | Callable[..., Any] | str, value: V) -> None:
        """Add a value under a key.

        Raises:
            ConfigError: for a target that is neither a class, a hashable function nor a name.
        """
        valid = target != "" if isinstance(target, str) else callable(target) and _hashable(target)
        if not valid:
            raise ConfigError(
                f"a target is a class, a function, a method name or a dotted name, not {target!r}"
            )
        self._entries.setdefault(target, []).append((self._count, value))
        self._count += 1

    def find_module(self, module: nn.Module) -> list[V]:
        """Values of the module's class and its bases, the most derived class first."""
        found: list[V] = []
        for kind in type(module).__mro__:
            found += self._latest_first(kind, _qualified_name(kind), kind.__name__)
        return found

    def find_function(self, function: Callable[..., Any]) -> list[V]:
        """Values of a function."""
        return self._latest_first(function, _qualified_name(function))

    def find_method(self, name: str) -> list[V]:
        """Values of a tensor method."""
        return self._latest_first(name)

    def _latest_first(self, *keys: object) -> list[V]:
        """Values of the keys under which one target may be registered, latest first."""
        found = [entry for key in keys if _hashable(key) for entry in self._entries.get(key, ())]
        return [value for _, value in sorted(found, key=lambda entry: entry[0], reverse=True)]


def _qualified_name(target: object) -> str | None:
    """`package.module.Name`; None for targets without one, such as many builtins of torch."""
    module, name = getattr(target, "__module__", None), getattr(target, "__qualname__", None)
    return f"{module}.{name}" if isinstance(module, str) and isinstance(name, str) else None


def _hashable(target: object) -> bool:
    # isinstance(target, Hashable) is true of a tuple of lists and of much else that raises.
    try:
        hash(target)
    except TypeError:
        return False
    return True
