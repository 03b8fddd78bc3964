"""The models on which the laws are tested: small, each with one thing that a shrinking tool gets
wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snello.lab.models import CifarResNet, LeNet5, LeNet300


@dataclass(frozen=True)
class Sample:
    """A model builder and the shapes that its model accepts.

    Attributes:
        build: makes the model.
        shapes: input shapes; the first is the example, the others are further batch sizes and
            resolutions.
    """

    build: Callable[[], nn.Module]
    shapes: tuple[tuple[int, ...], ...]

    def inputs(self, generator: torch.Generator) -> list[Tensor]:
        """One float64 tensor per shape."""
        return [
            torch.randn(shape, dtype=torch.float64, generator=generator) for shape in self.shapes
        ]


def average_pool() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Sigmoid(), nn.AvgPool2d(2),
        nn.Conv2d(8, 8, 3, padding=1), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip


def strided_dilated() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, stride=2, padding=2, dilation=2), nn.Tanh(),
        nn.Conv2d(6, 7, (3, 1), padding="same", bias=False), nn.BatchNorm2d(7), nn.LeakyReLU(),
        nn.Conv2d(7, 6, 2, stride=2, padding=(1, 0)), nn.MaxPool2d(2, padding=1),
        nn.Conv2d(6, 4, 1), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(), nn.Linear(16, 3),
    )  # fmt: skip


def padded(mode: str) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1, padding_mode=mode), nn.Sigmoid(),
        nn.Conv2d(6, 6, 3, padding=1, padding_mode=mode, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 4, 3, padding=2, padding_mode=mode),
    )  # fmt: skip


def one_dimension() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(2, 6, 5, padding=2), nn.BatchNorm1d(6), nn.ELU(), nn.MaxPool1d(2),
        nn.Conv1d(6, 5, 3, padding=1), nn.Softplus(), nn.AdaptiveAvgPool1d(3), nn.Flatten(), nn.Linear(15, 4),
    )  # fmt: skip


def three_dimensions() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(1, 5, 3, padding=1), nn.BatchNorm3d(5), nn.SiLU(), nn.AvgPool3d(2),
        nn.Conv3d(5, 4, 3, padding=1), nn.ReLU(inplace=True), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip


def grouped() -> nn.Module:
    """A grouped and a depthwise convolution between two plain ones."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU6(),
        nn.Conv2d(8, 8, 3, padding=1, groups=4, bias=False), nn.BatchNorm2d(8), nn.Hardswish(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 6, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(6, 3),
    )  # fmt: skip


def transposed() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(6, 4, 2, stride=2), nn.Sigmoid(),
        nn.Conv2d(4, 3, 3, padding=1),
    )  # fmt: skip


class CalledTwice(nn.Module):
    """One layer at two places."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.shared, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.shared(F.relu(self.first(x)))
        return self.last(torch.sigmoid(self.shared(torch.tanh(x))))


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.last = nn.Linear(8, 3)
        self.third.weight = self.second.weight

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.second(torch.sigmoid(self.first(x))))
        return self.last(torch.sigmoid(self.third(x)))


class Functional(nn.Module):
    """Activations, pooling and flattening as functions and methods."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 3), nn.Conv2d(6, 8, 3, padding=1)
        self.fc1, self.fc2 = nn.Linear(32, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.avg_pool2d(self.conv2(x).sigmoid(), 2)
        return self.fc2(F.leaky_relu(self.fc1(torch.flatten(x, 1)), 0.2))


class Residual(nn.Module):
    """A branch with BatchNorm added to a stem; ``branch`` can die as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3, padding=1)
        self.branch = nn.Sequential(
            nn.Conv2d(6, 5, 3, padding=1),
            nn.BatchNorm2d(5),
            nn.Sigmoid(),
            nn.Conv2d(5, 6, 3, padding=1),
        )
        self.norm = nn.BatchNorm2d(6)
        self.out = nn.Conv2d(6, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return self.out(torch.relu(x + self.norm(self.branch(x)))).mean((2, 3))


class DeadBranch(Residual):
    """:class:`Residual` whose branch holds only zero weights from the start."""

    def __init__(self) -> None:
        super().__init__()
        for index in (0, 3):
            nn.init.zeros_(self.branch[index].weight)


class Concat(nn.Module):
    """Concatenation has no rule: both operands are given at full width."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(2, 5, 3, padding=1), nn.Conv2d(2, 4, 1)
        self.middle, self.out = nn.Conv2d(9, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([F.relu(self.left(x)), torch.sigmoid(self.right(x))], 1)
        return self.out(F.relu(self.middle(x)))


class Normalised(nn.Module):
    """A channel that is constant before LayerNorm or GroupNorm is not constant behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.group, self.mix = nn.Conv2d(2, 6, 3), nn.GroupNorm(3, 6), nn.Conv2d(6, 6, 1)
        self.layer, self.fc1, self.fc2 = nn.LayerNorm(6), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mix(F.relu(self.group(self.conv(x)))).mean((2, 3))
        return self.fc2(F.gelu(self.fc1(self.layer(x))))


def tiny_mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.Sigmoid(), nn.Linear(5, 3))


_IMAGES = ((2, 2, 9, 8), (3, 2, 6, 11))

ZOO: dict[str, Sample] = {
    "mlp": Sample(tiny_mlp, ((2, 4), (5, 4))),
    "lenet-300-100": Sample(lambda: LeNet300(image_size=8), ((2, 1, 8, 8), (3, 64))),
    "lenet-5": Sample(lambda: LeNet5(image_size=16), ((2, 1, 16, 16), (3, 1, 16, 16))),
    "resnet-8": Sample(lambda: CifarResNet(8), ((2, 3, 10, 10), (1, 3, 7, 12))),
    "average pool": Sample(average_pool, ((2, 3, 8, 8), (1, 3, 10, 6))),
    "strided, dilated": Sample(strided_dilated, ((2, 2, 16, 16), (3, 2, 19, 13))),
    "zero padding": Sample(lambda: padded("zeros"), _IMAGES),
    "reflect padding": Sample(lambda: padded("reflect"), _IMAGES),
    "circular padding": Sample(lambda: padded("circular"), _IMAGES),
    "1d": Sample(one_dimension, ((2, 2, 16), (3, 2, 11))),
    "3d": Sample(three_dimensions, ((2, 1, 6, 6, 6), (1, 1, 4, 7, 8))),
    "grouped": Sample(grouped, ((2, 3, 7, 7), (3, 3, 5, 9))),
    "transposed": Sample(transposed, ((2, 2, 5, 5), (3, 2, 4, 7))),
    "called twice": Sample(CalledTwice, ((2, 6), (5, 6))),
    "tied": Sample(Tied, ((2, 6), (5, 6))),
    "functional": Sample(Functional, ((2, 1, 10, 10), (3, 1, 10, 10))),
    "residual": Sample(Residual, _IMAGES),
    "dead branch": Sample(DeadBranch, _IMAGES),
    "concat": Sample(Concat, _IMAGES),
    "LayerNorm, GroupNorm": Sample(Normalised, _IMAGES),
}
"""Cheap enough for many random masks each."""

RESNET_32 = Sample(CifarResNet, ((2, 3, 16, 16), (1, 3, 24, 20)))
"""The reference net of the papers; one mask at a time."""
