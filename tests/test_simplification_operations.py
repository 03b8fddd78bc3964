"""Operations that split, repeat or move channels, and layers without a module: the same outputs,
nothing dead left.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from laws import assert_same_outputs, generator, randomise
from snello.deploy import footprint
from snello.simplification import plan_of, simplify


class Between(nn.Module):
    """A convolution whose neurons die, an operation, and a convolution that reads its result.

    Args:
        operation: of a tensor of 8 channels.
        channels: of its result.
    """

    def __init__(self, operation: Callable[[Tensor], Tensor], channels: int) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(channels, 5, 1)
        self.operation = operation

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.operation(self.first(x)))


OPERATIONS: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "stack": (lambda x: torch.stack([x, x.relu()], 1).sum(1), 8),
    "stack behind the channels": (lambda x: torch.stack((x, x * x), dim=-1).mean(-1), 8),
    "repeat": (lambda x: x.repeat(1, 3, 1, 2), 24),
    "tile": (lambda x: torch.tile(x, (2, 1, 1)), 16),
    "repeat_interleave": (lambda x: x.repeat_interleave(3, dim=1), 24),
    "repeat_interleave of positions": (lambda x: torch.repeat_interleave(x, 2, dim=2), 8),
    "pixel unshuffle": (lambda x: F.pixel_unshuffle(x, 2), 32),
    "cast": (lambda x: x.to(torch.float64).type_as(x), 8),
}  # fmt: skip


def dead(*layers: nn.Module, neurons: object) -> None:
    """Set some neurons of layers to zero."""
    with torch.no_grad():
        for layer in layers:
            layer.weight[neurons] = layer.bias[neurons] = 0


@pytest.mark.parametrize("name", OPERATIONS)
def test_dead_channels_go_through_an_operation(name: str) -> None:
    operation, channels = OPERATIONS[name]
    model = randomise(Between(operation, channels).double().eval(), generator(1))
    dead(model.first, neurons=[1, 4, 5])
    x = torch.randn(2, 3, 10, 10, dtype=torch.float64, generator=generator(2))
    lean = simplify(model, x)
    assert_same_outputs(model, lean, x, tolerance=1e-9)
    assert lean.first.weight.shape[0] == 5
    assert lean.last.weight.shape[1] == channels * 5 // 8


@pytest.mark.parametrize("module", [nn.PixelShuffle(2), lambda x: F.pixel_shuffle(x, 2)])
def test_groups_of_dead_channels_go_through_a_pixel_shuffle(
    module: Callable[[Tensor], Tensor],
) -> None:
    model = randomise(Between(module, 2).double().eval(), generator(1))
    dead(model.first, neurons=slice(0, 4))
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64, generator=generator(2))
    lean = simplify(model, x)
    assert_same_outputs(model, lean, x, tolerance=1e-9)
    assert (len(lean.first.weight), lean.last.weight.shape[1]) == (4, 1)


class Functional(nn.Module):
    """Layers whose weights the module holds itself."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.kernel, self.weight = (
            nn.Parameter(torch.randn(8, 3, 3, 3)),
            nn.Parameter(torch.randn(6, 8)),
        )
        self.shift = nn.Parameter(torch.randn(8)) if bias else None
        self.bias = nn.Parameter(torch.randn(6)) if bias else None
        self.last = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv2d(x, self.kernel, self.shift, stride=2, padding=1).sigmoid().mean((2, 3))
        return self.last(F.linear(y, self.weight, self.bias).relu())


@pytest.mark.parametrize("bias", [True, False])
def test_layers_without_a_module_are_narrowed(bias: bool) -> None:
    model = Functional(bias).double().eval()
    with torch.no_grad():
        model.kernel[:3], model.weight[4:] = 0, 0
        if bias:
            model.shift[:2], model.bias[4] = 0, -1
    x = torch.randn(2, 3, 9, 9, dtype=torch.float64, generator=generator(2))
    lean = simplify(model, x)
    assert_same_outputs(model, lean, x, tolerance=1e-9)
    assert lean.kernel.shape == (5, 3, 3, 3)
    # Without a bias the constants have no place, and are read.
    assert lean.weight.shape == (4, 5 if bias else 8)
    assert lean.last.weight.shape == (4, 4)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("norm_first", [False, True])
def test_an_encoder_of_torch_keeps_its_class(masked: bool, norm_first: bool) -> None:
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, norm_first=norm_first)
    model = randomise(
        nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).double().eval(), generator(1)
    )
    for block in model.layers:
        dead(block.linear1, neurons=slice(0, 20))
        with torch.no_grad():
            for part in (0, 16, 32):
                block.self_attn.in_proj_weight[part : part + 8] = 0
                block.self_attn.in_proj_bias[part : part + 8] = 0
    x = torch.randn(2, 6, 16, dtype=torch.float64, generator=generator(2))
    mask = nn.Transformer.generate_square_subsequent_mask(6).double()
    padding = torch.zeros(2, 6, dtype=torch.float64)
    padding[1, 4:] = float("-inf")
    inputs = {"src": x, "mask": mask, "src_key_padding_mask": padding} if masked else {"src": x}
    lean = simplify(model, inputs)
    assert type(lean) is nn.TransformerEncoder
    for block in lean.layers:
        assert block.linear1.weight.shape == (12, 16)
        assert block.self_attn.in_proj_weight.shape == (24, 16)
    with torch.no_grad():
        torch.testing.assert_close(lean(**inputs), model(**inputs), rtol=0, atol=1e-9)


class DropPath(nn.Module):
    """A copy of timm's stochastic depth."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return 2 * x * (torch.rand(len(x), 1, 1, 1, dtype=x.dtype) < 0.5)


def test_stochastic_depth_stays_alive_in_training() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.conv, self.drop = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), DropPath()
            self.last = nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return self.last(x + self.drop(self.conv(x)))

    model = randomise(Residual().double(), generator(1)).train()
    dead(model.stem, neurons=[0, 1])
    dead(model.conv, neurons=[1, 2])
    x = torch.randn(64, 3, 2, 2, dtype=torch.float64, generator=generator(2))
    lean = simplify(model, x)
    assert plan_of(lean).domain.training != "differs"
    torch.manual_seed(0)
    expected = model(x)
    torch.manual_seed(0)
    torch.testing.assert_close(lean(x), expected, rtol=0, atol=1e-9)


class Heads(nn.Module):
    """Attention as it is written by hand.

    Args:
        by_batch: whether heads are merged with the batch, for ``torch.bmm``.
    """

    def __init__(self, *, by_batch: bool) -> None:
        super().__init__()
        self.num_heads, self.width, self.by_batch = 4, 8, by_batch
        self.q, self.k, self.v, self.out = (nn.Linear(32, 32) for _ in range(4))

    def heads(self, x: Tensor) -> Tensor:
        x = x.view(x.shape[0], x.shape[1], self.num_heads, self.width).transpose(1, 2)
        return x.reshape(x.shape[0] * self.num_heads, -1, self.width) if self.by_batch else x

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self.heads(layer(x)) for layer in (self.q, self.k, self.v))
        product = torch.bmm if self.by_batch else torch.matmul
        weights = torch.softmax(product(q, k.transpose(-2, -1)) / 8**0.5, -1)
        y = product(weights, v).view(x.shape[0], self.num_heads, x.shape[1], self.width)
        return self.out(y.transpose(1, 2).reshape(*x.shape[:2], self.num_heads * self.width))


@pytest.mark.parametrize(("by_batch", "keep_class"), [(False, True), (True, False), (True, True)])
@pytest.mark.parametrize("gone", [2, 4])
def test_dead_heads_go_from_a_class_of_ones_own(
    gone: int, by_batch: bool, keep_class: bool
) -> None:
    model = nn.Sequential(nn.Linear(5, 32), Heads(by_batch=by_batch), nn.Linear(32, 3))
    model = randomise(model.double().eval(), generator(1))
    attention = model[1]
    dead(attention.q, attention.k, attention.v, neurons=slice(0, 8 * gone))
    x = torch.randn(2, 6, 5, dtype=torch.float64, generator=generator(2))
    lean = simplify(model, x, keep_class=keep_class)
    assert type(lean[1]) is Heads
    # Of all that is dead, one dimension of one head stays for the shape.
    heads, width = (4 - gone, 8) if gone < 4 else (1, 1)
    assert lean[1].num_heads == heads
    assert all(len(getattr(lean[1], name).weight) == heads * width for name in "qkv")
    for y in (x, torch.randn(3, 4, 5, dtype=torch.float64, generator=generator(3))):
        assert_same_outputs(model, lean, y, tolerance=1e-9)


def test_a_lean_graph_that_another_size_breaks_gives_way_to_the_own_class() -> None:
    """Two operands are of one shape on the example, and broadcast on smaller inputs."""

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.a(F.adaptive_avg_pool2d(x, 2)) + self.b(F.max_pool2d(x, 4)))

    model = randomise(Pooled().double().eval(), generator(1))
    dead(model.a, neurons=[0, 1, 2])
    dead(model.b, neurons=[2, 3, 4])
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=generator(2))
    lean = simplify(model, x)
    for side in (8, 6):
        y = torch.randn(2, 3, side, side, dtype=torch.float64, generator=generator(side))
        assert_same_outputs(model, lean, y, tolerance=1e-9)


class Unflattened(nn.Module):
    """Neurons as (groups, members) by ``unflatten``, with one of both written out, or both."""

    def __init__(self, written: tuple[int, ...], *, negative: bool = False) -> None:
        super().__init__()
        self.first, self.last = (
            nn.Conv2d(3, 8, 3),
            nn.Conv3d(written[0] if written[0] > 0 else 2, 4, 1),
        )
        self.written, self.axis = written, -3 if negative else 1

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).unflatten(self.axis, self.written))


@pytest.mark.parametrize("written", [(2, -1), (-1, 4), (2, 4)])
@pytest.mark.parametrize("negative", [False, True])
def test_whole_groups_of_an_unflattened_axis_go(written: tuple[int, ...], negative: bool) -> None:
    model = Unflattened(written, negative=negative).double().eval()
    dead(model.first, neurons=slice(0, 4))
    x = torch.randn(2, 3, 10, 10, dtype=torch.float64, generator=generator(2))
    lean = simplify(model, x)
    assert_same_outputs(model, lean, x, tolerance=1e-12)
    assert lean.first.weight.shape[0] == 4


def test_a_norm_of_dead_channels_that_are_unflattened() -> None:
    """The lean graph took groups apart by a number of groups that it no longer had."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8, affine=True), nn.Unflatten(1, (2, -1)), nn.Flatten(2)
    )  # fmt: skip
    model = randomise(model.double().eval(), generator(1))
    dead(model[0], neurons=slice(0, 5))
    x = torch.randn(2, 3, 10, 10, dtype=torch.float64, generator=generator(2))
    assert_same_outputs(model, simplify(model, x), x, tolerance=1e-12)


class Blurred(nn.Module):
    """A filter for each channel by ``F.conv2d``, with an attribute or a shape as number of groups."""

    def __init__(self, groups: str, *, buffer: bool, padding: int) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)
        self.channels, self.groups, self.padding = 8, groups, padding
        weight = torch.rand(8, 1, 3, 3, dtype=torch.float64, generator=generator(7))
        if buffer:
            self.register_buffer("weight", weight)
        else:
            self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        groups = self.channels if self.groups == "attribute" else x.shape[1]
        if self.groups == "position":
            x = F.conv2d(x, self.weight, None, 1, self.padding, 1, groups)
        else:
            x = F.conv2d(x, self.weight, padding=self.padding, groups=groups)
        return self.last(x)


@pytest.mark.parametrize("groups", ["attribute", "shape", "position"])
@pytest.mark.parametrize("buffer", [False, True])
@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("keep_class", [False, True])
def test_dead_channels_go_through_a_functional_depthwise_convolution(
    groups: str, buffer: bool, padding: int, keep_class: bool
) -> None:
    model = randomise(Blurred(groups, buffer=buffer, padding=padding).double().eval(), generator(1))
    dead(model.first, neurons=[1, 4, 5])
    x = torch.randn(2, 3, 10, 10, dtype=torch.float64, generator=generator(2))
    lean = simplify(model, x, keep_class=keep_class)
    for y in (x, torch.randn(3, 3, 7, 9, dtype=torch.float64, generator=generator(3))):
        assert_same_outputs(model, lean, y, tolerance=1e-12)
    assert lean.weight.shape == (5, 1, 3, 3)
    assert (lean.first.weight.shape[0], lean.last.weight.shape[1]) == (5, 5)


@pytest.mark.parametrize("keep_class", [False, True])
def test_a_functional_depthwise_convolution_of_which_nothing_goes(keep_class: bool) -> None:
    blurred = Blurred("attribute", buffer=False, padding=1)
    model = nn.Sequential(blurred, nn.Conv2d(4, 6, 1), nn.Conv2d(6, 2, 1)).double().eval()
    dead(model[1], neurons=[2])
    x = torch.randn(2, 3, 10, 10, dtype=torch.float64, generator=generator(2))
    lean = simplify(model, x, keep_class=keep_class)
    assert_same_outputs(model, lean, x, tolerance=1e-12)
    widths = [len(lean.get_parameter(name)) for name in ("0.weight", "1.weight")]
    assert widths == [8, 5]


class Square(nn.Conv2d):
    """A layer that a subclass only builds in another way."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, padding=1)


class Lifted(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias) + 1


class Filters(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, groups=self.groups)


@pytest.mark.parametrize("keep_class", [False, True])
def test_layers_of_subclasses_know_their_lean_widths(keep_class: bool) -> None:
    model = nn.Sequential(
        Square(3, 8), nn.ReLU(), Filters(8, 8, 3, groups=8), Filters(8, 6, 1), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), Lifted(6, 7), nn.Linear(7, 2),
    ).double().eval()  # fmt: skip
    for layer, neurons in ((model[0], [1, 4]), (model[3], [2]), (model[6], [0, 3, 5])):
        dead(layer, neurons=neurons)
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64, generator=generator(2))
    lean = simplify(model, x, keep_class=keep_class)
    assert_same_outputs(model, lean, x, tolerance=1e-12)
    first, filters, mix, lifted = (lean.get_submodule(name) for name in "0236")
    assert (first.out_channels, len(first.weight)) == (6, 6)
    assert (filters.in_channels, filters.out_channels, filters.groups) == (6, 6, 6)
    assert (mix.in_channels, mix.out_channels, lifted.in_features, lifted.out_features) == (
        6,
        5,
        5,
        4,
    )
    assert footprint(lean, x).dead_neurons == 0


class Channelwise(nn.Module):
    """Efficient channel attention: a convolution along the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)
        self.mix = nn.Conv1d(1, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y = self.mix(x.mean((2, 3)).view(x.shape[0], 1, -1)).sigmoid()
        return self.last(x * y.view(x.shape[0], -1, 1, 1).expand_as(x))


class Cross(nn.Module):
    """Attention whose keys are computed from another tensor than its queries."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.other, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1), nn.Linear(8, 4)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        q, k = (layer(x).flatten(2).transpose(1, 2) for layer in (self.first, self.other))
        return self.last(q + self.attention(q, k, k)[0])


class Grouped(nn.Module):
    """A functional convolution with several channels in a group."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)
        self.weight = nn.Parameter(torch.randn(8, 4, 3, 3, generator=generator(7)))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.conv2d(self.first(x), self.weight, groups=2))


@pytest.mark.parametrize(
    ("kind", "name", "reason"),
    [
        (Channelwise, "mix", "channels on another axis"),
        (Cross, "attention", "not self-attention"),
        (Grouped, "conv2d", "no rule"),
    ],
)
@pytest.mark.parametrize("keep_class", [False, True])
def test_what_has_no_rule_is_left_alone_and_exact(
    kind: type[nn.Module], name: str, reason: str, keep_class: bool
) -> None:
    model = randomise(kind().double().eval(), generator(1))
    dead(model.first, neurons=[1, 4, 6])
    x = torch.randn(2, 3, 10, 10, dtype=torch.float64, generator=generator(2))
    lean = simplify(model, x, keep_class=keep_class)
    assert_same_outputs(model, lean, x, tolerance=1e-12)
    assert reason in plan_of(lean).left_alone.get(name, reason if keep_class else "")
