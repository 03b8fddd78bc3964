"""Hard cases: heads behind convolutions, and sums over positions."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from .base import ANY, CASES, DEAD, FIXED, ROWS, Case, Net, Operation, conv

# Heads


def head(operation: Callable[[], Operation], features: int) -> Callable[[], nn.Module]:
    return lambda: Net(
        lambda m, x: m.fc(m.operation(F.relu(m.conv1(x)))),
        conv1=conv(3, 6), operation=operation(), fc=nn.Linear(features, 5),
    )  # fmt: skip


for _name, _operation in {
    "torch.flatten": lambda: lambda x: torch.flatten(x, 1),
    "x.flatten(start_dim)": lambda: lambda x: x.flatten(start_dim=1),
    "nn.Flatten": nn.Flatten,
    "view(size(0), -1)": lambda: lambda x: x.view(x.size(0), -1),
    "view(-1, 6 * 8 * 8)": lambda: lambda x: x.view(-1, 6 * 8 * 8),
    "reshape(shape[0], -1)": lambda: lambda x: x.reshape(x.shape[0], -1),
    "reshape(len(x)...)": lambda: lambda x: x.reshape((x.size()[0], -1)),
    "flatten twice": lambda: lambda x: x.flatten(2).flatten(1),
    "channels last": lambda: lambda x: x.permute(0, 2, 3, 1).reshape(x.size(0), -1),
}.items():
    CASES[f"flatten: {_name}"] = Case(
        head(_operation, 384), FIXED, DEAD, {"conv1": (3, 3), "fc": (5, 192)}
    )
CASES["flatten: after pooling to 2x2"] = Case(
    head(lambda: nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten()), 24),
    ANY,
    DEAD,
    {"conv1": (3, 3), "fc": (5, 12)},
)
for _name, _operation in {
    "AdaptiveAvgPool2d": lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    "AdaptiveMaxPool2d": lambda: nn.Sequential(nn.AdaptiveMaxPool2d((1, 1)), nn.Flatten(1)),
    "mean([2, 3])": lambda: lambda x: x.mean([2, 3]),
    "mean(dim=(2, 3))": lambda: lambda x: torch.mean(x, dim=(2, 3)),
    "mean((-2, -1), keepdim)": lambda: lambda x: x.mean((-2, -1), keepdim=True).flatten(1),
    "mean twice": lambda: lambda x: x.mean(3).mean(2),
    "amax": lambda: lambda x: x.amax((2, 3)),
    "torch.amax": lambda: lambda x: torch.amax(x, dim=(-1, -2)),
    "F.avg_pool2d of the size": lambda: lambda x: F.avg_pool2d(x, x.size()[2:]).flatten(1),
    "F.avg_pool2d of the shape": lambda: (
        lambda x: F.avg_pool2d(x, kernel_size=(x.shape[2], x.shape[3])).view(x.size(0), -1)
    ),
    "squeeze": lambda: lambda x: F.adaptive_avg_pool2d(x, (1, 1)).squeeze(3).squeeze(2),
    "squeeze(-1) twice": lambda: lambda x: F.adaptive_max_pool2d(x, 1).squeeze(-1).squeeze(-1),
    "view(b, c)": lambda: lambda x: F.adaptive_avg_pool2d(x, 1).view(x.shape[0], x.shape[1]),
    "view(b, c, -1).mean(2)": lambda: lambda x: x.view(x.size(0), x.size(1), -1).mean(2),
    "flatten(2).max(2)[0]": lambda: lambda x: x.flatten(2).max(2)[0],
    "fancy [:, :, 0, 0]": lambda: lambda x: F.adaptive_avg_pool2d(x, 1)[:, :, 0, 0],
}.items():
    CASES[f"global pool: {_name}"] = Case(
        head(_operation, 6), ANY, DEAD, {"conv1": (3, 3), "fc": (5, 3)}
    )
# A sum over positions of a constant depends on the resolution.
CASES["global pool: sum"] = Case(
    head(lambda: lambda x: x.sum((2, 3)), 6), ANY, DEAD, {"conv1": (3, 3), "fc": (5, 3)}, ROWS
)
CASES["global pool: F.avg_pool2d(8)"] = Case(
    head(lambda: lambda x: F.avg_pool2d(x, 8).flatten(1), 6),
    FIXED,
    DEAD,
    {"conv1": (3, 3), "fc": (5, 3)},
)
CASES["global pool: standard deviation"] = Case(
    head(lambda: lambda x: x.std((2, 3)), 6), ANY, DEAD, ROWS
)
CASES["global pool: logsumexp"] = Case(
    head(lambda: lambda x: x.logsumexp((2, 3)), 6), ANY, DEAD, ROWS
)
CASES["global pool: after constants at the border"] = Case(
    lambda: Net(
        lambda m, x: m.fc(m.conv2(m.conv1(x)).mean((2, 3))), conv1=conv(3, 6), conv2=conv(6, 4), fc=nn.Linear(4, 3)
    ),
    ANY, {"conv1": (0, 1, 2, 3, 4, 5)},
)  # fmt: skip
