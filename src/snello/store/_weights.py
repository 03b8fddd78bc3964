"""Loading of weights from a state_dict file or by torchvision's name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from snello.errors import ModelError, reason_of, require

from . import archives
from .safetensors import Safetensors, read_tensors

TORCHVISION_NAME = re.compile(r"\w+_Weights\.\w+")
CHECKPOINT_KEYS = ("state_dict", "model_state_dict", "model")
"""Entries of checkpoints that hold the weights: of Lightning, of PyTorch's tutorial, of timm."""
WRAPPERS = ("module.", "_orig_mod.")
"""Prefixes that `DataParallel` and `torch.compile` put before the names of weights."""


def load_weights(model: nn.Module, path: str | Path) -> nn.Module:
    """Load the weights of a file into a model, either all of them or none.

    The file is read with `torch.load(weights_only=True)`, or with safetensors if that is its
    suffix, so that it cannot run code. It contains a `state_dict`, or a checkpoint with one under
    `"state_dict"`, `"model_state_dict"` or `"model"`; the prefixes `module.` of `DataParallel` and
    `_orig_mod.` of `torch.compile` are removed. The counters
    `num_batches_tracked` may be missing, as in files written before 2018.

    Args:
        model: model to change in place.
        path: the file; or torchvision's name of pretrained weights, such as
            `"ResNet50_Weights.IMAGENET1K_V2"`, which torchvision downloads once and caches in
            `$TORCH_HOME/hub/checkpoints`.

    Returns:
        The same model.

    Raises:
        ModelError: if the file is missing or damaged, torchvision does not know the name or cannot
            download it, or the weights belong to another model; the message counts the keys that
            are missing, unexpected or of another shape, and names the first of each.
        MissingExtraError: for torchvision's name if torchvision is not installed.
    """
    own: dict[str, Any] = model.state_dict()
    state = _without_wrappers(_source(path), own)
    if misfits := _misfits(state, own):
        raise ModelError(
            f"{path} does not fit this {type(model).__name__}: {'; '.join(misfits)}; "
            "build the model with the name and arguments that the file was trained with"
        )
    # Missing counters keep the model's values, so that a strict load succeeds.
    model.load_state_dict({**own, **state})
    return model


def _source(path: str | Path) -> dict[str, Tensor]:
    file = Path(path).expanduser()
    if isinstance(path, str) and TORCHVISION_NAME.fullmatch(path) and not file.exists():
        return _fetch(path)
    return _state_dict(_read(file), file)


def _fetch(name: str) -> dict[str, Tensor]:
    models = require("torchvision.models", "train", f"the weights {name!r}")
    try:
        weights = models.get_weight(name)
    except (AttributeError, KeyError, ValueError) as error:
        raise ModelError(
            f"torchvision has no weights {name!r}: {reason_of(error)}; "
            "torchvision.models.get_model_weights(model) lists those of a model"
        ) from error
    try:
        return dict(weights.get_state_dict(progress=False, check_hash=True))
    except Exception as error:  # no network, a wrong hash, a damaged file in the cache …
        raise ModelError(
            f"the weights {name!r} cannot be downloaded from {weights.url}: {reason_of(error)}; "
            "download the file on another machine and pass its path"
        ) from error


def _read(path: Path) -> object:
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "does not exist"
        raise ModelError(
            f"no weights in {path}: it {found}; pass the path of a state_dict file (.pt, .pth, .th, "
            ".safetensors)"
        )
    return read_tensors(path) if path.suffix == Safetensors.suffix else archives.load(path)


def _state_dict(content: object, path: Path) -> dict[str, Tensor]:
    if isinstance(content, Mapping):
        held = (content[key] for key in CHECKPOINT_KEYS if isinstance(content.get(key), Mapping))
        content = next(held, content)
    if not isinstance(content, Mapping) or not content:
        raise ModelError(
            f"{path} contains a {type(content).__name__} without weights, not a state_dict"
        )
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ModelError(
                f"{path} does not contain a state_dict: its entry {key!r} is a "
                f"{type(value).__name__}"
            )
    return dict(content)


def _without_wrappers(state: dict[str, Tensor], own: Mapping[str, Any]) -> dict[str, Tensor]:
    # A model may have a child named "module": then the keys match without removing the prefix.
    while not any(key in own for key in state):
        prefix = next((p for p in WRAPPERS if all(key.startswith(p) for key in state)), None)
        if prefix is None:
            break
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _misfits(state: Mapping[str, Tensor], own: Mapping[str, Any]) -> list[str]:
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in state if k not in own]
    shapes = [k for k in own if k in state and getattr(own[k], "shape", None) != state[k].shape]
    lossy = [k for k in own if k in state and _loses(state[k], own[k])]
    found = [
        f"{len(keys)} {what}, first {keys[0]!r}"
        for keys, what in (
            (missing, "missing"),
            (unexpected, "unexpected"),
            (lossy, "of a dtype that the model would truncate"),
        )
        if keys
    ]
    if shapes:
        key = shapes[0]
        there, here = tuple(state[key].shape), tuple(getattr(own[key], "shape", ()))
        found.append(
            f"{len(shapes)} of another shape, first {key!r} ({there} in the file, {here} in the model)"
        )
    return found


def _loses(value: Tensor, target: object) -> bool:
    """Return True where a cast would discard imaginary parts or fractions."""
    if (
        not isinstance(target, Tensor) or target.dtype is torch.bool
    ):  # old files have masks as uint8
        return False
    return not torch.can_cast(value.dtype, target.dtype)
