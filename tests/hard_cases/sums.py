"""Hard cases: sums, in which a channel is dead only if it is dead in all operands."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import ANY, CASES, Case, Net, conv

# Sums


def two_branches(join: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], nn.Module]:
    return lambda: Net(
        lambda m, x: m.out(F.relu(join(m.left(x), m.right(x)))),
        left=conv(3, 6), right=conv(3, 6, 1), out=conv(6, 4),
    )  # fmt: skip


def _accumulate(x: Tensor, y: Tensor) -> Tensor:
    x += y
    return x


DIFFERENT = {"left": (0, 1), "right": (1, 2)}
SUM = {"left": (4, 3), "right": (4, 3), "out": (4, 5)}
for _name, _join in {
    "+": lambda a, b: a + b,
    "+=": _accumulate,
    "torch.add": torch.add,
    "a.add(b)": lambda a, b: a.add(b),
    "a.add_(b)": lambda a, b: a.add_(b),
    "-": lambda a, b: a - b,
    "torch.sub": torch.sub,
    "maximum": torch.maximum,
    "torch.max": torch.max,
    "minimum": torch.minimum,
}.items():
    CASES[f"sum: {_name}"] = Case(two_branches(_join), ANY, DIFFERENT, SUM)
CASES["sum: stack and sum"] = Case(
    two_branches(lambda a, b: torch.stack([a, b]).sum(0)), ANY, DIFFERENT
)
CASES["sum: one branch is dead"] = Case(
    two_branches(lambda a, b: a + b),
    ANY,
    {"left": (0, 1, 2, 3, 4, 5)},
    {"left": (0, 0), "out": (4, 6)},
)
CASES["sum: python's sum"] = Case(two_branches(lambda a, b: sum([a, b])), ANY, DIFFERENT, SUM)


class ReadTwice(nn.Module):
    """A residual stream that each branch and each sum reads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.out = conv(3, 6), conv(6, 6), conv(6, 6), conv(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.a(F.relu(x))
        x = x + self.b(F.relu(x))
        return self.out(x)


class ThreeWay(nn.Module):
    """Three branches with different dead sets, one of them the stream itself."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.out = conv(3, 6), conv(6, 6, 1), conv(6, 6), conv(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.stem(x))
        return self.out(self.a(x) + x + self.b(x))


class Block(nn.Module):
    """A ResNet block whose shortcut is a convolution where the width changes."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = (
            conv(inputs, outputs, stride=stride, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.conv2, self.bn2 = conv(outputs, outputs, bias=False), nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)  # called twice
        changes = stride > 1 or inputs != outputs
        self.downsample = (
            nn.Sequential(
                conv(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )
            if changes
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += identity
        return self.relu(out)


CASES["sum: a stream read twice"] = Case(
    ReadTwice, ANY, {"stem": (0, 1), "a": (0, 2), "b": (0, 3)},
    {"stem": (4, 3), "a": (4, 4), "b": (4, 5), "out": (4, 5)},
)  # fmt: skip
CASES["sum: three ways"] = Case(
    ThreeWay, ANY, {"stem": (0, 1, 2), "a": (0, 1, 3), "b": (0, 4)},
    {"stem": (3, 3), "a": (3, 3), "b": (4, 3), "out": (4, 5)},
)  # fmt: skip
CASES["sum: ResNet blocks"] = Case(
    lambda: nn.Sequential(conv(3, 4), nn.ReLU(), Block(4, 4), Block(4, 6, 2), Block(6, 6), nn.AdaptiveAvgPool2d(1),
                          nn.Flatten(), nn.Linear(6, 5)),
    ((2, 3, 8, 8), (3, 3, 9, 7), (2, 3, 3, 4)),
    {"2.conv1": (0, 1), "3.conv1": (2,), "3.conv2": (0, 5), "3.downsample.0": (5,), "4.conv2": (1, 5)},
    {"2.conv1": (2, 4), "2.conv2": (4, 2), "3.conv1": (5, 4), "3.conv2": (4, 5), "3.downsample.0": (5, 4),
     "4.conv1": (6, 5), "4.conv2": (4, 6), "7": (5, 5)},
)  # fmt: skip
