"""Simplification: the outputs stay, what is dead goes, and what cannot be shown exact is
refused.
"""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from laws import assert_same_outputs, generator, kill, kill_neurons, parameter_count, randomise
from snello.errors import ModelError
from snello.lab.models import CifarResNet, LeNet5, LeNet300
from snello.neurons import neuron_count, weighted_layers
from snello.simplification import (
    SimplificationPlan,
    apply,
    apply_folds,
    fold_batchnorm,
    folds_of,
    make_plan,
    plan_of,
    simplify,
)
from snello.simplification.ir.edits import DropOperands, IndexedSum, Pick, SetNumber
from snello.simplification.ir.folds import BorderFold
from zoo import RESNET_32, ZOO, DeadBranch, Residual, Sample, average_pool, padded, tiny_mlp

Shrunk = tuple[nn.Module, nn.Module, list[Tensor]]


def model_of(sample: Sample, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return randomise(sample.build().double(), generator(seed)).eval()


def shrunk(sample: Sample, share: float, *, with_norms: bool, seed: int = 0) -> Shrunk:
    """A model with dead neurons, its lean twin, and inputs of every shape."""
    model = model_of(sample, seed)
    inputs = sample.inputs(generator(seed + 1))
    kill_neurons(model, share, generator(seed + 2), with_norms=with_norms)
    return model, simplify(model, inputs[0]), inputs


def widths(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(layer.weight.shape[:2]) for name, layer in weighted_layers(model).items()}


# Exactness


@pytest.mark.sampled(7)
@pytest.mark.parametrize("name", ZOO)
@given(share=st.floats(0, 1), with_norms=st.booleans(), seed=st.integers(0, 999))
@settings(max_examples=6, deadline=None, derandomize=True)
def test_outputs_are_the_same_at_every_size_and_the_model_never_grows(
    name: str, share: float, with_norms: bool, seed: int
) -> None:
    model, lean, inputs = shrunk(ZOO[name], share, with_norms=with_norms, seed=seed)
    for x in inputs:
        assert_same_outputs(model, lean, x)
    # A bias that folding adds is never larger than the columns whose constants it holds.
    assert parameter_count(lean) <= parameter_count(model)


@pytest.mark.parametrize("with_norms", [True, False])
@pytest.mark.parametrize("depth", [32, 56])
def test_cifar_resnets(depth: int, with_norms: bool) -> None:
    sample = Sample(lambda: CifarResNet(depth), RESNET_32.shapes)
    model, lean, inputs = shrunk(sample, 0.5, with_norms=with_norms)
    for x in inputs:
        assert_same_outputs(model, lean, x)
    assert parameter_count(lean) < 0.6 * parameter_count(model)


@pytest.mark.sampled(10)
@pytest.mark.parametrize("with_norms", [True, False])
@pytest.mark.parametrize("name", ZOO)
def test_all_dead(name: str, with_norms: bool) -> None:
    model, lean, inputs = shrunk(ZOO[name], 1.0, with_norms=with_norms)
    for x in inputs:
        assert_same_outputs(model, lean, x)


@pytest.mark.sampled(6)
@pytest.mark.parametrize("name", ZOO)
def test_one_layer_all_dead(name: str) -> None:
    sample = ZOO[name]
    for layer_name, layer in weighted_layers(model_of(sample)).items():
        model = model_of(sample)
        kill(model, layer_name, torch.ones(neuron_count(layer), dtype=torch.bool), with_norms=False)
        inputs = sample.inputs(generator())
        lean = simplify(model, inputs[0])
        for x in inputs:
            assert_same_outputs(model, lean, x)


@pytest.mark.sampled(6)
@pytest.mark.parametrize("name", [n for n in ZOO if n != "dead branch"])
def test_nothing_dead_changes_nothing(name: str) -> None:
    model, lean, inputs = shrunk(ZOO[name], 0.0, with_norms=True)
    plan = plan_of(lean)
    assert plan is not None
    assert plan.neurons_removed == 0
    assert plan.index_operations == 0
    assert plan.edits_of(Pick) == plan.edits_of(SetNumber) == ()
    assert parameter_count(lean) == parameter_count(model)
    assert model.state_dict().keys() == lean.state_dict().keys()
    for x in inputs:
        assert torch.equal(model(x), lean(x))


def test_float32_stays_within_rounding() -> None:
    model, _, inputs = shrunk(ZOO["resnet-8"], 0.5, with_norms=False)
    single = copy.deepcopy(model).float()
    lean = simplify(single, inputs[0].float())
    assert next(lean.parameters()).dtype == torch.float32
    assert_same_outputs(single, lean, inputs[0].float(), tolerance=1e-5)


@pytest.mark.parametrize("divisor", [1, 3])
def test_average_pool_that_does_not_average(divisor: int) -> None:
    # With a divisor of its own, the pool of a constant is another constant.
    sample = Sample(
        lambda: nn.Sequential(
            nn.Conv2d(2, 5, 3), nn.AvgPool2d(2, divisor_override=divisor), nn.Conv2d(5, 3, 1)
        ),
        ((2, 2, 8, 8),),
    )
    model, lean, (x,) = shrunk(sample, 0.5, with_norms=False)
    assert_same_outputs(model, lean, x)


# What goes


def test_lenet_300_100_loses_exactly_its_dead_neurons() -> None:
    model = LeNet300().double().eval()
    kill(model, "fc1", torch.arange(300) % 3 == 0, with_norms=True)
    kill(model, "fc2", torch.arange(100) < 40, with_norms=True)
    lean = simplify(model, torch.randn(2, 784, dtype=torch.float64))
    assert widths(lean) == {"fc1": (200, 784), "fc2": (60, 200), "fc3": (10, 60)}
    assert parameter_count(lean) == 784 * 200 + 200 + 200 * 60 + 60 + 60 * 10 + 10


def test_lenet_5_loses_exactly_its_dead_neurons() -> None:
    model = LeNet5().double().eval()
    kill(model, "conv1", torch.arange(20) < 5, with_norms=True)
    kill(model, "conv2", torch.arange(50) >= 30, with_norms=True)
    kill(model, "fc1", torch.arange(500) % 2 == 0, with_norms=True)
    lean = simplify(model, torch.randn(2, 1, 28, 28, dtype=torch.float64))
    assert widths(lean) == {
        "conv1": (15, 1),
        "conv2": (30, 15),
        "fc1": (250, 480),
        "fc2": (10, 250),
    }


def test_neurons_that_nobody_reads_go_too() -> None:
    model = tiny_mlp().double().eval()
    with torch.no_grad():
        model[2].weight[:, :4] = 0
    lean = simplify(model, torch.randn(2, 4, dtype=torch.float64))
    assert widths(lean) == {"0": (2, 4), "2": (5, 2), "4": (3, 5)}


@pytest.mark.parametrize("with_norms", [True, False])
def test_every_dead_row_of_a_resnet_is_gone(with_norms: bool) -> None:
    model = model_of(ZOO["resnet-8"])
    dead = kill_neurons(model, 0.5, generator(3), with_norms=with_norms)
    lean = simplify(model, torch.randn(2, 3, 16, 16, dtype=torch.float64))
    layers = weighted_layers(lean)
    for name, mask in dead.items():
        if name in layers and name != "linear":
            assert neuron_count(layers[name]) <= int((~mask).sum())
    assert parameter_count(lean) < 0.5 * parameter_count(model)


@pytest.mark.parametrize("with_norms", [True, False])
def test_a_dead_branch_vanishes(with_norms: bool) -> None:
    model = randomise(DeadBranch().double(), generator()).eval()
    for index in (0, 3):
        layer = model.branch[index]
        kill(
            model,
            f"branch.{index}",
            torch.ones(neuron_count(layer), dtype=torch.bool),
            with_norms=with_norms,
        )
    x = torch.randn(2, 2, 9, 9, dtype=torch.float64)
    lean = simplify(model, x)
    assert_same_outputs(model, lean, x)
    assert "branch.0" not in weighted_layers(lean)
    assert "branch.3" not in weighted_layers(lean)


def test_rows_that_sum_to_zero_are_alive() -> None:
    sobel = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]], dtype=torch.float64)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 3)).double().eval()
    with torch.no_grad():
        model[0].weight[:] = torch.stack([sobel, sobel.T])[:, None]
    x = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    lean = simplify(model, x)
    assert widths(lean) == widths(model)
    assert torch.equal(lean(x), model(x))


def test_what_is_left_alone_says_why() -> None:
    reasons = {"called twice": "called more than once", "tied": "tied"}
    for name, reason in reasons.items():
        _, lean, _ = shrunk(ZOO[name], 0.5, with_norms=True)
        plan = plan_of(lean)
        assert plan is not None
        assert any(reason in why for why in plan.left_alone.values()), name


# Plan, saving, loading


@pytest.mark.sampled(10)
@pytest.mark.parametrize("with_norms", [True, False])
@pytest.mark.parametrize("name", ZOO)
def test_a_lean_model_is_loaded_without_pickled_code(
    name: str, with_norms: bool, tmp_path: Path
) -> None:
    _, lean, inputs = shrunk(ZOO[name], 0.4, with_norms=with_norms)
    plan = plan_of(lean)
    assert plan is not None
    text = plan.to_json()
    assert SimplificationPlan.from_json(text) == plan
    assert SimplificationPlan.from_json(text).to_json() == text
    torch.save(lean.state_dict(), tmp_path / "lean.pt")
    loaded = apply(SimplificationPlan.from_json(text), ZOO[name].build().double().eval())
    loaded.load_state_dict(torch.load(tmp_path / "lean.pt", weights_only=True))
    for x in inputs:
        assert torch.equal(loaded(x), lean(x))


def test_make_plan_is_the_plan_that_simplify_follows() -> None:
    model, lean, inputs = shrunk(ZOO["resnet-8"], 0.5, with_norms=False)
    assert make_plan(model, inputs[0]) == plan_of(lean)
    assert plan_of(model) is None


def test_the_plan_prints_every_layer() -> None:
    model, _, inputs = shrunk(ZOO["resnet-8"], 0.5, with_norms=True)
    text = str(make_plan(model, inputs[0]))
    assert all(name in text for name in weighted_layers(model))


def test_deepcopy_of_a_lean_model() -> None:
    _, lean, inputs = shrunk(ZOO["resnet-8"], 0.5, with_norms=False)
    twin = copy.deepcopy(lean)
    assert torch.equal(twin(inputs[0]), lean(inputs[0]))
    assert plan_of(twin) == plan_of(lean)
    with torch.no_grad():
        next(twin.parameters()).add_(1)
    assert not torch.equal(next(twin.parameters()), next(lean.parameters()))


def test_layers_are_reached_without_lookups_that_fail_and_can_be_replaced() -> None:
    _, lean, inputs = shrunk(ZOO["resnet-8"], 0.5, with_norms=False)
    for twin in (lean, copy.deepcopy(lean)):
        assert "getattr(" not in twin.code
        assert "._modules['linear'](" in twin.code
    loaded = pickle.loads(pickle.dumps(lean))
    assert torch.equal(loaded(inputs[0]), lean(inputs[0]))
    lean.relu = nn.Identity()
    assert not torch.equal(loaded(inputs[0]), lean(inputs[0]))


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("name", ["mlp", "residual"])
def test_torch_jit_traces_a_lean_model(name: str, gradients: bool) -> None:
    """It compares two runs, of which the second records no gradients."""
    _, lean, inputs = shrunk(ZOO[name], 0.5, with_norms=True)
    assert name == "mlp" or plan_of(lean).edits_of(IndexedSum)
    with torch.set_grad_enabled(gradients), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, yet in use
        traced = torch.jit.trace(lean, inputs[0])
        torch.testing.assert_close(traced(inputs[0]), lean(inputs[0]))


@pytest.mark.parametrize("name", ["mlp", "residual"])
def test_pickles_and_copies_of_a_lean_model_keep_its_plan(name: str) -> None:
    _, lean, inputs = shrunk(ZOO[name], 0.5, with_norms=True)
    plan = plan_of(lean)
    assert plan is not None
    file = io.BytesIO()
    torch.save(lean, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    for twin in (loaded, copy.deepcopy(lean), copy.deepcopy(copy.deepcopy(lean))):
        assert plan_of(twin) == plan
        assert torch.equal(twin(inputs[0]), lean(inputs[0]))


def test_a_lean_model_can_be_simplified_again() -> None:
    model, lean, inputs = shrunk(ZOO["residual"], 0.4, with_norms=False)
    assert_same_outputs(model, simplify(lean, inputs[0]), inputs[1])


@pytest.mark.sampled(6)
@pytest.mark.parametrize("name", ZOO)
def test_a_lean_model_has_tensors_of_its_own(name: str) -> None:
    model, lean, _ = shrunk(ZOO[name], 0.2, with_norms=False)
    pointers = [
        {t.data_ptr() for t in (*net.parameters(), *net.buffers()) if t.numel()}
        for net in (model, lean)
    ]
    assert not pointers[0] & pointers[1]
    assert {p.requires_grad for p in lean.parameters()} <= {True}


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.lstm = nn.Linear(6, 5), nn.LSTM(5, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(self.fc(x))[0]


def test_a_recurrent_layer_that_stays_has_weights_of_its_own() -> None:
    """It knows them by two names."""
    model, x = Recurrent().double().eval(), torch.randn(2, 3, 6, dtype=torch.float64)
    kill(model, "fc", torch.arange(5) < 2, with_norms=False)
    lean = simplify(model, x)
    before = model(x)
    with torch.no_grad():
        for parameter in lean.lstm.parameters():
            parameter.zero_()
    assert torch.equal(model(x), before)
    assert not lean(x).any()


@pytest.mark.sampled(6)
@pytest.mark.parametrize("name", ZOO)
def test_what_dies_later_goes_as_if_it_had_died_at_once(name: str) -> None:
    model, lean, inputs = shrunk(ZOO[name], 0.3, with_norms=True)
    plans = plan_of(lean).layers
    for layer, dead in kill_neurons(lean, 0.3, generator(5), with_norms=True).items():
        neurons = torch.arange(neuron_count(model.get_submodule(layer)))
        kept = neurons[list(plans[layer].kept_outputs)] if layer in plans else neurons
        kill(model, layer, torch.isin(neurons, kept[dead]), with_norms=True)
        border = getattr(lean.get_submodule(layer), "border", None)
        if border is not None:  # what constants add is no bias of the neuron's own
            border[dead] = 0
    leaner = simplify(lean, inputs[0])
    # Groups that have lost different numbers of channels stay as they are from then on.
    ragged = any("RaggedConv" in reason for reason in plan_of(leaner).left_alone.values())
    assert ragged == (name == "grouped")
    assert ragged or parameter_count(leaner) == parameter_count(simplify(model, inputs[0]))
    for x in inputs:
        assert_same_outputs(model, leaner, x)


def test_a_lean_model_simplified_again_is_loaded_from_the_original(tmp_path: Path) -> None:
    """Its plan holds the plan before; folding BatchNorms in between changes nothing about that."""
    model, lean, inputs = shrunk(ZOO["resnet-8"], 0.4, with_norms=False)
    for first in (lean, fold_batchnorm(lean, inputs[0])):
        fewer = copy.deepcopy(first)
        kill_neurons(fewer, 0.3, generator(9), with_norms=False)
        leaner = simplify(fewer, inputs[0])
        assert parameter_count(leaner) < parameter_count(lean) < parameter_count(model)
        plan = plan_of(leaner)
        assert plan is not None
        assert plan.base == plan_of(lean)
        assert SimplificationPlan.from_json(plan.to_json()) == plan
        loaded = apply(plan, ZOO["resnet-8"].build().double())
        loaded = apply_folds(folds_of(leaner), loaded).eval()
        loaded.load_state_dict(leaner.state_dict())
        for x in inputs:
            assert torch.equal(loaded(x), leaner(x))
            assert_same_outputs(fewer, leaner, x)


def test_a_lean_model_trains() -> None:
    _, lean, inputs = shrunk(ZOO["resnet-8"], 0.5, with_norms=True)
    lean.train()
    lean(inputs[0]).square().mean().backward()
    assert all(p.grad is not None for p in lean.parameters() if p.requires_grad)


@pytest.mark.parametrize("training", [True, False])
def test_the_original_is_untouched_and_its_mode_kept(training: bool) -> None:
    model = model_of(ZOO["resnet-8"]).train(training)
    kill_neurons(model, 0.5, generator(), with_norms=True)
    before = copy.deepcopy(model.state_dict())
    lean = simplify(model, torch.randn(2, 3, 16, 16, dtype=torch.float64))
    assert lean.training is training
    assert all(module.training is training for module in lean.modules())
    assert all(module.training is training for module in model.modules())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


# Refusals


def test_a_plan_for_another_model_names_the_layer() -> None:
    plan = make_plan(LeNet300(), torch.randn(2, 784))
    with pytest.raises(ModelError, match="'fc1'"):
        apply(plan, LeNet300(in_features=100))
    with pytest.raises(ModelError, match="'fc1'"):
        apply(plan, tiny_mlp())
    lost = replace(plan, edits=(DropOperands("nowhere", (0,)),))
    with pytest.raises(ModelError, match="'nowhere'"):
        apply(lost, LeNet300())


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"version": 99}', '{"version": 1}', '{"version": 1, "layers": 3}']
)
def test_what_is_no_plan_is_refused(text: str) -> None:
    with pytest.raises(ModelError, match="not a simplification plan"):
        SimplificationPlan.from_json(text)


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) if x.sum() > 0 else self.fc(-x)


def test_an_untraceable_model_keeps_its_own_forward_and_says_why() -> None:
    model, x = Branching(), torch.randn(2, 3)
    lean = simplify(model, x)
    plan = plan_of(lean)
    assert plan is not None
    assert (type(lean), plan.representation) == (Branching, "module")
    assert "cannot trace Branching" in plan.reason
    assert torch.equal(lean(x), model(x))


def test_inputs_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ModelError, match=r"\(2, 5\)"):
        simplify(tiny_mlp(), torch.randn(2, 5))


COMPUTED = [
    (kind, place)
    for kind in (nn.BatchNorm1d, nn.LayerNorm, nn.PReLU)
    for place in ("0.weight", "0.bias", "1.weight", "1.bias")
    if (kind, place) != (nn.PReLU, "1.bias")  # it has none
]


def halved(layer: nn.Module, name: str) -> None:
    class Half(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x / 2

    parametrize.register_parametrization(layer, name, Half())


def half_masked(layer: nn.Module, name: str) -> None:
    prune.l1_unstructured(layer, name, 0.5)


@pytest.mark.sampled(8)
@pytest.mark.parametrize("compute", [halved, half_masked])
@pytest.mark.parametrize(("kind", "place"), COMPUTED)
def test_a_weight_that_is_computed_is_left_alone(
    kind: type[nn.Module], place: str, compute: Callable[[nn.Module, str], None]
) -> None:
    """A parametrisation, or a mask of torch.nn.utils.prune, of whichever parameter of a layer or a
    norm.
    """
    layers = nn.Linear(4, 6), kind(6), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)
    model = randomise(nn.Sequential(*layers).double(), generator()).eval()
    layer, _, name = place.partition(".")
    kill(model, "0", torch.arange(6) < 3, with_norms=False)
    kill(model, "2", torch.arange(5) < 2, with_norms=False)
    compute(model[int(layer)], name)
    x = torch.randn(3, 4, dtype=torch.float64, generator=generator(1))
    with torch.no_grad():
        model(x)  # torch's masks leave a tensor with a gradient behind, which cannot be copied
        lean = simplify(model, x)
    assert_same_outputs(model, lean, x)
    assert widths(lean)["2"][0] == 3
    plan = plan_of(lean)
    assert plan is not None
    assert "not a plain parameter" in plan.left_alone[layer]


def test_border_kernels_hold_at_another_resolution() -> None:
    # The constants are cut off by the padding: only a border kernel can be right at two
    # resolutions.
    model = randomise(padded("zeros").double(), generator()).eval()
    kill(model, "0", torch.arange(6) < 3, with_norms=False)
    lean = simplify(model, torch.randn(2, 2, 9, 8, dtype=torch.float64))
    plan = plan_of(lean)
    assert plan is not None
    assert plan.layers["2"].fold(BorderFold)
    for size in (3, 5, 17):
        assert_same_outputs(model, lean, torch.randn(1, 2, size, size + 1, dtype=torch.float64))


def test_frozen_parameters_stay_frozen() -> None:
    model = average_pool()
    model[0].weight.requires_grad_(False)
    kill(model, "0", torch.arange(8) < 3, with_norms=True)
    lean = simplify(model, torch.randn(2, 3, 8, 8))
    assert not lean.get_submodule("0").weight.requires_grad
    assert lean.get_submodule("4").weight.requires_grad


class Attending(nn.Module):
    """Attention without biases, of features of which some are constant."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 8)
        self.attention = nn.MultiheadAttention(8, 2, bias=False, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        y: Tensor = self.attention(x, x, x, need_weights=False)[0]
        return y


def unbiased() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3, bias=False))


def ragged() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.ReLU(), nn.Conv2d(8, 4, 1)
    )


@pytest.mark.parametrize(
    ("build", "dead", "shape"),
    [
        (unbiased, {"0": [1, 2]}, (2, 3, 8, 8)),
        (ragged, {"0": [1], "1": [0, 1, 5]}, (2, 3, 8, 8)),
        (Attending, {"embed": [1, 2]}, (2, 4, 5)),
    ],
)
def test_layers_of_a_frozen_model_that_get_a_bias_or_another_class_stay_frozen(
    build: Callable[[], nn.Module], dead: dict[str, list[int]], shape: tuple[int, ...]
) -> None:
    model = build().eval().requires_grad_(False)
    for name, neurons in dead.items():
        model.get_submodule(name).weight[neurons] = 0
    lean = simplify(model, torch.randn(shape))
    narrowed = plan_of(lean)
    assert narrowed is not None
    assert narrowed.neurons_removed
    assert set(dict(lean.named_parameters())) >= set(dict(model.named_parameters()))
    assert not any(parameter.requires_grad for parameter in lean.parameters())


@pytest.mark.parametrize("keep_class", [False, True])
def test_layers_that_the_user_keeps_in_evaluation_mode_stay_there(keep_class: bool) -> None:
    model = average_pool()
    kill(model, "0", torch.arange(8) < 3, with_norms=True)
    modes = {name: name in ("", "0", "4") for name, _ in model.named_modules()}
    for name, module in model.named_modules():
        module.training = modes[name]
    lean = simplify(model, torch.randn(2, 3, 8, 8), keep_class=keep_class)
    assert {
        name: module.training for name, module in lean.named_modules() if name in modes
    } == modes


def test_resnet_depth_is_kept_by_name() -> None:
    model = CifarResNet(8).double().eval()
    lean = simplify(model, torch.randn(2, 3, 8, 8, dtype=torch.float64))
    assert weighted_layers(lean).keys() == weighted_layers(model).keys()
    assert type(lean).__name__ == "CifarResNet"


def test_residual_constant_operand() -> None:
    """Dead channels of a branch that are non-zero constants are added to the stem."""
    model = randomise(Residual().double(), generator(5)).eval()
    kill(model, "branch.3", torch.ones(6, dtype=torch.bool), with_norms=False)
    x = torch.randn(2, 2, 7, 7, dtype=torch.float64)
    lean = simplify(model, x)
    assert "branch.0" not in weighted_layers(lean)
    assert_same_outputs(model, lean, x)


class Optional(nn.Module):
    """A model with a second input that may be left out."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor, extra: Tensor | None = None, *, twice: bool = False) -> Tensor:
        y = self.a(x)
        if extra is not None:
            y = y + self.b(extra)
        return self.head(y.relu()) * (2 if twice else 1)


def test_an_optional_argument_that_is_left_out_stays_out() -> None:
    model, x = Optional().double().eval(), torch.randn(4, 8, dtype=torch.float64)
    with torch.no_grad():
        model.a.weight[:6], model.a.bias[:6] = 0, 0
    lean = simplify(model, x)
    assert lean.get_submodule("a").out_features == 10
    torch.testing.assert_close(lean(x), model(x), rtol=0, atol=1e-12)
    assert plan_of(lean).constants == {"extra": None, "twice": False}
    again = apply(SimplificationPlan.from_json(plan_of(lean).to_json()), Optional().double())
    for copied in (copy.deepcopy(lean), again, pickle.loads(pickle.dumps(lean))):
        assert copied(x).shape == (4, 3)
        for more in ({"extra": x}, {"twice": True}):
            with pytest.raises(TypeError, match=next(iter(more))):
                copied(x, **more)


def test_an_optional_argument_that_is_given_is_followed() -> None:
    model, x = Optional().double().eval(), torch.randn(2, 4, 8, dtype=torch.float64).unbind()
    with torch.no_grad():
        for layer in (model.a, model.b):
            layer.weight[:6], layer.bias[:6] = 0, 0
    lean = simplify(model, x)
    assert lean.get_submodule("b").out_features == 10
    torch.testing.assert_close(lean(*x), model(*x), rtol=0, atol=1e-12)
