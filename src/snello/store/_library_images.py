"""Preprocessing of images from the configuration of timm, transformers or torchvision."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from snello.errors import ConfigError, ModelError
from snello.files import read_json_object

from ._images import ImageInput
from ._spec import ModelSpec

PROCESSOR = "preprocessor_config.json"
"""File of a Hugging Face image processor, in the folder of the model."""


def images_of(
    model: nn.Module, spec: ModelSpec, folder: str | Path | None = None
) -> ImageInput | None:
    """Find the preprocessing that a library's configuration gives for a model.

    A network that was trained with another normalisation needs its own: the configuration is that
    of the library's pretrained weights.

    - timm: mean, deviation and names of the classes of `model.pretrained_cfg`;
    - transformers: mean, deviation and colour order of the image processor in `folder`, names of
      the classes of `model.config`;
    - torchvision: those of the weights named by the argument `weights`.

    Args:
        model: the network.
        spec: name and arguments of its factory.
        folder: folder of a Hugging Face model, with `preprocessor_config.json`.

    Returns:
        The preprocessing; None if the configuration has none, or none that is valid.
    """
    library = spec.name.partition(":")[0].partition(".")[0]
    try:
        if library == "timm":
            return _timm(model)
        if library == "transformers":
            return None if folder is None else _transformers(model, Path(folder))
        return _torchvision(spec)
    except (AttributeError, KeyError, TypeError, ValueError, ArithmeticError, ModelError):
        return None  # a configuration of another form: the preprocessing is unknown


def _timm(model: nn.Module) -> ImageInput | None:
    config: Mapping[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    if "mean" not in config or "std" not in config:
        return None
    mean, std = _floats(config["mean"]), _floats(config["std"])
    names = config.get("label_names") or ()
    classes = tuple(map(str, names)) if len(names) == getattr(model, "num_classes", None) else ()
    return ImageInput(mean, std, "grey" if len(mean) == 1 else "rgb", classes)


def _transformers(model: nn.Module, folder: Path) -> ImageInput | None:
    try:
        config = read_json_object(folder / PROCESSOR)
    except ConfigError:
        return None
    mean, std = _floats([0] * 3), _floats([1] * 3)
    if config.get("do_normalize", True):  # without values in the file, its class decides
        mean, std = _floats(config["image_mean"]), _floats(config["image_std"])
    # The processor normalises pixels · factor, a record pixels / 255.
    factor = float(config.get("rescale_factor", 1 / 255)) if config.get("do_rescale", True) else 1.0
    scale = 1.0 if math.isclose(255 * factor, 1) else 255 * factor
    colours = "bgr" if config.get("do_flip_channel_order") else "rgb"
    if len(mean) == 1:
        mean, std = mean * 3, std * 3
    return ImageInput(
        tuple(m / scale for m in mean), tuple(s / scale for s in std), colours, _labels(model)
    )


def _labels(model: nn.Module) -> tuple[str, ...]:
    """Names of the classes; none where the configuration has only placeholders."""
    names: Mapping[Any, str] = getattr(model.config, "id2label", None) or {}
    labels = tuple(str(names[key]) for key in sorted(names, key=int))
    placeholders = tuple(f"LABEL_{i}" for i in range(len(labels)))
    return () if labels == placeholders else labels


def _torchvision(spec: ModelSpec) -> ImageInput | None:
    weights = spec.arguments.get("weights")
    if not isinstance(weights, str) or not weights:
        return None
    name = spec.name.rpartition(":")[2]
    kinds = importlib.import_module("torchvision.models").get_model_weights(name)
    found = kinds[weights.rpartition(".")[2]]
    view = found.transforms()
    return ImageInput(
        _floats(view.mean), _floats(view.std), "rgb", tuple(map(str, found.meta["categories"]))
    )


def _floats(values: Sequence[Any]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
