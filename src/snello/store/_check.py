"""Check that a model file could be loaded again, before it is written."""

from __future__ import annotations

import json
from collections.abc import Collection

import torch
from torch import Tensor, nn

from snello.errors import ConfigError, ModelError

from ._untrusted import imported_factory, names_own_code, trusted_names
from .record import Record, from_dict, to_dict


def check_loadable(
    model: nn.Module, record: Record, where: str, *, trust: str | Collection[str] = ()
) -> None:
    """Check that a model could be loaded again from its record and weights.

    Args:
        model: the model.
        record: its record, to be written with its weights.
        where: the file to be written, for messages.
        trust: as for [`snello.store.save`][].

    Raises:
        ModelError: with the file and the error that [`snello.store.load`][] would raise.
        ConfigError: if `trust` is neither a string nor a collection of strings.
    """
    names = set(trusted_names(trust))
    if not isinstance(model, nn.Module) or not isinstance(record, Record):
        raise ConfigError(
            f"{where} is not written: a model file needs a torch.nn.Module and a snello.Record, not a "
            f"{type(model).__name__} and a {type(record).__name__}"
        )
    if names_own_code(record.model.name) and record.model.name not in names:
        factory = imported_factory(record.model.name)
        if not (isinstance(factory, type) and issubclass(factory, nn.Module)):
            return _check_plain_record(model, record, where)  # do not call an untrusted factory
        names.add(record.model.name)
    _check_plain_record(model, record, where)
    data = json.loads(json.dumps(to_dict(model, record)))
    try:
        with torch.random.fork_rng(devices=()):  # the check must not advance the user's generator
            from_dict(data, model.state_dict(), "the file", trust=names)
    except ModelError as error:
        raise ModelError(
            f"{where} is not written, because it could not be loaded: {error}"
        ) from error


def _check_plain_record(model: nn.Module, record: Record, where: str) -> None:
    try:
        json.dumps(to_dict(model, record))
    except (TypeError, ValueError) as error:
        raise ModelError(
            f"{where} is not written: the record of the model is not plain JSON data: {error}"
        ) from error
    others = [name for name, value in model.state_dict().items() if not isinstance(value, Tensor)]
    if others:
        raise ModelError(f"{where} is not written: {others[0]!r} in the state_dict is not a tensor")
