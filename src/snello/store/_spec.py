"""A network as data. Needs no torch: recipes hold one, and the command line checks their fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from snello.errors import ModelError

REFERENCE = "snello.lab.models"
"""Module of the papers' networks: a name in text, imported when one is asked for."""


@dataclass(frozen=True)
class ModelSpec:
    """A network as data, for recipes, checkpoints and model files.

    Attributes:
        name: ``"package.module:factory"``, such as ``"snello.lab.models:resnet_32"``; or a name of
            torchvision, ``"timm:NAME"`` or ``"transformers:CLASS"``.
        arguments: keyword arguments of the factory; plain values, so that they can be written as
            JSON.
    """

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Name for titles and tables: the short one for a network of the papers."""
        library, _, name = self.name.rpartition(":")
        return name.replace("_", "-") if library == REFERENCE else self.name

    def to_dict(self) -> dict[str, Any]:
        """``{"name": …, "arguments": {…}}``, ready for JSON."""
        return {"name": self.name, "arguments": dict(self.arguments)}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> ModelSpec:
        """The inverse of :meth:`to_dict`; ``arguments`` may be left out.

        Raises:
            ModelError: for a record with other keys or other types.
        """
        if unknown := sorted(set(record) - {"name", "arguments"}):
            raise ModelError(
                f"a model record has the keys 'name' and 'arguments', got also {unknown[0]!r}"
            )
        name, arguments = record.get("name"), record.get("arguments", {})
        if not isinstance(name, str) or not isinstance(arguments, Mapping):
            raise ModelError(
                f"a model record needs a text 'name' and a mapping 'arguments', got {dict(record)!r}"
            )
        return cls(name, dict(arguments))
