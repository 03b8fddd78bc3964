"""Trial cuts: they find the dimensions that a model's own code holds at their width."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from snello.errors import ModelError
from snello.graph.inputs import Inputs
from snello.graph.twins import same_numbers, tensors_of
from snello.wrappers import copied

from .cut import check_runs, cut
from .dimensions import Coupling, Dimension
from .reference import Masking
from .run import Run

TOLERANCE = 1e-6
"""Largest difference relative to the largest output, in float64."""


def tried(model: nn.Module, inputs: Inputs, run: Run) -> Coupling:
    """The coupling of a run, with the dimensions pinned that cannot be cut.

    A few indices are removed from every dimension of a copy with random weights, in float64, and
    its outputs compared with those of the masked copy. Where they differ, or the copy does not run,
    halves of the dimensions are tried by themselves, down to the ones at fault.
    """
    trial = Trial(model, inputs, run)
    blocked = trial.blocked([d.name for d in trial.coupling.free])
    return Coupling(
        tuple(replace(d, pinned=blocked.get(d.name, d.pinned)) for d in trial.coupling.dimensions)
    )


class Trial:
    """Trial cuts of one model."""

    def __init__(self, model: nn.Module, inputs: Inputs, run: Run) -> None:
        self.model, self.inputs = _in_float64(model, inputs)
        run.model = self.model
        self.masking = Masking(run)
        self.coupling = self.masking.coupling

    def blocked(self, names: Sequence[str]) -> dict[str, str]:
        """Dimension -> why it cannot be cut."""
        why = self.fails(names) if names else None
        if why is None:
            return {}
        if len(names) == 1:
            return {names[0]: why}
        half = len(names) // 2
        found = {**self.blocked(names[:half]), **self.blocked(names[half:])}
        # Dimensions that fail only together: all but the first are held.
        return found or dict.fromkeys(names[1:], why)

    def fails(self, names: Sequence[str]) -> str | None:
        """Why a cut of these dimensions together does not compute what it should."""
        removed = {name: _some(self.coupling[name]) for name in names}
        try:
            lean = cut(self.model, self.coupling, removed)
            with same_numbers():
                found = tensors_of(check_runs(lean, self.inputs))
        except ModelError as error:
            return str(error)
        expected = self.masking.outputs(self.coupling, removed, self.inputs)
        if any(_differ(a, b) for a, b in zip(expected, found, strict=True)):
            return "a narrower network computes something else: some size or index in its code is fixed"
        return None


def _some(dimension: Dimension) -> list[int]:
    """About a quarter of the indices, never all."""
    count = min(max(1, dimension.width // 4), dimension.width - 1)
    order = torch.randperm(dimension.width, generator=torch.Generator().manual_seed(0))
    return sorted(order[:count].tolist())


def _differ(expected: Tensor, found: Tensor) -> bool:
    if expected.shape != found.shape:
        return True
    if not expected.is_floating_point():
        return bool((expected != found).any())
    scale = float(expected.abs().nan_to_num(0, 0, 0).max()) if expected.numel() else 0.0
    limit = TOLERANCE if expected.dtype == torch.float64 else 1e-3
    return not torch.allclose(
        expected, found, rtol=0, atol=limit * max(scale, 1e-30), equal_nan=True
    )


def _in_float64(model: nn.Module, inputs: Inputs) -> tuple[nn.Module, Inputs]:
    """A copy with random weights, in float64 where it runs there, with the inputs for it."""
    # Layers that were initialised to zero, or to a tiny scale, would hide what happens behind them.
    random = randomised(copied(model).eval())
    wide = inputs.map(lambda x: x.double() if x.is_floating_point() else x)
    double = copied(random).double()
    try:
        with torch.no_grad(), same_numbers():
            wide.map(torch.clone).call(double)
    except Exception:  # code that asks for float32 by name
        return random, inputs
    return double, wide


def randomised(model: nn.Module) -> nn.Module:
    """Give random values to the parameters of a model that are constant, and to its statistics."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point() and tensor.numel() > 1 and _constant(tensor):
                noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
                tensor.copy_(noise + 0.5)
    return model


def _constant(tensor: Tensor) -> bool:
    return bool((tensor == tensor.flatten()[0]).all()) or float(tensor.abs().max()) < 1e-4
