"""Verify: the lean model gives the original's outputs, in float64, before anybody sees it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, fx, nn

from snello.errors import SimplifyError
from snello.graph import trace

from ._signal import Layout

TOLERANCE = 1e-9
"""Largest difference allowed, relative to how much the outputs vary over the batch: see :func:`difference`."""

ROUNDING, LOOSEST = 100.0, 1e-6
"""Some networks amplify rounding: there a difference up to a hundred times what one unit in the last place of the
inputs does to the original's outputs is allowed (rounding enters at every operation, not at the inputs alone), as
long as it stays below a millionth."""


def verify(
    reference: nn.Module,
    lean: nn.Module,
    layouts: Mapping[fx.Node, Layout],
    axes: Mapping[fx.Node, int],
    inputs: tuple[Tensor, ...],
) -> None:
    """Compare outputs on the example inputs and, where the model takes it, at another size.

    Args:
        reference, lean: both in float64 and in evaluation mode.
        layouts, axes: which channels of each node of the reference's graph the lean model has, and where.
        inputs: the example inputs, of any dtype.

    Raises:
        SimplifyError: naming the first layer whose output differs.
    """
    first = tuple(_double(x) for x in inputs)
    _compare(reference, lean, layouts, axes, first, _outputs(reference, first))
    for batch in (_other_batch(first, resize=True), _other_batch(first, resize=False)):
        try:
            expected = _outputs(reference, batch)
        except Exception:  # this model takes one resolution, or one batch size
            continue
        _compare(reference, lean, layouts, axes, batch, expected)
        return


def _compare(
    reference: nn.Module,
    lean: nn.Module,
    layouts: Mapping[fx.Node, Layout],
    axes: Mapping[fx.Node, int],
    batch: tuple[Tensor, ...],
    expected: list[Tensor],
) -> None:
    error = max((difference(a, b) for a, b in zip(expected, _outputs(lean, batch), strict=True)), default=0.0)
    if error <= TOLERANCE:
        return
    if not error <= min(ROUNDING * _rounding(reference, batch, expected), LOOSEST):
        where = _first_difference(reference, lean, layouts, axes, batch)
        raise SimplifyError(
            f"simplified outputs differ by {error:.1e} of what the outputs vary (allowed {TOLERANCE:.0e}) on "
            f"inputs of shape {', '.join(str(tuple(x.shape)) for x in batch)}; the first difference is at "
            f"{where}. The model was left as it is. A usual cause is an operation in place on a tensor that is read "
            "again under another name or through a view; otherwise please report this model."
        )


def _rounding(reference: nn.Module, batch: tuple[Tensor, ...], expected: list[Tensor]) -> float:
    """What one unit in the last place of the inputs does to the outputs."""
    nudged = tuple(x * (1 + 2**-52) if x.is_floating_point() else x for x in batch)
    return max(
        (difference(a, b) for a, b in zip(expected, _outputs(reference, nudged), strict=True)), default=0.0
    )


@torch.no_grad()
def _outputs(model: nn.Module, batch: tuple[Tensor, ...]) -> list[Tensor]:
    return list(_tensors(model(*(x.clone() for x in batch))))


def _double(x: Tensor) -> Tensor:
    return x.detach().double() if x.is_floating_point() else x.detach()


def _other_batch(inputs: tuple[Tensor, ...], *, resize: bool) -> tuple[Tensor, ...]:
    """Two examples or one more than given, at three quarters of the resolution (where there is one)."""
    return tuple(_resized(x, resize) for x in inputs)


def _resized(x: Tensor, resize: bool) -> Tensor:
    # One example more, at another size: what was baked into the lean graph shows.
    batch = torch.cat([x, x[:1].flip(-1) * 0.5 if x.is_floating_point() else x[:1].flip(-1)])
    batch = batch[-3:]
    if resize and x.dim() > 2 and x.is_floating_point():
        for axis in range(2, x.dim()):
            batch = batch.narrow(axis, 0, max(1, (3 * x.shape[axis]) // 4))
    return batch.contiguous()


def _tensors(output: object) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, dict):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, (list, tuple)):
        for value in output:
            yield from _tensors(value)


def difference(expected: Tensor, found: Tensor) -> float:
    """Largest difference over the largest deviation from the batch's mean: some outputs hardly vary, and a
    plain relative error would hide what is wrong with the part that does."""
    if expected.shape != found.shape:
        return float("inf")
    if not expected.numel():
        return 0.0
    if not expected.is_floating_point():
        return float((expected != found).any())
    error = (expected - found).abs().max()
    largest = expected.abs().max()
    spread = (expected - expected.mean(0, keepdim=True)).abs().max() if expected.dim() else largest
    # Outputs that hardly depend on the input vary by little more than rounding.
    scale = torch.maximum(spread, 1e-4 * largest)
    return float(error / scale) if scale > 0 else float(error)


class _Recorder(fx.Interpreter):
    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.outputs: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> object:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.outputs[n.name] = result.clone()
        return result


def _first_difference(
    reference: nn.Module,
    lean: nn.Module,
    layouts: Mapping[fx.Node, Layout],
    axes: Mapping[fx.Node, int],
    batch: tuple[Tensor, ...],
) -> str:
    """Name of the first node whose present channels differ."""
    assert isinstance(lean, fx.GraphModule)
    original, candidate = _Recorder(trace(reference).module), _Recorder(lean)
    with torch.no_grad():
        original.run(*(x.clone() for x in batch))
        candidate.run(*(x.clone() for x in batch))
    for node, layout in layouts.items():
        expected, found = original.outputs.get(node.name), candidate.outputs.get(node.name)
        if expected is None or found is None:
            continue
        if difference(expected.index_select(axes[node], layout.order), found) > TOLERANCE:
            return repr(str(node.target) if node.op == "call_module" else node.name)
    return "the output"
