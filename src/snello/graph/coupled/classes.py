"""Classes of numbers that are joined pair by pair."""

from __future__ import annotations


class Classes:
    """Numbers from 0 in disjoint classes (union-find), each named by its smallest number.

    Args:
        count: how many numbers there are at first, each in a class of its own.
    """

    def __init__(self, count: int = 0) -> None:
        self._parent = list(range(count))

    def __len__(self) -> int:
        return len(self._parent)

    def add(self, count: int) -> range:
        """Further numbers, each in a class of its own."""
        added = range(len(self), len(self) + count)
        self._parent.extend(added)
        return added

    def find(self, number: int) -> int:
        """The class of a number."""
        parent = self._parent
        while parent[number] != number:
            parent[number] = parent[parent[number]]
            number = parent[number]
        return number

    def join(self, a: int, b: int) -> None:
        """Make one class of those of two numbers."""
        a, b = self.find(a), self.find(b)
        self._parent[max(a, b)] = min(a, b)
