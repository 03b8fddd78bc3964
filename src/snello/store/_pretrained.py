"""Folders written by a Hugging Face model's `save_pretrained`, lean or dense."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from snello.errors import ModelError, SnelloError
from snello.files import read_json_object
from snello.neurons import input_dtype
from snello.simplification import SimplificationPlan
from snello.simplification.rewrite import CONFIG_KEY, narrow_in_place

from ._libraries import installed_packages_only, offline
from ._library_images import images_of
from ._spec import ModelSpec
from ._untrusted import checked_factory
from .record import Record

CONFIG = "config.json"


def is_pretrained(path: str | Path) -> bool:
    """Return True for a folder with a Hugging Face configuration."""
    return Path(path, CONFIG).is_file()


def load_pretrained(folder: str | Path) -> tuple[nn.Module, Record]:
    """Load a Hugging Face model from its folder, with the plan that made it lean.

    `save_pretrained` of a lean model writes the plan into `config.json`. The library's own
    `from_pretrained` builds the dense widths and refuses the smaller weights; this function
    applies the plan first. It neither runs code from the folder nor downloads files.

    Args:
        folder: folder with `config.json` and safetensors weights, in one file or in several with
            an index.

    Returns:
        The model in evaluation mode, on the CPU, and its record.

    Raises:
        ModelError: if a file is missing or damaged, the class is not one of transformers', or the
            weights belong to another model.
        MissingExtraError: without transformers.
    """
    folder = Path(folder)
    config = _config(folder / CONFIG)
    text = config.pop(CONFIG_KEY, None)
    names = config.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise ModelError(f"{folder / CONFIG} names no class: its 'architectures' are {names!r}")
    spec = ModelSpec(f"transformers:{names[0]}", {"config": config})
    kind = _kind(spec, folder)
    plan = None if text is None else SimplificationPlan.from_json(text)
    model = _read(kind if plan is None else _narrowed(kind, plan), folder)
    model.__class__ = kind
    shape = (
        plan.input_shapes[0][1:] if plan is not None and plan.input_shapes else _image_shape(model)
    )
    tokens = getattr(model, "main_input_name", None) in ("input_ids", "decoder_input_ids")
    dtype = torch.int64 if tokens else input_dtype(model)
    return model.eval(), Record(spec, shape, dtype, images_of(model, spec, folder))


def _image_shape(model: nn.Module) -> tuple[int, ...]:
    """Shape of one image from the configuration; empty if it has no size."""
    config: Any = getattr(model, "config", None)
    size, channels = getattr(config, "image_size", None), getattr(config, "num_channels", 3)
    if isinstance(size, int):
        size = (size, size)
    if not isinstance(size, (list, tuple)) or len(size) != 2 or not isinstance(channels, int):
        return ()
    return (channels, *map(int, size))


def _config(path: Path) -> dict[str, Any]:
    return read_json_object(path, kind=ModelError)


def _kind(spec: ModelSpec, folder: Path) -> type[Any]:
    """The class named in a folder's configuration, from the library's registry."""
    factory = checked_factory(spec, str(folder))
    return factory.args[0]  # type: ignore[attr-defined, no-any-return]  # partial(_from_config, class)


def _narrowed(kind: type[Any], plan: SimplificationPlan) -> type[Any]:
    """A subclass that applies the plan on construction, so that the library loads the weights."""

    class Lean(kind):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            narrow_in_place(plan, self)

    Lean.__name__ = kind.__name__
    return Lean


def _read(kind: type[Any], folder: Path) -> nn.Module:
    with installed_packages_only(), offline():
        try:
            model, report = kind.from_pretrained(
                folder, use_safetensors=True, local_files_only=True, output_loading_info=True
            )
        except SnelloError:
            raise
        except Exception as error:  # OSError, RuntimeError, SafetensorError
            first = " ".join(str(error).split())[:300]
            raise ModelError(f"{folder}: its weights cannot be loaded: {first}") from error
    if odd := [*report["missing_keys"], *report["unexpected_keys"]]:
        raise ModelError(
            f"{folder}: its weights belong to another model: {sorted(odd)[0]!r} is missing or "
            f"unknown, one of {len(odd)}"
        )
    return model  # type: ignore[no-any-return]
