"""Hard cases: grouped and depthwise convolutions."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import nn

from .base import CASES, Case, Net, Shape, conv

# Grouped and depthwise convolutions


def grouped(inputs: int, outputs: int, groups: int, padding: int) -> Callable[[], nn.Module]:
    return lambda: Net(
        lambda m, x: m.conv2(F.relu(m.bn(m.conv(F.sigmoid(m.conv1(x)))))),
        conv1=conv(3, inputs), conv=nn.Conv2d(inputs, outputs, 3, padding=padding, groups=groups, bias=padding == 0),
        bn=nn.BatchNorm2d(outputs), conv2=conv(outputs, 4, 1),
    )  # fmt: skip


SMALL: tuple[Shape, ...] = ((2, 3, 8, 8), (3, 3, 9, 7), (2, 3, 3, 4))
for _padding in (0, 1):
    _place = "padded" if _padding else "unpadded"
    # Inputs of group 0 and outputs of group 3 are dead. A sigmoid makes constants that padding cuts
    # off.
    CASES[f"grouped: whole groups, {_place}"] = Case(
        grouped(8, 8, 4, _padding), SMALL, {"conv1": (0, 1), "conv": (6, 7)},
        {"conv1": (4, 3), "conv": (6, 2) if _padding else (4, 2), "conv2": (4, 6) if _padding else (4, 4)},
    )  # fmt: skip
    CASES[f"grouped: one of each group, {_place}"] = Case(
        grouped(8, 8, 4, _padding), SMALL, {"conv1": (0, 2, 4, 6), "conv": (1, 3, 5, 7)},
        {"conv1": (4, 3), "conv": (4, 1), "conv2": (4, 4)},
    )  # fmt: skip
    CASES[f"grouped: uneven, {_place}"] = Case(
        grouped(8, 12, 2, _padding), SMALL, {"conv1": (0, 1, 5), "conv": (0, 1, 7)}
    )
    CASES[f"grouped: depthwise, {_place}"] = Case(
        grouped(6, 6, 6, _padding), SMALL, {"conv1": (0, 1), "conv": (1, 2)},
        {"conv1": (4, 3), "conv": (4, 1), "conv2": (4, 4)} if _padding
        else {"conv1": (3, 3), "conv": (3, 1), "conv2": (4, 3)},
    )  # fmt: skip
    CASES[f"grouped: depthwise times 2, {_place}"] = Case(
        grouped(4, 8, 4, _padding), SMALL, {"conv1": (0,), "conv": (2, 3)},
        {"conv1": (2, 3), "conv": (6, 1) if _padding else (4, 1), "conv2": (4, 6) if _padding else (4, 4)},
    )  # fmt: skip
