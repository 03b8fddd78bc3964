"""Every error that snello raises on purpose.

Each message states the mistake, the value, the place and the remedy. The tree:

    SnelloError
    ├── ConfigError            an option or a recipe asks for something impossible      (also ValueError)
    ├── DataError              a dataset is missing, empty or unreadable
    ├── ModelError             a model cannot be built, traced, or loaded from this file
    │   └── SimplifyError      exactness could not be shown; the original model is untouched
    ├── BitstreamError         a bitstream is truncated, damaged or of another kind
    ├── DivergenceError        the loss became NaN or infinite
    ├── OutputError            a result cannot be written where it was asked for
    └── MissingExtraError      an optional dependency is not installed                  (also ImportError)

[`Stopped`][snello.errors.Stopped] is a KeyboardInterrupt, not an error: its message says where a
signal ended a run and how to continue it.
"""

from __future__ import annotations

import difflib
import importlib
import signal
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType, UnionType
from typing import Any, TypeGuard, get_args, get_origin


class SnelloError(Exception):
    """Root of the tree: catch it to catch everything that snello raises on purpose."""


class ConfigError(SnelloError, ValueError):
    """An option or a recipe asks for something impossible."""


class DataError(SnelloError):
    """A dataset is missing, empty or unreadable."""


class ModelError(SnelloError):
    """A model cannot be built, traced, or loaded from this file."""


class SimplifyError(ModelError):
    """Exactness could not be shown; the original model is unchanged."""


class BitstreamError(SnelloError):
    """A bitstream is truncated, damaged or of another kind."""


class DivergenceError(SnelloError):
    """The loss became NaN or infinite."""


class OutputError(SnelloError):
    """A result cannot be written where it was asked for."""


class MissingExtraError(SnelloError, ImportError):
    """An optional dependency is not installed."""


class Stopped(KeyboardInterrupt):
    """A signal ended the work between two steps: not a failure, so not a
    [`SnelloError`][snello.errors.SnelloError].

    Args:
        message: where the run stopped, and how to continue it.
        number: the signal; None: SIGINT.
    """

    def __init__(self, message: str, number: int | None = None) -> None:
        super().__init__(message)
        self.number = int(number or signal.SIGINT)


def check_option(condition: bool, message: str) -> None:
    """Refuse an option.

    Args:
        condition: false for an impossible value.
        message: the option, its value and the values that are possible.

    Raises:
        ConfigError: if the condition does not hold.
    """
    if not condition:
        raise ConfigError(message)


def is_number(value: object) -> TypeGuard[float]:
    """Return true for an int or a float; a bool, which Python counts as an int, is none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_whole(value: object) -> TypeGuard[int]:
    """Return true for an int; a bool, which Python counts as one, is none."""
    return isinstance(value, int) and not isinstance(value, bool)


def check_count(name: str, count: object, hint: str = "") -> None:
    """Refuse anything but a whole number of at least 1.

    Args:
        name: the option.
        count: its value.
        hint: end of the message, such as what another value would mean.

    Raises:
        ConfigError: naming the option and its value.
    """
    check_option(
        is_whole(count) and count >= 1,
        f"{name}: must be a whole number, at least 1, not {count!r}{hint}",
    )


def check_state(
    state: object, kinds: Mapping[str, Any], owner: str, later: Mapping[str, Any] | None = None
) -> None:
    """Refuse anything but a state of an object, before any of it is loaded.

    Args:
        state: what was given to `load_state_dict`.
        kinds: what every state of it has: name of an entry -> its type, such as `int` (a count, at
            least 0), `float` (any number), `Tensor | None`, `dict[str, Tensor]` or `dict` (any mapping).
        owner: name of its class.
        later: the same for entries that states of earlier versions do not have.

    Raises:
        ConfigError: if it is no mapping, lacks entries, or has entries of other types.
    """
    given = state if isinstance(state, Mapping) else {}
    missing = ", ".join(sorted(kinds.keys() - given.keys()))
    check_option(
        not missing,
        f"not a state of {owner}: this {type(state).__name__} lacks {missing}; {_pass(owner)}",
    )
    for name, kind in {**kinds, **(later or {})}.items():
        if name in given and not _is_of(given[name], kind):
            value = given[name]
            shown = repr(value) if isinstance(value, (int, float, str)) else type(value).__name__
            wanted = "a whole number, at least 0" if kind is int else _in_words(kind)
            raise ConfigError(
                f"not a state of {owner}: its {name!r} is {shown}, not {wanted}; {_pass(owner)}"
            )


def _pass(owner: str) -> str:
    return f"pass what {owner}.state_dict() returned"


def _in_words(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind)


def _is_of(value: Any, kind: Any) -> bool:
    """Return true if a value is of a type, with the elements that the type names."""
    outer, inner = get_origin(kind) or kind, get_args(kind)
    if outer is UnionType:
        return any(_is_of(value, one) for one in inner)
    if outer is int:
        return is_whole(value) and value >= 0
    if outer is float:
        return is_number(value)
    alike: dict[Any, Any] = {dict: Mapping, list: (list, tuple)}
    if not isinstance(value, alike.get(outer, outer)):
        return False
    elements = value.values() if isinstance(value, Mapping) else value
    return not inner or all(_is_of(element, inner[-1]) for element in elements)


@contextmanager
def naming(where: str, *kinds: type[SnelloError]) -> Iterator[None]:
    """Put a place, such as the path of a file, before the messages of errors of some kinds."""
    try:
        yield
    except kinds as error:
        raise type(error)(f"{where}: {error}") from error


def reason_of(error: BaseException) -> str:
    """First line of an error's message, or the name of its class."""
    return str(error).partition("\n")[0] or type(error).__name__


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint to append to a wrong name, `" (did you mean 'epochs'?)"`; may be empty."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def require(module: str, extra: str, purpose: str) -> ModuleType:
    """Import `module`, or raise an error that names the extra to install.

    Args:
        module: dotted name of the module to import.
        extra: the extra of snello that declares it, as in `pip install 'snello[extra]'`.
        purpose: the use of the module, a noun phrase for the message.

    Raises:
        MissingExtraError: with the pip command to run.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"{purpose} needs the package '{module.partition('.')[0]}' ({error}); "
            f"install it with: pip install 'snello[{extra}]'"
        ) from error
