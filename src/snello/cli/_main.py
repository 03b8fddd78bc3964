"""`snello COMMAND ...`: parse, dispatch, and report expected errors in one line."""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import NoReturn

from snello._version import __version__
from snello.errors import SnelloError, nearest

from . import (
    bench_device,
    completion,
    compress,
    curate,
    decompress,
    evaluate,
    export,
    inspect,
    install_codec,
    journey,
    measure,
    prune,
    recipes,
    report,
    reproduce,
    shrink,
    simplify,
    sweep,
    train,
    tune,
    view,
)
from ._own_code import import_path_restored
from ._signals import is_speaker, sigterm_raised
from ._warnings import warnings_in_one_line
from ._words import UsageError, command_in, divided, seed

COMMANDS = (
    journey, train, reproduce, tune, sweep, prune, shrink, simplify, compress, decompress, inspect,
    export, evaluate,
    measure, bench_device, report, view, recipes, curate, install_codec,
    completion,
)  # fmt: skip
# Each of these modules imports what its command computes with when it runs, not before: help, usage
# errors and completion take a fifth of a second, and torch alone ten times as long.


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line.

    Returns:
        The exit status: 0 on success, 1 on bad input (with one line on stderr), 2 on a usage error,
        130 after SIGINT, 143 after SIGTERM.
    """
    try:
        if completion.asked_for():
            completion.complete(_parser(completion.command_typed(_names()))[0])
        arguments = _arguments(sys.argv[1:] if argv is None else list(argv))
    except UsageError as error:
        return _complain(str(error), 2)
    except KeyboardInterrupt:
        return _say("interrupted", 128 + signal.SIGINT)
    try:
        with sigterm_raised(), import_path_restored(), warnings_in_one_line():
            arguments.run(arguments)
            sys.stdout.flush()
    except SnelloError as error:
        return _complain(str(error), 1)
    except BrokenPipeError:
        return _deaf()
    except OSError as error:
        return _complain(f"{error.filename or 'operating system'}: {error.strerror or error}", 1)
    except KeyboardInterrupt as stopped:
        number, said = getattr(stopped, "number", signal.SIGINT), str(stopped) or "interrupted"
        if hasattr(arguments, "resume") and "--resume" not in said:
            said += "; continue with --resume"
        elif "--folder" in getattr(arguments, "given", ()):
            said += f"; the same command continues from {arguments.folder}"
        return _say(said, 128 + number) if is_speaker() else 128 + number
    return 0


def _arguments(words: list[str]) -> argparse.Namespace:
    """Parse the words of a command line; options of a recipe go to `overrides`.

    Raises:
        UsageError: for an unknown command or option.
    """
    place = command_in(words, _names())
    parser, own_parser = _parser(None if place is None else words[place])
    if place is None or own_parser is None:
        return parser.parse_args(words)
    command = words[place]
    options = {
        option: action.nargs != 0
        for action in own_parser._actions
        for option in action.option_strings
    }
    own, others = divided(words[place + 1 :], options)
    arguments, odd = parser.parse_known_args([*words[: place + 1], *own])
    if not arguments.takes_recipe:
        odd = [*others, *odd]
    if odd:
        name = odd[0].partition("=")[0]
        kind = "option" if name.startswith("-") else "argument"
        raise UsageError(
            f"unknown {kind} {odd[0]!r}{nearest(name, options)}; see: snello {command} --help"
        )
    arguments.overrides, arguments.options = others, tuple(options)
    arguments.given = {word.partition("=")[0] for word in own if word.startswith("--")}
    return arguments


class _Parser(argparse.ArgumentParser):
    """Parser that reports a usage error in one line, like all other errors."""

    def error(self, message: str) -> NoReturn:
        if found := _INVALID_CHOICE.search(message):
            hint = nearest(found[1], re.findall(r"'([^']*)'", found[2]))
            message = message.replace(" (choose from", f"{hint} (choose from")
        elif message.endswith("expected one argument"):
            option = message.removeprefix("argument ").partition(":")[0]
            message += f"; a value that begins with dashes is given as {option}=VALUE"
        self.exit(_complain(f"{message}; see: {self.prog} --help", 2))


_INVALID_CHOICE = re.compile(r"invalid choice: '([^']*)' \(choose from (.*)\)")


def _complain(message: str, status: int) -> int:
    return _say(f"error: {message}", status)


def _deaf() -> int:
    """End quietly if the reader of a pipe has gone, as in `snello inspect FILE | head`."""
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # what is left would fail when Python ends
    return 128 + signal.SIGPIPE


def _say(message: str, status: int) -> int:
    # A message may quote control characters from a file, which must not reach the terminal.
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(message.split()))
    print(f"snello: {text}", file=sys.stderr)
    return status


def help_texts() -> dict[str, str]:
    """Name of each command -> its help; the empty name stands for `snello` itself."""
    found = {"": _parser(None)[0].format_help()}
    for name in _names():
        own = _parser(name)[1]
        assert own is not None
        found[name] = own.format_help()
    return found


def _names() -> tuple[str, ...]:
    return tuple(map(_name, COMMANDS))


def _name(command: ModuleType) -> str:
    """Name of a command: a module's name holds no hyphen."""
    return command.__name__.rpartition(".")[2].replace("_", "-")


def _parser(given: str | None) -> tuple[_Parser, _Parser | None]:
    """Build the parser of the command line and the parser of the command that is given.

    The other commands have a name and a line of help, but no options.
    """
    parser = _Parser(
        prog="snello",
        description="Frugal deep learning: a lean network to ship, and cheaper training.",
        epilog="example: snello journey digits --out=runs/digits",
    )
    own: _Parser | None = None
    parser.add_argument("--version", action="version", version=f"snello {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        sub = subparsers.add_parser(
            _name(command),
            help=command.HELP,
            description=command.HELP,
            epilog=command.EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        if _name(command) == given:
            own = sub
            sub.add_argument("--seed", type=seed, help="seed of all random numbers")
            if not hasattr(command, "DEVICE"):  # a command with a --device of its own
                sub.add_argument(
                    "--device", choices=("auto", "cpu", "cuda"), help="device to compute on"
                )
            command.add_arguments(sub)
            sub.set_defaults(run=command.run, takes_recipe=sub.get_default("takes_recipe") or False)
    return parser, own
