"""Hard cases: other dimensions, transposed convolutions, whole architectures."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import ANY, CASES, DEAD, EVEN, Case, Net, conv

# Other dimensions, transposed convolutions, whole architectures

CASES["dimensions: 1"] = Case(
    lambda: nn.Sequential(
        nn.Conv1d(3, 6, 5, padding=2), nn.BatchNorm1d(6), nn.Sigmoid(), nn.MaxPool1d(2, padding=1),
        nn.Conv1d(6, 5, 3, padding=1), nn.AdaptiveAvgPool1d(3), nn.Flatten(), nn.Linear(15, 4),
    ),
    ((2, 3, 16), (3, 3, 11), (2, 3, 3)), {"0": (0, 2), "4": (1, 4)}, {"0": (4, 3), "1": (4,), "4": (3, 4), "7": (4, 9)},
)  # fmt: skip
CASES["dimensions: 1, depthwise and dilated"] = Case(
    lambda: nn.Sequential(
        nn.Conv1d(3, 6, 1), nn.ReLU(), nn.Conv1d(6, 6, 3, groups=6, dilation=2), nn.PReLU(6), nn.Conv1d(6, 4, 1)
    ),
    ((2, 3, 16), (3, 3, 11)), {"0": (0, 2), "2": (2, 5)}, {"0": (3, 3), "2": (3, 1), "4": (4, 3)},
)  # fmt: skip
CASES["dimensions: 3"] = Case(
    lambda: nn.Sequential(
        nn.Conv3d(1, 5, 3, padding=1), nn.BatchNorm3d(5), nn.SiLU(), nn.AvgPool3d(2),
        nn.Conv3d(5, 4, 3, padding=1), nn.ReLU(inplace=True), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 3),
    ),
    ((2, 1, 6, 6, 6), (1, 1, 4, 7, 8)), {"0": (0, 2), "4": (1,)}, {"0": (3, 1), "1": (3,), "4": (3, 3), "8": (3, 3)},
)  # fmt: skip
CASES["dimensions: none, BatchNorm on features"] = Case(
    lambda: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)),
    ((2, 6), (5, 6)), {"0": (0, 2, 7)}, {"0": (5, 6), "1": (5,), "3": (3, 5)},
)  # fmt: skip


def transposed(layer: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: Net(
        lambda m, x: m.conv2(F.relu(m.up(F.sigmoid(m.conv1(x))))),
        conv1=conv(3, 6),
        up=layer(),
        conv2=conv(4, 4),
    )


# Weights of transposed convolutions are (inputs, outputs). A constant leaves a pattern: its row
# must go all the same.
_UP = {"conv1": (3, 3), "up": (6, 3), "conv2": (4, 3)}
for _name, _layer in {
    "stride 2": lambda: nn.ConvTranspose2d(6, 4, 2, 2),
    "stride 2, padded": lambda: nn.ConvTranspose2d(6, 4, 3, 2, padding=1, output_padding=1),
    "stride 1, dilated": lambda: nn.ConvTranspose2d(6, 4, 3, dilation=2, bias=False),
}.items():
    CASES[f"transposed: {_name}"] = Case(transposed(_layer), ANY, {**DEAD, "up": (1,)}, _UP)
CASES["transposed: inputs that are zero"] = Case(
    lambda: nn.Sequential(conv(3, 6), nn.ReLU(), nn.ConvTranspose2d(6, 4, 2, 2), conv(4, 4)),
    ANY, {"0": (0, 2, 5), "2": (1,)}, {"0": (3, 3), "2": (3, 3), "3": (4, 3)}, {"0": (3, 3), "2": (6, 3), "3": (4, 3)},
)  # fmt: skip
CASES["transposed: grouped"] = Case(
    transposed(lambda: nn.ConvTranspose2d(6, 4, 2, 2, groups=2)), ANY, {**DEAD, "up": (1,)}
)
CASES["transposed: generator"] = Case(
    lambda: Net(
        lambda m, x: m.conv(F.relu(m.up(m.fc(x).view(-1, 6, 4, 4)))),
        fc=nn.Linear(5, 96), up=nn.ConvTranspose2d(6, 4, 4, 2, 1), conv=conv(4, 3),
    ),
    ((2, 5), (3, 5)), {"fc": tuple(range(16)), "up": (0,)}, {"fc": (80, 5), "conv": (3, 3)}, {"conv": (3, 3)},
)  # fmt: skip


class UNet(nn.Module):
    """Two levels, skips by concatenation, transposed convolution up."""

    def __init__(self) -> None:
        super().__init__()
        self.enc1, self.enc2, self.bottom = conv(3, 4), conv(4, 6), conv(6, 8)
        self.up2, self.dec2 = nn.ConvTranspose2d(8, 6, 2, 2), conv(12, 6)
        self.up1, self.dec1, self.out = nn.ConvTranspose2d(6, 4, 2, 2), conv(8, 4), conv(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = F.relu(self.enc1(x))
        second = F.relu(self.enc2(F.max_pool2d(first, 2)))
        y = F.relu(self.bottom(F.max_pool2d(second, 2)))
        y = F.relu(self.dec2(torch.cat([self.up2(y), second], dim=1)))
        y = F.relu(self.dec1(torch.cat([self.up1(y), first], dim=1)))
        return self.out(y)


class Dense(nn.Module):
    """DenseNet: every layer reads everything before it, through its own BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 4)
        self.norms = nn.ModuleList([nn.BatchNorm2d(4 + 3 * i) for i in range(3)])
        self.convs = nn.ModuleList([conv(4 + 3 * i, 3, bias=False) for i in range(3)])
        self.head = nn.Linear(13, 5)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for norm, layer in zip(self.norms, self.convs, strict=True):
            features.append(layer(F.relu(norm(torch.cat(features, 1)))))
        return self.head(F.relu(torch.cat(features, 1)).mean((2, 3)))


class Inception(nn.Module):
    """Four branches, one of them a pool, concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b1, self.b2 = conv(3, 3, 1), conv(3, 4, 1), conv(4, 3)
        self.c1, self.c2, self.d, self.out = (
            conv(3, 4, 1),
            conv(4, 2, 5),
            conv(3, 2, 1),
            conv(10, 4),
        )

    def forward(self, x: Tensor) -> Tensor:
        branches = [
            self.a(x),
            self.b2(F.relu(self.b1(x))),
            self.c2(F.relu(self.c1(x))),
            self.d(F.max_pool2d(x, 3, stride=1, padding=1)),
        ]
        return self.out(F.relu(torch.cat(branches, 1)))


CASES["architecture: U-Net"] = Case(
    UNet, EVEN,
    {"enc1": (0,), "enc2": (1, 2), "bottom": (0, 3), "up2": (5,), "dec2": (0,), "up1": (1, 2), "dec1": (3,)},
    {"enc1": (3, 3), "enc2": (4, 3), "bottom": (6, 4), "up2": (8, 5), "dec2": (5, 9), "up1": (6, 2), "dec1": (3, 5),
     "out": (2, 3)},
)  # fmt: skip
CASES["architecture: DenseNet"] = Case(
    Dense, ANY, {"stem": (0,), "convs.0": (1,), "convs.1": (0, 2)},
    {"stem": (3, 3), "convs.0": (2, 3), "convs.1": (1, 5), "convs.2": (3, 6), "norms.1": (5,), "norms.2": (6,),
     "head": (5, 9)},
)  # fmt: skip
CASES["architecture: Inception"] = Case(
    Inception, ANY, {"a": (0,), "b1": (1, 2), "b2": (0,), "c2": (0, 1), "d": (1,)},
    {"a": (2, 3), "b1": (2, 3), "b2": (2, 2), "c1": (0, 0), "c2": (0, 0), "d": (1, 3), "out": (4, 5)},
)  # fmt: skip
