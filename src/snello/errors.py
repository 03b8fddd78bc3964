"""Every error that snello raises on purpose.

Each message says what was wrong, which value, where, and what to do about it. The tree::

    SnelloError
    ├── ConfigError            an option or a recipe asks for something impossible      (also ValueError)
    ├── DataError              a dataset is missing, empty or unreadable
    ├── ModelError             a model cannot be built, traced, or loaded from this file
    │   └── SimplifyError      exactness could not be shown; the original model is untouched
    ├── BitstreamError         a bitstream is truncated, damaged or of another kind
    ├── DivergenceError        the loss became NaN or infinite
    ├── OutputError            a result cannot be written where it was asked for
    └── MissingExtraError      an optional dependency is not installed                  (also ImportError)

Stopped, which is no error but a KeyboardInterrupt, says where a signal ended a run and how to go on
with it.
"""

from __future__ import annotations

import difflib
import importlib
import signal
from collections.abc import Iterable
from types import ModuleType


class SnelloError(Exception):
    """Root of the tree: catch it to catch everything that snello raises on purpose."""


class ConfigError(SnelloError, ValueError):
    """An option or a recipe asks for something impossible."""


class DataError(SnelloError):
    """A dataset is missing, empty or unreadable."""


class ModelError(SnelloError):
    """A model cannot be built, traced, or loaded from this file."""


class SimplifyError(ModelError):
    """Exactness could not be shown. Nothing was changed: the original model is still whole."""


class BitstreamError(SnelloError):
    """A bitstream is truncated, damaged or of another kind."""


class DivergenceError(SnelloError):
    """The loss became NaN or infinite."""


class OutputError(SnelloError):
    """A result cannot be written where it was asked for."""


class MissingExtraError(SnelloError, ImportError):
    """An optional dependency is not installed."""


class Stopped(KeyboardInterrupt):
    """A signal ended the work between two steps. No failure, and so no :class:`SnelloError`.

    Args:
        message: where it stopped, and how to go on.
        number: the signal; SIGINT unless told otherwise.
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


def nearest(name: str, known: Iterable[str]) -> str:
    """A question behind a name in a message, ``" (did you mean 'epochs'?)"``; empty where nothing
    is alike.
    """
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def require(module: str, extra: str, purpose: str) -> ModuleType:
    """Import ``module`` or say which extra brings it.

    Args:
        module: dotted name of the module to import.
        extra: the extra of snello that declares it, as in ``pip install 'snello[extra]'``.
        purpose: what the caller needs it for, a noun phrase.

    Raises:
        MissingExtraError: with the pip command that helps.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"{purpose} needs the package '{module.partition('.')[0]}' ({error}); "
            f"install it with: pip install 'snello[{extra}]'"
        ) from error
