"""Hard cases: several outputs and inputs, and layers that are called more than once."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import ANY, CASES, DEAD, NARROW, ROWS, Case, Net, Pair, add_through, conv
from .heads import head
from .slices import concat
from .sums import DIFFERENT, SUM

# Outputs, inputs, sharing


class Auxiliary(nn.Module):
    """Segmentation: a dictionary of two heads, resized to the image."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = conv(3, 6, stride=2), conv(6, 8)
        self.classifier, self.aux_classifier = (
            conv(8, 4, 1),
            nn.Sequential(conv(6, 5), nn.ReLU(), conv(5, 4, 1)),
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        size, result = x.shape[-2:], {}
        low = F.relu(self.low(x))
        high = F.relu(self.high(low))
        result["out"] = F.interpolate(
            self.classifier(high), size=size, mode="bilinear", align_corners=False
        )
        result["aux"] = F.interpolate(
            self.aux_classifier(low), size=size, mode="bilinear", align_corners=False
        )
        return result


class TrainingHead(nn.Module):
    """GoogLeNet: the auxiliary head is read in training mode only."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.aux = conv(3, 6), conv(6, 4), conv(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x))
        if self.training:
            return self.conv2(x) + self.aux(x).mean()
        return self.conv2(x)


class TiedLinear(nn.Module):
    """Two layers with one weight, between layers that are free."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.a, self.b, self.fc2 = (
            nn.Linear(6, 8),
            nn.Linear(8, 8),
            nn.Linear(8, 8),
            nn.Linear(8, 3),
        )
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.relu(self.b(F.sigmoid(self.a(F.relu(self.fc1(x)))))))


class LanguageModel(nn.Module):
    """The head reads with the matrix that the tokens are embedded with."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(10, 6), nn.Linear(6, 10, bias=False)
        self.fc1, self.fc2 = nn.Linear(6, 8), nn.Linear(8, 6)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        return self.head(x + self.fc2(F.gelu(self.fc1(x))))


def _two_names() -> nn.Module:
    layer = conv(6, 6)
    return nn.Sequential(conv(3, 6), nn.ReLU(), layer, nn.Sigmoid(), layer, nn.ReLU(), conv(6, 4))


class FunctionalConv(nn.Module):
    """A convolution by function, with parameters of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(6, 6, 3, 3)), nn.Parameter(torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, padding=1)


class SameConv(nn.Conv2d):
    """A user's convolution that pads as TensorFlow does, before it convolves."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (0, 1, 0, 1), value=0.25))


class StandardisedConv(nn.Conv2d):
    """A user's convolution that standardises its weight in every forward pass."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight / (weight.std((1, 2, 3), keepdim=True) + 1), self.bias)


def _with_features(m: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    features = F.relu(m.conv1(x))
    return m.conv2(features), features


CASES["output: dictionary of heads"] = Case(
    Auxiliary, ANY, {"low": (0, 1), "high": (2, 3, 4), "aux_classifier.0": (1,)},
    {"low": (4, 3), "high": (5, 4), "classifier": (4, 5), "aux_classifier.0": (4, 4), "aux_classifier.2": (4, 4)},
)  # fmt: skip
CASES["output: head of training only"] = Case(TrainingHead, ANY, DEAD, NARROW)
CASES["output: list of all"] = Case(
    lambda: Net(lambda m, x: [m.conv1(x), {"two": (m.conv2(m.conv1(x)), x)}], conv1=conv(3, 6), conv2=conv(6, 4)),
    ANY, DEAD,
)  # fmt: skip
CASES["output: the narrowed tensor"] = Case(
    lambda: nn.Sequential(conv(3, 6), nn.ReLU()), ANY, {"0": (0, 2)}, {"0": (4, 3)}
)
CASES["output: concatenated"] = Case(
    concat(lambda a, b: torch.cat([a, b], 1)), ANY, {"out": (0,)}, {"out": (2, 9)}
)
CASES["output: part of the channels"] = Case(
    lambda: Net(lambda m, x: m.conv1(x)[:, 2:5], conv1=conv(3, 6)),
    ANY,
    {"conv1": (3,)},
    {"conv1": (2, 3)},
)
CASES["output: two chunks"] = Case(
    lambda: Net(lambda m, x: m.conv1(x).chunk(2, 1), conv1=conv(3, 6)), ANY, DEAD
)
CASES["output: softmax"] = Case(
    head(lambda: lambda x: x.mean((2, 3)).softmax(-1), 6), ANY, DEAD, ROWS
)  # mixes the channels


CASES["output: with features"] = Case(
    lambda: Net(_with_features, conv1=conv(3, 6), conv2=conv(6, 4)), ANY, DEAD, NARROW
)
CASES["input: two tensors"] = Case(
    lambda: Pair(lambda m, x, y: m.out(m.left(x) + m.right(y)), left=conv(3, 6), right=conv(3, 6), out=conv(6, 4)),
    ANY, DIFFERENT, SUM, arguments=2,
)  # fmt: skip
CASES["input: two tensors, one shared encoder"] = Case(
    lambda: Pair(
        lambda m, x, y: m.fc((m.encoder(x) - m.encoder(y)).abs().mean((2, 3))),
        encoder=nn.Sequential(conv(3, 6), nn.ReLU(), conv(6, 5)), fc=nn.Linear(5, 2),
    ),
    ANY, {"encoder.0": (0, 1)}, {"encoder.0": (4, 3), "encoder.2": (5, 4)}, arguments=2,
)  # fmt: skip
CASES["input: read by the head too"] = Case(
    lambda: Net(lambda m, x: m.conv2(m.conv1(x)) + x[:, :1], conv1=conv(3, 6), conv2=conv(6, 4)),
    ANY,
    DEAD,
    NARROW,
)
CASES["shared: activation"] = Case(
    lambda: Net(
        lambda m, x: m.conv3(m.act(m.conv2(m.act(m.conv1(x))))),
        conv1=conv(3, 6), conv2=conv(6, 5), conv3=conv(5, 4), act=nn.ReLU(inplace=True),
    ),
    ANY, {**DEAD, "conv2": (0,)}, {"conv1": (3, 3), "conv2": (4, 3), "conv3": (4, 4)},
)  # fmt: skip
CASES["shared: PReLU"] = Case(
    lambda: Net(
        lambda m, x: m.conv3(m.act(m.conv2(m.act(m.conv1(x))))),
        conv1=conv(3, 6), conv2=conv(6, 6), conv3=conv(6, 4), act=nn.PReLU(6),
    ),
    ANY, {**DEAD, "conv2": (0, 1)},
)  # fmt: skip
CASES["shared: BatchNorm"] = Case(
    lambda: Net(
        lambda m, x: m.conv3(m.bn(m.conv2(m.bn(m.conv1(x))))),
        conv1=conv(3, 6), conv2=conv(6, 6), conv3=conv(6, 4), bn=nn.BatchNorm2d(6),
    ),
    ANY, {**DEAD, "conv2": (0, 1)},
)  # fmt: skip
CASES["shared: convolution"] = Case(
    lambda: Net(
        lambda m, x: m.conv3(F.relu(m.conv2(F.sigmoid(m.conv2(F.relu(m.conv1(x))))))),
        conv1=conv(3, 6), conv2=conv(6, 6), conv3=conv(6, 4),
    ),
    ANY, {**DEAD, "conv2": (0, 1)},
)  # fmt: skip
CASES["shared: one module under two names"] = Case(_two_names, ANY, {"0": (0, 1), "2": (3,)})
CASES["shared: tied Linear"] = Case(TiedLinear, ((2, 6), (5, 6)), {"fc1": (0, 1), "a": (2,)})
CASES["shared: tied embedding"] = Case(
    LanguageModel,
    ((2, 5), (3, 7)),
    {"fc1": (0, 2, 7)},
    {"fc1": (5, 6), "fc2": (6, 5)},
    vocabulary=10,
)


add_through(
    "user's own",
    {
        "F.conv2d with parameters": FunctionalConv,
        "convolution that pads first": lambda: SameConv(6, 6, 2),
        "convolution that standardises": lambda: StandardisedConv(6, 6, 3, padding=1),
    },
    ROWS,
)
CASES["user's own: F.linear"] = Case(
    lambda: Net(
        lambda m, x: F.linear(F.relu(m.fc1(x)), m.weight, m.bias),
        fc1=nn.Linear(6, 8), weight=nn.Parameter(torch.randn(4, 8)), bias=nn.Parameter(torch.randn(4)),
    ),
    ((2, 6), (5, 6)), {"fc1": (0, 1)}, {"fc1": (6, 6)},
)  # fmt: skip
CASES["user's own: matmul"] = Case(
    lambda: Net(
        lambda m, x: F.relu(m.fc1(x)) @ m.weight.t(), fc1=nn.Linear(6, 8), weight=nn.Parameter(torch.randn(4, 8))
    ),
    ((2, 6), (5, 6)), {"fc1": (0, 1)}, {"fc1": (6, 6)},
)  # fmt: skip
CASES["user's own: einsum"] = Case(
    lambda: Net(
        lambda m, x: torch.einsum("nchw,oc->nohw", m.conv1(x), m.weight),
        conv1=conv(3, 6), weight=nn.Parameter(torch.randn(4, 6)),
    ),
    ANY, DEAD, ROWS,
)  # fmt: skip
