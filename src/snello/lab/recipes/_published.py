"""The published tables: their numbers, and the recipe and method that runs each row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from snello.errors import ConfigError, nearest
from snello.files import read_json

from ._names import recipe_folder

TABLES = ("table1", "table2")


@dataclass(frozen=True)
class Quantity:
    """A column of a published table.

    Attributes:
        key: name in the rows.
        label: column header, with the unit.
        digits: number of decimal places.
        device: True if it was timed on the paper's device, so that a difference to a measurement on
            another machine has no meaning.
    """

    key: str
    label: str
    digits: int
    device: bool = False


@dataclass(frozen=True)
class PublishedRow:
    """A row of a published table, with the recipe and the method that reproduce it.

    Attributes:
        name: name of the row for `snello reproduce --row`.
        recipe, method: names of the recipe and the method that reproduce it.
        network, dataset, approach: the row's description, as published.
        published: key of a quantity -> published number; None where nothing is published.
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
        title: caption of the table.
        source: the publication.
        quantities: the columns.
        rows: the rows.
    """

    name: str
    title: str
    source: str
    quantities: tuple[Quantity, ...]
    rows: tuple[PublishedRow, ...]

    def row(self, name: str) -> PublishedRow:
        """The row of this name.

        Raises:
            ConfigError: for an unknown name; the message lists the names of the rows.
        """
        for row in self.rows:
            if row.name == name:
                return row
        names = ", ".join(row.name for row in self.rows)
        hint = nearest(name, [row.name for row in self.rows])
        raise ConfigError(f"{self.name} has no row {name!r}{hint}; its rows are: {names}")


@cache
def published_table(name: str) -> PublishedTable:
    """Read a published table from the file of published numbers.

    Raises:
        ConfigError: for an unknown table.
    """
    if name not in TABLES:
        hint = nearest(name, TABLES)
        raise ConfigError(
            f"there is no table {name!r}{hint} to reproduce; choose one of: {', '.join(TABLES)}"
        )
    data = read_json(recipe_folder() / "published.json")[name]
    quantities = tuple(Quantity(key, **value) for key, value in data["quantities"].items())
    rows = tuple(PublishedRow(**row) for row in data["rows"])
    return PublishedTable(name, data["title"], data["source"], quantities, rows)
