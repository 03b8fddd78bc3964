"""Verification in float64: a lean model is only returned if it has the outputs of the original."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from snello.errors import SimplifyError
from snello.graph import (
    ByName,
    Decision,
    Decisions,
    Example,
    Inputs,
    bind,
    capture,
    parts_of,
    tensors_of,
)  # fmt: skip
from snello.wrappers import double

from .ir.channels import Layout
from .sizes import more_examples, smaller

TOLERANCE = 1e-9
"""Largest difference allowed, relative to the variation of the outputs over the batch: see `difference`."""

ROUNDING, LOOSEST = 100.0, 1e-6
"""Allowance for networks that amplify rounding.

A difference is also allowed up to `ROUNDING` times the effect of one unit in the last place of
the inputs on the original's outputs, at most `LOOSEST`. The factor accounts for rounding at every
operation, not only at the inputs.
"""


def verify(
    reference: nn.Module,
    lean: nn.Module,
    layouts: Mapping[fx.Node, Layout],
    axes: Mapping[fx.Node, int],
    inputs: Example,
) -> None:
    """Compare a lean model with the original: see `compare`.

    Args:
        reference, lean: both in float64 and in evaluation mode.
        layouts, axes: node of the reference's graph -> the layout of its output in the lean model,
            and the axis of its channels.
        inputs: the example inputs, of any dtype.

    Raises:
        SimplifyError: naming the first layer whose output differs.
    """
    compare(
        reference, lean, inputs, "simplified outputs",
        lambda batch: _first_difference(reference, lean, layouts, axes, batch),
        "A usual cause is an operation in place on a tensor that is read again under another name or through a "
        "view; otherwise please report this model.",
    )  # fmt: skip


def compare(
    reference: nn.Module,
    candidate: nn.Module,
    inputs: Example,
    what: str,
    where: Callable[[Inputs], str],
    advice: str = "",
    *,
    decisions: bool = False,
) -> None:
    """Compare outputs on the example inputs and, if the model accepts it, at another size.

    Args:
        reference, candidate: both in float64 and in evaluation mode.
        inputs: the example inputs, of any dtype.
        what: name of the candidate's outputs, for the error.
        where: function that names the first layer whose output differs on a batch.
        advice: a suggestion for the user, for the error.
        decisions: whether to repeat the decisions of the original in the candidate, because
            rounding can change them where scores are equal, and to compare the values that they
            read. For a candidate that runs the code of the original.

    Raises:
        SimplifyError: if the outputs differ by more than rounding explains, or have another
            structure.
    """
    run = _deciding if decisions else _plainly
    for batch, (expected, known) in _batches(reference, Inputs.of(inputs), run):
        found, taken = run(candidate, batch, known)
        shapes = ", ".join(map(str, batch.shapes))
        if structure(found) != structure(expected):
            raise SimplifyError(
                f"{what} are put together in another way: {structure(found)} instead of "
                f"{structure(expected)}, on inputs of shape {shapes}. The model was left as it is. "
                f"{advice}".rstrip()
            )
        error = _error((expected, known), (found, taken))
        if not (error <= TOLERANCE or error <= _rounding(reference, batch, (expected, known), run)):
            raise SimplifyError(
                f"{what} differ by {error:.1e} of what the outputs vary (allowed {TOLERANCE:.0e}) on "
                f"inputs of shape {shapes}; the first difference is at {where(batch)}. The model was left "
                f"as it is. {advice}".rstrip()
            )


_Result = tuple[object, Sequence[Decision]]
"""An output, and the decisions made while computing it."""

_Run = Callable[[nn.Module, Inputs, Sequence[Decision] | None], _Result]
"""Runs a model on a batch, with the decisions of another run if there are any."""


def _plainly(model: nn.Module, batch: Inputs, known: Sequence[Decision] | None = None) -> _Result:
    return outputs(model, batch), ()


def _deciding(model: nn.Module, batch: Inputs, known: Sequence[Decision] | None = None) -> _Result:
    with Decisions(known) as decisions:
        output = outputs(model, batch)
    return output, decisions.taken


def _error(expected: _Result, found: _Result) -> float:
    """Largest difference of the outputs and of the values that the decisions read."""
    if len(expected[1]) != len(found[1]):
        return math.inf
    before, after = ([d.read for d in decisions] for _, decisions in (expected, found))
    return worst_difference((expected[0], before), (found[0], after))


def _batches(reference: nn.Module, inputs: Inputs, run: _Run) -> Iterator[tuple[Inputs, _Result]]:
    """Batches for the comparison, with the outputs of the original.

    These are the example inputs and, if the model accepts it, a batch of another size.
    """
    first = inputs.map(lambda x: double(x.detach()))
    yield first, run(reference, first, None)
    for resize in (True, False):
        other = first.map(lambda x, resize=resize: _resized(x, resize))  # type: ignore[misc]
        try:
            expected = run(reference, other, None)
        except Exception:  # the model accepts one resolution, or one batch size
            continue
        yield other, expected
        return


def _rounding(reference: nn.Module, batch: Inputs, expected: _Result, run: _Run) -> float:
    """Largest difference that rounding explains: see `ROUNDING`."""
    nudged = batch.map(lambda x: x * (1 + 2**-52) if x.is_floating_point() else x)
    effect = _error(expected, run(reference, nudged, expected[1]))
    return min(ROUNDING * effect, LOOSEST)


@torch.no_grad()
def outputs(model: nn.Module, batch: Inputs) -> object:
    """Run a model on copies of the inputs, which it may overwrite."""
    return batch.map(torch.clone).call(model)


def _resized(x: Tensor, resize: bool) -> Tensor:
    """Make a batch of another size, and of three quarters of the resolution or length if asked."""
    # Another size reveals a batch size or resolution that is fixed in the lean graph.
    return more_examples(smaller(x) if resize else x)


def structure(output: object) -> str:
    """Describe the structure of an output, such as `(tensor, None)` or `{'out': tensor}`.

    Numbers, strings and None are described by their value, other objects by their type.
    """
    if isinstance(output, Tensor):
        return "tensor"
    if (parts := parts_of(output)) is None:
        simple = output is None or isinstance(output, (int, float, str))
        return repr(output) if simple else type(output).__name__
    if isinstance(output, (list, tuple)):
        left, right = "()" if isinstance(output, tuple) else "[]"
        return left + ", ".join(map(structure, parts.values())) + right
    return "{" + ", ".join(f"{name}: {structure(part)}" for name, part in parts.items()) + "}"


def worst_difference(expected: object, found: object) -> float:
    """Return the largest `difference` of the tensors of two outputs; NaN if any is NaN.

    Both outputs must have the same `structure`.
    """
    pairs = zip(tensors_of(expected), tensors_of(found), strict=True)
    differences = [difference(a, b) for a, b in pairs]
    return math.nan if any(map(math.isnan, differences)) else max(differences, default=0.0)


def difference(expected: Tensor, found: Tensor) -> float:
    """Return the largest difference, divided by the largest deviation from the batch's mean.

    Some outputs hardly depend on the input; an error relative to the output itself would hide an
    error in the part that does.

    Returns:
        A ratio; infinite for other shapes. For integers and booleans, 1 if any element differs.
    """
    if expected.shape != found.shape:
        return float("inf")
    if not expected.numel():
        return 0.0
    if expected.is_complex():
        expected, found = torch.view_as_real(expected), torch.view_as_real(found)
    if not expected.is_floating_point():
        return float((expected != found).any())
    infinite = expected.isinf()  # a mask in front of a softmax
    if (expected[infinite] != found[infinite]).any():
        return float("inf")
    expected, found = expected.masked_fill(infinite, 0), found.masked_fill(infinite, 0)
    error = (expected - found).abs().max()
    largest = expected.abs().max()
    spread = (expected - expected.mean(0, keepdim=True)).abs().max() if expected.dim() else largest
    # A lower bound, because the deviation of such outputs may be little more than rounding.
    scale = torch.maximum(spread, 1e-4 * largest)
    return float(error / scale) if scale > 0 else float(error)


class _Recorder(ByName):
    """An interpreter that keeps a copy of the output of every node."""

    def __init__(self, module: fx.GraphModule, arguments: Mapping[str, Any]) -> None:
        super().__init__(module, arguments)
        self.outputs: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> object:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.outputs[n.name] = result.clone()
        return result


@torch.no_grad()
def _recorded(module: fx.GraphModule, model: nn.Module, batch: Inputs) -> dict[str, Tensor]:
    recorder = _Recorder(module, bind(model, batch.map(torch.clone)))
    recorder.run()
    return recorder.outputs


def _first_difference(
    reference: nn.Module,
    lean: nn.Module,
    layouts: Mapping[fx.Node, Layout],
    axes: Mapping[fx.Node, int],
    batch: Inputs,
) -> str:
    """Name the first node whose present channels differ."""
    assert isinstance(lean, fx.GraphModule)
    original = _recorded(capture(reference, batch).module, reference, batch)
    candidate = _recorded(lean, reference, batch)
    for node, layout in layouts.items():
        expected, found = original.get(node.name), candidate.get(node.name)
        if expected is None or found is None:
            continue
        order = layout.order.to(expected.device)
        if not difference(expected.index_select(axes[node], order), found) <= TOLERANCE:
            return repr(str(node.target) if node.op == "call_module" else node.name)
    return "the output"
