"""Models of other libraries, looked up by name in the library's registry.

A name is `"resnet18"` (torchvision), or `"LIBRARY:MODEL"` with one of `LIBRARIES`, such
as `"timm:resnet18"` or `"transformers:ViTForImageClassification"`. The text after the colon is
only used as a key of the registry, never imported or resolved by attribute access.
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
_TIMM_NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)?", re.ASCII)  # optional tag of weights
_CLASS_NAME = re.compile(r"[A-Z][A-Za-z0-9_]*", re.ASCII)

# Arguments that make a library read or download a file; torchvision's 'init_weights' does not.
_FILES = "checkpoint_path|cache_dir|state_dict|trust_remote_code|auto_map|quantization_config|local_dir|hf_hub"
_LOADING = re.compile(
    rf"pretrained|(?<!init_)weights|{_FILES}|url$|^file(name)?$|^revision$", re.IGNORECASE
)
# Of those, the ones that mean a file whatever their value is; others may be numbers of a network.
_SWITCH = re.compile(rf"pretrained(?!_window_size)|{_FILES}", re.IGNORECASE)
# Entries of a transformers config that name another model, possibly on the hub.
_BACKBONE = re.compile(r"backbone", re.IGNORECASE)
# Other implementations are downloaded from the hub as compiled kernels.
_IMPLEMENTATION = re.compile(r"(attn|experts)_implementation")
_OWN_IMPLEMENTATIONS = (None, "eager", "sdpa", "batched_mm", "grouped_mm")


def library_factory(name: str) -> Factory | None:
    """Find a registered model of torchvision, timm or transformers.

    Returns:
        Its factory; None if no library has a model of this name.

    Raises:
        MissingExtraError: if the library is not installed.
        ModelError: if the library would be imported from the working folder.
    """
    library, colon, model = name.rpartition(":")
    look_up = LIBRARIES.get(library) if colon else _torchvision
    return look_up(model) if look_up else None


def torchvision_names() -> list[str]:
    """Names of torchvision's registered models.

    Raises:
        MissingExtraError: if torchvision is not installed.
        ModelError: if it would be imported from the working folder.
    """
    models = _library(lambda: require("torchvision.models", "train", "a model of torchvision"))
    return list(models.list_models())


def reference_factory(name: str) -> Factory | None:
    """Find a network of the papers by its short name, such as `"resnet-32"`."""
    return _reference(name.replace("-", "_")) if name in reference_names() else None


def reference_names() -> tuple[str, ...]:
    """Short names of the papers' networks in `snello.lab`."""
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
    # is_model would accept a hub address such as 'hf-hub:...'; the pattern excludes colons.
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
        # A model may need a package that is not installed.
        except (ImportError, AttributeError, RuntimeError) as error:
            raise ModelError(f"transformers cannot import {name}: {error}") from error
        is_model = isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)
    config_class = getattr(found, "config_class", None)
    if not is_model or config_class is None or config_class.model_type.startswith("timm"):
        return None  # wrappers of timm accept hub names; use 'timm:...' instead
    return partial(_from_config, found)


def _from_config(cls: Any, /, *, config: Mapping[str, Any] | None = None) -> nn.Module:
    """Build a transformers model, randomly initialised, from the values of its config."""
    # The checkpoint's name does not affect the structure, and could trigger a download.
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
"""Prefix of a name -> function that looks up a model in the library's registry."""


def loading_argument(library: str, arguments: Mapping[str, Any]) -> str | None:
    """Find the first argument, at any depth, that would load or download a file.

    Args:
        library: the part of the model's name before the colon.
        arguments: plain data.

    Returns:
        The name of the argument; None if there is none.
    """
    for key, value in entries(arguments):
        if library == "transformers":
            if _IMPLEMENTATION.search(key) and any(
                v not in _OWN_IMPLEMENTATIONS for v in _leaves(value)
            ):
                return key
            if _BACKBONE.search(key) and value:
                return key
            if _only_numbers(key, value):
                continue
        if _LOADING.search(key) and value:
            return key
    return None


def _only_numbers(key: str, value: Any) -> bool:
    """Return True for numbers that select no file, such as `scale_attn_weights: True` of GPT-2."""
    values = value if isinstance(value, (list, tuple)) else [value]
    return all(isinstance(v, (int, float)) for v in values) and not _SWITCH.search(key)


def _leaves(value: Any) -> list[Any]:
    """The values of a mapping; for other values a list of the value itself."""
    return list(value.values()) if isinstance(value, Mapping) else [value]


@contextmanager
def installed_packages_only() -> Iterator[None]:
    """Remove the working folder from the import path, where a file may shadow a library."""
    before, here = sys.path[:], _working_folder()
    sys.path[:] = [entry for entry in before if here is None or Path(entry).resolve() != here]
    try:
        yield
    finally:
        sys.path[:] = before


@contextmanager
def offline() -> Iterator[None]:
    """Prevent downloads of model parts from the Hugging Face hub inside the block."""
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
        except Exception as error:  # a broken installation may raise any exception
            raise ModelError(f"a library of models cannot be imported: {error}") from error
    package = found.__name__.partition(".")[0]
    # The user's program may have imported it earlier, with the working folder on the path.
    origin, here = getattr(sys.modules[package], "__file__", None), _working_folder()
    if origin and here is not None and here in Path(origin).resolve().parents[:2]:
        raise ModelError(
            f"{package} was imported from the working folder ({origin}), not from an installed package: "
            "rename that file or folder, or run from another folder"
        )
    return found


def _working_folder() -> Path | None:
    try:
        return Path(os.getcwd()).resolve()
    except OSError:  # it was removed
        return None
