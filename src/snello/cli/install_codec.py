"""`snello install-codec`: build the NNC coder in a folder of its own."""

from __future__ import annotations

import argparse

HELP = "build the NNC coder in a folder of this environment, without changing the version of numpy"
EPILOG = (
    "example: snello install-codec\n"
    "         it needs pip and a C++ compiler, and takes about two minutes"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No options."""


def run(arguments: argparse.Namespace) -> None:
    """Build, and name the folder.

    Raises:
        SnelloError: without pip or a compiler, if the build fails, or if nothing can be written.
    """
    from snello.codec import install

    print("building the package nncodec: about two minutes", flush=True)
    print(f"NNC coder -> {install()}")
