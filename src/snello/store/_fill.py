"""Loading of a file's weights into a constructed model."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from snello.errors import ModelError
from snello.neurons import qualified


def take_dtypes(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Cast a model's parameters and buffers, in place, to the dtypes of a file.

    Floating buffers that are not in the file are cast if model and file have one floating dtype
    each; in a model of several dtypes they keep theirs. Parameters stay the same objects, so that
    tied weights stay tied.
    """
    wanted = {name: value.dtype for name, value in state.items()}
    floats = {dtype for dtype in wanted.values() if dtype.is_floating_point}
    own = {value.dtype for value in model.state_dict().values() if value.is_floating_point()}
    rest = floats.pop() if len(own) == 1 == len(floats) else None
    for prefix, module in model.named_modules(remove_duplicate=False):
        for key, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is None:
                continue
            default = rest if tensor.is_floating_point() else None
            dtype = wanted.get(qualified(prefix, key), default)
            if dtype in (None, tensor.dtype):
                continue
            if not isinstance(tensor, nn.Parameter):
                module._buffers[key] = tensor.to(dtype)
            elif dtype.is_floating_point or dtype.is_complex or not tensor.requires_grad:
                tensor.data = tensor.data.to(dtype)


def fill(model: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Load a state_dict strictly, into a model of its dtypes.

    Raises:
        ModelError: if the weights belong to another model, with torch's first complaint.
    """
    for name, value in model.state_dict().items():
        # torch would cast without a word, and discard fractions and imaginary parts.
        if name in state and isinstance(value, Tensor) and value.dtype != state[name].dtype:
            raise ModelError(
                f"{where}: these weights belong to another model: {name!r} is {state[name].dtype} in the file and "
                f"{value.dtype} in the model"
            )
    try:
        model.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        first = " ".join(str(error).split())[:300]
        raise ModelError(f"{where}: these weights belong to another model: {first}") from error
