"""Hard cases: products with gates, as in squeeze-and-excitation."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import ANY, CASES, DEAD, FIXED, NARROW, ROWS, Case, Net, Shape, conv, through

# Gates


class SqueezeExcite(nn.Module):
    """As in MobileNetV3 and EfficientNet."""

    def __init__(self, channels: int, gate: Callable[[Tensor], Tensor] = torch.sigmoid) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc1, self.fc2, self.gate = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1), gate

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.fc2(F.relu(self.fc1(self.pool(x)))))


class LinearGate(nn.Module):
    """Squeeze-excite as people write it with Linear layers, views and expand_as."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Sequential(
            nn.Linear(6, 4, bias=False), nn.ReLU(True), nn.Linear(4, 6, bias=False), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, _, _ = x.size()
        scale = self.fc(F.adaptive_avg_pool2d(x, 1).view(batch, channels)).view(
            batch, channels, 1, 1
        )
        return x * scale.expand_as(x)


class InvertedResidual(nn.Module):
    """MobileNetV3: expand, depthwise, squeeze-excite, project, add."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = conv(3, 4, stride=2), nn.Linear(4, 3)
        self.expand, self.bn1 = conv(4, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.depthwise, self.bn2 = conv(8, 8, groups=8, bias=False), nn.BatchNorm2d(8)
        self.se = SqueezeExcite(8, F.hardsigmoid)
        self.project, self.bn3 = conv(8, 4, 1, bias=False), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.stem(x))
        y = F.hardswish(self.bn1(self.expand(x)))
        y = self.se(F.hardswish(self.bn2(self.depthwise(y))))
        return self.head((x + self.bn3(self.project(y))).mean((2, 3)))


_GATED = {"conv1": (3, 3), "operation.fc1": (4, 3), "operation.fc2": (3, 4), "conv2": (4, 3)}
_GATED_CONSTANT = {"conv1": (3, 3), "operation.fc1": (4, 3)}
for _name, _gate in {"sigmoid": torch.sigmoid, "hardsigmoid": F.hardsigmoid}.items():
    CASES[f"gate: squeeze-excite, {_name}, dead in x"] = Case(
        through(lambda gate=_gate: SqueezeExcite(6, gate)), ANY, DEAD, _GATED, _GATED_CONSTANT
    )
    CASES[f"gate: squeeze-excite, {_name}, dead in s"] = Case(
        through(lambda gate=_gate: SqueezeExcite(6, gate)), ANY, {"operation.fc1": (0, 3), "operation.fc2": (1, 2)},
        {"operation.fc1": (2, 6), "operation.fc2": (4, 2), "conv2": (4, 6)},
    )  # fmt: skip
CASES["gate: squeeze-excite with Linear"] = Case(
    through(LinearGate), ANY, DEAD,
    {"conv1": (3, 3), "operation.fc.0": (4, 3), "operation.fc.2": (3, 4), "conv2": (4, 3)},
    {"conv1": (3, 3), "operation.fc.0": (4, 3)},
)  # fmt: skip
CASES["gate: squeeze-excite, all of the gate is dead"] = Case(
    through(lambda: SqueezeExcite(6)),
    ANY,
    {"operation.fc2": tuple(range(6))},
    {"operation.fc1": (1, 6)},
)
CASES["gate: inverted residual"] = Case(
    InvertedResidual, ANY,
    {"expand": (0, 1), "depthwise": (0, 1, 2), "se.fc1": (3,), "project": (0,)},
    {"expand": (5, 4), "depthwise": (5, 1), "project": (3, 5), "se.fc1": (3, 5), "se.fc2": (5, 3)}, {},
)  # fmt: skip
CASES["gate: spatial attention"] = Case(
    lambda: Net(
        lambda m, x: m.conv2(torch.sigmoid(m.map(x)) * m.conv1(x)), conv1=conv(3, 6), map=conv(3, 1), conv2=conv(6, 4)
    ),
    ANY, DEAD, NARROW, ROWS,
)  # fmt: skip
CASES["gate: CBAM's map of mean and maximum over channels"] = Case(
    lambda: Net(
        lambda m, x: m.conv2(_cbam(m.map, m.conv1(x))), conv1=conv(3, 6), map=conv(2, 1), conv2=conv(6, 4)
    ),
    ANY, DEAD, ROWS,
)  # fmt: skip


def _cbam(layer: nn.Module, x: Tensor) -> Tensor:
    summary = torch.cat([x.mean(1, keepdim=True), x.max(dim=1, keepdim=True)[0]], dim=1)
    return x * torch.sigmoid(layer(summary))


def with_parameter(
    shape: Shape, join: Callable[[Tensor, Tensor], Tensor]
) -> Callable[[], nn.Module]:
    return lambda: Net(
        lambda m, x: m.conv2(join(m.conv1(x), m.scale)),
        conv1=conv(3, 6), conv2=conv(6, 4), scale=nn.Parameter(torch.ones(shape)),
    )  # fmt: skip


for _shape in ((6, 1, 1), (1, 6, 1, 1)):
    CASES[f"parameter: times {_shape}"] = Case(with_parameter(_shape, torch.mul), ANY, DEAD, NARROW)
    CASES[f"parameter: plus {_shape}"] = Case(
        with_parameter(_shape, lambda x, p: p + x), ANY, DEAD, NARROW
    )
CASES["parameter: divided by (6, 1, 1)"] = Case(
    with_parameter((6, 1, 1), lambda x, p: x / (p * p + 1)), ANY, DEAD, ROWS
)
CASES["parameter: viewed"] = Case(
    with_parameter((6,), lambda x, p: x * p.view(1, -1, 1, 1)), ANY, DEAD, ROWS
)
CASES["parameter: [None, :, None, None]"] = Case(
    with_parameter((6,), lambda x, p: x * p[None, :, None, None]), ANY, DEAD, ROWS
)
CASES["parameter: one number"] = Case(with_parameter((1,), torch.mul), ANY, DEAD, NARROW)
CASES["parameter: positions"] = Case(with_parameter((1, 6, 8, 8), torch.add), FIXED, DEAD, ROWS)
CASES["parameter: map"] = Case(with_parameter((8, 8), torch.mul), FIXED, DEAD, NARROW, ROWS)
