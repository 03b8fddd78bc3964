"""Hard cases: concatenation and slices along the channels."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import ANY, CASES, DEAD, FIXED, ROWS, Case, Net, conv, through
from .operations import shuffle
from .sums import DIFFERENT

# Concatenation and slices


def concat(
    join: Callable[[Tensor, Tensor], Tensor], left: int = 5, right: int = 4
) -> Callable[[], nn.Module]:
    return lambda: Net(
        lambda m, x: m.out(join(F.relu(m.left(x)), torch.sigmoid(m.right(x)))),
        left=conv(3, left), right=conv(3, right, 1), out=conv(left + right, 3),
    )  # fmt: skip


_CONCAT = {"left": (3, 3), "right": (3, 3), "out": (3, 6)}
for _name, _join in {
    "channels": lambda a, b: torch.cat([a, b], 1),
    "by keyword": lambda a, b: torch.cat(tensors=(a, b), dim=1),
    "negative axis": lambda a, b: torch.concat((a, b), dim=-3),
}.items():
    CASES[f"concat: {_name}"] = Case(concat(_join), ANY, {"left": (0, 1), "right": (3,)}, _CONCAT)
CASES["concat: one branch is dead"] = Case(
    concat(lambda a, b: torch.cat([a, b], 1)),
    ANY,
    {"left": (0, 1, 2, 3, 4)},
    {"left": (0, 0), "out": (3, 4)},
)
CASES["concat: other axis"] = Case(
    lambda: Net(
        lambda m, x: m.out(torch.cat([m.left(x), m.right(x)], 2)), left=conv(3, 6), right=conv(3, 6), out=conv(6, 4)
    ),
    ANY, DIFFERENT, {"left": (5, 3), "right": (5, 3), "out": (4, 5)}, {},
)  # fmt: skip
CASES["concat: batch axis"] = Case(
    lambda: Net(
        lambda m, x: m.out(torch.cat([m.conv1(x), m.conv1(x.flip(2))], 0).chunk(2)[1]), conv1=conv(3, 6), out=conv(6, 4)
    ),
    ANY, DEAD,
)  # fmt: skip
CASES["concat: the same tensor twice"] = Case(
    through(lambda: lambda x: torch.cat([x, x], 1), 12),
    ANY,
    DEAD,
    {"conv1": (3, 3), "conv2": (4, 6)},
)
CASES["concat: with the image"] = Case(
    lambda: Net(lambda m, x: m.conv2(torch.cat([x, m.conv1(x)], 1)), conv1=conv(3, 6), conv2=conv(9, 4)),
    ANY, DEAD, {"conv1": (3, 3), "conv2": (4, 6)},
)  # fmt: skip
CASES["concat: with zeros"] = Case(
    through(lambda: lambda x: torch.cat([x, torch.zeros_like(x)], 1), 12), ANY, DEAD, ROWS
)
CASES["concat: behind flatten"] = Case(
    lambda: Net(
        lambda m, x: m.fc(torch.cat([m.left(x).flatten(1), m.right(x).mean((2, 3))], 1)),
        left=conv(3, 4, stride=2), right=conv(3, 5), fc=nn.Linear(4 * 16 + 5, 3),
    ),
    FIXED, {"left": (0, 2), "right": (1,)}, {"left": (2, 3), "right": (4, 3), "fc": (3, 36)},
)  # fmt: skip


def halves(cut: Callable[[Tensor], object]) -> Callable[[], nn.Module]:
    """conv1 (6 channels), cut into two of three, each read by its own layer."""

    def body(m: nn.Module, x: Tensor) -> Tensor:
        first, second = cut(m.conv1(x))
        return m.conv2(F.relu(first)) + m.conv3(second)

    return lambda: Net(body, conv1=conv(3, 6), conv2=conv(3, 4), conv3=conv(3, 4))


for _name, _cut in {
    "chunk": lambda x: x.chunk(2, dim=1),
    "torch.chunk": lambda x: torch.chunk(x, 2, 1),
    "split": lambda x: x.split(3, 1),
    "split sizes": lambda x: torch.split(x, [3, 3], dim=1),
    "tensor_split": lambda x: torch.tensor_split(x, 2, dim=1),
    "narrow": lambda x: (x.narrow(1, 0, 3), torch.narrow(x, 1, 3, 3)),
    "getitem": lambda x: (x[:, :3], x[:, 3:]),
    "getitem by half of the width": lambda x: (x[:, : x.size(1) // 2], x[:, x.shape[1] // 2 :]),
}.items():
    CASES[f"slice: {_name}"] = Case(
        halves(_cut), ANY, {"conv1": (0, 3, 4)}, {"conv1": (3, 3), "conv2": (4, 2), "conv3": (4, 1)}
    )
CASES["slice: every second channel"] = Case(
    halves(lambda x: (x[:, ::2], x[:, 1::2])),
    ANY, {"conv1": (0, 3, 4)}, {"conv1": (3, 3), "conv2": (4, 1), "conv3": (4, 2)},
)  # fmt: skip
CASES["slice: unbind"] = Case(
    through(lambda: lambda x: torch.stack(x.unbind(1)[::-1], 1)), ANY, DEAD, ROWS
)
CASES["slice: one channel"] = Case(
    through(lambda: lambda x: x * x[:, :1] + x[:, 1].unsqueeze(1)), ANY, DEAD, ROWS
)
CASES["slice: part is never read"] = Case(
    through(lambda: lambda x: x[:, 2:], 4), ANY, {}, {"conv1": (4, 3), "conv2": (4, 4)}
)
CASES["slice: index_select"] = Case(
    through(lambda: lambda x: x.index_select(1, torch.tensor([5, 3, 1, 0, 2, 4]))), ANY, DEAD, ROWS
)


class ShuffleUnit(nn.Module):
    """ShuffleNet V2: half of the channels pass, half go through a branch, then they are
    shuffled.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.out = conv(3, 8), conv(8, 4)
        self.branch = nn.Sequential(
            conv(4, 4, 1),
            nn.BatchNorm2d(4),
            nn.ReLU(True),
            conv(4, 4, groups=4),
            nn.BatchNorm2d(4),
            conv(4, 4, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        passing, through = self.stem(x).chunk(2, dim=1)
        return self.out(shuffle(torch.cat((passing, self.branch(through)), dim=1)))


CASES["slice: ShuffleNet unit"] = Case(
    ShuffleUnit, ANY, {"stem": (0, 1, 5), "branch.0": (1, 3), "branch.3": (1, 3), "branch.5": (2,)},
    {"stem": (5, 3), "branch.0": (2, 3), "branch.3": (2, 1), "branch.5": (3, 2), "out": (4, 5)},
)  # fmt: skip
