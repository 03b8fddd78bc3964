"""Rules of simplification that seeded faults showed no other quick test to watch: see
benchmarks/mutants.py.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hard_cases import Net, conv
from laws import assert_same_outputs, generator, randomise
from snello.simplification import simplify


def ready(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model in float64 and evaluation mode, its weights, biases and norms drawn from one
    seed.
    """
    model = randomise(model.double().eval(), generator(seed))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator(seed)))
                seed += 1
    return model


def image(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=generator(1))


def width(model: nn.Module, name: str) -> tuple[int, ...]:
    """Leading dimensions of a layer's weight."""
    return tuple(model.get_submodule(name).weight.shape[:2])


def test_norm_with_a_zero_scale_does_not_read_its_channel() -> None:
    model = ready(nn.Sequential(conv(3, 6), nn.BatchNorm2d(6), nn.ReLU(), conv(6, 4, 1)))
    with torch.no_grad():
        model[1].weight[[1, 4]] = 0
    lean = simplify(model, image(2, 3, 6, 5))
    assert (width(lean, "0"), width(lean, "3")) == ((4, 3), (4, 4))
    assert_same_outputs(model, lean, image(3, 3, 4, 7))


def test_layer_norm_reads_channels_that_nothing_reads_behind_it() -> None:
    model = ready(nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.Linear(6, 3)))
    with torch.no_grad():
        model[0].weight[0] = 0
        model[2].weight[:, [1, 2]] = 0
    lean = simplify(model, image(2, 4, 5))
    assert width(lean, "0") == (5, 5)
    assert_same_outputs(model, lean, image(3, 7, 5))


def test_zero_factor_makes_a_zero_product() -> None:
    model = ready(
        Net(
            lambda m, x: m.last(m.out(torch.relu(m.left(x)) * torch.sigmoid(m.right(x)))),
            left=conv(3, 6), right=conv(3, 6, 1), out=conv(6, 4, 1), last=conv(4, 2),
        )
    )  # fmt: skip
    with torch.no_grad():
        model.left.weight[[0, 2]], model.left.bias[[0, 2]] = 0, -1
        model.out.weight[1, [1, 3, 4, 5]] = 0  # what is left reads zeros
    lean = simplify(model, image(2, 3, 6, 5))
    assert [width(lean, name) for name in ("left", "right", "out")] == [(4, 3), (4, 3), (3, 4)]
    assert_same_outputs(model, lean, image(3, 3, 4, 7))


def test_sum_over_positions_counts_the_positions() -> None:
    model = ready(
        Net(
            lambda m, x: m.out(torch.sigmoid(m.conv(x)).sum((2, 3))),
            conv=conv(3, 6),
            out=nn.Linear(6, 4),
        )
    )
    with torch.no_grad():
        model.conv.weight[[0, 2]] = 0
    lean = simplify(model, image(2, 3, 6, 5))
    for shape in ((3, 3, 4, 7), (1, 3, 9, 2)):
        assert_same_outputs(model, lean, image(*shape))


@pytest.mark.parametrize("entry", [(0, 0, 0, 0), (0, 0, 1, 1)])
def test_neuron_that_has_a_border_kernel_left_is_no_constant(entry: tuple[int, ...]) -> None:
    model = ready(nn.Sequential(conv(3, 6), nn.Sigmoid(), conv(6, 4), nn.Sigmoid(), conv(4, 2)))
    with torch.no_grad():
        model[0].weight[[0, 2]] = 0
        lean = simplify(model, image(2, 3, 6, 5))
        layer = lean.get_submodule("2")
        layer.weight[0] = 0
        layer.border[entry] = 0
    leaner = simplify(lean, image(2, 3, 6, 5))
    for shape in ((3, 3, 4, 7), (1, 3, 2, 2)):
        assert_same_outputs(lean, leaner, image(*shape))


def test_tensor_of_which_only_the_shape_is_read_keeps_a_channel() -> None:
    model = ready(
        Net(
            lambda m, x: nn.functional.interpolate(m.other(x), size=m.dead(x).shape[2:]),
            dead=conv(3, 6, stride=2), other=conv(3, 4),
        )
    )  # fmt: skip
    with torch.no_grad():
        model.dead.weight.zero_()
        model.other.weight[1] = 0
    lean = simplify(model, image(2, 3, 6, 5))
    assert width(lean, "dead") == (1, 3)
    assert_same_outputs(model, lean, image(3, 3, 9, 7))


def test_table_leaves_out_what_rounding_up_keeps() -> None:
    model = ready(
        nn.Sequential(conv(3, 8, 1), nn.Sigmoid(), conv(8, 12), nn.ReLU6(), conv(12, 3, 1))
    )
    with torch.no_grad():
        model[0].weight[:4] = 0
        model[2].weight[:5, 4:] = 0  # these neurons read constants alone, and zero padding
    for round_to, kept in ((1, 7), (4, 8)):
        lean = simplify(model, image(2, 3, 6, 5), round_to=round_to)
        assert width(lean, "2") == (kept, 4)
        assert hasattr(lean.get_submodule("4"), "table")
        for shape in ((3, 3, 4, 7), (1, 3, 1, 2)):
            assert_same_outputs(model, lean, image(*shape))


def test_permutation_between_the_ends_of_a_run_is_no_run() -> None:
    def body(m: nn.Module, x: Tensor) -> Tensor:
        both = torch.cat([m.shuffle(m.left(x)), m.right(x)], 1)
        return m.first(both[:, :4]) + m.second(both[:, 4:])

    layers = {"left": conv(3, 4), "right": conv(3, 4), "first": conv(4, 3), "second": conv(4, 3)}
    model = ready(Net(body, shuffle=nn.ChannelShuffle(2), **layers))
    with torch.no_grad():
        model.right.weight[1] = 0
    lean = simplify(model, image(2, 3, 6, 5))
    assert width(lean, "second") == (3, 3)
    assert_same_outputs(model, lean, image(3, 3, 4, 7))


def test_sum_leaves_an_operand_whole_that_is_read_later() -> None:
    def body(m: nn.Module, x: Tensor) -> Tensor:
        y = m.left(x)
        return m.first(y + m.right(x)) + m.second(y)

    layers = {"left": conv(3, 6), "right": conv(3, 6), "first": conv(6, 4), "second": conv(6, 4)}
    model = ready(Net(body, **layers))
    with torch.no_grad():
        model.right.weight[[1, 2]] = 0
    lean = simplify(model, image(2, 3, 6, 5))
    assert width(lean, "right") == (4, 3)
    with torch.no_grad():
        assert_same_outputs(model, lean, image(3, 3, 4, 7))


def test_second_simplification_leaves_the_border_patterns_of_the_first() -> None:
    def block(kernel: int) -> list[nn.Module]:
        depthwise = nn.Conv2d(12, 12, kernel, padding=kernel // 2, groups=12)
        return [conv(3, 12, 1), nn.Sigmoid(), depthwise, nn.ReLU6(), conv(12, 3, 1), nn.Sigmoid()]

    model = ready(nn.Sequential(*block(3), *block(5)))
    x = image(2, 3, 8, 7)
    with torch.no_grad():
        model[0].weight[:9] = 0
        first = simplify(model, x)
        model[6].weight[:11] = 0
        first.get_submodule("6").weight[:11] = 0
    second = simplify(first, x)
    assert second.get_submodule("4").table.shape == (3, 16)
    for shape in ((3, 3, 8, 7), (1, 3, 4, 9)):
        assert_same_outputs(model, second, image(*shape))
