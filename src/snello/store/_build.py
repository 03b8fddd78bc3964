"""Construction of networks from a factory's name and arguments."""

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
    """Build a network, randomly initialised unless the arguments select weights.

    Args:
        name_or_spec: a network of the papers such as `"resnet-32"`; a registered name of
            torchvision such as `"resnet18"`; `"timm:resnet18"`;
            `"transformers:ViTForImageClassification"` with the argument `config`, a mapping;
            `"package.module:factory"` for your own factory, which is imported and called; or a
            [`ModelSpec`][snello.store.ModelSpec]. For a name from a file that you did not write,
            use [`snello.store.build_untrusted`][].
        arguments: keyword arguments of the factory; they override those of the spec. Torchvision's
            networks get `weights=None` (and `weights_backbone=None`) and timm's
            `pretrained=False` unless given, to avoid downloads.

    Raises:
        ModelError: for an unknown name (the message has close matches), for arguments that the
            factory does not accept (with its signature), or if the factory fails.
        MissingExtraError: if torchvision, timm or transformers is needed and not installed.
    """
    spec = ModelSpec(name_or_spec) if isinstance(name_or_spec, str) else name_or_spec
    return build_with(import_factory(spec.name), spec.name, {**spec.arguments, **arguments})


def build_with(factory: Factory, name: str, arguments: dict[str, Any]) -> nn.Module:
    """Call a factory and check its result.

    Args:
        factory: the factory.
        name: its name, for messages.
        arguments: its keyword arguments.

    Raises:
        ModelError: if the factory fails or does not return an `nn.Module`.
    """
    model = _call(name, factory, arguments)
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"model {name!r}: the factory returned a {type(model).__name__}, not an nn.Module"
        )
    return model


def import_factory(name: str) -> Factory:
    """Find the factory of a name given by the user; the user's own modules are imported.

    Raises:
        ModelError: if there is no such factory.
        MissingExtraError: if it belongs to a library that is not installed.
    """
    known = find_known(name) if ":" not in name or name.rpartition(":")[0] in LIBRARIES else None
    return known or _own_factory(name)


def find_known(name: str) -> Factory | None:
    """Find a network of snello or a registered model of a library; None for other factories.

    Raises:
        ModelError: for a name without a colon that is unknown to snello and torchvision.
        MissingExtraError: if it belongs to a library that is not installed.
    """
    if (reference := reference_factory(name)) is not None:
        return reference
    try:
        factory = library_factory(name)
    except MissingExtraError as error:
        if ":" in name:
            raise
        raise MissingExtraError(
            f"{error}; the models available without it are: {', '.join(reference_names())}"
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
    except Exception as error:  # a user's factory may raise any exception
        asked = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        takes = "" if signature is None else f"; it takes {signature}"
        if "classes" in arguments and name not in reference_names() and ":" not in name:
            takes += "; torchvision's argument for the number of classes is 'num_classes'"
        raise ModelError(
            f"model {name!r} cannot be built with ({asked}): {error}{takes}"
        ) from error


def _signature(factory: Factory) -> inspect.Signature | None:
    # Evaluated annotations are easier to read, but their names may not be resolvable.
    for evaluated in (True, False):
        try:
            signature = inspect.signature(factory, eval_str=evaluated)
            return signature.replace(return_annotation=inspect.Signature.empty)
        except Exception:
            continue
    return None  # builtin factories have no signature


def _own_factory(name: str) -> Factory:
    path, _, attribute = name.partition(":")
    if path.endswith(".py"):
        module = path[:-3].strip("./").replace("/", ".")
        raise ModelError(f"model {name!r} names a file: name its module, '{module}:{attribute}'")
    try:
        found: Any = importlib.import_module(path)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (AttributeError, ValueError) as error:
        raise ModelError(
            f"model {name!r}: {error}; the name of your own model has the form "
            "'package.module:factory'"
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
        f"there is no model {name!r}; {hint}snello.lab.models.model_names() lists snello's models, "
        "torchvision.models.list_models() torchvision's; name your own as 'package.module:factory'"
    )
