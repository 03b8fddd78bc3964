"""State for checkpoints: the fields of a dataclass."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass
class Stateful:
    """A dataclass whose state is all of its fields, which are plain numbers."""

    def state_dict(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        for name, value in state.items():
            setattr(self, name, value)
