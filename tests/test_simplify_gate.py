"""Constants behind a gate: their maps are not made any more, and the outputs stay, at every
size.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from laws import assert_same_outputs, generator, randomise, tensors
from snello.simplification import SimplificationPlan, apply, fold_batchnorm, plan_of, simplify
from snello.simplification.ir.edits import GateInput, PositionDependent
from snello.simplification.ir.folds import GateFold

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
POOLS = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
ACTIVATIONS: tuple[Callable[[], nn.Module], ...] = (
    nn.ReLU6, lambda: nn.SiLU(inplace=True), nn.Hardswish, nn.PReLU, nn.Identity
)  # fmt: skip
GATES: tuple[Callable[[], nn.Module], ...] = (
    nn.Sigmoid,
    nn.Hardsigmoid,
    lambda: nn.Hardsigmoid(inplace=True),
)

Product = Callable[[Tensor, Tensor], Tensor]
PRODUCTS: tuple[Product, ...] = (
    lambda gate, x: gate * x, lambda gate, x: x * gate, lambda gate, x: torch.mul(x, gate), lambda gate, x: x.mul_(gate)
)  # fmt: skip


class Excited(nn.Module):
    """An inverted residual's branch with squeeze-and-excitation."""

    def __init__(
        self,
        dimensions: int = 2,
        activation: Callable[[], nn.Module] = nn.SiLU,
        gate: Callable[[], nn.Module] = nn.Sigmoid,
        product: Product = PRODUCTS[0],
        *,
        width: int = 12,
        stride: int = 1,
    ) -> None:
        super().__init__()
        conv, norm = CONVOLUTIONS[dimensions - 1], NORMS[dimensions - 1]
        self.wide = nn.Sequential(conv(2, width, 1, bias=False), norm(width), activation())
        depthwise = conv(width, width, 3, stride, 1, groups=width, bias=False)
        self.depthwise = nn.Sequential(depthwise, norm(width), activation())
        self.average = POOLS[dimensions - 1](1)
        self.squeeze = nn.Sequential(conv(width, 4, 1), nn.ReLU())
        self.excite = nn.Sequential(conv(4, width, 1), gate())
        self.product = product
        self.narrow = nn.Sequential(conv(width, 5, 1, bias=False), norm(5))

    def weighed(self, x: Tensor) -> Tensor:
        x = self.depthwise(self.wide(x))
        return self.product(self.excite(self.squeeze(self.average(x))), x)

    def forward(self, x: Tensor) -> Tensor:
        return self.narrow(self.weighed(x))


def excited(
    *arguments: object,
    wide: list[int] | None = None,
    depthwise: list[int] | None = None,
    excite: list[int] | None = None,
    kind: type[Excited] = Excited,
    **options: object,
) -> Excited:
    """In float64, with dead neurons of three layers; but for the gate's they are constants other
    than zero.
    """
    model = randomise(kind(*arguments, **options).double().eval(), generator(3))
    with torch.no_grad():
        model.wide[0].weight[[0, 1, 6] if wide is None else wide] = 0
        model.depthwise[0].weight[[1, 2, 3] if depthwise is None else depthwise] = 0
        model.excite[0].weight[[3, 4] if excite is None else excite] = 0
    return model


def image(*size: int, batch: int = 2, seed: int = 1) -> Tensor:
    return torch.randn(batch, 2, *size, dtype=torch.float64, generator=generator(seed))


dead = st.lists(st.integers(0, 11), max_size=12, unique=True)


gated = given(
    st.integers(1, 3), st.sampled_from(ACTIVATIONS), st.sampled_from(GATES), st.sampled_from(PRODUCTS),
    st.integers(1, 2), dead, dead, dead,
)  # fmt: skip


def lawful(examples: int) -> settings:
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )


def check(
    dimensions: int,
    activation: Callable[[], nn.Module],
    gate: Callable[[], nn.Module],
    product: Product,
    stride: int,
    wide: list[int],
    depthwise: list[int],
    excite: list[int],
) -> None:
    model = excited(
        dimensions,
        activation,
        gate,
        product,
        stride=stride,
        wide=wide,
        depthwise=depthwise,
        excite=excite,
    )
    lean = simplify(model, image(*[6] * dimensions))
    for side in (6, 1, 2, 3, 9):
        assert_same_outputs(model, lean, image(*[side] * dimensions, batch=3), tolerance=1e-9)


test_every_set_of_dead_neurons_at_every_size = lawful(40)(gated(check))
test_many_sets_of_dead_neurons_at_every_size = pytest.mark.exhaustive(lawful(150)(gated(check)))


def test_the_maps_of_constants_are_gone() -> None:
    model = excited()
    lean = simplify(model, image(6, 7))
    # 1, 2 and 3 are constants, of which 3 has a constant gate, as 4 has. 0 and 6 depend on the
    # position.
    assert lean.depthwise.get_submodule("0").weight.shape[0] == 7
    narrow = lean.narrow.get_submodule("0")
    assert narrow.weight.shape == (5, 7, 1, 1)
    assert narrow.gated.shape == (5, 4, 1, 1)
    assert lean.squeeze.get_submodule("0").weight.shape == (4, 9, 1, 1)
    assert lean.snello_static_0.taps.shape == (2, 10)
    plan = plan_of(lean)
    assert plan is not None
    assert [(gate.operand, gate.reader) for gate in plan.edits_of(GateInput)] == [
        ("excite_1", "narrow_0")
    ]
    (static,) = plan.edits_of(PositionDependent)
    assert (static.average, static.squeeze, static.activations) == (
        "average",
        "squeeze_0",
        ("depthwise.2",),
    )
    assert plan.layers["narrow.0"].folds == (GateFold(4),)
    assert "5 constants folded into the gate and the bias" in str(plan)


class SomebodyElse(Excited):
    """The product has another reader."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.weighed(x)
        return self.narrow(y), y.mean((2, 3))


class Overwritten(Excited):
    """The gate is overwritten before the convolution would read it."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.depthwise(self.wide(x))
        gate = self.excite(self.squeeze(self.average(x)))
        y = gate * x
        gate += 1
        return self.narrow(y), gate


@pytest.mark.parametrize("kind", [SomebodyElse, Overwritten])
def test_products_that_are_needed_stay(kind: type[Excited]) -> None:
    model = excited(kind=kind)
    lean = simplify(model, image(6, 7))
    assert not plan_of(lean).edits_of(GateInput)
    for expected, found in zip(model(image(4, 5)), lean(image(4, 5)), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_a_reader_that_sees_more_than_one_position_gets_the_maps() -> None:
    model = excited()
    model.narrow[0] = nn.Conv2d(12, 5, 3, padding=1).double()
    lean = simplify(model, image(6, 7))
    assert not plan_of(lean).edits_of(GateInput)
    assert_same_outputs(model, lean, image(3, 5), tolerance=1e-9)


class Functional(Excited):
    """A function follows the norm, not a module."""

    def weighed(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.depthwise[1](self.depthwise[0](self.wide(x))))
        return self.product(self.excite(self.squeeze(self.average(x))), x)


class Coarse(Excited):
    """The averages are of parts of the image, of which the middle one makes the gate."""

    def weighed(self, x: Tensor) -> Tensor:
        x = self.depthwise(self.wide(x))
        means = nn.functional.adaptive_avg_pool2d(x, 3)[:, :, 1:2, 1:2]
        return self.product(self.excite(self.squeeze(means)), x)


class Another(Excited):
    """Somebody else reads the averages."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.depthwise(self.wide(x))
        means = self.average(x)
        return self.narrow(self.excite(self.squeeze(means)) * x), means.flatten(1)


@pytest.mark.parametrize("kind", [Functional, Coarse, Another])
def test_what_depends_on_the_position_is_made_where_it_is_read_otherwise(
    kind: type[Excited],
) -> None:
    model = excited(kind=kind)
    lean = simplify(model, image(6, 7))
    assert plan_of(lean).edits_of(GateInput)
    assert not plan_of(lean).edits_of(PositionDependent)
    for size in ((6, 7), (3, 5)):
        for expected, found in zip(
            tensors(model(image(*size))), tensors(lean(image(*size))), strict=True
        ):
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_without_norm_and_bias_nothing_would_be_saved() -> None:
    model = excited()
    model.depthwise[1] = nn.Identity()
    lean = simplify(model, image(6, 7))
    assert not plan_of(lean).edits_of(PositionDependent)
    assert_same_outputs(model, lean, image(3, 5), tolerance=1e-9)


def test_what_is_worked_out_follows_the_size_and_the_weights() -> None:
    model = excited()
    lean = simplify(model, image(6, 7))
    with torch.no_grad():
        for size in ((6, 7), (6, 8), (6, 7), (1, 2)):
            assert_same_outputs(model, lean, image(*size), tolerance=1e-9)
        before = lean(image(6, 7))
        lean.load_state_dict(
            {n: v * 2 if n.endswith("taps") else v for n, v in lean.state_dict().items()}
        )
        assert not torch.equal(lean(image(6, 7)), before)
        single = lean.float()(image(6, 7).float())
        torch.testing.assert_close(
            single.double(), lean.double()(image(6, 7)), rtol=1e-4, atol=1e-4
        )


def test_an_ungrouped_convolution_may_feed_a_gate_too() -> None:
    """With ``round_to`` it keeps channels that depend on the position: they are averaged, but not
    gated.
    """
    model = excited(wide=[0, 1, 6, 8, 9])
    model.depthwise[0] = nn.Conv2d(12, 12, 3, padding=1, bias=False).double()
    with torch.no_grad():
        model.depthwise[0].weight[[2, 5, 7], 1:] = 0
    for round_to, made, averaged in ((1, 9, (0, 1, 2)), (4, 12, ())):
        lean = simplify(model, image(6, 7), round_to=round_to)
        assert lean.depthwise.get_submodule("0").weight.shape[0] == made
        assert lean.narrow.get_submodule("0").weight.shape[1] == 9
        (static,) = plan_of(lean).edits_of(PositionDependent)
        assert static.averaged == averaged
        assert_same_outputs(model, lean, image(3, 5), tolerance=1e-9)


def test_where_no_map_is_left_there_is_no_gate() -> None:
    model = excited(depthwise=list(range(12)))
    with torch.no_grad():
        model.squeeze[0].weight.zero_()
    assert not plan_of(simplify(model, image(6, 7))).edits_of(GateInput)


def test_runtimes_that_want_plain_graphs_get_no_gate() -> None:
    assert not plan_of(simplify(excited(), image(6, 7), prefer="plain")).edits_of(GateInput)


def test_a_gate_that_costs_more_time_than_it_saves_is_made_for_bytes_alone() -> None:
    for wide in ([], [0, 1, 6, 7, 8, 9, 10, 11]):
        model = excited(wide=wide)
        for side, made in ((4, False), (200, True)):
            plan = plan_of(simplify(model, image(side, side), prefer="latency"))
            assert bool(plan.edits_of(GateInput)) == made
            assert bool(plan.edits_of(PositionDependent)) == (made and bool(wide))
            plan = plan_of(simplify(model, image(side, side)))
            assert plan.edits_of(GateInput)
            assert bool(plan.edits_of(PositionDependent)) == bool(wide)


def test_a_lean_model_is_simplified_again() -> None:
    lean = simplify(excited(), image(6, 7))
    with torch.no_grad():
        lean.get_submodule("narrow.0").weight[1] = (
            0  # what is left of this neuron is its row for the gate
        )
        for name in ("weight", "gated"):
            getattr(lean.get_submodule("narrow.0"), name)[2] = 0
    leaner = simplify(lean, image(6, 7))
    assert leaner.get_submodule("narrow.0").gated.shape == (4, 4, 1, 1)
    assert_same_outputs(lean, leaner, image(3, 4), tolerance=1e-9)
    fresh = apply(SimplificationPlan.from_json(plan_of(leaner).to_json()), excited())
    fresh.load_state_dict(leaner.state_dict())
    assert_same_outputs(leaner, fresh, image(3, 4), tolerance=0.0)


def test_a_norm_behind_is_folded() -> None:
    model = excited()
    folded = fold_batchnorm(simplify(model, image(6, 7)), image(6, 7))
    assert not [m for m in folded.modules() if isinstance(m, NORMS)]
    assert_same_outputs(model, folded, image(3, 4), tolerance=1e-9)


def test_saved_copied_and_loaded() -> None:
    lean = simplify(excited(), image(6, 7))
    file = io.BytesIO()
    torch.save(lean.state_dict(), file)
    file.seek(0)
    fresh = apply(SimplificationPlan.from_json(plan_of(lean).to_json()), excited())
    fresh.load_state_dict(torch.load(file, weights_only=True))
    for twin in (fresh, copy.deepcopy(lean)):
        assert_same_outputs(lean, twin, image(3, 4), tolerance=0.0)


def test_training_goes_on_with_the_gradients_of_what_is_kept() -> None:
    model = excited()
    lean = simplify(model, image(6, 7))
    for net in (model, lean):
        net(image(6, 7)).square().sum().backward()
    for name in ("wide.0", "squeeze.0", "excite.0", "narrow.0", "depthwise.0"):
        layer = plan_of(lean).layers[name]
        expected = model.get_submodule(name).weight.grad[list(layer.kept_outputs)]
        if layer.groups == 1:
            expected = expected[:, list(layer.kept_inputs)]
        found = lean.get_submodule(name).weight.grad
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_exported_and_compiled_at_another_size() -> None:
    model, x, other = excited(), image(6, 7), image(5, 12)
    lean = simplify(model, x)
    batch, *sides = (torch.export.Dim(name, min=2, max=64) for name in ("batch", "height", "width"))
    dynamic = {"x": {0: batch, 2: sides[0], 3: sides[1]}}
    for strict in (False, True):
        program = torch.export.export(lean, (x,), dynamic_shapes=dynamic, strict=strict)
        assert_same_outputs(model, program.module(), image(5, 12, batch=3), tolerance=1e-9)
    compiled = torch.compile(lean, backend="aot_eager", dynamic=True)
    for sized in (x, other):
        assert_same_outputs(model, compiled, sized, tolerance=1e-9)


def test_exported_at_one_size_it_holds_the_values_that_occur_there() -> None:
    model, x = excited(), image(6, 7)
    program = torch.export.export(simplify(model, x), (x,))
    assert_same_outputs(model, program.module(), x, tolerance=1e-9)
    tables = [
        tuple(n.meta["val"].shape)
        for n in program.graph.nodes
        if isinstance(n.meta.get("val"), Tensor)
    ]
    assert (9, 42) in tables
    assert (16, 42) not in tables


def test_autocast() -> None:
    model = excited()
    lean, x = simplify(model, image(6, 7)).float(), image(6, 7).float()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = lean(x)
    torch.testing.assert_close(found.float(), model.float()(x), rtol=0.1, atol=0.1)
