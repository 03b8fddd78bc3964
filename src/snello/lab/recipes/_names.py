"""Names and paths of the recipes; of the files only the first line is read."""

from __future__ import annotations

from pathlib import Path

from snello.errors import ConfigError, nearest


def recipe_names() -> list[str]:
    """Names of the recipes that come with snello."""
    return sorted(
        path.name.removesuffix(".yaml")
        for path in recipe_folder().iterdir()
        if path.name.endswith(".yaml")
    )


def recipe_path(name_or_path: str) -> Path:
    """Path of a recipe: a user's file, or a recipe that comes with snello.

    Raises:
        ConfigError: if there is no such recipe; the message lists the existing names.
    """
    path = Path(name_or_path)
    if path.is_file():
        return path
    if name_or_path in recipe_names():
        return Path(str(recipe_folder() / f"{name_or_path}.yaml"))
    hint = nearest(name_or_path, recipe_names())
    raise ConfigError(
        f"no recipe {name_or_path!r}{hint}: neither a file nor one of: {', '.join(recipe_names())}"
    )


def recipe_summary(path: Path) -> str:
    """The first comment line of a recipe, which describes it."""
    with path.open(encoding="utf-8") as file:
        return file.readline().strip().lstrip("# ").rstrip(":")


def recipe_folder() -> Path:
    """The folder of the recipes that come with snello."""
    return Path(__file__).parent
