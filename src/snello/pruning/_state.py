"""State for checkpoints: the fields of a dataclass."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, get_type_hints

from snello.errors import ConfigError, check_state


@dataclass
class Stateful:
    """A dataclass whose state is all of its fields, which are plain numbers."""

    def state_dict(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`.

        Raises:
            ConfigError: for the state of another class, and for values that it cannot have; nothing
                changes then.
        """
        kinds = get_type_hints(type(self))
        check_state(state, {}, type(self).__name__, {f.name: kinds[f.name] for f in fields(self)})
        if unknown := set(state) - {field.name for field in fields(self)}:
            raise ConfigError(
                f"this is the state of another schedule than {type(self).__name__}, with "
                f"{', '.join(sorted(unknown))}"
            )
        vars(self).update(vars(replace(self, **state)))  # a new one checks its options
