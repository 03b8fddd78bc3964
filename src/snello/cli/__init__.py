"""The command line, one file per command; each calls functions of the other packages."""

from ._main import help_texts as help_texts
from ._main import main as main

__all__ = ["help_texts", "main"]
