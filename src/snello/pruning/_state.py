"""State for checkpoints: the fields of a dataclass."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from snello.errors import ConfigError


@dataclass
class Stateful:
    """A dataclass whose state is all of its fields, which are plain numbers."""

    def state_dict(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`.

        Raises:
            ConfigError: for the state of another class.
        """
        if unknown := set(state) - {field.name for field in fields(self)}:
            raise ConfigError(
                f"this is the state of another schedule than {type(self).__name__}, with "
                f"{', '.join(sorted(unknown))}"
            )
        for name, value in state.items():
            setattr(self, name, value)
