"""Loading of a file's weights into a constructed model."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from snello.errors import ModelError
from snello.neurons import qualified


def take_dtypes(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Cast a model's parameters and buffers, in place, to the floating dtypes of a file.

    Buffers that are not in the file are cast if model and file have one floating dtype each; in a
    model of several dtypes they keep theirs. Parameters stay the same objects, so that tied weights
    stay tied.
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
    """Load a state_dict strictly.

    Raises:
        ModelError: if the weights belong to another model, with torch's first complaint.
    """
    try:
        model.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        first = " ".join(str(error).split())[:300]
        raise ModelError(f"{where}: these weights belong to another model: {first}") from error
