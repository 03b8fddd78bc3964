"""Import of user code, only if the command line or a recipe given to it names the factory."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.machinery import PathFinder


def add_own_code_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--own-code`, the user's factories that a model file may name."""
    parser.add_argument(
        "--own-code", action="append", default=[], metavar="NAME",
        help="a package.module:factory of yours that a model file may name; it is imported and called with "
        "arguments from the file; may be repeated; default: none, a file that names one is refused",
    )  # fmt: skip


def own_code(arguments: argparse.Namespace) -> tuple[str, ...]:
    """Import the factories that `--own-code` names.

    Raises:
        ModelError: if a factory cannot be found.
    """
    import_own_code(arguments.own_code)
    return tuple(arguments.own_code)


def named_code(arguments: argparse.Namespace) -> tuple[str, ...]:
    """Names of factories given on the command line by `--own-code` or `--model`."""
    return (*arguments.own_code, *([arguments.model] if arguments.model is not None else []))


def import_own_code(names: Iterable[str]) -> None:
    """Import the named factories, also from the working folder.

    Pass only names given by the user, on the command line or in a recipe named there. The working
    folder is first on the import path during the import, so that the module can import its
    neighbours, and last until the command ends, so that it does not shadow installed packages.

    Raises:
        ModelError: if a module has no such factory.
    """
    from snello.store import import_factory

    for name in names:
        module, colon, _ = name.partition(":")
        here = os.getcwd()
        if colon and PathFinder.find_spec(module.partition(".")[0], [here]) is not None:
            sys.path.insert(0, here)
            try:
                import_factory(name)
            finally:
                sys.path.remove(here)
            if here not in sys.path:
                sys.path.append(here)


@contextmanager
def import_path_restored() -> Iterator[None]:
    """Restore the import path at the end of the block."""
    before = set(sys.path)
    try:
        yield
    finally:
        sys.path[:] = [entry for entry in sys.path if entry in before or entry != os.getcwd()]
