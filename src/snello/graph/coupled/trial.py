"""Trial cuts, which find the dimensions whose width is fixed in the model's own code."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from snello.errors import ConfigError, ModelError
from snello.graph.decisions import discrete
from snello.graph.inputs import Inputs
from snello.graph.twins import outputs_of, same_numbers, tensors_of
from snello.wrappers import check_values, copied, double, doubled

from .cut import check_runs, cut
from .dimensions import Coupling, Dimension
from .reference import masked_outputs
from .run import Run
from .units import Units, families

ROUNDING = 1000
"""Largest accepted difference, in multiples of `_rounding`."""


def tried(model: nn.Module, inputs: Inputs, run: Run) -> Coupling:
    """The coupling of a run, with the dimensions pinned that cannot be cut.

    A quarter of the indices is removed from every dimension of a copy with random weights, in
    float64, and its outputs are compared with those of the masked copy. If they differ, or the copy
    does not run, each half of the dimensions is tried separately, down to the ones at fault.
    """
    check_values(model, "coupling")
    trial = Trial(model, inputs, run)
    blocked = trial.blocked([d.name for d in trial.coupling.free])
    heads = [trial.coupling[name] for name in blocked if ":head" in name]
    if heads:
        # Code such as reshape(B, N, C) after attention works only if the heads together stay as
        # wide as the input of the block.
        for name in dict.fromkeys(name for d in heads for name in d.writers):
            run.tie(name)
        tied = Trial(model, inputs, run)
        tied_blocked = tied.blocked([d.name for d in tied.coupling.free])
        if tied.freed(tied_blocked) > trial.freed(blocked):
            trial, blocked = tied, tied_blocked
    dimensions = trial.coupling.dimensions
    return Coupling(tuple(replace(d, pinned=blocked.get(d.name, d.pinned)) for d in dimensions))


class Trial:
    """Trial cuts of one model."""

    def __init__(self, model: nn.Module, inputs: Inputs, run: Run) -> None:
        self.model, self.inputs = _in_float64(model, inputs)
        self.limit = ROUNDING * _rounding(self.model, self.inputs)
        self.units = Units(run)
        self.coupling = Coupling(tuple(d for d, _ in families(self.units)))
        seen: Counter[int] = Counter()
        self.turns: dict[str, int] = {}
        for d in self.coupling.free:
            self.turns[d.name] = seen[d.width] % 3
            seen[d.width] += 1

    def blocked(self, names: Sequence[str]) -> dict[str, str]:
        """Dimension -> why it cannot be cut."""
        why = self.fails(names) if names else None
        if why is None:
            return {}
        if len(names) == 1:
            return {names[0]: why}
        half = len(names) // 2
        found = {**self.blocked(names[:half]), **self.blocked(names[half:])}
        # Each half passes by itself, but not both together: pin all dimensions but the first.
        return found or dict.fromkeys(names[1:], why)

    def freed(self, blocked: Mapping[str, str]) -> int:
        """The number of slices of parameters that can be cut if some dimensions are blocked."""
        free = [d for d in self.coupling.free if d.name not in blocked]
        return sum(len(m.of(range(d.width))) for d in free for m in d.parameters)

    def fails(self, names: Sequence[str]) -> str | None:
        """Cut these dimensions together; return why the result is wrong, or None if it is exact."""
        removed = {name: _some(self.coupling[name], self.turns[name]) for name in names}
        try:
            lean = cut(self.model, self.coupling, removed)
            with same_numbers():
                found = tensors_of(check_runs(lean, self.inputs))
        except (ConfigError, ModelError) as error:
            return str(error)
        expected = masked_outputs(self.model, self.units, self.coupling, removed, self.inputs)
        if any(_differ(a, b, self.limit) for a, b in zip(expected, found, strict=True)):
            return "a narrower network computes something else: some size or index in its code is fixed"
        return None


def _some(dimension: Dimension, more: int) -> list[int]:
    """About a quarter of the indices, never all; another number of those with other slices.

    Equal shares would hide that one width is computed from another, as in `4 * self.key_dim`, and
    equal numbers that two dimensions must have the same width.

    Args:
        dimension: the dimension.
        more: number of further indices.
    """
    order = torch.randperm(dimension.width, generator=torch.Generator().manual_seed(0)).tolist()
    alike: dict[tuple[bool, ...], list[int]] = {}
    for index in order:
        slices = tuple(bool(member.indices[index]) for member in dimension.parameters)
        alike.setdefault(slices, []).append(index)
    counts = [max(1, len(own) // 4) + more + i for i, own in enumerate(alike.values())]
    some = [own[: min(n, len(own) - 1)] for n, own in zip(counts, alike.values(), strict=True)]
    return sorted(itertools.chain(*some)) or order[:1]


def _differ(expected: Tensor, found: Tensor, limit: float) -> bool:
    if expected.shape != found.shape:
        return True
    if discrete(expected):
        return bool((expected != found).any())
    return not torch.allclose(expected, found, rtol=0, atol=limit, equal_nan=True)


def _rounding(model: nn.Module, inputs: Inputs) -> float:
    """Largest change of the outputs if all weights change in their last digits.

    A bound relative to the outputs would be too loose: those of some deep networks hardly depend
    on the input, so that a wrong channel also changes them little.
    """
    generator = torch.Generator().manual_seed(0)
    other = copied(model)
    with torch.no_grad():
        for tensor in other.parameters():
            if tensor.is_floating_point():
                noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64) - 0.5
                tensor.mul_(1 + 4 * torch.finfo(tensor.dtype).eps * noise.to(tensor.device))
    pairs = zip(outputs_of(model, inputs), outputs_of(other, inputs), strict=True)
    return max((_distance(a, b) for a, b in pairs if a.is_floating_point()), default=0.0)


def _distance(a: Tensor, b: Tensor) -> float:
    if a.shape != b.shape or not a.numel():
        return 0.0
    return max(
        float((a - b).abs().nan_to_num(0, 0, 0).max()),
        torch.finfo(a.dtype).eps * float(a.abs().nan_to_num(0, 0, 0).max()),
    )


def _in_float64(model: nn.Module, inputs: Inputs) -> tuple[nn.Module, Inputs]:
    """A copy with random weights, in float64 where it runs there, with the inputs for it."""
    # A layer initialised to zero, or to a tiny scale, would hide errors in the layers before it.
    random = randomised(copied(model).eval())
    wide, double_model = inputs.map(double), doubled(random)
    try:
        with torch.no_grad(), same_numbers():
            wide.map(torch.clone).call(double_model)
    except Exception:  # code that asks for float32 by name
        return random, inputs
    return double_model, wide


def randomised(model: nn.Module) -> nn.Module:
    """Replace the parameters and buffers that are constant or tiny by random values.

    The values are uniform in [0.5, 1.5), with a fixed seed; the model is changed in place.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point() and tensor.numel() > 1 and _constant(tensor):
                noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
                tensor.copy_(noise + 0.5)
    return model


def _constant(tensor: Tensor) -> bool:
    return bool((tensor == tensor.flatten()[0]).all()) or float(tensor.abs().max()) < 1e-4
