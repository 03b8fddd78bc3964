"""Record of a model: its architecture, plan, folded BatchNorms and input shape, as JSON.

The architecture is the name and the arguments of a factory ([`snello.store.ModelSpec`][]), the
plan is the one by which [`snello.simplify`][snello.simplification.simplify] made it lean. A record
may name a network of snello or a registered model of torchvision, timm or transformers; any other
factory is refused unless the caller passes its name as `trust="package.module:factory"`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from snello.errors import ModelError, naming
from snello.graph import evaluation
from snello.neurons import input_dtype
from snello.simplification import SimplificationPlan, apply, apply_folds, folds_of, plan_of

from ._fill import fill, take_dtypes
from ._images import ImageInput
from ._spec import ModelSpec
from ._untrusted import build_untrusted

_INTEGERS = {"int64": torch.int64, "int32": torch.int32}
"""Input dtypes that a record may name."""
_KEYS = frozenset(
    {"model", "input_shape", "further_inputs", "images", "plan", "folded_batchnorms", "input_dtype"}
)
"""Entries of a record."""


@dataclass(frozen=True)
class InputSpec:
    """One further input of a model with several.

    Attributes:
        shape: shape without the batch dimension.
        dtype: as in [`Record`][snello.store.Record].

    Raises:
        ModelError: as [`Record`][snello.store.Record].
    """

    shape: tuple[int, ...]
    dtype: torch.dtype = field(default=torch.float32, compare=False)

    def __post_init__(self) -> None:
        _check_input(self.shape, self.dtype)


@dataclass(frozen=True)
class Record:
    """Description of a model without its weights.

    Attributes:
        model: name and arguments of the factory that builds the architecture.
        input_shape: shape of the first input, without the batch dimension.
        dtype: dtype of the model's inputs, an integer dtype for token ids. A loaded record without
            an integer dtype has the dtype of its weights.
        images: preprocessing of images and names of the classes; None if unknown.
        further: the other positional inputs of a model with several.

    Raises:
        ModelError: for a model that is no [`ModelSpec`][snello.store.ModelSpec], a shape that is not
            one of positive integers, and a dtype that is neither floating, int64 nor int32.
    """

    model: ModelSpec
    input_shape: tuple[int, ...]
    dtype: torch.dtype = field(default=torch.float32, compare=False)
    images: ImageInput | None = None
    further: tuple[InputSpec, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.model, ModelSpec) or not isinstance(self.model.name, str):
            raise ModelError(
                f"a record needs a ModelSpec, Record(ModelSpec('resnet18'), (3, 224, 224)), not {self.model!r}"
            )
        _check_input(self.input_shape, self.dtype)

    def example_inputs(self, batch: int = 2) -> Tensor:
        """Random inputs of shape `(batch, *input_shape)`, with a fixed seed; token ids 0 and 1.

        Raises:
            ModelError: for a model with several inputs; use [`inputs`][snello.store.Record.inputs].
        """
        if self.further:
            raise ModelError(
                f"{self.model.name} takes {1 + len(self.further)} inputs, which only Record.inputs() has"
            )
        return self.inputs(batch)[0]

    def image_facts(self) -> dict[str, Any]:
        """Preprocessing, classes and input shape for an exported file; empty if unknown."""
        if self.images is None:
            return {}
        return {**self.images.to_dict(), "input_shape": list(self.input_shape)}

    def inputs(self, batch: int = 2) -> tuple[Tensor, ...]:
        """All inputs, each as `example_inputs`, as a tuple of positional arguments."""
        generator = torch.Generator().manual_seed(0)
        every = (InputSpec(self.input_shape, self.dtype), *self.further)
        return tuple(_random((batch, *one.shape), one.dtype, generator) for one in every)

    def initialise(self, model: nn.Module) -> None:
        """Run a model once if it has lazy layers, such as `nn.LazyLinear`, which get their shapes then.

        Raises:
            ModelError: if it does not run on inputs of the recorded shapes.
        """
        if not any(is_lazy(tensor) for tensor in (*model.parameters(), *model.buffers())):
            return
        try:
            with evaluation(model):
                model(*self.inputs())
        except Exception as error:  # the model may be the user's own: it may raise anything
            raise ModelError(
                f"{self.model.name} has lazy layers, and does not run on inputs of shape "
                f"{(2, *self.input_shape)}: {error}"
            ) from error


def _check_input(shape: object, dtype: torch.dtype) -> None:
    sizes = shape if isinstance(shape, Sequence) else (None,)
    if not all(isinstance(n, Integral) and int(n) > 0 for n in sizes):
        raise ModelError(
            f"the shape of an input is a tuple of positive integers without the batch, not {shape!r}"
        )
    if not dtype.is_floating_point and dtype not in _INTEGERS.values():
        raise ModelError(
            f"the dtype of an input is a floating one, {' or '.join(_INTEGERS)}, not {dtype}: models that take "
            "others cannot be described by a record"
        )


def _random(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    if not dtype.is_floating_point:
        return torch.randint(0, 2, shape, generator=generator, dtype=dtype)
    return torch.randn(shape, generator=generator).to(dtype)


def to_dict(model: nn.Module, record: Record) -> dict[str, Any]:
    """The record of a model with its plan and folded BatchNorms, as plain JSON values."""
    plan = plan_of(model)
    found: dict[str, Any] = {
        "model": record.model.to_dict(),
        "input_shape": list(record.input_shape),
        "plan": plan.to_json() if plan else None,
        "folded_batchnorms": folds_of(model),
    }
    # Floating-point inputs take the dtype of the weights when the record is loaded.
    if not record.dtype.is_floating_point:
        found["input_dtype"] = _name(record.dtype)
    if record.images is not None:
        found["images"] = record.images.to_dict()
    if record.further:
        found["further_inputs"] = [_described(one) for one in record.further]
    return found


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _described(one: InputSpec) -> dict[str, Any]:
    integer = {} if one.dtype.is_floating_point else {"dtype": _name(one.dtype)}
    return {"shape": list(one.shape), **integer}


def _further(data: Sequence[Mapping[str, Any]], floating: torch.dtype) -> tuple[InputSpec, ...]:
    """The inverse of `_described`; floating-point inputs take the dtype of the weights."""
    return tuple(
        InputSpec(
            tuple(int(n) for n in one["shape"]),
            _INTEGERS[one["dtype"]] if "dtype" in one else floating,
        )
        for one in data
    )


def from_dict(
    data: Mapping[str, Any],
    state: Mapping[str, Tensor],
    where: str,
    *,
    trust: str | Collection[str] = (),
) -> tuple[nn.Module, Record]:
    """Build a model from its record and load its weights: the inverse of
    [`to_dict`][snello.store.to_dict].

    Args:
        data: the record.
        state: the weights.
        where: origin of the record, for messages.
        trust: names of your own factories, `"package.module:factory"`, that the record may name;
            they are imported and called with the arguments of the record. Other names are limited
            to those that [`snello.store.build_untrusted`][] accepts.

    Raises:
        ModelError: if the record is damaged, the weights do not fit it, or it names an untrusted
            factory.
        ConfigError: if `trust` is neither a string nor a collection of strings.
        MissingExtraError: if the model belongs to a library that is not installed.
    """
    try:
        record = Record(
            ModelSpec.from_dict(data["model"]),
            tuple(int(n) for n in data["input_shape"]),
            images=ImageInput.from_dict(data["images"]) if "images" in data else None,
            further=_further(data.get("further_inputs", ()), torch.float32),
        )
        plan = data["plan"]
        integers = _INTEGERS[data["input_dtype"]] if "input_dtype" in data else None
        folds = dict(data.get("folded_batchnorms") or {})  # files of older versions lack the key
    except (KeyError, TypeError, ValueError, AttributeError, ModelError) as error:
        raise ModelError(f"{where}: the record of the model is damaged: {error!r}") from error
    model = build_untrusted(record.model, trust, where=where)
    replace(record, dtype=integers or torch.float32).initialise(model)
    with naming(where, ModelError):
        if plan is not None:
            model = apply(SimplificationPlan.from_json(plan), model)
        if folds:
            model = apply_folds(folds, model)
    take_dtypes(model, state)
    fill(model, state, where)
    floating = input_dtype(model)
    further = _further(data.get("further_inputs", ()), floating)
    return model, replace(record, dtype=integers or floating, further=further)


def summary(data: Mapping[str, Any]) -> dict[str, Any]:
    """Summarise a record in a few plain values, for display.

    Args:
        data: a record from [`to_dict`][snello.store.to_dict], or any other mapping; missing entries
            are left out.

    Returns:
        `model`; `input_shape`; `plan` (numbers of layers, of outputs before and after, of
        further parameters that are narrowed, and of layers left alone; None for a dense model);
        `folded_batchnorms`, their number; and `other_keys`, the names of further entries.

    Raises:
        ModelError: if the plan is damaged.
    """
    found = {
        key: data[key]
        for key in ("model", "input_shape", "further_inputs", "images")
        if key in data
    }
    if "plan" in data:
        found["plan"] = (
            None
            if data["plan"] is None
            else _plan_summary(SimplificationPlan.from_json(data["plan"]))
        )
    if isinstance(folds := data.get("folded_batchnorms"), Mapping):
        found["folded_batchnorms"] = len(folds)
    if others := sorted(set(data) - _KEYS):
        found["other_keys"] = others
    return found


def _plan_summary(plan: SimplificationPlan) -> dict[str, int]:
    return {
        "layers": len(plan.layers),
        "outputs": sum(layer.outputs for layer in plan.layers.values()),
        "kept_outputs": sum(len(layer.kept_outputs) for layer in plan.layers.values()),
        "attentions": len(plan.attentions),
        "parameters": len(plan.parameters),
        "left_alone": len(plan.left_alone),
    }
