"""The published tables: their numbers, and the recipe and method that runs each row."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from snello.errors import ConfigError, nearest

from ._names import recipe_folder

TABLES = ("table1", "table2")


@dataclass(frozen=True)
class Quantity:
    """A column of a published table.

    Attributes:
        key: its name in the rows.
        label: its name for readers, with the unit.
        digits: decimal places.
        device: whether it was timed on a device that is not here, so that no difference would mean
            anything.
    """

    key: str
    label: str
    digits: int
    device: bool = False


@dataclass(frozen=True)
class PublishedRow:
    """A row of a published table, and how it is run.

    Attributes:
        name: what ``snello reproduce --row`` calls it.
        recipe, method: how it is run.
        network, dataset, approach: what it is, as published.
        published: key of a quantity -> published number, None where there is none.
    """

    name: str
    recipe: str
    method: str
    network: str
    dataset: str
    approach: str
    published: Mapping[str, float | None]


@dataclass(frozen=True)
class PublishedTable:
    """A published table.

    Attributes:
        name: "table1" or "table2".
        title: what it is about.
        source: where it was published.
        quantities: its columns.
        rows: its rows.
    """

    name: str
    title: str
    source: str
    quantities: tuple[Quantity, ...]
    rows: tuple[PublishedRow, ...]

    def row(self, name: str) -> PublishedRow:
        """A row by its name.

        Raises:
            ConfigError: if there is none, with the names that there are.
        """
        for row in self.rows:
            if row.name == name:
                return row
        names = ", ".join(row.name for row in self.rows)
        hint = nearest(name, [row.name for row in self.rows])
        raise ConfigError(f"{self.name} has no row {name!r}{hint}; its rows are: {names}")


@cache
def published_table(name: str) -> PublishedTable:
    """A published table, from the file that holds the numbers.

    Raises:
        ConfigError: for a table that there is not.
    """
    if name not in TABLES:
        hint = nearest(name, TABLES)
        raise ConfigError(
            f"there is no table {name!r}{hint} to reproduce; there are: {', '.join(TABLES)}"
        )
    data = json.loads((recipe_folder() / "published.json").read_text())[name]
    quantities = tuple(Quantity(key, **value) for key, value in data["quantities"].items())
    rows = tuple(PublishedRow(**row) for row in data["rows"])
    return PublishedTable(name, data["title"], data["source"], quantities, rows)
