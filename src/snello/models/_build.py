"""From a name and arguments to a network."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import nn

from snello.errors import MissingExtraError, ModelError, SnelloError, require
from snello.models._alexnet import CifarAlexNet
from snello.models._lenet import LeNet5, LeNet300
from snello.models._resnet import CifarResNet
from snello.models._vgg import CifarVGG16

Factory = Callable[..., nn.Module]

_OURS: dict[str, Factory] = {
    "lenet-300-100": LeNet300,
    "lenet-5": LeNet5,
    "resnet-20": partial(CifarResNet, 20),
    "resnet-32": partial(CifarResNet, 32),
    "resnet-44": partial(CifarResNet, 44),
    "resnet-56": partial(CifarResNet, 56),
    "resnet-110": partial(CifarResNet, 110),
    "vgg-16-cifar": CifarVGG16,
    "alexnet-cifar": CifarAlexNet,
}


@dataclass(frozen=True)
class ModelSpec:
    """A network as data: what a recipe says and what a checkpoint records.

    Attributes:
        name: one of :func:`available`, a torchvision name, or ``"package.module:factory"``.
        arguments: keyword arguments of the factory; plain values, so that they can be written as JSON.
    """

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """``{"name": …, "arguments": {…}}``, ready for JSON."""
        return {"name": self.name, "arguments": dict(self.arguments)}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> ModelSpec:
        """The inverse of :meth:`to_dict`; ``arguments`` may be left out.

        Raises:
            ModelError: for a record with other keys or other types.
        """
        if unknown := sorted(set(record) - {"name", "arguments"}):
            raise ModelError(f"a model record has the keys 'name' and 'arguments', got also {unknown[0]!r}")
        name, arguments = record.get("name"), record.get("arguments", {})
        if not isinstance(name, str) or not isinstance(arguments, Mapping):
            raise ModelError(
                f"a model record needs a text 'name' and a mapping 'arguments', got {dict(record)!r}"
            )
        return cls(name, dict(arguments))


def available() -> tuple[str, ...]:
    """The names of snello's own reference networks."""
    return tuple(_OURS)


def build(name_or_spec: str | ModelSpec, /, **arguments: Any) -> nn.Module:
    """Make a network, randomly initialised unless the arguments say otherwise.

    Args:
        name_or_spec: one of :func:`available`; a torchvision classification or segmentation name such as
            ``"resnet18"``; ``"package.module:factory"`` for your own; or a :class:`ModelSpec`.
        arguments: passed to the factory; they override those of the spec. torchvision's networks get
            ``weights=None`` (and ``weights_backbone=None``) unless given, so that nothing is downloaded.

    Raises:
        ModelError: for an unknown name (with close matches), for arguments that the factory does not take
            (with its signature), and when the factory fails.
        MissingExtraError: for a name that is not ours while torchvision is not installed.
    """
    spec = ModelSpec(name_or_spec) if isinstance(name_or_spec, str) else name_or_spec
    given = {**spec.arguments, **arguments}
    factory = _find(spec.name)
    model = _call(spec.name, factory, given)
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"model {spec.name!r}: the factory returned a {type(model).__name__}, not an nn.Module"
        )
    return model


def _find(name: str) -> Factory:
    if name in _OURS:
        return _OURS[name]
    return _own_factory(name) if ":" in name else _torchvision_factory(name)


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
        if "classes" in arguments and name not in _OURS and ":" not in name:
            takes += "; torchvision calls the number of classes 'num_classes'"
        raise ModelError(f"model {name!r} cannot be built with ({asked}): {error}{takes}") from error


def _signature(factory: Factory) -> inspect.Signature | None:
    for evaluated in (True, False):  # annotations read better evaluated, where their names can be found
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


def _torchvision_factory(name: str) -> Factory:
    try:
        models = require("torchvision.models", "train", f"the model {name!r}")
    except MissingExtraError as error:
        raise MissingExtraError(f"{error}; without it there are: {', '.join(_OURS)}") from error
    names = [
        *models.list_models(module=models),
        *models.list_models(module=models.segmentation),
    ]
    if name not in names:
        close = difflib.get_close_matches(name.lower(), [*_OURS, *names], n=3, cutoff=0.6)
        hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
        raise ModelError(
            f"there is no model {name!r}; {hint}snello.models.available() lists snello's own, "
            "torchvision.models.list_models() lists torchvision's, 'package.module:factory' names yours"
        )
    builder = models.get_model_builder(name)
    # Without this, segmentation models download a pretrained backbone even when weights is None.
    keys = [key for key in ("weights", "weights_backbone") if key in inspect.signature(builder).parameters]
    return partial(builder, **dict.fromkeys(keys))
