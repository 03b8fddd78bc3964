"""State that checkpoints hold: the fields of a dataclass."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass
class Stateful:
    """A dataclass whose fields, plain numbers, are its state."""

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        for name, value in state.items():
            setattr(self, name, value)
