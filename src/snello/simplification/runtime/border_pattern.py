"""Border patterns of a convolution, for each position of its output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from snello.simplification.ir.edits import Geometry
from snello.simplification.ops.call import Call
from snello.simplification.ops.operation import Operation
from snello.simplification.ops.registry import rule_for
from snello.simplification.ops.views import Sizes

from .constants import CachedConstant

Position = TypeVar("Position", int, Tensor)


@dataclass(frozen=True)
class _Axis:
    """One axis of a convolution.

    Attributes:
        kernel, stride, dilation, before, after: its geometry.
        cut_before, cut_after: largest number of taps that are cut off.
    """

    kernel: int
    stride: int
    dilation: int
    before: int
    after: int
    cut_before: int
    cut_after: int

    @property
    def patterns(self) -> int:
        return (self.cut_before + 1) * (self.cut_after + 1)

    def outputs(self, size: int) -> int:
        """Number of positions of the output."""
        return (
            size + self.before + self.after - self.dilation * (self.kernel - 1) - 1
        ) // self.stride + 1

    def pattern(
        self, output: Position, size: int, positive: Callable[[Position], Position]
    ) -> Position:
        """Number of the pattern at positions of the output.

        Args:
            output: position, an integer or a tensor of integers.
            size: size of the input.
            positive: clamps negative numbers to 0, for integers or for tensors.
        """
        start = output * self.stride - self.before
        # Of the taps at start, start + dilation, ...: those below 0, and those from size on.
        before = positive(self.dilation - 1 - start) // self.dilation
        inside = (size - start + self.dilation - 1) // self.dilation
        after = positive(self.kernel - inside)
        return before * (self.cut_after + 1) + after


class BorderPatterns(CachedConstant):
    """Number of the border pattern at each position of a convolution's output.

    Patterns are numbered as in `snello.simplification.ir.borders`. Only the size of the input
    is read.

    Args:
        geometry: geometry of the convolution.

    Shape: (N, C, *) to the spatial shape of the convolution's output; int64.
    """

    snello_leaf = True

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        g = geometry
        by_axis = zip(g.kernel, g.stride, g.dilation, g.before, g.after, *g.cut, strict=True)
        self.axes = [_Axis(*axis) for axis in by_axis]

    def forward(self, x: Tensor) -> Tensor:
        return self.cached((x.shape[2:], x.device), None, lambda: self.patterns(x))

    def patterns(self, x: Tensor) -> Tensor:
        """Compute the patterns at the size of x."""
        found = torch.zeros((), dtype=torch.long, device=x.device)
        for size, axis in zip(x.shape[2:], self.axes, strict=True):
            outputs = torch.arange(axis.outputs(size), device=x.device)
            own = axis.pattern(outputs, size, lambda n: n.clamp(min=0))
            found = found.unsqueeze(-1) * axis.patterns + own
        return found

    def occurring(self, sizes: Sequence[int]) -> list[int]:
        """Return the patterns that occur at an input size, in order."""
        found = [0]
        for size, axis in zip(sizes, self.axes, strict=True):
            outputs = range(axis.outputs(size))
            own = {axis.pattern(output, size, lambda n: max(n, 0)) for output in outputs}
            found = [pattern * axis.patterns + one for pattern in found for one in sorted(own)]
        return found


@rule_for(BorderPatterns)
def border_patterns(call: Call) -> Operation | None:
    """Border patterns of an earlier simplification, which only read the size of their operand."""
    operand = call.known_operand(1)
    return None if operand is None else Sizes(call.node, (operand,), (1,), None)
