"""Division of a command line into the command's own options and those of a recipe."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping, Sequence

from snello.errors import ConfigError, nearest


class UsageError(Exception):
    """A command line that cannot be parsed."""


def command_in(words: Sequence[str], commands: Collection[str]) -> int | None:
    """Index of the command in the words; None if there are only options such as `--help`.

    Raises:
        UsageError: for an unknown command.
    """
    for place, word in enumerate(words):
        if not word.startswith("-"):
            if word not in commands:
                raise UsageError(
                    f"there is no command {word!r}{nearest(word, commands)}; see: snello --help"
                )
            return place
    return None


def divided(words: Sequence[str], takes_value: Mapping[str, bool]) -> tuple[list[str], list[str]]:
    """Separate the words after a command into its own ones and options of a recipe.

    argparse treats an unknown option as a positional argument if its value contains a space, and a
    value that begins with a dash as an option. Here every word that begins with two dashes is an
    option, and the text after `=` or the next word is its value, unchanged.

    Args:
        words: words of the command line after the command.
        takes_value: the command's own options, such as `"--out"`, and whether each has a value.

    Returns:
        The command's own words; and the other options as `--name=value`, or `--name` if no
        value is given.

    Raises:
        UsageError: for the value `--`, which argparse would drop.
    """
    own: list[str] = []
    others: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--":
            return [*own, word, *rest], others
        if not word.startswith("--"):
            own.append(word)
            continue
        name, equals, _ = word.partition("=")
        known = name in takes_value
        if (
            not equals
            and (takes_value[name] if known else True)
            and rest
            and not rest[0].startswith("--")
        ):
            word = f"{name}={rest.pop(0)}"
        if word == f"{name}=--":
            raise UsageError(
                f"{name} cannot have the value '--': choose another name, such as './--'"
            )
        (own if known else others).append(word)
    return own, others


def listed(text: str) -> list[str]:
    """Names that are separated by commas; none in an empty text."""
    return [name.strip() for name in text.split(",") if name.strip()]


def check_known(option: str, name: str, known: Collection[str]) -> None:
    """Refuse an unknown name.

    Raises:
        ConfigError: with the nearest known name, and all of them.
    """
    if name not in known:
        raise ConfigError(
            f"{option}: there is no {name!r}{nearest(name, known)}; choose one of: {', '.join(known)}"
        )


def seed(text: str) -> int:
    """A seed of the command line.

    Raises:
        ArgumentTypeError: for a number that torch and NumPy do not both take.
    """
    try:
        value = int(text)
    except ValueError:
        value = -1
    if not 0 <= value < 2**32:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 to 4294967295")
    return value
