"""Hard cases of simplification: one small network for each thing that a shrinking tool gets wrong.

Each case says which neurons are killed and how narrow the named layers must then be at most: the
*minimum removal* that is possible without changing an output. Layers that are not named may be
narrowed or left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snello.graph import capture
from snello.neurons import NORMS, neuron_count, spread, weighted_layers

Shape = tuple[int, ...]
Widths = Mapping[str, tuple[int, ...]]

ANY: tuple[Shape, ...] = ((2, 3, 8, 8), (3, 3, 9, 7), (2, 3, 3, 4))
"""Example, an odd resolution at another batch size, and one that is smaller than two kernels reach."""
EVEN: tuple[Shape, ...] = ((2, 3, 8, 8), (3, 3, 12, 4), (2, 3, 4, 16))
FIXED: tuple[Shape, ...] = ((2, 3, 8, 8), (5, 3, 8, 8))
TOKENS: tuple[Shape, ...] = ((2, 5, 6), (3, 7, 6))


@dataclass(frozen=True)
class Case:
    """A model, what it accepts, and how small it must become.

    Attributes:
        build: makes the model.
        shapes: shapes of the input (of every input, if there are several); the first is the
        example. dead: layer -> the neurons that are killed; of an Embedding, its columns.
        lean: layer or parameter -> the leading dimensions of its weight must be at most these;
            zeros: it is gone.
        constant: the same where dead neurons are constants that are not zero; None: as in ``lean``.
        arguments: how many inputs the model takes.
        vocabulary: if not 0, the inputs are integers below it.
    """

    build: Callable[[], nn.Module]
    shapes: tuple[Shape, ...] = ANY
    dead: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    lean: Widths = field(default_factory=dict)
    constant: Widths | None = None
    arguments: int = 1
    vocabulary: int = 0

    def model(self, seed: int = 0) -> nn.Module:
        """The model with everything randomised that a fresh model hides: float64, evaluation
        mode.
        """
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return randomise(self.build().double().eval())

    def inputs(self, generator: torch.Generator) -> list[tuple[Tensor, ...]]:
        """One tuple of inputs per shape."""
        return [
            tuple(self._input(s, generator) for _ in range(self.arguments)) for s in self.shapes
        ]

    def _input(self, shape: Shape, generator: torch.Generator) -> Tensor:
        if self.vocabulary:
            return torch.randint(self.vocabulary, shape, generator=generator)
        return torch.randn(shape, dtype=torch.float64, generator=generator)


@torch.no_grad()
def randomise(model: nn.Module) -> nn.Module:
    """Random statistics, affines, biases, scales and positions: at their initial values they hide
    errors.
    """
    for module in model.modules():
        if isinstance(module, NORMS) and getattr(module, "running_var", None) is not None:
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.3, 2)
    matrices = {id(m.weight) for m in weighted_layers(model).values()}
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.uniform_(-1, 1)
        elif id(parameter) not in matrices:
            parameter.normal_(0, 0.5)
    return model


@torch.no_grad()
def kill(model: nn.Module, dead: Mapping[str, tuple[int, ...]], *, constant: bool) -> None:
    """Kill the named neurons in place: they become zero, or (``constant``) keep the bias and norm
    behind them.
    """
    graph = capture(model)
    for name, neurons in dead.items():
        layer, index = model.get_submodule(name), torch.tensor(neurons, dtype=torch.long)
        if isinstance(layer, nn.Embedding):
            layer.weight[:, index] = (
                torch.linspace(0.2, 0.9, len(index)).to(layer.weight) if constant else 0.0
            )
            continue
        mask = torch.zeros(neuron_count(layer), dtype=torch.bool)
        mask[index] = True
        layer.weight.masked_fill_(spread(layer, mask), 0)
        if constant:
            continue
        norm = graph.norm_after(name)
        affine = (
            [layer.bias] if norm is None else [layer.bias, *model.get_submodule(norm).parameters()]
        )
        for parameter in affine:
            if parameter is not None:
                parameter.masked_fill_(mask, 0)


def neurons_of(model: nn.Module) -> dict[str, int]:
    """How many neurons each layer has that a mask may kill; of an Embedding, how many columns."""
    layers = {name: neuron_count(layer) for name, layer in weighted_layers(model).items()}
    return layers | {
        name: m.embedding_dim for name, m in model.named_modules() if isinstance(m, nn.Embedding)
    }


def random_dead(
    model: nn.Module, share: float, generator: torch.Generator
) -> dict[str, tuple[int, ...]]:
    """Random neurons of every layer. A quarter of the layers may die whole; in the others one
    neuron lives.
    """
    dead = {}
    for name, count in neurons_of(model).items():
        mask = torch.rand(count, generator=generator) < share
        if torch.rand((), generator=generator) > 0.25:
            mask[int(torch.randint(count, (), generator=generator))] = False
        dead[name] = tuple(mask.nonzero().flatten().tolist())
    return dead


@torch.no_grad()
def blind(model: nn.Module, share: float, generator: torch.Generator) -> None:
    """Zero random columns and random scales, in place: neurons that nobody reads."""
    for layer in weighted_layers(model).values():
        columns = torch.rand(layer.weight.shape[1], generator=generator) < share
        layer.weight[:, columns] = 0
    for name, parameter in model.named_parameters():
        if "scale" in name:
            parameter.masked_fill_(torch.rand(parameter.shape, generator=generator) < share, 0)


class Net(nn.Module):
    """Named layers and the forward pass as a function of them and the inputs."""

    def __init__(self, body: Callable[..., object], **layers: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.body = body
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Tensor) -> object:
        return self.body(self, x)


class Pair(Net):
    """:class:`Net` with two inputs."""

    def forward(self, x: Tensor, y: Tensor) -> object:
        return self.body(self, x, y)


def conv(inputs: int, outputs: int, kernel: int = 3, **options: object) -> nn.Conv2d:
    """A convolution that keeps the resolution, with zero padding."""
    return nn.Conv2d(inputs, outputs, kernel, **{"padding": kernel // 2, **options})


CASES: dict[str, Case] = {}
REFUSED: dict[str, Case] = {}
"""Cases that simplification must refuse: it cannot see what they do."""

# One operation between two convolutions with zero padding. Half of the six neurons in front are
# dead.

DEAD = {"conv1": (0, 2, 5)}
NARROW = {"conv1": (3, 3), "conv2": (4, 3)}
ROWS = {"conv1": (3, 3)}
"""The operation mixes channels or makes constants depend on the position: only the rows in front must go."""

Operation = Callable[[Tensor], Tensor]


def through(operation: Callable[[], Operation], reads: int = 6) -> Callable[[], nn.Module]:
    """conv1 (3 to 6 channels), an operation, conv2 (``reads`` to 4 channels)."""
    return lambda: Net(
        lambda m, x: m.conv2(m.operation(m.conv1(x))),
        conv1=conv(3, 6), operation=operation(), conv2=conv(reads, 4),
    )  # fmt: skip


def add_through(
    group: str,
    operations: Mapping[str, Callable[[], Operation]],
    lean: Widths = NARROW,
    constant: Widths | None = None,
    *,
    shapes: tuple[Shape, ...] = ANY,
) -> None:
    """Register one case per operation."""
    for name, operation in operations.items():
        CASES[f"{group}: {name}"] = Case(through(operation), shapes, DEAD, lean, constant)


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
        "shuffle of ShuffleNet": lambda: _shuffle,
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


def _shuffle(x: Tensor) -> Tensor:
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


# Sums


def two_branches(join: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], nn.Module]:
    return lambda: Net(
        lambda m, x: m.out(F.relu(join(m.left(x), m.right(x)))),
        left=conv(3, 6), right=conv(3, 6, 1), out=conv(6, 4),
    )  # fmt: skip


def _accumulate(x: Tensor, y: Tensor) -> Tensor:
    x += y
    return x


_DIFFERENT = {"left": (0, 1), "right": (1, 2)}
_SUM = {"left": (4, 3), "right": (4, 3), "out": (4, 5)}
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
    CASES[f"sum: {_name}"] = Case(two_branches(_join), ANY, _DIFFERENT, _SUM)
CASES["sum: stack and sum"] = Case(
    two_branches(lambda a, b: torch.stack([a, b]).sum(0)), ANY, _DIFFERENT
)
CASES["sum: one branch is dead"] = Case(
    two_branches(lambda a, b: a + b),
    ANY,
    {"left": (0, 1, 2, 3, 4, 5)},
    {"left": (0, 0), "out": (4, 6)},
)
CASES["sum: python's sum"] = Case(two_branches(lambda a, b: sum([a, b])), ANY, _DIFFERENT, _SUM)


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
    ANY, _DIFFERENT, {"left": (5, 3), "right": (5, 3), "out": (4, 5)}, {},
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
        return self.out(_shuffle(torch.cat((passing, self.branch(through)), dim=1)))


CASES["slice: ShuffleNet unit"] = Case(
    ShuffleUnit, ANY, {"stem": (0, 1, 5), "branch.0": (1, 3), "branch.3": (1, 3), "branch.5": (2,)},
    {"stem": (5, 3), "branch.0": (2, 3), "branch.3": (2, 1), "branch.5": (3, 2), "out": (4, 5)},
)  # fmt: skip

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
    ANY, _DIFFERENT, _SUM, arguments=2,
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

# In place: what is read later has already been changed


def _relu_then_read(m: nn.Module, x: Tensor) -> Tensor:
    x = m.conv1(x)
    y = F.relu(x, inplace=True)
    return m.conv2(y) + m.conv3(x)


def _add_then_read(m: nn.Module, x: Tensor) -> Tensor:
    x = m.conv1(x)
    y = torch.sigmoid(x)
    x.add_(y)
    return m.conv2(x) + m.conv3(y)


def _module_then_read(m: nn.Module, x: Tensor) -> Tensor:
    x = m.conv1(x)
    return m.conv2(m.act(x)) + m.conv3(x)


def _through_a_view(m: nn.Module, x: Tensor) -> Tensor:
    x = m.conv1(x)
    first, _ = x.chunk(2, 1)
    first.relu_()
    return m.conv2(x) + m.conv3(x)


def _through_a_reshape(m: nn.Module, x: Tensor) -> Tensor:
    x = m.conv1(x)
    x.flatten(2).mul_(0.5)
    return m.conv2(x) + m.conv3(x)


def _before_the_addition(m: nn.Module, x: Tensor) -> Tensor:
    x = m.conv1(x)
    y = x
    x += torch.sigmoid(x)
    return m.conv2(F.relu(x)) + m.conv3(y)


for _name, _body in {
    "relu, then read": _relu_then_read,
    "add_, then read": _add_then_read,
    "module, then read": _module_then_read,
    "+=, then the old name": _before_the_addition,
    "through a view": _through_a_view,
    "through a reshape": _through_a_reshape,
}.items():
    # What is written under one name and read under another is more than the traced graph says.
    _where = (
        REFUSED if _body in (_before_the_addition, _through_a_view, _through_a_reshape) else CASES
    )
    _where[f"in place: {_name}"] = Case(
        lambda body=_body: Net(
            body, conv1=conv(3, 6), conv2=conv(6, 4), conv3=conv(6, 4, 1), act=nn.ReLU(inplace=True)
        ),
        ANY, DEAD,
    )  # fmt: skip

# Tokens and attention


class Mlp(nn.Module):
    """The feed-forward half of a transformer block."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.fc1, self.fc2 = nn.LayerNorm(6), nn.Linear(6, 8), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(F.gelu(self.fc1(self.norm(x))))


class Mixer(nn.Module):
    """MLP-Mixer: a layer over channels, a layer over tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp, self.t1, self.t2, self.head = (
            Mlp(),
            nn.Linear(5, 7),
            nn.Linear(7, 5),
            nn.Linear(6, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.mlp(x)
        x = x + self.t2(F.relu(self.t1(x.transpose(1, 2)))).transpose(1, 2)
        return self.head(x.mean(1))


class SelfAttention(nn.Module):
    """torch's own module, as in torchvision's ViT."""

    def __init__(self, need_weights: bool = True) -> None:
        super().__init__()
        self.norm, self.mlp, self.need_weights = nn.LayerNorm(6), Mlp(), need_weights
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)

    def forward(self, x: Tensor) -> object:
        y = self.norm(x)
        y, weights = self.attention(y, y, y, need_weights=self.need_weights)
        x = self.mlp(x + y)
        return (x, weights) if self.need_weights else x


class PackedAttention(nn.Module):
    """Written by hand, with one layer for q, k and v, as in timm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.proj, self.mlp = (
            nn.LayerNorm(6),
            nn.Linear(6, 18),
            nn.Linear(6, 6),
            Mlp(),
        )

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(self.norm(x)).reshape(batch, length, 3, 2, width // 2).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        weights = ((q * 3**-0.5) @ k.transpose(-2, -1)).softmax(dim=-1)
        y = (weights @ v).transpose(1, 2).reshape(batch, length, width)
        return self.mlp(x + self.proj(y))


class SeparateAttention(nn.Module):
    """Written by hand, three layers and torch's scaled dot product."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.proj = (
            nn.Linear(6, 6),
            nn.Linear(6, 6),
            nn.Linear(6, 6),
            nn.Linear(6, 6),
        )
        self.mlp = Mlp()

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.size()
        q, k, v = (f(x).view(batch, length, 2, 3).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v)
        return self.mlp(x + self.proj(y.transpose(1, 2).contiguous().view(batch, length, 6)))


class SmallVit(nn.Module):
    """Patches, a class token, positions, one block, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.block = nn.Conv2d(3, 6, 4, 4), SelfAttention(need_weights=False)
        self.norm, self.head = nn.LayerNorm(6), nn.Linear(6, 3)
        self.token, self.positions = (
            nn.Parameter(torch.zeros(1, 1, 6)),
            nn.Parameter(torch.zeros(1, 5, 6)),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.positions
        return self.head(self.norm(self.block(x))[:, 0])


class ConvNextBlock(nn.Module):
    """LayerNorm and Linear layers on channels-last tensors, layer scale, residual."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depthwise, self.norm = conv(3, 6), conv(6, 6, 5, groups=6), nn.LayerNorm(6)
        self.fc1, self.fc2, self.out = nn.Linear(6, 8), nn.Linear(8, 6), conv(6, 4)
        self.scale = nn.Parameter(torch.ones(6, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.fc2(F.gelu(self.fc1(y))).permute(0, 3, 1, 2)
        return self.out(x + self.scale * y)


class Windows(nn.Module):
    """Swin: windows of 2x2 rolled, an MLP inside each, and back."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mlp, self.out = conv(3, 6), Mlp(), conv(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.roll(self.stem(x).permute(0, 2, 3, 1), (-1, -1), (1, 2))
        batch, height, width, channels = x.shape
        x = (
            x.view(batch, height // 2, 2, width // 2, 2, channels)
            .permute(0, 1, 3, 2, 4, 5)
            .reshape(-1, 4, channels)
        )
        x = (
            self.mlp(x)
            .view(batch, height // 2, width // 2, 2, 2, channels)
            .permute(0, 1, 3, 2, 4, 5)
        )
        return self.out(x.reshape(batch, height, width, channels).permute(0, 3, 1, 2))


class Recurrent(nn.Module):
    """An LSTM: there is no rule for it, so everything reaches it at full width."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.lstm, self.fc2 = (
            nn.Linear(6, 5),
            nn.LSTM(5, 4, batch_first=True),
            nn.Linear(4, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        x, (hidden, _) = self.lstm(F.relu(self.fc1(x)))
        return self.fc2(x) + self.fc2(hidden[0]).unsqueeze(1)


_HIDDEN = {"mlp.fc1": (0, 2, 7)}
_LEAN_HIDDEN = {"mlp.fc1": (5, 6), "mlp.fc2": (6, 5)}
CASES["tokens: MLP"] = Case(
    lambda: nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 4), nn.Sigmoid(), nn.Linear(4, 3)), TOKENS,
    {"0": (0, 2, 7), "2": (1,)}, {"0": (5, 6), "2": (3, 5), "4": (3, 3)},
)  # fmt: skip
CASES["tokens: mixer"] = Case(
    Mixer,
    ((2, 5, 6), (3, 5, 6)),
    {**_HIDDEN, "t1": (0, 5)},
    {**_LEAN_HIDDEN, "t1": (5, 5), "t2": (5, 5)},
)
CASES["tokens: a norm in the middle"] = Case(
    lambda: nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 3)), TOKENS,
    {"0": (0, 2, 7)}, {"0": (5, 6)},
)  # fmt: skip
CASES["tokens: RMSNorm in the middle"] = Case(
    lambda: nn.Sequential(nn.Linear(6, 8), nn.RMSNorm(8), nn.GELU(), nn.Linear(8, 3)), TOKENS,
    {"0": (0, 2, 7)}, {"0": (5, 6)},
)  # fmt: skip
CASES["tokens: F.layer_norm"] = Case(
    lambda: Net(lambda m, x: m.fc2(F.layer_norm(m.fc1(x), (8,))), fc1=nn.Linear(6, 8), fc2=nn.Linear(8, 3)), TOKENS,
    {"fc1": (0, 2, 7)}, {"fc1": (5, 6)},
)  # fmt: skip
CASES["tokens: gated"] = Case(
    lambda: Net(
        lambda m, x: m.down(F.silu(m.gate(x)) * m.up(x)), gate=nn.Linear(6, 8), up=nn.Linear(6, 8), down=nn.Linear(8, 6)
    ),
    TOKENS, {"gate": (0, 1), "up": (1, 2)},
    {"gate": (5, 6), "up": (5, 6), "down": (6, 5)}, {"gate": (6, 6), "up": (6, 6)},
)  # fmt: skip
CASES["tokens: 1-d BatchNorm"] = Case(
    lambda: Net(
        lambda m, x: m.fc2(F.relu(m.bn(m.fc1(x).transpose(1, 2)).transpose(1, 2))),
        fc1=nn.Linear(6, 8), bn=nn.BatchNorm1d(8), fc2=nn.Linear(8, 3),
    ),
    TOKENS, {"fc1": (0, 2, 7)}, {"fc1": (5, 6), "bn": (5,), "fc2": (3, 5)},
)  # fmt: skip
CASES["attention: module"] = Case(
    lambda: SelfAttention(need_weights=False), TOKENS, _HIDDEN, _LEAN_HIDDEN
)
CASES["attention: module, weights returned"] = Case(SelfAttention, TOKENS, _HIDDEN, _LEAN_HIDDEN)
CASES["attention: packed q, k, v"] = Case(PackedAttention, TOKENS, _HIDDEN, _LEAN_HIDDEN)
CASES["attention: separate q, k, v"] = Case(SeparateAttention, TOKENS, _HIDDEN, _LEAN_HIDDEN)
CASES["attention: encoder layer"] = Case(
    lambda: nn.Sequential(nn.TransformerEncoderLayer(6, 2, 8, batch_first=True), nn.Linear(6, 3)),
    TOKENS,
)
CASES["attention: small ViT"] = Case(
    SmallVit, FIXED, {"block.mlp.fc1": (0, 2, 7), "patches": (1,)},
    {"block.mlp.fc1": (5, 6), "block.mlp.fc2": (6, 5), "patches": (5, 3)},
)  # fmt: skip
CASES["attention: windows"] = Case(
    Windows, EVEN, {**_HIDDEN, "stem": (0,)}, {**_LEAN_HIDDEN, "stem": (5, 3)}
)
CASES["tokens: ConvNeXt block"] = Case(
    ConvNextBlock, ANY, {"stem": (0,), "depthwise": (1,), "fc1": (0, 2, 7), "fc2": (0, 3)},
    {"stem": (5, 3), "fc1": (5, 6), "fc2": (4, 5), "out": (4, 5)},
)  # fmt: skip
CASES["tokens: LSTM"] = Case(Recurrent, TOKENS, {"fc1": (0, 2)}, {"fc1": (3, 6)})
CASES["embedding: dead dimensions"] = Case(
    lambda: nn.Sequential(nn.Embedding(10, 6), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)),
    ((2, 5), (3, 7)), {"0": (1, 4), "1": (0,)}, {"0": (10, 4), "1": (7, 4), "3": (3, 7)}, vocabulary=10,
)  # fmt: skip
CASES["embedding: padding index"] = Case(
    lambda: nn.Sequential(nn.Embedding(10, 6, padding_idx=3), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)),
    ((2, 5), (3, 7)), {"1": (0, 5)}, {"1": (6, 6), "3": (3, 6)}, vocabulary=10,
)  # fmt: skip
CASES["embedding: with positions"] = Case(
    lambda: Net(
        lambda m, ids: m.fc2(F.relu(m.fc1(m.embed(ids) + m.positions[: ids.size(1)]))),
        embed=nn.Embedding(10, 6), positions=nn.Parameter(torch.zeros(9, 6)), fc1=nn.Linear(6, 8), fc2=nn.Linear(8, 3),
    ),
    ((2, 5), (3, 7)), {"fc1": (0, 1)}, {"fc1": (6, 6), "fc2": (3, 6)}, vocabulary=10,
)  # fmt: skip
CASES["embedding: averaged"] = Case(
    lambda: nn.Sequential(nn.EmbeddingBag(10, 6), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)),
    ((2, 5), (3, 7)), {"1": (0, 5)}, {"1": (6, 6), "3": (3, 6)}, vocabulary=10,
)  # fmt: skip

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
