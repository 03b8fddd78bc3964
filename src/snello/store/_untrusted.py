"""Construction of models named in files: registered models, and factories the user trusts."""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Mapping
from importlib.util import find_spec
from typing import Any

from torch import nn

from snello.errors import ConfigError, MissingExtraError, ModelError, naming

from ._build import build, build_with, find_known
from ._libraries import (
    LIBRARIES,
    Factory,
    installed_packages_only,
    loading_argument,
    offline,
    reference_names,
)
from ._spec import ModelSpec

_MAX_DEPTH = 16
_LONG = 100
_BARE_NAME = re.compile(r"[A-Za-z0-9_.-]{1,100}", re.ASCII)


def build_untrusted(
    spec: ModelSpec, trust: str | Collection[str] = (), *, where: str = "the record"
) -> nn.Module:
    """Build the network that a file names, without importing or calling untrusted code.

    Args:
        spec: the name and the arguments from the file. Without trust the name must be one of
            [`snello.lab.models.model_names`][], or a registered model of torchvision
            (`"resnet18"`), timm (`"timm:resnet18"`) or transformers
            (`"transformers:ViTForImageClassification"`), with arguments that do not load files.
        trust: names of the form `"package.module:factory"` that may be imported and called with
            the arguments of the file.
        where: origin of the spec, for messages.

    Raises:
        ModelError: if the name is not among these, the arguments are not plain data or would load
            or download a file, or the model cannot be built.
        ConfigError: if `trust` is neither a string nor a collection of strings.
        MissingExtraError: if torchvision, timm or transformers is needed and not installed.
    """
    names = trusted_names(trust)
    with naming(where, MissingExtraError, ModelError):
        _check_plain(spec.arguments)
        if spec.name in names or spec.name in reference_names():
            return build(spec)
        return _library_model(spec)


def trusted_names(trust: str | Collection[str]) -> frozenset[str]:
    """The names in `trust`, as a set.

    Raises:
        ConfigError: if `trust` is neither a string nor a collection of strings, such as True.
    """
    names = (trust,) if isinstance(trust, str) else trust
    if not isinstance(names, Collection) or not all(isinstance(n, str) and n for n in names):
        raise ConfigError(
            f"trust={trust!r}: pass the name of a factory that a file may call, such as "
            "trust='package.module:factory', or a list of names; trusting every factory is not "
            "possible"
        )
    return frozenset(names)


def names_own_code(name: str) -> bool:
    """Return True if a name refers to a user's factory, neither snello's nor a library's."""
    library, colon, _ = name.rpartition(":")
    return bool(colon) and library not in LIBRARIES


def imported_factory(name: str) -> Any:
    """Find a factory among the modules already imported by this process, without importing.

    Raises:
        ModelError: if the module does not exist or has no such attribute.
    """
    path, _, attribute = name.partition(":")
    if path not in sys.modules:
        if find_spec(path.partition(".")[0]) is None:
            raise ModelError(
                f"its model is built by {_shown(name)}, but there is no module {_shown(path)}"
            )
        return None
    found: Any = sys.modules[path]
    for part in attribute.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise ModelError(
            f"its model is built by {_shown(name)}, but {_shown(path)} has no function or class "
            f"{attribute!r}"
        )
    return found


def checked_factory(spec: ModelSpec, where: str) -> Factory:
    """Find the factory of a library's registered model and check its arguments.

    Args:
        spec: the name and the arguments from a file.
        where: the file, for messages.

    Raises:
        ModelError: if no library has such a model, or an argument would load or download a file.
        MissingExtraError: if the library is not installed.
    """
    with naming(where, MissingExtraError, ModelError):
        _check_plain(spec.arguments)
        return _library_factory(spec)


def _library_model(spec: ModelSpec) -> nn.Module:
    factory = _library_factory(spec)
    with installed_packages_only(), offline():
        return build_with(factory, spec.name, spec.arguments)


def _library_factory(spec: ModelSpec) -> Factory:
    library, colon, model = spec.name.rpartition(":")
    if not colon and not _BARE_NAME.fullmatch(model):
        raise ModelError(f"there is no model {_shown(model)}")
    # Looked up before any call and outside the working folder: a file must not choose code.
    factory = find_known(spec.name) if library in LIBRARIES or not colon else None
    if factory is None:
        raise ModelError(
            f"its model is built by {_shown(spec.name)}, which is neither a network of snello nor "
            "a registered "
            "model of torchvision, timm or transformers, and is not imported; " + _advice(spec.name)
        )
    if (key := loading_argument(library, spec.arguments)) is not None:
        raise ModelError(
            f"its model {_shown(spec.name)} has the argument {_shown(key)}, which would load or download "
            "a file; a model file has its own weights: remove the argument, or "
            + _advice(spec.name)
        )
    return factory


def _advice(name: str) -> str:
    if len(name) > _LONG or not name.isprintable():
        return "such a name cannot be trusted"
    return (
        "if you trust the source of the file, pass the name: "
        f"--own-code {_quoted(name)} (trust={name!r} in Python)"
    )


def _quoted(name: str) -> str:
    plain = all(character.isalnum() or character in ":._-" for character in name)
    return name if plain and name else repr(name)


def _shown(name: str) -> str:
    return repr(name if len(name) <= _LONG else f"{name[:_LONG]}…")


def _check_plain(value: Any, depth: int = 0) -> None:
    """Raise ModelError for values outside JSON, which `ModelSpec.from_dict` accepts."""
    if depth > _MAX_DEPTH:
        raise ModelError(f"the arguments of its model are nested more than {_MAX_DEPTH} deep")
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _check_plain(key, depth + 1)
            _check_plain(inner, depth + 1)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            _check_plain(inner, depth + 1)
    elif value is not None and not isinstance(value, (str, int, float, bool)):
        raise ModelError(
            f"the arguments of its model contain a {type(value).__name__}, which is not plain data"
        )
