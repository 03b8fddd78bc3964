"""A network as data, without torch: recipes have one, and the command line checks their fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from snello.errors import ModelError

REFERENCE = "snello.lab.models"
"""Module of the papers' networks, as a string because the core does not import snello.lab."""


@dataclass(frozen=True)
class ModelSpec:
    """A network as data, for recipes, checkpoints and model files.

    Attributes:
        name: `"package.module:factory"`, such as `"snello.lab.models:resnet_32"`; or a model
            name of torchvision, `"timm:NAME"` or `"transformers:CLASS"`.
        arguments: keyword arguments of the factory, JSON values only.
    """

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Name for titles and tables; the papers' networks have a short one."""
        library, _, name = self.name.rpartition(":")
        return name.replace("_", "-") if library == REFERENCE else self.name

    def to_dict(self) -> dict[str, Any]:
        """The spec as a JSON mapping, `{"name": …, "arguments": {…}}`."""
        return {"name": self.name, "arguments": dict(self.arguments)}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> ModelSpec:
        """The inverse of `to_dict`; `arguments` may be missing.

        Raises:
            ModelError: for a record with other keys or types.
        """
        if unknown := sorted(set(record) - {"name", "arguments"}):
            raise ModelError(
                f"a model record has the keys 'name' and 'arguments', got also {unknown[0]!r}"
            )
        name, arguments = record.get("name"), record.get("arguments", {})
        if not isinstance(name, str) or not isinstance(arguments, Mapping):
            raise ModelError(
                "a model record needs a string 'name' and a mapping 'arguments', got "
                f"{dict(record)!r}"
            )
        return cls(name, dict(arguments))
