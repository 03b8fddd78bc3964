"""Comparison of an exported file with the original model."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import math
import re
import warnings
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from snello.errors import ConfigError, ModelError
from snello.graph import Positional, as_inputs, class_name
from snello.wrappers import check_not_scripted, check_values, copied

TOLERANCE = 1e-4
"""Largest accepted difference from PyTorch in float32, relative to the largest output."""

_ROUNDINGS = 8
"""Accepted difference in half precision, in units of rounding of the largest output."""


def tolerance_of(model: nn.Module) -> float:
    """Largest accepted difference from PyTorch, for the narrowest dtype of a model."""
    narrow = {t.dtype for t in model.state_dict().values() if isinstance(t, Tensor)} & {
        torch.float16,
        torch.bfloat16,
    }
    return max([TOLERANCE, *(_ROUNDINGS * torch.finfo(dtype).eps for dtype in narrow)])


def check_batch_sizes(model: nn.Module, batches: Sequence[tuple[Tensor, ...]]) -> None:
    """Check that the original model runs at every batch size that its export accepts.

    Raises:
        ModelError: if it fails at one of them.
    """
    for batch in batches:
        _outputs(model, batch)


def checked_inputs(example_inputs: tuple[Tensor, ...] | Tensor) -> tuple[Tensor, ...]:
    """Example inputs on the CPU, each with a batch on dimension 0.

    Raises:
        ConfigError: if there are no inputs, or one has no batch dimension.
    """
    inputs = as_inputs(example_inputs)
    if not inputs or not all(x.dim() and x.shape[0] for x in inputs):
        raise ConfigError(
            f"example inputs of shape {shapes(inputs) or 'none'}: each needs a batch of at least 1 "
            "on dimension 0"
        )
    return tuple(x.detach().cpu() for x in inputs)


def shapes(inputs: Sequence[Tensor]) -> str:
    """Shapes as text, for messages."""
    return ", ".join(str(tuple(x.shape)) for x in inputs)


def on_cpu(model: nn.Module) -> nn.Module:
    """A copy of a model on the CPU, in evaluation mode."""
    check_values(model, "export")
    for part in model.modules():  # torch.export refuses a part of it, too
        check_not_scripted(part, "export")
    return copied(model).eval().cpu()


def one_more(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The inputs with the first sample repeated, to test another batch size."""
    return tuple(torch.cat([x, x[:1]]) for x in inputs)


def dynamic_batch(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[object, ...]:
    """Dynamic shapes of torch.export with a free batch size on dimension 0 of each input."""
    batch = {0: torch.export.Dim("batch")}
    bound = inspect.signature(model.forward).bind(*inputs)
    # torch.export groups the inputs of forward(*inputs) into one tuple. The signature is that of the
    # function inside decorators, as torch.export reads it.
    return tuple(
        tuple(batch for _ in value) if isinstance(value, tuple) else batch
        for value in bound.arguments.values()
    )


def batch_of(inputs: tuple[Tensor, ...]) -> int:
    """Samples per call: dimension 0 of the first input; 1 for a scalar or no input."""
    return int(inputs[0].shape[0]) if inputs and inputs[0].dim() else 1


def compare_outputs(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    run: Callable[[tuple[Tensor, ...]], Sequence[Tensor]],
    where: str,
) -> float:
    """Run a model and its export on the same inputs, and compare the outputs.

    Args:
        model: the original model, on the CPU and in evaluation mode.
        inputs: inputs on the CPU with the batch on dimension 0.
        run: the exported model, a function from inputs to the list of outputs.
        where: name of the runtime, for messages.

    Returns:
        The largest difference over the outputs, each relative to its largest magnitude.

    Raises:
        ModelError: if either does not run, or an output differs in shape or by more than 1e-4 of
            its largest magnitude (in half precision, by more than 8 units of rounding).
    """
    tolerance = tolerance_of(model)
    name, batch = class_name(model), batch_of(inputs)
    expected = _outputs(model, inputs)
    try:
        found = run(inputs)
    except Exception as error:  # every runtime defines its own exceptions
        raise ModelError(
            f"the exported {name} does not run in {where} at batch size {batch}: {first_line(error)}{_way_out(model)}"
        ) from error
    if [y.shape for y in found] != [y.shape for y in expected]:
        raise ModelError(
            f"the exported {name} gives outputs of shape {[tuple(y.shape) for y in found]} in {where} at batch "
            f"size {batch}, but PyTorch gives {[tuple(y.shape) for y in expected]}"
        )
    worst = 0.0
    for index, (a, b) in enumerate(zip(found, expected, strict=True)):
        difference = relative_difference(a, b)
        # The negated comparison also fails for NaN.
        if not difference <= tolerance:
            raise ModelError(
                f"the exported {name} differs from PyTorch by {difference:.3g} of the largest magnitude in {where}, "
                f"where {tolerance:.3g} is allowed (output {index}, batch size {batch}); nothing was written"
            )
        worst = max(worst, difference)
    return worst


def _way_out(model: nn.Module) -> str:
    unusual = {t.dtype for t in model.state_dict().values() if isinstance(t, Tensor)} & {
        torch.float64,
        torch.bfloat16,
    }
    return "; export model.float(), since few runtimes compute in other types" if unusual else ""


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """Largest absolute difference divided by the largest magnitude of `expected`.

    Infinite if `expected` is all zero and `found` is not.
    """
    if expected.numel() == 0:
        return 0.0
    found, expected = found.double(), expected.double()
    difference, scale = float((found - expected).abs().max()), float(expected.abs().max())
    return difference / scale if scale else 0.0 if difference == 0 else math.inf


def _outputs(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    try:
        with torch.no_grad():
            outputs = model(*inputs)
    except Exception as error:  # the model's own code may raise any exception
        raise ModelError(
            f"{class_name(model)} itself does not run at batch size {batch_of(inputs)}, so its "
            f"export cannot either: {first_line(error)}{_no_batch(model)}"
        ) from error
    return flat(outputs)


def _no_batch(model: nn.Module) -> str:
    """A hint for models such as torchvision's detectors, which take a list of images."""
    if not isinstance(model, Positional) or model.names is not None:
        return ""
    return (
        ". Dimension 0 of every tensor in its lists and dictionaries must be the batch: export a module whose "
        "forward takes tensors with a batch, such as the backbone and head of a detector"
    )


def flat(outputs: object) -> list[Tensor]:
    """Flatten the outputs of a model or a runtime to a list of tensors, in order."""
    leaves = pytree.tree_leaves(outputs)
    return [torch.as_tensor(y) for y in leaves if isinstance(y, Tensor) or hasattr(y, "__array__")]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the prints, warnings and logs of exporters, which raise on failure anyway."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


_CONTROL = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_CONSTANT_BATCH = re.compile(
    r"batch as dynamic but your code specialized it to be a constant \((\d+)\)"
)
_ADVICE = re.compile(
    r"\s*(?:For more information, run with|See the stack trace for|\(unhinted:|\(Size-like symbols:).*"
)


def first_line(error: BaseException) -> str:
    """Cause of an error in one line: the first exception of its chain, without torch's hints."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = _CONTROL.sub("", str(error))
    if found := _CONSTANT_BATCH.search(text):
        return f"its code takes the batch size {found[1]} for a constant"
    lines = [short for line in text.splitlines() if (short := _ADVICE.sub("", line).strip())]
    return lines[0][:300] if lines else type(error).__name__
