"""Constants that depend on the position: not computed any more, and exact at every size, however
small.
"""

from __future__ import annotations

import copy
import io
import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from laws import assert_same_outputs, generator, randomise
from snello.simplification import SimplificationPlan, apply, fold_batchnorm, plan_of, simplify
from snello.simplification.ir.edits import BorderPattern, Geometry
from snello.simplification.ir.folds import TableFold
from snello.simplification.runtime.border_pattern import BorderPatterns

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
ACTIVATIONS: tuple[Callable[[], nn.Module], ...] = (
    nn.ReLU6,
    nn.SiLU,
    nn.Hardswish,
    nn.PReLU,
    nn.Identity,
)

Axis = tuple[int, int, int, int]
"""Kernel, stride, dilation and padding along one axis."""


def inverted(
    axes: tuple[Axis, ...], activation: Callable[[], nn.Module], *, width: int = 24
) -> nn.Sequential:
    """Pointwise, depthwise, pointwise, as in MobileNetV2; a first layer of which half is dead and
    not zero.
    """
    conv, norm = CONVOLUTIONS[len(axes) - 1], NORMS[len(axes) - 1]
    kernel, stride, dilation, padding = zip(*axes, strict=True)
    model = nn.Sequential(
        conv(2, width, 1, bias=False), norm(width), activation(),
        conv(width, width, kernel, stride, padding, dilation, groups=width, bias=False), norm(width), activation(),
        conv(width, 3, 1, bias=False), norm(3),
    )  # fmt: skip
    randomise(model.double().eval(), generator(width))
    with torch.no_grad():
        model[0].weight[::2] = 0
        model[1].bias[::2] = torch.linspace(0.2, 2, width // 2)
        model[1].running_mean[::2] = 0
    return model


def smallest(axes: tuple[Axis, ...]) -> list[int]:
    """The smallest input that the kernel fits into, with its padding."""
    return [
        max(1, dilation * (kernel - 1) + 1 - 2 * padding) for kernel, _, dilation, padding in axes
    ]


@st.composite
def axis(draw: st.DrawFn) -> Axis:
    kernel, dilation = draw(st.integers(1, 4)), draw(st.integers(1, 2))
    # More padding than this and a window may see nothing of the input: left to the convolution.
    padding = draw(st.integers(0, min(2, dilation * (kernel - 1))))
    return kernel, draw(st.integers(1, 3)), dilation, padding


geometries = st.integers(1, 3).flatmap(lambda n: st.tuples(*[axis()] * n))


def check(axes: tuple[Axis, ...], activation: Callable[[], nn.Module], seed: int) -> None:
    # In three dimensions a table has more columns: more channels make up for them.
    model = inverted(axes, activation, width=24 if len(axes) < 3 else 120)
    least = smallest(axes)
    example = torch.randn(
        2, 2, *[n + 4 for n in least], dtype=torch.float64, generator=generator(seed)
    )
    lean = simplify(model, example)
    for extra in (0, 1, 2, 3, 6):
        x = torch.randn(
            2, 2, *[n + extra for n in least], dtype=torch.float64, generator=generator(seed)
        )
        assert_same_outputs(model, lean, x, tolerance=1e-9)
    kernel, _, dilation, padding = zip(*axes, strict=True)
    ways = math.prod((math.ceil(p / d) + 1) ** 2 for p, d in zip(padding, dilation, strict=True))
    dead, outputs = model[0].out_channels // 2, model[6].out_channels
    pays = dead * (math.prod(kernel) + 4 + outputs) > outputs * ways
    assert lean.get_submodule("3").out_channels == dead * (1 if pays or not any(padding) else 2)


def lawful(examples: int) -> settings:
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )


drawn = given(geometries, st.sampled_from(ACTIVATIONS), st.integers(0, 10**6))
test_every_geometry_at_every_size = lawful(40)(drawn(check))
test_many_geometries_at_every_size = pytest.mark.exhaustive(lawful(120)(drawn(check)))


@given(geometries, st.integers(0, 5))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_taps_are_counted_as_the_convolution_counts_them(
    axes: tuple[Axis, ...], extra: int
) -> None:
    kernel, stride, dilation, padding = zip(*axes, strict=True)
    sizes = [n + extra for n in smallest(axes)]
    geometry = Geometry(kernel, stride, dilation, padding, padding)
    patterns = BorderPatterns(geometry)(torch.zeros(1, 4, *sizes))
    one = CONVOLUTIONS[len(axes) - 1](1, 1, kernel, stride, padding, dilation, bias=False)
    nn.init.ones_(one.weight)
    counted = one(torch.ones(1, 1, *sizes))[0, 0]
    assert patterns.shape == counted.shape
    # Each pattern leaves one number of taps inside: the product over the axes.
    inside = [
        [k - i - j for i in range(b + 1) for j in range(a + 1)]
        for k, b, a in zip(kernel, *geometry.cut, strict=True)
    ]
    taps = torch.tensor(
        [torch.tensor(c).prod() for c in itertools.product(*inside)], dtype=torch.float
    )
    assert torch.equal(taps[patterns], counted.detach())


MOBILE: tuple[Axis, ...] = ((3, 1, 1, 1), (3, 2, 1, 1))


def mobile() -> tuple[nn.Sequential, nn.Module, Tensor]:
    model = inverted(MOBILE, nn.ReLU6)
    x = torch.randn(2, 2, 8, 9, dtype=torch.float64, generator=generator(1))
    return model, simplify(model, x), x


def test_the_channels_are_gone_and_the_plan_says_where_to() -> None:
    model, lean, _ = mobile()
    assert lean.get_submodule("0").weight.shape[0] == 12
    assert lean.get_submodule("3").weight.shape == (12, 1, 3, 3)
    assert lean.get_submodule("6").weight.shape[:2] == (3, 12)
    assert lean.get_submodule("6").table.shape == (3, 16)
    plan = plan_of(lean)
    assert plan is not None
    assert plan.layers["6"].folds == (TableFold(16),)
    assert plan.index_operations == 0
    assert "12 constants folded into the table and the bias" in str(plan)
    # Where runtimes want plain graphs, no table is made, and nothing is moved about either.
    plain = simplify(model, torch.zeros(2, 2, 8, 9, dtype=torch.float64), prefer="plain")
    assert not plan_of(plain).edits_of(BorderPattern)


def test_same_padding_of_an_even_kernel() -> None:
    model = inverted(((4, 1, 1, 0), (3, 1, 1, 1)), nn.SiLU, width=60)
    model[3] = nn.Conv2d(60, 60, (4, 3), padding="same", groups=60).double().eval()
    x = torch.randn(2, 2, 6, 7, dtype=torch.float64)
    lean = simplify(model, x)
    assert lean.get_submodule("3").weight.shape[0] == 30
    for height, width in ((1, 1), (2, 1), (3, 5), (9, 2)):
        sized = torch.randn(2, 2, height, width, dtype=torch.float64)
        assert_same_outputs(model, lean, sized, tolerance=1e-9)


class Twice(nn.Module):
    """The output of the depthwise convolution has another reader, too."""

    def __init__(self, body: nn.Sequential) -> None:
        super().__init__()
        self.depthwise, self.pointwise = body[:6], body[6:]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.depthwise(x)
        return self.pointwise(y), y.mean((2, 3))


def test_channels_that_somebody_else_reads_stay() -> None:
    model = Twice(inverted(MOBILE, nn.ReLU6)).eval()
    x = torch.randn(2, 2, 8, 9, dtype=torch.float64)
    lean = simplify(model, x)
    assert not plan_of(lean).edits_of(BorderPattern)
    for expected, found in zip(model(x), lean(x), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_a_table_larger_than_what_it_replaces_is_not_made() -> None:
    model = inverted(((3, 1, 1, 1),) * 3, nn.ReLU6, width=8)
    model[6] = nn.Conv3d(8, 40, 1).double()
    model[7] = nn.Identity()
    assert not plan_of(simplify(model, torch.randn(2, 2, 4, 4, 4, dtype=torch.float64))).edits_of(
        BorderPattern
    )


def test_a_table_that_costs_more_time_than_it_saves_is_made_for_bytes_alone() -> None:
    model = inverted(MOBILE, nn.ReLU6)
    for side, made in ((8, False), (200, True)):  # two calls more are paid off by many positions
        x = torch.randn(2, 2, side, side, dtype=torch.float64)
        lean = simplify(model, x, prefer="latency")
        assert bool(plan_of(lean).edits_of(BorderPattern)) == made
        assert_same_outputs(model, lean, x, tolerance=1e-9)
        assert plan_of(simplify(model, x)).edits_of(BorderPattern)


def test_a_lean_model_is_simplified_again() -> None:
    _, lean, x = mobile()
    with torch.no_grad():
        lean.get_submodule("0").weight[:5] = 0
        lean.get_submodule("6").weight[1] = 0  # what is left of this neuron is its row of the table
    leaner = simplify(lean, x)
    assert leaner.get_submodule("0").weight.shape[0] < 12
    for size in ((8, 9), (1, 2), (5, 5)):
        assert_same_outputs(
            lean, leaner, torch.randn(3, 2, *size, dtype=torch.float64), tolerance=1e-9
        )
    fresh = apply(
        SimplificationPlan.from_json(plan_of(leaner).to_json()), inverted(MOBILE, nn.ReLU6)
    )
    fresh.load_state_dict(leaner.state_dict())
    assert_same_outputs(leaner, fresh, x, tolerance=0.0)


def test_a_norm_behind_is_folded() -> None:
    model, lean, x = mobile()
    folded = fold_batchnorm(lean, x)
    assert not [m for m in folded.modules() if isinstance(m, NORMS)]
    for size in ((8, 9), (1, 2), (5, 5)):
        assert_same_outputs(
            model, folded, torch.randn(3, 2, *size, dtype=torch.float64), tolerance=1e-9
        )


def test_saved_copied_and_loaded() -> None:
    _, lean, x = mobile()
    file = io.BytesIO()
    torch.save(lean.state_dict(), file)
    file.seek(0)
    fresh = apply(SimplificationPlan.from_json(plan_of(lean).to_json()), inverted(MOBILE, nn.ReLU6))
    fresh.load_state_dict(torch.load(file, weights_only=True))
    for twin in (fresh, copy.deepcopy(lean)):
        assert_same_outputs(lean, twin, x, tolerance=0.0)


def test_what_is_remembered_follows_the_size_and_the_weights() -> None:
    """Two input sizes that give one output size hang over in different ways."""
    model, lean, _ = mobile()
    sizes = ((6, 7), (6, 8), (6, 7))
    inputs = [torch.randn(2, 2, *size, dtype=torch.float64) for size in sizes]
    assert lean(inputs[0]).shape == lean(inputs[1]).shape
    with torch.no_grad():
        for x in inputs:
            assert_same_outputs(model, lean, x, tolerance=1e-9)
        before = lean(inputs[0])
        state = {
            name: v * 2 if name.endswith("table") else v for name, v in lean.state_dict().items()
        }
        lean.load_state_dict(state)
        assert not torch.equal(lean(inputs[0]), before)
        single = lean.float()(inputs[0].float())
        torch.testing.assert_close(single.double(), lean.double()(inputs[0]), rtol=1e-4, atol=1e-4)


def test_training_goes_on_with_the_gradients_of_what_is_kept() -> None:
    model, lean, x = mobile()
    for net in (model, lean):
        net(x).square().sum().backward()
    kept = plan_of(lean).layers["6"].kept_inputs
    expected = model[6].weight.grad[:, list(kept)]
    torch.testing.assert_close(lean.get_submodule("6").weight.grad, expected, rtol=1e-9, atol=1e-12)
    for norm in ("7.weight", "7.bias"):
        torch.testing.assert_close(
            lean.get_parameter(norm).grad, model.get_parameter(norm).grad, rtol=1e-9, atol=1e-12
        )


def test_exported_and_compiled_at_another_size() -> None:
    model, lean, x = mobile()
    height, width = (
        torch.export.Dim("height", min=3, max=64),
        torch.export.Dim("width", min=3, max=64),
    )
    program = torch.export.export(lean, (x,), dynamic_shapes={"input": {2: height, 3: width}})
    other = torch.randn(2, 2, 5, 12, dtype=torch.float64)
    assert_same_outputs(model, program.module(), other, tolerance=1e-9)
    compiled = torch.compile(lean, backend="aot_eager", dynamic=True)
    for sized in (x, other):
        assert_same_outputs(model, compiled, sized, tolerance=1e-9)


def test_autocast() -> None:
    model, lean, x = mobile()
    model, lean, x = model.float(), lean.float(), x.float()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = lean(x)
    torch.testing.assert_close(found.float(), model(x), rtol=0.1, atol=0.1)
