"""Verify: the lean model gives the original's outputs, in float64, before anybody sees it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, fx, nn

from snello.errors import SimplifyError
from snello.graph import trace

from ._liveness import Liveness

TOLERANCE = 1e-10
"""Largest difference allowed, relative to the largest output."""


def verify(reference: nn.Module, lean: nn.Module, liveness: Liveness, inputs: tuple[Tensor, ...]) -> None:
    """Compare outputs on the example inputs and, where the model accepts it, at another batch size.

    Args:
        reference, lean: both in float64 and in evaluation mode.
        liveness: tells which channels of each node are present in the lean model.
        inputs: the example inputs, of any floating dtype.

    Raises:
        SimplifyError: naming the first layer whose output differs.
    """
    batches = [tuple(_double(x) for x in inputs)]
    batches.append(tuple(torch.cat([x, x.flip(0) * 0.5]) for x in batches[0] if x.is_floating_point()))
    for number, batch in enumerate(batches):
        try:
            with torch.no_grad():
                expected = list(_tensors(reference(*batch)))
        except Exception:
            if number == 0:
                raise
            continue  # this model takes one batch size only
        with torch.no_grad():
            found = list(_tensors(lean(*batch)))
        error = max((_difference(a, b) for a, b in zip(expected, found, strict=True)), default=0.0)
        if not error <= TOLERANCE:
            where = _first_difference(reference, lean, liveness, batch)
            raise SimplifyError(
                f"simplified outputs differ by {error:.1e} of the largest output (allowed {TOLERANCE:.0e}); "
                f"the first difference is at {where}. The model is unchanged; please report the layer."
            )


def _double(x: Tensor) -> Tensor:
    return x.detach().double() if x.is_floating_point() else x


def _tensors(output: object) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, dict):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, (list, tuple)):
        for value in output:
            yield from _tensors(value)


def _difference(expected: Tensor, found: Tensor) -> float:
    if expected.shape != found.shape:
        return float("inf")
    if not expected.numel():
        return 0.0
    difference = (expected - found).abs().max()
    scale = expected.abs().max()
    return float(difference / scale) if scale > 0 else float(difference)


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
    reference: nn.Module, lean: nn.Module, liveness: Liveness, batch: tuple[Tensor, ...]
) -> str:
    """Name of the first node whose present channels differ."""
    assert isinstance(lean, fx.GraphModule)
    original, candidate = _Recorder(trace(reference).module), _Recorder(lean)
    with torch.no_grad():
        original.run(*batch)
        candidate.run(*batch)
    for node, layout in liveness.layouts.items():
        expected, found = original.outputs.get(node.name), candidate.outputs.get(node.name)
        if expected is None or found is None:
            continue
        if _difference(expected.index_select(1, layout.kept), found) > TOLERANCE:
            return repr(str(node.target) if node.op == "call_module" else node.name)
    return "the output"
