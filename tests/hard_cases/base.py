"""Hard cases of simplification: one small network for each thing that a shrinking tool gets wrong.

Each case says which neurons are killed and how narrow the named layers must then be at most: the
*minimum removal* that is possible without changing an output. Layers that are not named may be
narrowed or left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
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
    """Number of neurons of each layer that a mask may kill; of an Embedding, of columns."""
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
