"""Code of the user's own: run only where the command line or a recipe given to it names it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.machinery import PathFinder


def add_own_code_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--own-code``, the factories that a model file may name."""
    parser.add_argument(
        "--own-code", action="append", default=[], metavar="NAME",
        help="a package.module:factory of yours that a model file may name; it is imported and called with "
        "arguments from the file; may be repeated; default: none, and a file that names one is refused",
    )  # fmt: skip


def own_code(arguments: argparse.Namespace) -> tuple[str, ...]:
    """Import the factories that ``--own-code`` names.

    Raises:
        ModelError: if one cannot be found.
    """
    import_own_code(arguments.own_code)
    return tuple(arguments.own_code)


def named_code(arguments: argparse.Namespace) -> tuple[str, ...]:
    """Names of factories on this command line, in ``--own-code`` or ``--model``."""
    return (*arguments.own_code, *([arguments.model] if arguments.model is not None else []))


def import_own_code(names: Iterable[str]) -> None:
    """Import those of the named factories that lie in the working folder.

    Only names that the user gave belong here: from the command line, or from a recipe that it
    names. The working folder comes first on the import path while the module is imported, so that
    it finds its neighbours, and last until the command ends, so that it replaces no installed
    package.

    Raises:
        ModelError: if there is no such factory in the module.
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
    """Restore the import path at the end of the block: no working folder that was not there."""
    before = set(sys.path)
    try:
        yield
    finally:
        sys.path[:] = [entry for entry in sys.path if entry in before or entry != os.getcwd()]
