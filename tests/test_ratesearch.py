"""The smallest stream that keeps the bound: what comes out was decoded, evaluated, and is what it
says.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seams.search import (
    Correction,
    Probe,
    coded_tensors,
    distance,
    first_below,
    fisher,
    with_tensors,
)
from snello import compress, decompress
from snello.codec import CodecSettings, decode, encode
from snello.errors import ConfigError
from snello.search.rate import RateSearch, search_rate
from snello.simplification import folds_of

pytest.importorskip("nncodec", reason="the extra nnc is not installed")


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(2, 12, 3, bias=False), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 10, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(40, 5),
    )  # fmt: skip
    norm = model[1]
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.normal_(0, 0.3)
    norm.running_var.uniform_(0.5, 2)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
        norm.bias.normal_(0, 0.5)
    return model.eval()


INPUTS = torch.randn(96, 2, 6, 6, generator=torch.Generator().manual_seed(1))


def far_from(model: nn.Module) -> Callable[[nn.Module], float]:
    """Mean squared distance of the outputs from the model's, over their variance."""
    with torch.no_grad():
        target = model(INPUTS)
    return lambda other: (F.mse_loss(other(INPUTS), target) / target.var()).item()


@pytest.fixture(scope="module")
def found() -> RateSearch:
    model = network()
    return search_rate(model, far_from(model), max_drop=1e-3, calibration=INPUTS)


def test_what_is_returned_was_decoded_evaluated_and_measured(found: RateSearch) -> None:
    stream = encode(coded_tensors(found.model), found.settings)
    assert len(stream) == found.bytes
    assert found.after == far_from(network())(found.decoded())
    assert found.before <= found.after <= found.bound == found.before + 1e-3
    decoded = with_tensors(found.model, decode(stream))
    assert torch.equal(decoded(INPUTS), found.decoded()(INPUTS))


def test_the_container_holds_it_exactly(found: RateSearch) -> None:
    content = decompress(compress(found.model.state_dict(), found.settings))
    assert content.settings == found.settings
    twin = copy.deepcopy(found.model)
    twin.load_state_dict(content.tensors)
    assert torch.equal(twin(INPUTS), found.decoded()(INPUTS))


def test_one_per_tensor_beats_one_for_all_and_never_loses(found: RateSearch) -> None:
    assert found.one_qp is not None
    assert found.per_tensor is not None
    assert found.bytes == min(found.one_qp.bytes, found.per_tensor.bytes)
    assert found.method == "per tensor"
    assert found.bytes < found.one_qp.bytes
    assert set(found.settings.qp_of) == set(coded_tensors(found.model))


def test_the_trail_is_whole(found: RateSearch) -> None:
    assert found.evaluations == len(found.trail) + 1
    assert all(trial.passed == (trial.value <= found.bound) for trial in found.trail)
    passed = [trial.bytes for trial in found.trail if trial.passed]
    assert found.bytes == min(passed)
    assert {trial.folded for trial in found.trail} == {True, False}
    assert {trial.settings.dependent_quantisation for trial in found.trail} == {True, False}


def test_the_same_input_gives_the_same_result_and_the_model_is_left_alone(
    found: RateSearch,
) -> None:
    model = network()
    before, state = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    model.train()
    again = search_rate(model, far_from(network()), max_drop=1e-3, calibration=INPUTS)
    assert model.training
    assert again.settings == found.settings
    assert [t.value for t in again.trail] == [t.value for t in found.trail]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_without_calibration_there_is_one_parameter_and_the_next_coarser_fails() -> None:
    model = network()
    evaluate = far_from(model)
    one = search_rate(model, evaluate, max_drop=1e-3, dependent_quantisation=False)
    assert one.method == "one qp"
    assert one.per_tensor is None
    assert not one.settings.qp_of
    assert not one.folded
    tried = {trial.settings.qp: trial.passed for trial in one.trail}
    assert tried[one.settings.qp]
    assert tried[one.settings.qp + 1] is False
    assert all(
        torch.equal(a, b)
        for a, b in zip(one.model.state_dict().values(), model.state_dict().values(), strict=True)
    )


def test_an_accuracy_is_kept_from_below() -> None:
    model = network()
    with torch.no_grad():
        labels = model(INPUTS).argmax(1)

    def accuracy(other: nn.Module) -> float:
        return float((other(INPUTS).argmax(1) == labels).float().mean())

    kept = search_rate(model, accuracy, max_drop=0.05, higher_is_better=True)
    assert kept.before == 1
    assert kept.after >= kept.bound == 0.95
    tighter = search_rate(model, accuracy, max_drop=0.0, higher_is_better=True)
    assert tighter.after == 1
    assert tighter.bytes > kept.bytes


def test_zeros_stay_zero_where_asked() -> None:
    model = network()
    with torch.no_grad():
        for layer in (model[0], model[3], model[6]):
            weight: Tensor = layer.weight  # type: ignore[assignment, union-attr]
            weight[torch.rand(weight.shape, generator=torch.Generator().manual_seed(2)) < 0.6] = 0
    evaluate = far_from(model)
    kept = search_rate(model, evaluate, max_drop=1e-3, calibration=INPUTS, keep_zeros=True)
    weights = {name: t for name, t in coded_tensors(kept.model).items() if t.dim() > 1}
    decoded = coded_tensors(kept.decoded())
    assert sum(int((t == 0).sum()) for t in weights.values()) > 600
    assert not any(decoded[name][t == 0].any() for name, t in weights.items())
    assert not any(trial.settings.dependent_quantisation for trial in kept.trail)


def test_folding_is_chosen_by_size_and_recorded() -> None:
    model = network()
    sizes = {}
    for fold in (True, False, None):
        result = search_rate(
            model, far_from(model), max_drop=1e-3, calibration=INPUTS, fold=fold, per_tensor=False,
            dependent_quantisation=False,
        )  # fmt: skip
        assert folds_of(result.model) == ({"1": "0"} if result.folded else {})
        sizes[fold] = result.bytes
        assert fold in (result.folded, None)
    assert sizes[None] == min(sizes.values())


def test_tied_weights_get_one_parameter() -> None:
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)
    ).eval()
    model[2].weight = model[0].weight
    x = torch.randn(64, 8)
    target = model(x).detach()
    tied = search_rate(
        model, lambda m: float(F.mse_loss(m(x), target) / target.var()), max_drop=1e-2, calibration=x,
        dependent_quantisation=False,
    )  # fmt: skip
    assert tied.per_tensor is not None
    table = tied.per_tensor.settings.qp_of
    assert table["0.weight"] == table["2.weight"]
    assert tied.model[2].weight is tied.model[0].weight  # type: ignore[index, union-attr]


class WithTable(nn.Module):
    """A buffer for which no slope is known, an output that is no tensor, and two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 2)
        self.table: Tensor
        self.register_buffer("table", torch.randn(8, generator=torch.Generator().manual_seed(4)))

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        return {"scores": self.second(F.relu(self.first(x + y)) * self.table)}


def test_buffers_without_a_slope_are_probed() -> None:
    torch.manual_seed(5)
    model, x, y = WithTable().eval(), torch.randn(32, 6), torch.randn(32, 6)
    target = model(x, y)["scores"].detach()
    probed = search_rate(
        model,
        lambda m: float(F.mse_loss(m(x, y)["scores"], target)),
        max_drop=1e-3,
        calibration=[(x[:16], y[:16]), (x[16:], y[16:])],
        dependent_quantisation=False,
    )
    assert probed.probes > 3
    assert probed.per_tensor is not None
    assert "table" in probed.per_tensor.settings.qp_of


# What the precision of a tensor is worth


@pytest.mark.parametrize("classes", [5, 1])
def test_curvature_predicts_what_a_small_error_does(classes: int) -> None:
    """Against the definition: the distance of the outputs, in float64, with one tensor a little
    wrong.
    """
    model = network().double()
    if classes == 1:
        model[6] = nn.Linear(40, 1).double()
    x = INPUTS.double()
    curvature = fisher(model, [x.repeat(8, 1, 1, 1)])
    assert set(curvature) == set(coded_tensors(model))
    probe = Probe(model, [x])
    generator = torch.Generator().manual_seed(6)
    for name, tensor in coded_tensors(model).items():
        errors = [1e-4 * torch.randn(tensor.shape, generator=generator).double() for _ in range(30)]
        real = sum(probe.cost({name: tensor + e}) for e in errors)
        predicted = sum(float((e.square() * curvature[name]).sum()) / 2 for e in errors)
        assert predicted == pytest.approx(real, rel=0.5), name


def test_distance_is_a_divergence_or_a_relative_error() -> None:
    a = torch.tensor([[0.3, 1.2, -0.4], [2.0, 0.1, 0.1]])
    b = a + torch.tensor([[0.1, 0.0, -0.2], [0.0, 0.5, 0.0]])
    p, q = a.double().softmax(1), b.double().softmax(1)
    assert distance(a, b) == pytest.approx(float((p * (p / q).log()).sum() / 2))
    assert distance(a, a) == 0
    assert distance(a, a + 3) == pytest.approx(0, abs=1e-12)  # the classes do not change
    c = torch.randn(4, 3, 2, 2)
    assert distance(c, 2 * c) == pytest.approx(
        float(c.double().square().mean() / c.double().var(correction=0))
    )
    assert distance(a, b / 0) == math.inf


def test_a_probe_leaves_the_model_as_it_was() -> None:
    model = network()
    probe = Probe(model, [INPUTS])
    assert probe.cost({"0.weight": torch.zeros_like(model[0].weight)}) > 0  # type: ignore[arg-type]
    assert probe.cost({}) == 0
    assert probe.cost({"0.weight": torch.full((12, 2, 3, 3), torch.nan)}) == math.inf
    assert probe.cost({}) == 0


# Correction


def _shifted(model: nn.Sequential) -> nn.Sequential:
    """A stand-in for quantisation whose errors have a mean."""
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for index in (0, 3, 6):
            twin[index].weight += 0.03  # type: ignore[operator]
    return twin


def test_correction_brings_the_means_back() -> None:
    model = network().double()
    x = INPUTS.double()
    twin = _shifted(model)
    worse = F.mse_loss(twin(x), model(x)).item()
    correction = Correction(model, [x], bias=True, batchnorm=True)
    changed = correction.corrected(copy.deepcopy(twin), coded_tensors(model))
    assert set(changed) == {"1.running_mean", "1.running_var", "3.bias", "6.bias"}
    corrected = with_tensors(twin, changed)
    assert (corrected(x).mean(0) - model(x).mean(0)).abs().max() < 1e-12
    assert F.mse_loss(corrected(x), model(x)).item() < 0.5 * worse
    seen: list[Tensor] = []
    for net in (model, corrected):
        net[3].register_forward_hook(lambda _m, _i, out: seen.append(out.mean((0, 2, 3))))
        net(x)
    assert (seen[0] - seen[1]).abs().max() < 1e-12


def test_without_an_error_there_is_nothing_to_correct() -> None:
    """However far the calibration inputs are from what the statistics were estimated on."""
    model = network().double()
    tensors = coded_tensors(model)
    correction = Correction(model, [INPUTS.double() * 3 + 5], bias=True, batchnorm=True)
    for name, value in correction.corrected(copy.deepcopy(model), tensors).items():
        assert torch.allclose(value, tensors[name], rtol=1e-12, atol=1e-12), name


def test_layers_called_twice_are_left_alone() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.last = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.layer(self.layer(x)))  # type: ignore[no-any-return]

    model = Twice().double()
    correction = Correction(model, [torch.randn(8, 4).double()], bias=True, batchnorm=True)
    assert set(correction.corrected(copy.deepcopy(model), coded_tensors(model))) == {"last.bias"}


def test_correction_makes_the_stream_smaller() -> None:
    model = network()
    plain, corrected = (
        search_rate(
            model, far_from(model), max_drop=3e-3, calibration=INPUTS, per_tensor=False, fold=False,
            dependent_quantisation=False, correct_bias=on, refresh_batchnorm=on,
        )
        for on in (False, True)
    )  # fmt: skip
    assert corrected.bytes <= plain.bytes


# Errors


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_drop": -1.0}, ["max_drop=-1.0", "0 or more"]),
        ({"max_drop": math.nan}, ["max_drop=nan"]),
        ({"per_tensor": True}, ["per_tensor=True", "calibration"]),
        ({"fold": True}, ["fold=True", "calibration"]),
        ({"correct_bias": True}, ["correct_bias=True", "calibration"]),
        ({"calibration": []}, ["no batch"]),
        ({"calibration": [(INPUTS, 3)]}, ["tuple", "without labels"]),
        ({"keep_zeros": True, "dependent_quantisation": True}, ["keep_zeros", "dependent"]),
        ({"settings": CodecSettings(qp_of={"a": 1})}, ["qp_of"]),
    ],
)
def test_options_are_checked(options: dict[str, object], words: list[str]) -> None:
    model = network()
    with pytest.raises(ConfigError) as caught:
        search_rate(model, far_from(model), **{"max_drop": 1e-3, **options})  # type: ignore[arg-type]
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
    ("evaluate", "words"),
    [
        (lambda m: None, ["None", "one number"]),
        (lambda m: math.nan, ["nan", "before compression"]),
        (lambda m: torch.ones(2), ["Tensor", "one number"]),
    ],
)
def test_evaluate_must_return_a_number(
    evaluate: Callable[[nn.Module], float], words: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        search_rate(network(), evaluate, max_drop=1e-3)
    assert all(word in str(caught.value) for word in words)


def test_nothing_to_quantise() -> None:
    with pytest.raises(ConfigError, match="ReLU has no floating-point tensor"):
        search_rate(nn.ReLU(), lambda m: 0.0, max_drop=1.0)


def test_a_bound_that_cannot_be_kept_says_by_how_much() -> None:
    calls: list[int] = []

    def only_the_original(model: nn.Module) -> float:
        calls.append(1)
        return 1.0 if len(calls) == 1 else 1.25 if len(calls) < 99 else 1.0

    with pytest.raises(
        ConfigError, match=r"returns 1 before coding, 1\.1 is allowed.*has 1\.25.*raise max_drop"
    ):
        search_rate(network(), only_the_original, max_drop=0.1)


def test_nan_never_passes() -> None:
    calls: list[int] = []

    def then_nan(model: nn.Module) -> float:
        calls.append(1)
        return 0.0 if len(calls) == 1 else math.nan

    for higher in (True, False):
        calls.clear()
        with pytest.raises(ConfigError, match=r"\) has nan; raise"):
            search_rate(network(), then_nan, max_drop=1.0, higher_is_better=higher)


def test_first_below_is_the_first() -> None:
    sizes = [9, 7, 7, 4, 1]
    for limit in range(12):
        expected = next((i for i, size in enumerate(sizes) if size < limit), 5)
        assert first_below(lambda i: sizes[i], limit, range(5)) == expected
