"""From a name and arguments to a network."""

from __future__ import annotations

import difflib
import importlib
import inspect
from typing import Any

from torch import nn

from snello.errors import MissingExtraError, ModelError, SnelloError

from ._libraries import (
    LIBRARIES,
    Factory,
    library_factory,
    reference_factory,
    reference_names,
    torchvision_names,
)
from ._spec import ModelSpec


def build(name_or_spec: str | ModelSpec, /, **arguments: Any) -> nn.Module:
    """Make a network, randomly initialised unless the arguments say otherwise.

    Args:
        name_or_spec: a network of the papers such as ``"resnet-32"``; a registered name of torchvision such as
            ``"resnet18"``; ``"timm:resnet18"``; ``"transformers:ViTForImageClassification"`` with
            the argument ``config``, a mapping; ``"package.module:factory"`` for your own, which is
            imported and called; or a :class:`ModelSpec`. For a name from a file that you did not
            write, see :func:`snello.store.build_untrusted`.
        arguments: passed to the factory; they override those of the spec. torchvision's networks
            get ``weights=None`` (and ``weights_backbone=None``) and timm's ``pretrained=False``
            unless given, so that nothing is downloaded.

    Raises:
        ModelError: for an unknown name (with close matches), for arguments that the factory does
            not take (with its signature), and when the factory fails.
        MissingExtraError: for a model of torchvision, timm or transformers that is not installed.
    """
    spec = ModelSpec(name_or_spec) if isinstance(name_or_spec, str) else name_or_spec
    return build_with(import_factory(spec.name), spec.name, {**spec.arguments, **arguments})


def build_with(factory: Factory, name: str, arguments: dict[str, Any]) -> nn.Module:
    """Call the factory of that name, and check what it returns.

    Raises:
        ModelError: if it fails, or returns anything but an ``nn.Module``.
    """
    model = _call(name, factory, arguments)
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"model {name!r}: the factory returned a {type(model).__name__}, not an nn.Module"
        )
    return model


def import_factory(name: str) -> Factory:
    """The factory of a name that the user gave; one of the user's own is imported.

    Raises:
        ModelError: if there is none.
        MissingExtraError: if it is of a library that is not installed.
    """
    known = find_known(name) if ":" not in name or name.rpartition(":")[0] in LIBRARIES else None
    return known or _own_factory(name)


def find_known(name: str) -> Factory | None:
    """Find a network of snello's or a registered model of a library; None for other factories.

    Raises:
        ModelError: for a name without a colon that neither snello nor torchvision knows.
        MissingExtraError: if it is of a library that is not installed.
    """
    if (reference := reference_factory(name)) is not None:
        return reference
    try:
        factory = library_factory(name)
    except MissingExtraError as error:
        if ":" in name:
            raise
        raise MissingExtraError(
            f"{error}; without it there are: {', '.join(reference_names())}"
        ) from error
    if factory is None and ":" not in name:
        raise _unknown(name)
    return factory


def _call(name: str, factory: Factory, arguments: dict[str, Any]) -> Any:
    signature = _signature(factory)
    try:
        if signature is not None:
            signature.bind(**arguments)
        return factory(**arguments)
    except SnelloError:
        raise
    except Exception as error:  # the factory is other people's code: it may raise anything
        asked = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        takes = "" if signature is None else f"; it takes {signature}"
        if "classes" in arguments and name not in reference_names() and ":" not in name:
            takes += "; torchvision calls the number of classes 'num_classes'"
        raise ModelError(
            f"model {name!r} cannot be built with ({asked}): {error}{takes}"
        ) from error


def _signature(factory: Factory) -> inspect.Signature | None:
    # Annotations read better evaluated, where their names can be found.
    for evaluated in (True, False):
        try:
            signature = inspect.signature(factory, eval_str=evaluated)
            return signature.replace(return_annotation=inspect.Signature.empty)
        except Exception:
            continue
    return None  # factories written in C have none


def _own_factory(name: str) -> Factory:
    path, _, attribute = name.partition(":")
    try:
        found: Any = importlib.import_module(path)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (AttributeError, ValueError) as error:
        raise ModelError(
            f"model {name!r}: {error}; a model of your own is named 'package.module:factory'"
        ) from error
    except Exception as error:  # importing runs the user's code
        raise ModelError(
            f"model {name!r}: importing {path!r} failed: {error}; is its folder on PYTHONPATH?"
        ) from error
    if not callable(found):
        raise ModelError(
            f"model {name!r}: {attribute!r} is a {type(found).__name__}, not a function or a class"
        )
    factory: Factory = found
    return factory


def _unknown(name: str) -> ModelError:
    names = torchvision_names()
    close = difflib.get_close_matches(name.lower(), [*reference_names(), *names], n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
    return ModelError(
        f"there is no model {name!r}; {hint}snello.lab.models.model_names() lists snello's own, "
        "torchvision.models.list_models() lists torchvision's, 'package.module:factory' names yours"
    )
