"""Filling of a built model with the weights of a file."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from snello.errors import ModelError
from snello.neurons import qualified


def take_dtypes(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Cast a model's parameters and buffers, in place, to the floating dtypes of a file.

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
