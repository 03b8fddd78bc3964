"""`snello completion`: completion of commands, options and names in a shell."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Collection

from snello.errors import require
from snello.lab.recipes import option_names

HELP = "print the lines that make a shell complete commands, options and names"
EPILOG = (
    'example: snello completion bash: put eval "$(snello completion bash)" into ~/.bashrc\n'
    '         zsh:  eval "$(snello completion zsh)" in ~/.zshrc, after compinit\n'
    "         fish: snello completion fish > ~/.config/fish/completions/snello.fish"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options."""
    parser.add_argument("shell", choices=("bash", "zsh", "fish"))


def run(arguments: argparse.Namespace) -> None:
    """Print the lines for the shell."""
    argcomplete = require("argcomplete", "completion", "shell completion")
    print(argcomplete.shellcode(["snello"], shell=arguments.shell))


def asked_for() -> bool:
    """Return True where a shell asks for completions instead of running a command."""
    return "_ARGCOMPLETE" in os.environ


def command_typed(names: Collection[str]) -> str | None:
    """Command on the line that the shell completes."""
    line = os.environ.get("COMP_LINE", "")
    try:
        words = shlex.split(line)
    except ValueError:  # an open quotation mark
        words = line.split()
    return next((word for word in words[1:] if word in names), None)


def complete(parser: argparse.ArgumentParser) -> None:
    """Answer the shell and leave; nothing happens without the package argcomplete.

    The fields of a recipe are options too, which the parser need not know otherwise.
    """
    try:
        import argcomplete
    except ImportError:
        return
    for sub in _subparsers(parser):
        if sub.get_default("takes_recipe"):
            known = {option for action in sub._actions for option in action.option_strings}
            for name in option_names():
                if f"--{name}" not in known:
                    sub.add_argument(f"--{name}")
    argcomplete.autocomplete(parser, always_complete_options=False)


def _subparsers(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    return [
        sub
        for action in parser._actions
        if isinstance(action, argparse._SubParsersAction)
        for sub in action.choices.values()
    ]
