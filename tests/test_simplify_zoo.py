"""Laws of simplification on torchvision's networks, at small resolutions, against an independent
oracle.
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from snello.simplification import simplify

pytest.importorskip("torchvision")
sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
masked_zoo = pytest.importorskip(
    "masked_zoo", reason="the benchmarks are not part of this distribution"
)
oracle = pytest.importorskip("removable", reason="the benchmarks are not part of this distribution")

ZOO = masked_zoo.zoo()
# Name -> side of the example input, shape of the second one (None: one resolution only), least
# share of the removable parameters that goes; None demands nothing.
SMALL: dict[str, tuple[int, tuple[int, ...] | None, float | None]] = {
    "resnet-20": (32, (4, 3, 24, 40), None),
    "vgg11_bn": (64, (4, 3, 96, 64), 0.99),
    "vgg11": (64, (4, 3, 96, 64), 0.99),
    "resnet18": (64, (4, 3, 96, 64), 0.99),
    "resnet50": (64, (4, 3, 96, 64), 0.99),
    "resnext50_32x4d": (64, (4, 3, 96, 64), 0.99),
    "wide_resnet50_2": (64, (4, 3, 96, 64), 0.99),
    "densenet121": (64, (4, 3, 96, 64), 0.99),
    "googlenet": (64, (4, 3, 96, 64), 0.99),
    "inception_v3": (107, (4, 3, 139, 107), 0.99),
    "squeezenet1_1": (64, (4, 3, 96, 64), 0.99),
    "mobilenet_v2": (64, (4, 3, 96, 64), 0.99),
    "mobilenet_v3_small": (64, (4, 3, 96, 64), 0.99),
    "mnasnet0_5": (64, (4, 3, 96, 64), 0.99),
    "efficientnet_b0": (64, (4, 3, 96, 64), 0.99),
    "efficientnet_v2_s": (
        128,
        (4, 3, 160, 128),
        0.99,
    ),  # at 64 its squeezed maps leave float32 nothing
    "regnet_x_400mf": (64, (4, 3, 96, 64), 0.99),
    "regnet_y_400mf": (64, (4, 3, 96, 64), 0.99),
    "shufflenet_v2_x0_5": (64, (4, 3, 96, 64), 0.99),
    "alexnet": (80, (4, 3, 112, 80), None),
    "convnext_tiny": (64, (4, 3, 96, 64), 0.90),
    "swin_t": (64, (4, 3, 96, 64), 0.90),
    "swin_v2_t": (64, (4, 3, 96, 64), 0.90),
    "vit_b_32": (224, None, 0.90),
    "maxvit_t": (224, None, None),
    "deeplabv3_mobilenet_v3_large": (64, (4, 3, 96, 64), 0.90),
    "deeplabv3_resnet50": (64, (4, 3, 96, 64), 0.90),
    "fcn_resnet50": (64, (4, 3, 96, 64), 0.90),
    "lraspp_mobilenet_v3_large": (64, (4, 3, 96, 64), 0.90),
}
QUICK = {
    "resnet18": "A",
    "mobilenet_v2": "B",
    "squeezenet1_1": "A",
    "shufflenet_v2_x0_5": "B",
    "lraspp_mobilenet_v3_large": "A",
}
CASES = [
    pytest.param(
        name,
        variant,
        marks=[] if QUICK.get(name) == variant else [pytest.mark.exhaustive],
        id=f"{name}-{variant}",
    )
    for name in SMALL
    for variant in "AB"
]


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("name", "variant"), CASES)
def test_the_zoo_is_simplified_exactly_and_fully(name: str, variant: str) -> None:
    side, second, least = SMALL[name]
    model, _ = masked_zoo.masked(ZOO[name], 0.5, variant, seed=0, side=side)
    generator = torch.Generator().manual_seed(1)
    example = masked_zoo.images((3, 3, side, side), generator)
    lean = simplify(model, example)
    twin = copy.deepcopy(model).double()
    lean64 = simplify(twin, example.double())
    # The example's resolution with another batch, and another resolution.
    for shape in ((5, 3, side, side), *([second] if second else [])):
        x = masked_zoo.images(shape, generator)
        expected = masked_zoo.outputs(twin, x.double())
        assert masked_zoo.dependence(expected) > 0.01, (
            "the outputs hardly depend on the input: nothing is tested"
        )
        assert masked_zoo.error(expected, masked_zoo.outputs(lean64, x.double())) <= 1e-9
        # Where the masked network itself loses more than that in float32, no other can do better.
        rounding = masked_zoo.error(expected, masked_zoo.outputs(model, x))
        assert masked_zoo.error(expected, masked_zoo.outputs(lean, x)) <= max(1e-4, 3 * rounding)
    count = oracle.removable(model, example)
    removed = oracle.size(model, count.never_run) - oracle.size(lean, count.never_run)
    assert removed >= (least or 0) * count.removable, (
        f"{removed / count.removable:.2%} of the removable"
    )


# --- the oracle, on networks that can be counted by hand
# ----------------------------------------------------


def _filled(model: nn.Module) -> nn.Module:
    """Weights that are not zero, and BatchNorm that is not the identity."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5, generator=generator)
    return model


def _removable(model: nn.Module, *shape: int) -> int:
    return int(oracle.removable(model, torch.zeros(shape)).removable)


def _zero(layer: nn.Module, *rows: int) -> None:
    with torch.no_grad():
        layer.weight[list(rows)] = 0


def test_nothing_is_removable_from_a_dense_network() -> None:
    model = _filled(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))
    assert _removable(model, 2, 4) == 0
    assert oracle.removable(model, torch.zeros(2, 4)).total == 4 * 3 + 3 + 3 * 2 + 2


def test_a_dead_row_goes_with_its_bias_and_its_column() -> None:
    model = _filled(nn.Sequential(nn.Linear(4, 3), nn.Sigmoid(), nn.Linear(3, 2)))
    _zero(model[0], 1)
    assert _removable(model, 2, 4) == (4 + 1) + 2


def test_a_row_that_nobody_reads_goes() -> None:
    model = _filled(nn.Sequential(nn.Linear(4, 3), nn.Sigmoid(), nn.Linear(3, 2)))
    with torch.no_grad():
        model[2].weight[:, 1] = 0
    assert _removable(model, 2, 4) == (4 + 1) + 2


def test_deadness_travels_both_ways() -> None:
    model = _filled(
        nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    )
    _zero(model[2], 0, 1, 2, 3)
    with torch.no_grad():
        model[2].weight[4, 0] = 0  # now unit 0 of the first layer is read by dead rows only
    first, second, third = (4 + 1), 4 * (3 + 1) + 1, 4 * 2
    assert _removable(model, 2, 4) == first + second + third


def test_a_saturated_unit_is_no_constant() -> None:
    model = _filled(nn.Sequential(nn.Linear(4, 3), nn.Hardsigmoid(), nn.Linear(3, 2)))
    with torch.no_grad():
        model[0].bias.fill_(1e6)
    assert _removable(model, 2, 4) == 0


def test_batchnorm_entries_go_with_their_channel() -> None:
    model = _filled(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    )
    _zero(model[0], 2)
    assert _removable(model, 1, 3, 8, 8) == (27 + 1) + 4 + 2


def test_a_batchnorm_scale_of_zero_makes_the_row_before_useless() -> None:
    model = _filled(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    )
    _zero(model[1], 2)
    assert _removable(model, 1, 3, 8, 8) == (27 + 1) + 4 + 2


@pytest.mark.parametrize(("padding", "reach"), [(0, True), (1, False)])
def test_a_constant_behind_zero_padding_depends_on_the_position(padding: int, reach: bool) -> None:
    model = _filled(
        nn.Sequential(
            nn.Conv2d(3, 4, 1),
            nn.ReLU(),
            nn.Conv2d(4, 4, 3, padding=padding, groups=4),
            nn.Conv2d(4, 2, 1),
        )
    )
    _zero(model[0], 2)
    depthwise = 9 + 1 + 2  # its filter and bias, and the column of its reader
    assert _removable(model, 1, 3, 8, 8) == (3 + 1) + depthwise * reach


def test_a_zero_constant_passes_zero_padding() -> None:
    model = _filled(
        nn.Sequential(
            nn.Conv2d(3, 4, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(4, 4, 3, padding=1, groups=4),
            nn.Conv2d(4, 2, 1),
        )
    )
    _zero(model[0], 2)
    assert _removable(model, 1, 3, 8, 8) == 3 + (9 + 1) + 2


def test_columns_of_a_grouped_convolution_are_counted_per_group() -> None:
    model = _filled(
        nn.Sequential(
            nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 6, 1, groups=2), nn.Conv2d(6, 2, 1)
        )
    )
    _zero(model[0], 0)  # column 0 of group 0, which has three rows
    assert _removable(model, 1, 3, 8, 8) == (3 + 1) + 3
    _zero(model[2], 3)  # a row of group 1: two weights and its bias, and a column of two rows
    assert _removable(model, 1, 3, 8, 8) == (3 + 1) + 3 + (2 + 1) + 2


def test_a_transposed_convolution_has_its_rows_on_the_second_axis() -> None:
    model = _filled(
        nn.Sequential(nn.ConvTranspose2d(3, 4, 2, stride=2), nn.ReLU(), nn.Conv2d(4, 2, 1))
    )
    with torch.no_grad():
        model[0].weight[:, 1] = 0
    assert _removable(model, 1, 3, 8, 8) == (3 * 4 + 1) + 2


class _Join(nn.Module):
    """A residual sum: a channel is dead behind it only if it is dead in both branches."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.a(x) + self.b(x)))


def test_behind_a_sum_a_channel_is_constant_if_both_sides_are() -> None:
    model = _filled(_Join())
    _zero(model.a, 0, 1)
    assert _removable(model, 1, 3, 8, 8) == 2 * (3 + 1)
    _zero(model.b, 1, 2)
    assert _removable(model, 1, 3, 8, 8) == 4 * (3 + 1) + 2


class _Gate(nn.Module):
    """A squeeze-excite product: what is multiplied by exact zeros is not needed."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.gate, self.out = (
            nn.Conv2d(3, 4, 1, bias=False),
            nn.Conv2d(3, 4, 1),
            nn.Conv2d(4, 2, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.body(x) * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True))))


def test_a_gate_of_a_zero_channel_is_useless() -> None:
    model = _filled(_Gate())
    _zero(model.body, 1)
    assert _removable(model, 1, 3, 8, 8) == 3 + (3 + 1) + 2


def test_layernorm_couples_its_channels() -> None:
    model = _filled(nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 2)))
    _zero(model[0], 1)
    assert _removable(model, 2, 4) == 4 + 1  # its column is read through the statistics


def test_packed_attention_counts_as_linear_layers() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.out = (
                nn.MultiheadAttention(4, 2, batch_first=True),
                nn.Linear(4, 2),
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.attention(x, x, x, need_weights=False)[0])

    model = _filled(Block())
    assert oracle.removable(model, torch.zeros(1, 3, 4)).total == (48 + 12) + (16 + 4) + (8 + 2)
    _zero(model.attention.out_proj, 0)
    out = (4 + 1) + 2
    assert _removable(model, 1, 3, 4) == out
    with torch.no_grad():
        model.attention.in_proj_weight[8] = 0  # a constant value is what every average of it is
    assert _removable(model, 1, 3, 4) == out + (4 + 1) + 3
    with torch.no_grad():
        model.attention.in_proj_weight[0] = 0  # a constant query still weighs its key
    assert _removable(model, 1, 3, 4) == out + (4 + 1) + 3 + (4 + 1)
    with torch.no_grad():
        model.attention.in_proj_bias[0] = 0  # but not if it is zero
    assert _removable(model, 1, 3, 4) == out + (4 + 1) + 3 + 2 * (4 + 1)


def test_a_layer_that_evaluation_does_not_run_counts_neither_way() -> None:
    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.auxiliary = nn.Linear(4, 3), nn.Linear(4, 7)

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x) if not self.training else self.auxiliary(x)

    model = _filled(Auxiliary())
    count = oracle.removable(model, torch.zeros(2, 4))
    assert (count.never_run, count.removable, count.total) == (frozenset({"auxiliary"}), 0, 15)
    assert oracle.size(model, count.never_run) == count.total


def test_an_unknown_operation_is_refused_by_name() -> None:
    class Strange(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cumsum(super().forward(x), -1)

    with pytest.raises(NotImplementedError, match="cumsum"):
        oracle.removable(Strange(3, 3), torch.zeros(1, 3))


@pytest.mark.sampled(2)
@pytest.mark.parametrize("variant", ["A", "B"])
@pytest.mark.parametrize("name", ["mobilenet_v3_small", "shufflenet_v2_x0_5"])
def test_what_the_oracle_calls_useless_changes_no_output(name: str, variant: str) -> None:
    model, _ = masked_zoo.masked(ZOO[name], 0.5, variant, seed=0, side=64)
    model = model.double()
    generator = torch.Generator().manual_seed(2)
    x = masked_zoo.images((2, 3, 64, 64), generator).double()
    before = masked_zoo.outputs(model, x)
    count = oracle.removable(model, x)
    changed = 0
    with torch.no_grad():
        for layer in count.layers:
            module = model.get_submodule(layer.name)
            useless = ~layer.useful & ~layer.constant
            if len(layer.columns) and useless.any():
                module.weight[useless] += torch.randn(
                    module.weight[useless].shape, generator=generator
                )
                changed += int(useless.sum())
    assert changed > 0
    assert masked_zoo.error(before, masked_zoo.outputs(model, x)) <= 1e-12


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "shufflenet_v2_x0_5"])
def test_what_the_oracle_calls_constant_is_constant(name: str) -> None:
    model, _ = masked_zoo.masked(ZOO[name], 0.5, "B", seed=0, side=64)
    model = model.double()
    count = oracle.removable(model, torch.zeros(1, 3, 64, 64))
    seen: dict[str, Tensor] = {}

    def note(layer: str) -> None:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], y: Tensor) -> None:
            seen[layer] = y.movedim(y.dim() - 1 if isinstance(module, nn.Linear) else 1, 0).flatten(
                1
            )

        model.get_submodule(layer).register_forward_hook(hook)

    for layer in count.layers:
        note(layer.name)
    masked_zoo.outputs(
        model, masked_zoo.images((3, 3, 64, 96), torch.Generator().manual_seed(3)).double()
    )
    constants = 0
    for layer in count.layers:
        y = seen[layer.name]
        spread = (y.amax(1) - y.amin(1)) / y.abs().amax(1).clamp(min=1e-300)
        assert (spread[layer.constant] <= 1e-9).all(), layer.name
        constants += int(layer.constant.sum())
    assert constants > 100
