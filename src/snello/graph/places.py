"""File and line of the user's code that an operation or an error comes from."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import FrameType

import torch
from torch import fx, nn

from .inputs import Inputs

_PLACE = "snello_place"
_LIBRARIES = tuple(
    f"{folder}{os.sep}" for folder in (Path(torch.__file__).parent, Path(__file__).parents[1])
)
"""Folders of torch and of this package. All other files are the user's code, timm's included."""


def place_of(node: fx.Node) -> str | None:
    """Return `folder/file.py:57`, where the model's code runs an operation; None if unknown."""
    place: str | None = node.meta.get(_PLACE)
    return place


def at_place(node: fx.Node) -> str:
    """Return ` (at folder/file.py:57)`, to follow a reason; empty where the place is unknown."""
    place = place_of(node)
    return f" (at {place})" if place else ""


def note_caller(node: fx.Node) -> None:
    """Note on a node the innermost frame of the user's code, while torch.fx traces it."""
    note(node, calling_place())


def note(node: fx.Node, place: str | None) -> None:
    """Note a place on a node."""
    if place is not None:
        node.meta[_PLACE] = place


def calling_place() -> str | None:
    """Return the innermost line of the user's code that is running; None if none is."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        traced = frame.f_code.co_name == "trace" and name.endswith("_symbolic_trace.py")
        if traced or frame.f_code is Inputs.call.__code__:
            return None  # frames further out belong to the caller of snello, not to the model
        if _is_users(name):
            return _short(name, frame.f_lineno)
        frame = frame.f_back
    return None


def place_of_error(error: BaseException) -> str | None:
    """Return `folder/file.py:57`, the innermost line of user code in a traceback, or None."""
    frames: Iterable[traceback.FrameSummary] = traceback.extract_tb(error.__traceback__)
    users = [frame for frame in frames if _is_users(frame.filename)]
    return _short(users[-1].filename, users[-1].lineno or 0) if users else None


def module_of_error(error: BaseException, model: nn.Module) -> str | None:
    """Return the name of the innermost submodule in whose forward an error was raised; None if only
    the model's own was running.
    """
    # A frame belongs to the module that it has as ``self``.
    names = {id(module): name for name, module in model.named_modules()}
    owners: Iterable[str | None] = (
        names.get(id(frame.f_locals.get("self")))
        for frame, _ in traceback.walk_tb(error.__traceback__)
    )
    running = [name for name in owners if name]
    return running[-1] if running else None


def where(error: BaseException, model: nn.Module) -> str:
    """Return the submodule, file and line at which an error was raised, in parentheses, to follow its
    text; empty if none of them is known.
    """
    name, place = module_of_error(error, model), place_of_error(error)
    parts = [*([f"in {name!r}"] if name else []), *([f"at {place}"] if place else [])]
    return f" ({', '.join(parts)})" if parts else ""


def _is_users(name: str) -> bool:
    """True of a file of the user's code; code without a file has names such as `<string>`."""
    return not name.startswith(_LIBRARIES) and not name.startswith("<")


def _short(name: str, line: int) -> str:
    """The place without the folders that differ from machine to machine: the path below
    site-packages, or the last folder and the file.
    """
    path = Path(name)
    parts = path.parts
    if "site-packages" in parts:
        return f"{Path(*parts[parts.index('site-packages') + 1 :]).as_posix()}:{line}"
    return f"{Path(*parts[-2:]).as_posix() if len(parts) > 2 else path.name}:{line}"
