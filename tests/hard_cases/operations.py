"""Hard cases: one operation between two convolutions, half of whose neurons in front are dead."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import (
    ANY,
    CASES,
    DEAD,
    EVEN,
    NARROW,
    ROWS,
    Case,
    Net,
    Operation,
    add_through,
    conv,
    through,
)

_ACTIVATIONS: dict[str, Callable[[], Operation]] = {
    kind.__name__: kind
    for kind in (
        nn.Identity, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid,
        nn.Tanh, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Softplus, nn.Softsign, nn.LogSigmoid, nn.Hardshrink,
        nn.Softshrink, nn.Tanhshrink, nn.PReLU, nn.RReLU,
    )
} | {
    "PReLU per channel": lambda: nn.PReLU(6),
    "Threshold": lambda: nn.Threshold(0.1, -0.7),
    "tanh GELU": lambda: nn.GELU("tanh"),
    "ReLU in place": lambda: nn.ReLU(inplace=True),
    "Hardswish in place": lambda: nn.Hardswish(inplace=True),
    "SiLU in place": lambda: nn.SiLU(inplace=True),
    "F.relu": lambda: F.relu,
    "F.relu in place": lambda: lambda x: F.relu(x, inplace=True),
    "F.relu_": lambda: torch.relu_,
    "F.relu6": lambda: F.relu6,
    "F.leaky_relu": lambda: lambda x: F.leaky_relu(x, negative_slope=0.3),
    "F.leaky_relu positional": lambda: lambda x: F.leaky_relu(x, 0.3),
    "F.elu": lambda: lambda x: F.elu(x, alpha=0.5),
    "F.gelu tanh": lambda: lambda x: F.gelu(x, approximate="tanh"),
    "F.silu": lambda: F.silu,
    "F.hardswish": lambda: F.hardswish,
    "F.hardsigmoid": lambda: F.hardsigmoid,
    "F.hardtanh": lambda: lambda x: F.hardtanh(x, -0.2, 0.5),
    "F.softplus": lambda: lambda x: F.softplus(x, beta=2),
    "F.threshold": lambda: lambda x: F.threshold(x, 0.2, 0.3),
    "F.mish": lambda: F.mish,
    "input as keyword": lambda: lambda x: F.relu(input=x),
    "torch.sigmoid": lambda: torch.sigmoid,
    "x.sigmoid()": lambda: lambda x: x.sigmoid(),
    "x.tanh()": lambda: lambda x: x.tanh(),
    "x.relu_()": lambda: lambda x: x.relu_(),
    "x.clamp()": lambda: lambda x: x.clamp(min=0.1, max=0.9),
    "torch.clamp": lambda: lambda x: torch.clamp(x, 0, 1),
    "written out swish": lambda: lambda x: x * torch.sigmoid(x),
    "written out hardswish": lambda: lambda x: x * F.relu6(x + 3) / 6,
}  # fmt: skip
add_through("activation", _ACTIVATIONS)

add_through(
    "scalar",
    {
        "x * 2": lambda: lambda x: x * 2,
        "2 * x": lambda: lambda x: 2 * x,
        "x + 1": lambda: lambda x: x + 1,
        "1 - x": lambda: lambda x: 1 - x,
        "x - 0.5": lambda: lambda x: x - 0.5,
        "x / 3": lambda: lambda x: x / 3,
        "1 / (x * x + 1)": lambda: lambda x: 1 / (x * x + 1),
        "x ** 2": lambda: lambda x: x**2,
        "-x": lambda: lambda x: -x,
        "torch.mul": lambda: lambda x: torch.mul(x, 0.5),
        "torch.sub": lambda: lambda x: torch.sub(x, 0.25),
        "x.mul_": lambda: lambda x: x.mul_(0.5),
        "x += 1": lambda: _increment,
        "abs": lambda: torch.abs,
        "exp": lambda: torch.exp,
        "maximum of two": lambda: lambda x: torch.max(x, -0.5 * x),
        "x + x": lambda: lambda x: x + x,
        "x - x": lambda: lambda x: x - 0.5 * x,
    },
)
add_through("scalar", {"where": lambda: lambda x: torch.where(x > 0, x, 0.1 * x)}, ROWS)
add_through("scalar", {"width as a number": lambda: lambda x: x / x.size(1) ** 0.5})
add_through("scalar", {"shape[1] as a number": lambda: lambda x: x * x.shape[1]})
add_through(
    "scalar", {"add with alpha": lambda: lambda x: torch.add(x, x.sigmoid(), alpha=2)}, ROWS
)


def _increment(x: Tensor) -> Tensor:
    x += 1
    return x


add_through(
    "dropout",
    {
        "Dropout": nn.Dropout,
        "Dropout2d": nn.Dropout2d,
        "AlphaDropout": nn.AlphaDropout,
        "F.dropout(training=False)": lambda: lambda x: F.dropout(x, 0.5, training=False),
        "F.dropout2d": lambda: lambda x: F.dropout2d(x, 0.5, False),
    },
)
CASES["dropout: F.dropout(training=self.training)"] = Case(
    lambda: Net(
        lambda m, x: m.conv2(F.dropout(m.conv1(x), p=0.5, training=m.training)), conv1=conv(3, 6), conv2=conv(6, 4)
    ),
    ANY, DEAD, NARROW,
)  # fmt: skip

add_through(
    "pool",
    {
        "max with padding": lambda: nn.MaxPool2d(3, 1, padding=1),
        "max with padding, dilated": lambda: nn.MaxPool2d(2, 1, padding=1, dilation=2),
        "F.max_pool2d": lambda: lambda x: F.max_pool2d(x, 3, 2, 1),
        "F.max_pool2d by keyword": lambda: lambda x: F.max_pool2d(x, kernel_size=2, stride=1),
        "average": lambda: nn.AvgPool2d(2),
        "average, ceil": lambda: nn.AvgPool2d(2, ceil_mode=True),
        "average, padding not counted": lambda: nn.AvgPool2d(
            3, 1, padding=1, count_include_pad=False
        ),
        "F.avg_pool2d, padding not counted": lambda: (
            lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)
        ),
        "adaptive average": lambda: nn.AdaptiveAvgPool2d(3),
        "adaptive maximum": lambda: nn.AdaptiveMaxPool2d((2, 3)),
        "average with its own divisor": lambda: nn.AvgPool2d(2, divisor_override=3),
    },
)
add_through(
    "pool",
    {
        "average, padding counted": lambda: nn.AvgPool2d(3, 1, padding=1),
        "F.avg_pool2d, padding counted": lambda: lambda x: F.avg_pool2d(x, 3, stride=2, padding=1),
        "average, ceil and padding counted": lambda: nn.AvgPool2d(3, 2, padding=1, ceil_mode=True),
    },
    constant=ROWS,
)
add_through(
    "pad",
    {"zeros": lambda: lambda x: F.pad(x, (1, 1, 1, 1)), "module": lambda: nn.ZeroPad2d(1)},
    NARROW,
    ROWS,
)
add_through("pad", {"a value": lambda: lambda x: F.pad(x, (1, 0, 2, 1), value=0.7)}, ROWS)
add_through(
    "pad",
    {
        "reflect": lambda: lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
        "replicate": lambda: nn.ReplicationPad2d(1),
        "circular": lambda: lambda x: F.pad(x, (1, 1, 1, 1), mode="circular"),
        "cut off": lambda: lambda x: F.pad(x, (-1, 0, 0, -1)),
    },
)
CASES["pad: channels"] = Case(
    through(lambda: lambda x: F.pad(x, (0, 0, 0, 0, 1, 2)), 9), ANY, DEAD, NARROW
)
CASES["pad: in the convolution, reflect"] = Case(
    lambda: Net(lambda m, x: m.conv2(m.conv1(x)), conv1=conv(3, 6), conv2=conv(6, 4, padding_mode="reflect")),
    ANY, DEAD, NARROW,
)  # fmt: skip
CASES["pad: same, dilated"] = Case(
    lambda: Net(
        lambda m, x: m.conv3(m.conv2(m.conv1(x))),
        conv1=conv(3, 6), conv2=nn.Conv2d(6, 5, (3, 2), dilation=2, padding="same"), conv3=conv(5, 4, 5, stride=2),
    ),
    ANY, {**DEAD, "conv2": (1, 4)}, {"conv1": (3, 3), "conv2": (3, 3), "conv3": (4, 3)},
)  # fmt: skip

add_through(
    "resize",
    {
        "nearest": lambda: nn.Upsample(scale_factor=2),
        "bilinear": lambda: lambda x: F.interpolate(x, scale_factor=2.0, mode="bilinear"),
        "bilinear, corners": lambda: nn.UpsamplingBilinear2d(scale_factor=2),
        "bicubic": lambda: lambda x: F.interpolate(x, scale_factor=1.5, mode="bicubic"),
        "fixed size": lambda: lambda x: F.interpolate(x, (7, 9)),
    },
)
CASES["resize: to the size of another tensor"] = Case(
    lambda: Net(
        lambda m, x: m.conv2(F.interpolate(F.max_pool2d(m.conv1(x), 2), size=x.shape[-2:], mode="bilinear")),
        conv1=conv(3, 6), conv2=conv(6, 4),
    ),
    ANY, DEAD, NARROW,
)  # fmt: skip

add_through(
    "shape",
    {
        "clone, contiguous, detach": lambda: lambda x: x.clone().contiguous().detach(),
        "spatial slice": lambda: lambda x: x[:, :, ::2, 1:],
        "Ellipsis": lambda: lambda x: x[..., ::2],
        "flip": lambda: lambda x: torch.flip(x, [3]),
        "roll": lambda: lambda x: torch.roll(x, 1, dims=2),
        "transpose of space": lambda: lambda x: x.transpose(2, 3),
        "there and back": lambda: lambda x: x.flatten(2).reshape(x.shape),
        "groups and back": lambda: _groups_and_back,
        "channels last and back": lambda: (
            lambda x: x.permute(0, 2, 3, 1).relu().permute(0, 3, 1, 2)
        ),
        "to channels_last": lambda: lambda x: x.to(memory_format=torch.channels_last),
        "ChannelShuffle": lambda: nn.ChannelShuffle(2),
        "F.channel_shuffle": lambda: lambda x: F.channel_shuffle(x, 2),
        "shuffle of ShuffleNet": lambda: shuffle,
        "channels flipped": lambda: lambda x: x.flip(1),
    },
    NARROW,
)
CASES["shape: times a number that is turned"] = Case(
    through(lambda: lambda x: x * x.mean().flip(0)), ANY, DEAD, NARROW, ROWS
)
CASES["shape: cumulated over space"] = Case(
    through(lambda: lambda x: x.cumsum(2)), ANY, DEAD, ROWS
)  # a sum of constants grows with the position


def _groups_and_back(x: Tensor) -> Tensor:
    """Half of a shuffle: the view is undone by a view."""
    batch, channels, height, width = x.size()
    return x.view(batch, 2, channels // 2, height, width).view(batch, channels, height, width)


def shuffle(x: Tensor) -> Tensor:
    batch, channels, height, width = x.size()
    return (
        x.view(batch, 2, channels // 2, height, width)
        .transpose(1, 2)
        .contiguous()
        .view(batch, -1, height, width)
    )


CASES["shape: PixelUnshuffle"] = Case(
    through(lambda: nn.PixelUnshuffle(2), 24), EVEN, DEAD, {"conv1": (3, 3), "conv2": (4, 12)}
)
CASES["shape: PixelShuffle"] = Case(
    lambda: Net(lambda m, x: m.conv2(m.up(m.conv1(x))), conv1=conv(3, 8), up=nn.PixelShuffle(2), conv2=conv(2, 4)),
    ANY, {"conv1": (0, 1, 2, 3)}, {"conv1": (4, 3), "conv2": (4, 1)}, {},
)  # fmt: skip

add_through(
    "norm",
    {
        "BatchNorm": lambda: nn.BatchNorm2d(6),
        "BatchNorm without affine": lambda: nn.BatchNorm2d(6, affine=False),
        "InstanceNorm with statistics": lambda: nn.InstanceNorm2d(
            6, affine=True, track_running_stats=True
        ),
    },
)
add_through(
    "norm",
    {
        "GroupNorm": lambda: nn.GroupNorm(3, 6),
        "GroupNorm of one group": lambda: nn.GroupNorm(1, 6),
        "InstanceNorm": lambda: nn.InstanceNorm2d(6, affine=True),
        "BatchNorm without statistics": lambda: nn.BatchNorm2d(6, track_running_stats=False),
        "LocalResponseNorm": lambda: nn.LocalResponseNorm(3),
        "F.normalize": lambda: lambda x: F.normalize(x + 1.5, dim=1),
        "softmax over channels": lambda: lambda x: x.softmax(1),
        "Softmax2d": nn.Softmax2d,
        "mean over channels": lambda: lambda x: x - x.mean(1, keepdim=True),
        "response norm": lambda: lambda x: x / (x.norm(p=2, dim=(2, 3), keepdim=True) + 1),
        "cumulated over channels": lambda: lambda x: x.cumsum(1),
        "statistics pool": lambda: lambda x: x * x.std((2, 3), keepdim=True),
        "glu by hand": lambda: lambda x: x * x.flip(1),
    },
    ROWS,
)
CASES["norm: glu"] = Case(
    through(lambda: lambda x: F.glu(x, 1), 3),
    ANY,
    {"conv1": (0, 3)},
    {"conv1": (4, 3), "conv2": (4, 2)},
    {},
)
