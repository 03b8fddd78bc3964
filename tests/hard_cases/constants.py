"""Hard cases: constants that nothing else gives a shape."""

from __future__ import annotations

import torch
from torch import nn

from .base import ANY, CASES, DEAD, NARROW, Case, Net, conv

# Constants. Where nothing else gives a tensor its shape, one neuron of a dead layer may stay.

CASES["constant: norm and activation"] = Case(
    lambda: nn.Sequential(
        conv(3, 6, bias=False), nn.BatchNorm2d(6), nn.Sigmoid(),
        conv(6, 5, bias=False), nn.BatchNorm2d(5), nn.ReLU(), conv(5, 4, stride=2),
    ),
    ANY, {"0": (0, 1, 3), "3": (2, 4)}, {"0": (3, 3), "1": (3,), "3": (3, 3), "4": (3,), "6": (4, 3)},
)  # fmt: skip
CASES["constant: a whole layer"] = Case(
    lambda: nn.Sequential(conv(3, 6), nn.Sigmoid(), conv(6, 5, 1), nn.ReLU(), conv(5, 4)),
    ANY, {"0": (0, 1, 2, 3, 4, 5)}, {"0": (1, 3), "2": (1, 1)},
)  # fmt: skip
CASES["constant: the last but one layer"] = Case(
    lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)),
    ((2, 6), (5, 6)), {"2": (0, 1, 2, 3)}, {"0": (1, 6), "2": (1, 1)},
)  # fmt: skip
CASES["constant: the output is one"] = Case(
    lambda: nn.Sequential(conv(3, 6), nn.ReLU(), conv(6, 4)),
    ANY,
    {"2": (0, 1, 2, 3)},
    {"0": (1, 3), "2": (4, 1)},
)
CASES["constant: half of the output"] = Case(
    lambda: nn.Sequential(conv(3, 6), nn.ReLU(), conv(6, 4), nn.Sigmoid()),
    ANY,
    {"2": (0, 3)},
    {"2": (2, 6)},
)
CASES["constant: nothing is"] = Case(lambda: nn.Sequential(conv(3, 6), nn.ReLU(), conv(6, 4)))
CASES["constant: input normalised by buffers"] = Case(
    lambda: Net(
        lambda m, x: m.conv2(m.conv1((x - m.mean) / m.std)), conv1=conv(3, 6), conv2=conv(6, 4),
        mean=nn.Buffer(torch.tensor([0.4, 0.5, 0.3]).view(3, 1, 1)), std=nn.Buffer(torch.full((1, 3, 1, 1), 0.6)),
    ),
    ANY, DEAD, NARROW,
)  # fmt: skip
