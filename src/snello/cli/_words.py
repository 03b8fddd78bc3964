"""Division of a command line into the command's own options and those of a recipe."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from snello.errors import nearest


class UsageError(Exception):
    """A command line that cannot be parsed."""


def command_in(words: Sequence[str], commands: Collection[str]) -> int | None:
    """Index of the command; None where there is only an option such as ``--help``.

    Raises:
        UsageError: for a command that there is not.
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
    """Divide what follows a command into its own words and options that it does not know.

    The parser of the standard library takes an option that it does not know for a positional
    argument when its value holds a space, and a value that begins with a dash for an option; here
    every word that begins with two dashes is an option, and what follows ``=`` or the next word is
    its value, as it stands.

    Args:
        words: of the command line, behind the command.
        takes_value: the options that the command knows, ``"--out"``, and whether each has a value.

    Returns:
        The command's own words, and the others as ``--name=value``, or ``--name`` where no value is
        given.

    Raises:
        UsageError: for the value ``--``, which the standard library would lose.
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
                f"the value '--' cannot be given to {name}: give another name, such as './--'"
            )
        (own if known else others).append(word)
    return own, others
