"""Models of other libraries, looked up by name in the library's registry.

A name is ``"resnet18"`` (torchvision), or ``"LIBRARY:MODEL"`` with one of :data:`LIBRARIES`, such
as ``"timm:resnet18"`` or ``"transformers:ViTForImageClassification"``. The text behind the colon is
a key of the registry; it is neither imported nor followed attribute by attribute.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from inspect import signature
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from snello.errors import MissingExtraError, ModelError, require
from snello.nested import entries

from ._spec import REFERENCE

Factory = Callable[..., nn.Module]

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_]+", re.ASCII)
_TIMM_NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)?", re.ASCII)  # with the tag of its weights
_CLASS_NAME = re.compile(r"[A-Z][A-Za-z0-9_]*", re.ASCII)

# Arguments that make a library read a file or download one. 'init_weights' of torchvision does not.
_LOADING = re.compile(
    r"pretrained|(?<!init_)weights|checkpoint_path|cache_dir|state_dict|trust_remote_code|auto_map"
    r"|quantization_config|local_dir|hf_hub|url$|^file(name)?$|^revision$",
    re.IGNORECASE,
)
# Parts of a transformers config that name another model, which may lie on the hub.
_BACKBONE = re.compile(r"backbone", re.IGNORECASE)
# Other implementations are fetched from the hub as compiled kernels.
_IMPLEMENTATION = re.compile(r"(attn|experts)_implementation")
_OWN_IMPLEMENTATIONS = (None, "eager", "sdpa", "batched_mm", "grouped_mm")


def library_factory(name: str) -> Factory | None:
    """Find a registered model of torchvision, timm or transformers.

    Returns:
        Its factory; None if the name is none of theirs.

    Raises:
        MissingExtraError: if the library is not installed.
        ModelError: if the library would come from the working folder.
    """
    library, colon, model = name.rpartition(":")
    look_up = LIBRARIES.get(library) if colon else _torchvision
    return look_up(model) if look_up else None


def torchvision_names() -> list[str]:
    """The names of torchvision's registered models.

    Raises:
        MissingExtraError: without torchvision.
        ModelError: if it would come from the working folder.
    """
    models = _library(lambda: require("torchvision.models", "train", "a model of torchvision"))
    return list(models.list_models())


def reference_factory(name: str) -> Factory | None:
    """Find a network of the papers by its short name, such as ``"resnet-32"``."""
    return _reference(name.replace("-", "_")) if name in reference_names() else None


def reference_names() -> tuple[str, ...]:
    """Short names of the networks of the papers, which :mod:`snello.lab` brings."""
    return tuple(importlib.import_module(REFERENCE).model_names())


def _reference(name: str) -> Factory | None:
    found: Factory | None = importlib.import_module(REFERENCE).FACTORIES.get(name)
    return found


def _torchvision(name: str) -> Factory | None:
    if not _PLAIN_NAME.fullmatch(name) or name not in torchvision_names():
        return None
    builder = importlib.import_module("torchvision.models").get_model_builder(name)
    # Without this, segmentation models download a pretrained backbone even when weights is None.
    keys = [key for key in ("weights", "weights_backbone") if key in signature(builder).parameters]
    return partial(builder, **dict.fromkeys(keys))


def _timm(name: str) -> Factory | None:
    timm = _library(lambda: require("timm", "timm", "a model of timm"))
    # A source such as 'hf-hub:...' has a colon and is no registered name.
    if not _TIMM_NAME.fullmatch(name) or not timm.is_model(name):
        return None
    return partial(timm.create_model, name, pretrained=False)


def _transformers(name: str) -> Factory | None:
    transformers = _library(
        lambda: require("transformers", "huggingface", "a model of transformers")
    )
    if not _CLASS_NAME.fullmatch(name) or name not in transformers.__all__:
        return None
    with installed_packages_only():
        try:
            found = getattr(transformers, name)
        # A model may need a package of its own.
        except (ImportError, AttributeError, RuntimeError) as error:
            raise ModelError(f"transformers cannot import {name}: {error}") from error
        is_model = isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)
    config_class = getattr(found, "config_class", None)
    if not is_model or config_class is None or config_class.model_type.startswith("timm"):
        return None  # wrappers of timm take names on the hub; 'timm:...' names timm's own models
    return partial(_from_config, found)


def _from_config(cls: Any, /, *, config: Mapping[str, Any] | None = None) -> nn.Module:
    """Build a transformers model, randomly initialised, from the values of its config."""
    # The name of the checkpoint that a config came from says nothing about the structure.
    values = {
        key: value for key, value in (config or {}).items() if not key.endswith("name_or_path")
    }
    model: nn.Module = cls(cls.config_class.from_dict(values))
    return model


LIBRARIES: dict[str, Callable[[str], Factory | None]] = {
    REFERENCE: _reference,
    "torchvision": _torchvision,
    "torchvision.models": _torchvision,
    "timm": _timm,
    "timm.models": _timm,
    "transformers": _transformers,
}
"""Part of a name before the colon -> look-up in the registry of that library."""


def loading_argument(library: str, arguments: Mapping[str, Any]) -> str | None:
    """Find the first argument, at any depth, that would load or download something.

    Args:
        library: the part of the model's name before the colon.
        arguments: plain data.
    """
    for key, value in entries(arguments):
        if library == "transformers":
            if _IMPLEMENTATION.search(key) and any(
                v not in _OWN_IMPLEMENTATIONS for v in _leaves(value)
            ):
                return key
            if _BACKBONE.search(key) and value:
                return key
        if _LOADING.search(key) and value:
            return key
    return None


def _leaves(value: Any) -> list[Any]:
    """A value, or the values of a mapping."""
    return list(value.values()) if isinstance(value, Mapping) else [value]


@contextmanager
def installed_packages_only() -> Iterator[None]:
    """Take the working folder off the import path: a file there may bear the name of a library."""
    before, here = sys.path[:], _working_folder()
    sys.path[:] = [entry for entry in before if here is None or Path(entry).resolve() != here]
    try:
        yield
    finally:
        sys.path[:] = before


@contextmanager
def offline() -> Iterator[None]:
    """Keep libraries that fetch parts of a model from the Hugging Face hub from doing so."""
    constants = sys.modules.get("huggingface_hub.constants")
    before = getattr(constants, "HF_HUB_OFFLINE", None)
    if constants is None or before is None:
        yield
        return
    constants.HF_HUB_OFFLINE = True  # type: ignore[attr-defined]
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before  # type: ignore[attr-defined]


def _library(imported: Callable[[], ModuleType]) -> ModuleType:
    with installed_packages_only():
        try:
            found = imported()
        except MissingExtraError:
            raise
        except Exception as error:  # a broken installation raises anything
            raise ModelError(f"a library of models cannot be imported: {error}") from error
    package = found.__name__.partition(".")[0]
    # The user's own program may have imported it before, with the working folder on the path.
    origin, here = getattr(sys.modules[package], "__file__", None), _working_folder()
    if origin and here is not None and here in Path(origin).resolve().parents[:2]:
        raise ModelError(
            f"{package} was imported from the working folder ({origin}), not from an installed package: "
            "rename what lies there, or work in another folder"
        )
    return found


def _working_folder() -> Path | None:
    try:
        return Path(os.getcwd()).resolve()
    except OSError:  # it was removed
        return None
