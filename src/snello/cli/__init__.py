"""The command line. One file per command; what they do is done elsewhere."""

from ._main import main as main

__all__ = ["main"]
