"""Random networks: directed acyclic graphs of the operations that real architectures are made of.

A network is drawn as a list of steps; each reads earlier tensors by number and makes one more.
Steps are plain data, so that a failing network prints and shrinks::

    print(draw)      # 0: image 3 channels / 1: conv(0) to 5, kernel 3, padding 1 / 2: batchnorm(1) / ...

Who draws is abstract: ``choose(low, high)`` returns an integer, so that hypothesis, or a seed,
    decides.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snello.neurons import is_batchnorm, neuron_count, rows, weighted_layers

Choose = Callable[[int, int], int]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "sigmoid": torch.sigmoid,
    "hardswish": F.hardswish,
    "gelu": F.gelu,
    "leaky_relu": F.leaky_relu,
    "tanh": torch.tanh,
    "relu6": F.relu6,
    "silu": F.silu,
    "softplus": F.softplus,
    "elu": F.elu,
}


@dataclass(frozen=True)
class Step:
    """One operation.

    Attributes:
        kind: a key of ``OPERATIONS``.
        reads: numbers of the tensors that it reads.
        channels: how many channels it makes.
        scale: how often the image's resolution has been halved; negative where it has been doubled.
        options: what the operation needs to know.
    """

    kind: str
    reads: tuple[int, ...]
    channels: int
    scale: int
    options: tuple[tuple[str, object], ...] = ()

    def __str__(self) -> str:
        options = "".join(f", {key} {value}" for key, value in self.options)
        return f"{self.kind}({', '.join(map(str, self.reads))}) to {self.channels}{options}"


@dataclass(frozen=True)
class Draw:
    """A drawn network and how its neurons die.

    Attributes:
        steps: the operations; number 0 is the image.
        outputs: numbers of the tensors that are returned.
        head: how the last tensor is read: ``"none"``, ``"pool"`` or ``"flatten"``.
        seed: for weights, statistics and masks.
        dead: percent of the neurons of each layer.
        unread: percent of the columns of each layer.
        zero: percent of the layers with a zero bias; percent of dead BatchNorm channels with a zero
            affine.
    """

    steps: tuple[Step, ...]
    outputs: tuple[int, ...]
    head: str
    seed: int
    dead: int
    unread: int
    zero: int

    def __str__(self) -> str:
        lines = [f"{number}: {step}" for number, step in enumerate(self.steps)]
        masks = f"seed {self.seed}, dead {self.dead} %, unread {self.unread} %, zero {self.zero} %"
        return "\n".join([*lines, f"outputs {self.outputs}, head {self.head}, {masks}"])

    def _repr_pretty_(self, printer: Any, _cycle: bool) -> None:
        """Form in which hypothesis prints a falsifying example."""
        printer.text(f"\n{self}\n")

    def shapes(self) -> list[tuple[int, ...]]:
        """Input shapes: the example, then another batch size, and other resolutions if there is a
        choice.
        """
        fixed = self.head == "flatten" or any(step.kind == "positions" for step in self.steps)
        return (
            [(2, 3, 8, 8), (3, 3, 8, 8)] if fixed else [(2, 3, 8, 8), (3, 3, 16, 8), (1, 3, 24, 32)]
        )


Drawer = Callable[[Choose, list[Step]], Step | None]


def _pick(choose: Choose, steps: list[Step]) -> int:
    """An earlier tensor, a late one rather than an early one."""
    last = len(steps) - 1
    return last if choose(0, 2) else choose(0, last)


def _options(**options: object) -> tuple[tuple[str, object], ...]:
    return tuple(options.items())


def _conv(choose: Choose, steps: list[Step]) -> Step:
    x = _pick(choose, steps)
    inputs, kernel = steps[x].channels, choose(0, 1) * 2 + 1
    shrinks = choose(0, 5) == 0 and steps[x].scale < 2
    kind, outputs = choose(0, 5), choose(1, 12)
    groups = 1
    if kind == 0:
        groups = inputs
        outputs = inputs * choose(1, 2)
    elif kind == 1 and inputs % 2 == 0:
        groups = 2
        outputs += outputs % 2
    options = _options(
        kernel=kernel,
        padding=kernel // 2,
        stride=2 if shrinks else 1,
        groups=groups,
        bias=bool(choose(0, 2)),
    )
    return Step("conv", (x,), outputs, steps[x].scale + shrinks, options)


def _unpadded(choose: Choose, steps: list[Step]) -> Step:
    """A convolution without padding; its result is resized, so that tensors still fit together."""
    x = _pick(choose, steps)
    mode = ("nearest", "bilinear")[choose(0, 1)]
    return Step(
        "valid conv",
        (x,),
        choose(1, 12),
        steps[x].scale,
        _options(mode=mode, bias=bool(choose(0, 1))),
    )


def _same(kind: str, **choices: tuple[object, ...]) -> Drawer:
    """An operation that keeps channels and resolution."""

    def draw(choose: Choose, steps: list[Step]) -> Step:
        x = _pick(choose, steps)
        options = {name: values[choose(0, len(values) - 1)] for name, values in choices.items()}
        return Step(kind, (x,), steps[x].channels, steps[x].scale, _options(**options))

    return draw


def _pool(choose: Choose, steps: list[Step]) -> Step | None:
    x = _pick(choose, steps)
    if steps[x].scale >= 2:
        return None
    kind = ("max", "average")[choose(0, 1)]
    options = _options(kind=kind, padding=choose(0, 1), counted=bool(choose(0, 1)))
    return Step("pool", (x,), steps[x].channels, steps[x].scale + 1, options)


def _grow(kind: str) -> Drawer:
    def draw(choose: Choose, steps: list[Step]) -> Step | None:
        x = _pick(choose, steps)
        if steps[x].scale <= -1:
            return None
        if kind == "upsample":
            options = _options(mode=("nearest", "bilinear")[choose(0, 1)])
            return Step(kind, (x,), steps[x].channels, steps[x].scale - 1, options)
        return Step(
            kind, (x,), choose(1, 8), steps[x].scale - 1, _options(kernel=2 + 2 * choose(0, 1))
        )

    return draw


def _join(kind: str) -> Drawer:
    """Two tensors of the same shape (a sum), or of the same resolution (a concatenation)."""

    def draw(choose: Choose, steps: list[Step]) -> Step | None:
        x = _pick(choose, steps)
        same = [
            number
            for number, step in enumerate(steps)
            if step.scale == steps[x].scale
            and (kind == "concat" or step.channels == steps[x].channels)
        ]
        y = same[choose(0, len(same) - 1)]
        channels = steps[x].channels + (steps[y].channels if kind == "concat" else 0)
        if channels > 24:
            return None
        options = _options(form=choose(0, 3)) if kind == "join" else ()
        return Step(kind, (x, y), channels, steps[x].scale, options)

    return draw


def _residual(choose: Choose, steps: list[Step]) -> Step:
    """A branch of two layers around an earlier tensor: a sum whose shapes always agree."""
    x = _pick(choose, steps)
    options = _options(width=choose(1, 8), norm=bool(choose(0, 1)), activation=_activation(choose))
    return Step("residual", (x,), steps[x].channels, steps[x].scale, options)


def _inverted(choose: Choose, steps: list[Step]) -> Step:
    """Pointwise, depthwise, pointwise, with few outputs: constants that zero padding makes depend
    on the position.

    In half of them squeeze-and-excitation weighs the channels in between.
    """
    x = _pick(choose, steps)
    shrinks = choose(0, 3) == 0 and steps[x].scale < 2
    options = _options(
        width=choose(8, 24), kernel=(3, 3, 5)[choose(0, 2)], stride=1 + shrinks, norm=bool(choose(0, 1)),
        activation=_activation(choose), excited=bool(choose(0, 1)),
    )  # fmt: skip
    return Step("inverted", (x,), choose(1, 4), steps[x].scale + shrinks, options)


def _activation(choose: Choose) -> str:
    return list(ACTIVATIONS)[choose(0, len(ACTIVATIONS) - 1)]


def _slice(choose: Choose, steps: list[Step]) -> Step | None:
    x = _pick(choose, steps)
    channels = steps[x].channels
    kind = choose(0, 2)
    if kind == 0 and channels % 2 == 0:
        return Step("chunk", (x,), channels // 2, steps[x].scale, _options(part=choose(0, 1)))
    if channels < 2:
        return None
    start = choose(0, channels - 1)
    length = choose(1, channels - start)
    return Step(
        ("narrow", "getitem")[kind % 2],
        (x,),
        length,
        steps[x].scale,
        _options(start=start, length=length),
    )


def _shuffle(choose: Choose, steps: list[Step]) -> Step | None:
    x = _pick(choose, steps)
    groups = [g for g in (2, 3, 4) if steps[x].channels % g == 0]
    if not groups:
        return None
    return Step(
        "shuffle",
        (x,),
        steps[x].channels,
        steps[x].scale,
        _options(groups=groups[choose(0, len(groups) - 1)]),
    )


DRAWERS: list[Drawer] = [
    _conv, _conv, _conv, _conv,
    _same("batchnorm"), _same("batchnorm"),
    _same("activation", name=tuple(ACTIVATIONS), module=(False, True)),
    _same("activation", name=tuple(ACTIVATIONS), module=(False, True)),
    _pool, _join("join"), _join("join"), _join("concat"), _residual, _slice, _shuffle, _unpadded,
    _same("gate", width=(1, 2, 4), name=("sigmoid", "hardsigmoid")),
    _same("spatial gate"),
    _same("tokens", norm=(False, True), width=(2, 5)),
    _same("scale", form=(0, 1, 2)),
    _same("groupnorm"),
    _same("dropout"),
    _same("pad and crop", value=(0.0, 0.5)),
    _grow("upsample"), _grow("transposed"), _inverted,
]  # fmt: skip


def draw_network(choose: Choose) -> Draw:
    """Draw a network of 4 to 14 operations."""
    steps = [Step("image", (), 3, 0)]
    for _ in range(choose(4, 14)):
        step = DRAWERS[choose(0, len(DRAWERS) - 1)](choose, steps)
        if step is not None:
            steps.append(step)
    last = len(steps) - 1
    outputs = (last,) if choose(0, 3) else tuple(sorted({last, choose(0, last)}))
    head = ("none", "pool", "flatten")[choose(0, 2)]
    return Draw(
        tuple(steps), outputs, head, seed=choose(0, 999), dead=10 * choose(0, 10), unread=10 * choose(0, 4),
        zero=50 * choose(0, 2),
    )  # fmt: skip


def seeded(seed: int) -> Draw:
    """The network that a seed draws."""
    return draw_network(random.Random(seed).randint)


class RandomNet(nn.Module):
    """The network of a draw. Tensors that nobody reads are computed all the same, as in users'
    models.
    """

    def __init__(self, draw: Draw) -> None:
        super().__init__()
        self.draw = draw
        for number, step in enumerate(draw.steps):
            for name, layer in _layers(step, [draw.steps[r] for r in step.reads]).items():
                setattr(self, f"{name}{number}", layer)
        last = draw.steps[-1]
        if draw.head == "pool":
            self.head = nn.Linear(last.channels, 4)
        elif draw.head == "flatten":
            side = 8 * 2**-last.scale if last.scale <= 0 else 8 // 2**last.scale
            self.head = nn.Linear(last.channels * side * side, 4)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        tensors = [x]
        for number, step in enumerate(self.draw.steps[1:], 1):
            tensors.append(_run(self, number, step, [tensors[r] for r in step.reads]))
        results = [
            self._headed(tensors[i]) if i == len(tensors) - 1 else tensors[i]
            for i in self.draw.outputs
        ]
        return results[0] if len(results) == 1 else tuple(results)

    def _headed(self, x: Tensor) -> Tensor:
        if self.draw.head == "pool":
            return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return self.head(torch.flatten(x, 1)) if self.draw.head == "flatten" else x


def _layers(step: Step, reads: list[Step]) -> dict[str, nn.Module | nn.Parameter]:
    o = dict(step.options)
    inputs, outputs = reads[0].channels if reads else 0, step.channels
    match step.kind:
        case "conv":
            return {
                "conv": nn.Conv2d(
                    inputs,
                    outputs,
                    o["kernel"],
                    o["stride"],
                    o["padding"],
                    groups=o["groups"],
                    bias=o["bias"],
                )
            }
        case "valid conv":
            return {"conv": nn.Conv2d(inputs, outputs, 2, bias=o["bias"])}
        case "batchnorm":
            return {"norm": nn.BatchNorm2d(outputs)}
        case "activation" if o["module"] and o["name"] == "relu":
            return {"activation": nn.ReLU(inplace=False)}
        case "groupnorm":
            return {"norm": nn.GroupNorm(2 if outputs % 2 == 0 else 1, outputs)}
        case "residual":
            first, second = (
                nn.Conv2d(inputs, o["width"], 1),
                nn.Conv2d(o["width"], inputs, 3, padding=1, bias=False),
            )
            norm = nn.BatchNorm2d(inputs) if o["norm"] else nn.Identity()
            return {"first": first, "second": second, "norm": norm}
        case "inverted":
            width, kernel = o["width"], o["kernel"]
            depthwise = nn.Conv2d(width, width, kernel, o["stride"], kernel // 2, groups=width)
            norm = nn.BatchNorm2d(width) if o["norm"] else nn.Identity()
            narrow = nn.Conv2d(width, outputs, 1)
            parts = {
                "wide": nn.Conv2d(inputs, width, 1),
                "depthwise": depthwise,
                "norm": norm,
                "narrow": narrow,
            }
            if not o["excited"]:
                return parts
            return parts | {
                "activation": nn.Hardswish(),
                "average": nn.AdaptiveAvgPool2d(1), "squeeze": nn.Conv2d(width, 3, 1), "excite": nn.Conv2d(3, width, 1)
            }  # fmt: skip
        case "gate":
            return {
                "squeeze": nn.Conv2d(inputs, o["width"], 1),
                "excite": nn.Conv2d(o["width"], inputs, 1),
            }
        case "spatial gate":
            return {"map": nn.Conv2d(inputs, 1, 3, padding=1)}
        case "tokens":
            norm = nn.LayerNorm(inputs) if o["norm"] else nn.Identity()
            return {
                "norm": norm,
                "fc1_": nn.Linear(inputs, o["width"]),
                "fc2_": nn.Linear(o["width"], inputs),
            }
        case "scale":
            return {"scale": nn.Parameter(torch.ones(inputs, 1, 1))}
        case "dropout":
            return {"dropout": nn.Dropout(0.3)}
        case "transposed":
            kernel = o["kernel"]
            return {"up": nn.ConvTranspose2d(inputs, outputs, kernel, 2, padding=(kernel - 2) // 2)}
    return {}


def _run(m: RandomNet, number: int, step: Step, reads: list[Tensor]) -> Tensor:
    o = dict(step.options)
    x = reads[0]

    def layer(name: str) -> nn.Module:
        return getattr(m, f"{name}{number}")

    match step.kind:
        case "conv":
            return layer("conv")(x)
        case "valid conv":
            return F.interpolate(
                layer("conv")(F.interpolate(x, scale_factor=2.0)), size=x.shape[2:], mode=o["mode"]
            )
        case "batchnorm" | "groupnorm":
            return layer("norm")(x)
        case "activation":
            return (
                layer("activation")(x)
                if hasattr(m, f"activation{number}")
                else ACTIVATIONS[o["name"]](x)
            )
        case "pool" if o["kind"] == "max":
            return F.max_pool2d(x, 2 + o["padding"], 2, o["padding"])
        case "pool":
            return F.avg_pool2d(
                x, 2 + o["padding"], 2, o["padding"], count_include_pad=o["counted"]
            )
        case "upsample":
            return F.interpolate(x, scale_factor=2.0, mode=o["mode"])
        case "transposed":
            return layer("up")(x)
        case "join":
            return _joined(o["form"], *reads)
        case "concat":
            return torch.cat(reads, dim=1)
        case "residual":
            return x + layer("norm")(
                layer("second")(ACTIVATIONS[o["activation"]](layer("first")(x)))
            )
        case "inverted":
            wide = ACTIVATIONS[o["activation"]](layer("wide")(x))
            x = layer("norm")(layer("depthwise")(wide))
            # A function of its own, or a module.
            x = layer("activation")(x) if o["excited"] else ACTIVATIONS[o["activation"]](x)
            if o["excited"]:
                x = x * torch.sigmoid(
                    layer("excite")(F.relu(layer("squeeze")(layer("average")(x))))
                )
            return layer("narrow")(x)
        case "chunk":
            return x.chunk(2, dim=1)[o["part"]]
        case "narrow":
            return x.narrow(1, o["start"], o["length"])
        case "getitem":
            return x[:, o["start"] : o["start"] + o["length"]]
        case "shuffle":
            batch, channels, height, width = x.size()
            split = x.view(batch, o["groups"], channels // o["groups"], height, width)
            return split.transpose(1, 2).reshape(batch, channels, height, width)
        case "gate":
            gate = torch.sigmoid if o["name"] == "sigmoid" else F.hardsigmoid
            return x * gate(layer("excite")(F.relu(layer("squeeze")(x.mean((2, 3), keepdim=True)))))
        case "spatial gate":
            return torch.sigmoid(layer("map")(x)) * x
        case "tokens":
            tokens = layer("norm")(x.flatten(2).transpose(1, 2))
            return x + layer("fc2_")(F.gelu(layer("fc1_")(tokens))).transpose(1, 2).reshape(x.shape)
        case "scale":
            return _scaled(o["form"], x, getattr(m, f"scale{number}"))
        case "dropout":
            return layer("dropout")(x)
        case "pad and crop":
            return F.pad(x, (1, 1, 1, 1), value=o["value"])[:, :, 2:, 2:]
    raise AssertionError(step.kind)


def _joined(form: int, a: Tensor, b: Tensor) -> Tensor:
    return (torch.add, torch.mul, torch.sub, torch.maximum)[form](a, b)


def _scaled(form: int, x: Tensor, scale: Tensor) -> Tensor:
    return x * scale if form == 0 else x + scale if form == 1 else 1 - 0.5 * x


@torch.no_grad()
def network(draw: Draw) -> nn.Module:
    """The drawn network in float64 and evaluation mode, with random statistics and dead neurons."""
    with torch.random.fork_rng():
        torch.manual_seed(draw.seed)
        model = RandomNet(draw).double().eval()
        for module in model.modules():
            _randomise(module)
        for layer in weighted_layers(model).values():
            _kill(layer, draw)
        for module in model.modules():
            if is_batchnorm(module) and 100 * torch.rand(()) < draw.zero:
                dead = 100 * torch.rand(module.num_features) < draw.dead
                module.weight.masked_fill_(dead, 0)
                module.bias.masked_fill_(dead, 0)
        for name, parameter in model.named_parameters():
            if name.startswith("scale"):
                parameter.masked_fill_(100 * torch.rand(parameter.shape) < draw.unread, 0)
    return model


def _randomise(module: nn.Module) -> None:
    if is_batchnorm(module):
        module.running_mean.uniform_(-1, 1)
        module.running_var.uniform_(0.3, 2)
    if isinstance(module, (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)):
        module.weight.uniform_(-1.5, 1.5)
    if isinstance(getattr(module, "bias", None), Tensor):
        module.bias.uniform_(-1, 1)
    for parameter in module.parameters(recurse=False):
        if parameter.dim() == 3:
            parameter.uniform_(-1.5, 1.5)


def _kill(layer: nn.Module, draw: Draw) -> None:
    dead = 100 * torch.rand(neuron_count(layer)) < draw.dead
    mask = dead[:, None].expand_as(rows(layer, layer.weight))
    if isinstance(layer, nn.ConvTranspose2d):
        layer.weight[:, dead] = 0
    else:
        layer.weight.view(len(dead), -1)[mask] = 0
    layer.weight[:, 100 * torch.rand(layer.weight.shape[1]) < draw.unread] = 0
    if layer.bias is not None and 100 * torch.rand(()) < draw.zero:
        layer.bias.masked_fill_(dead, 0)
