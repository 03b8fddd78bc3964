"""Model files: a ``state_dict`` and a JSON record of structure. No pickled code, and none by name.

The record says how to build the architecture (:class:`snello.store.ModelSpec`), which plan made it
lean and which BatchNorms were folded, if any, and the shape of its input; loading builds, applies
plan and folds, and fills in the weights. What a record names is a network of snello's or a
registered model of torchvision, timm or transformers; anything else is refused unless the reader
names it too, as ``trust="package.module:factory"``.

>>> save("lean.pt", lean, Record(ModelSpec("lenet-5"), (1, 28, 28)))
>>> model, record = load("lean.pt")
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from snello.codec import decompress, is_container
from snello.errors import ConfigError, ModelError
from snello.files import write_file as write_file
from snello.neurons import input_dtype, qualified
from snello.simplification import SimplificationPlan, apply, apply_folds, folds_of, plan_of

from . import archives
from ._build import ModelSpec
from ._untrusted import build_untrusted, imported_factory, names_own_code, trusted_names

FORMAT = "snello model 1"


@dataclass(frozen=True)
class Record:
    """What is known of a model beside its weights.

    Attributes:
        model: how to build the architecture.
        input_shape: shape of one input, without the batch dimension.
        dtype: of the inputs that the model takes. A record that was loaded has that of its weights.
    """

    model: ModelSpec
    input_shape: tuple[int, ...]
    dtype: torch.dtype = field(default=torch.float32, compare=False)

    def example_inputs(self, batch: int = 2) -> Tensor:
        """Random inputs of the right shape and dtype: shape ``(batch, *input_shape)``."""
        found = torch.randn(batch, *self.input_shape, generator=torch.Generator().manual_seed(0))
        return found.to(self.dtype)


def to_dict(model: nn.Module, record: Record) -> dict[str, Any]:
    """The record of a model as plain JSON values, with the plan that made the model lean, if
    any.
    """
    plan = plan_of(model)
    return {
        "model": record.model.to_dict(),
        "input_shape": list(record.input_shape),
        "plan": plan.to_json() if plan else None,
        "folded_batchnorms": folds_of(model),
    }


def from_dict(
    data: Mapping[str, Any],
    state: Mapping[str, Tensor],
    where: str,
    *,
    trust: str | Collection[str] = (),
    own_code: None = None,
) -> tuple[nn.Module, Record]:
    """Build a model from its record and fill in its weights: the inverse of :func:`to_dict`.

    Args:
        data: the record.
        state: the weights.
        where: what the record was read from, for messages.
        trust: names of factories of your own, ``"package.module:factory"``, that the record may
            name: they are imported and called with the arguments in the record. Without trust a
            record can only name what :func:`snello.store.build_untrusted` knows.
        own_code: no longer an option: ``trust`` takes its place.

    Raises:
        ModelError: if the record is damaged, the weights do not fit it, or it names a factory that
        it may not. ConfigError: if ``trust`` is not a name or several.
        MissingExtraError: if the model is of a library that is not installed.
    """
    _check_trust(trust, own_code)
    try:
        record = Record(
            ModelSpec.from_dict(data["model"]), tuple(int(n) for n in data["input_shape"])
        )
        plan, folds = (
            data["plan"],
            dict(data.get("folded_batchnorms") or {}),
        )  # older files have none
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(f"{where}: the record of the model is damaged: {error!r}") from error
    model = build_untrusted(record.model, trust, where=where)
    if plan is not None:
        model = apply(SimplificationPlan.from_json(plan), model)
    if folds:
        model = apply_folds(folds, model)
    take_dtypes(model, state)
    fill(model, state, where)
    return model, replace(record, dtype=input_dtype(model))


def take_dtypes(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Cast parameters and buffers of a model, in place, to the floating dtypes of weights that it
    shall hold.

    Buffers that no file holds follow where model and file have one dtype each; in a model of
    several dtypes they stay as they are built. Parameters stay the same objects, so that what is
    tied stays tied.
    """
    wanted = {name: value.dtype for name, value in state.items() if value.is_floating_point()}
    own = {value.dtype for value in model.state_dict().values() if value.is_floating_point()}
    rest = next(iter(wanted.values())) if len(own) == 1 == len(set(wanted.values())) else None
    for prefix, module in model.named_modules(remove_duplicate=False):
        for key, tensor in [*module._parameters.items(), *module._buffers.items()]:
            dtype = wanted.get(qualified(prefix, key), rest)
            if tensor is None or dtype in (None, tensor.dtype) or not tensor.is_floating_point():
                continue
            if isinstance(tensor, nn.Parameter):
                tensor.data = tensor.data.to(dtype)
            else:
                module._buffers[key] = tensor.to(dtype)


def fill(model: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Load weights strictly, with one clear line if they belong to another model."""
    try:
        model.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        first = " ".join(str(error).split())[:300]
        raise ModelError(f"{where}: these weights belong to another model: {first}") from error


def save(
    path: str | Path, model: nn.Module, record: Record, *, trust: str | Collection[str] = ()
) -> Path:
    """Write a model file; the old one, if any, stays whole until the new one has been read back.

    A digest of all bytes is in the file (:mod:`snello.store.archives`), so that :func:`load` finds a
    flipped bit.

    Args:
        path: of the file.
        model: the model; its dtypes are kept.
        record: the structure, checked before anything is written: :func:`load` must be able to
        build it. trust: names of factories of your own that may be called for this check. Without
            it a record that names a function of your own is written without comparing the
            architecture.

    Raises:
        ModelError: for a record that :func:`load` would refuse, or that is of another architecture.
        OutputError: if the file cannot be written.
    """
    check_loadable(model, record, str(path), trust=trust)
    state = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    content = {"format": FORMAT, "record": json.dumps(to_dict(model, record)), "state_dict": state}
    return archives.save(path, content)


def check_loadable(
    model: nn.Module, record: Record, where: str, *, trust: str | Collection[str] = ()
) -> None:
    """Refuse a record that no file with this model's weights could be loaded by.

    Args:
        model: the model.
        record: what would be written beside its weights.
        where: the file to be written, for messages.
        trust: as for :func:`save`.

    Raises:
        ModelError: naming the file and what :func:`load` would say.
        ConfigError: if ``trust`` is not a name or several.
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
            return _check_plain_record(model, record, where)  # a function is not called unasked
        names.add(record.model.name)
    _check_plain_record(model, record, where)
    data = json.loads(json.dumps(to_dict(model, record)))
    try:
        with torch.random.fork_rng(devices=()):  # random weights that nobody keeps
            from_dict(data, model.state_dict(), "the file", trust=names)
    except ModelError as error:
        raise ModelError(f"{where} is not written, for it could not be loaded: {error}") from error


def _check_plain_record(model: nn.Module, record: Record, where: str) -> None:
    try:
        json.dumps(to_dict(model, record))
    except (TypeError, ValueError) as error:
        raise ModelError(
            f"{where} is not written: the record of the model holds what is no plain data: {error}"
        ) from error
    others = [name for name, value in model.state_dict().items() if not isinstance(value, Tensor)]
    if others:
        raise ModelError(f"{where} is not written: {others[0]!r} in the state_dict is not a tensor")


def _check_trust(trust: str | Collection[str], own_code: object) -> None:
    if own_code is not None:
        raise ConfigError(
            "own_code= is no longer an option: name the factories that the file may call, as "
            "trust='package.module:factory'"
        )
    trusted_names(trust)


def load(
    path: str | Path, *, trust: str | Collection[str] = (), own_code: None = None
) -> tuple[nn.Module, Record]:
    """Read a model file or a ``.snello`` bitstream; the model is in evaluation mode, on the CPU.

    Args:
        path: of the file.
        trust: names of factories of your own that the file may call, as for :func:`from_dict`.
        own_code: no longer an option: ``trust`` takes its place.

    Raises:
        ModelError: if the file is missing, damaged, or no model file, or names a factory that it
        may not. BitstreamError: if it is a damaged bitstream.
        ConfigError: if ``trust`` is not a name or several.
        MissingExtraError: if the model is of a library that is not installed, or to read a
            bitstream without nncodec.
    """
    _check_trust(trust, own_code)
    data, state = read(path)
    model, record = from_dict(data, state, str(path), trust=trust)
    return model.eval(), record


def read(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The record and the weights of a model file or a bitstream, as they stand in it; no model is
    built.

    Raises:
        ModelError: if the file is missing, damaged, or no model file.
        BitstreamError: if it is a damaged bitstream.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"there is no model file {path}")
    if is_container(path):
        coded = decompress(path.read_bytes())
        return dict(coded.record), dict(coded.tensors)
    content = archives.load(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ModelError(
            f"{path} is no snello model file; to use weights alone, give --model NAME and --weights {path}"
        )
    try:
        data, state = json.loads(content["record"]), dict(content["state_dict"])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: the record of the model is damaged: {error!r}") from error
    if not all(isinstance(value, Tensor) for value in state.values()):
        raise ModelError(f"{path}: the state_dict holds other things than tensors")
    return data, state


def summary(data: Mapping[str, Any]) -> dict[str, Any]:
    """What a record says, in a few plain values: for people who ask what is in a file.

    Args:
        data: a record as of :func:`to_dict`, or any other mapping: what it lacks is left out.

    Returns:
        ``model``, ``input_shape``, ``plan`` (layers, outputs before and after, what was left alone;
        None for a dense model), ``folded_batchnorms``, a number, and ``other_keys``, the names of
        what else there is.

    Raises:
        ModelError: if there is a plan and it is damaged.
    """
    found = {key: data[key] for key in ("model", "input_shape") if key in data}
    if "plan" in data:
        found["plan"] = (
            None
            if data["plan"] is None
            else _plan_summary(SimplificationPlan.from_json(data["plan"]))
        )
    if isinstance(folds := data.get("folded_batchnorms"), Mapping):
        found["folded_batchnorms"] = len(folds)
    if others := sorted(set(data) - {"model", "input_shape", "plan", "folded_batchnorms"}):
        found["other_keys"] = others
    return found


def _plan_summary(plan: SimplificationPlan) -> dict[str, int]:
    return {
        "layers": len(plan.layers),
        "outputs": sum(layer.outputs for layer in plan.layers.values()),
        "kept_outputs": sum(len(layer.kept_outputs) for layer in plan.layers.values()),
        "attentions": len(plan.attentions),
        "left_alone": len(plan.left_alone),
    }
