"""Frozen records with a tag and a JSON form: the base of edits and folds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, ClassVar, Self, cast


@dataclass(frozen=True)
class Record:
    """A flat frozen record of numbers, texts and tuples of them."""

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Make a record from JSON values; lists become tuples, and unknown keys are ignored.

        Fields with a default may be left out.

        Raises:
            KeyError: if a field is missing.
        """
        names = [f.name for f in fields(cls) if f.name in data or f.default is MISSING]
        return cls(**{name: cast(Any, _frozen(data[name])) for name in names})


@dataclass(frozen=True)
class TaggedRecord(Record):
    """A record whose JSON form has a tag that names its class.

    A direct subclass is the root of a family; the definition of any further subclass with a `tag`
    registers it in the family.
    """

    tag: ClassVar[str] = ""
    family: ClassVar[dict[str, type[TaggedRecord]]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if TaggedRecord in cls.__bases__:
            cls.family = {}
        elif (
            "tag" in vars(cls)
            and cls.family.setdefault(cls.tag, cls).__qualname__ != cls.__qualname__
        ):
            # Names are compared, because a dataclass with slots is created twice under one name.
            raise TypeError(f"two records have the tag {cls.tag!r}")

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.tag, **asdict(self)}

    @classmethod
    def of_any_kind(cls, data: Mapping[str, Any]) -> Self:
        """Make the record of this family that the tag in `data` names.

        Raises:
            KeyError: if the tag or a field is missing.
            ValueError: if no record of the family has this tag.
        """
        kind = cls.family.get(data["kind"])
        if kind is None:
            raise ValueError(f"{data['kind']!r} is none of {', '.join(sorted(cls.family))}")
        return cast(Self, kind.from_dict(data))


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value
