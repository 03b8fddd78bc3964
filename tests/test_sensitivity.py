"""Sensitivities: the decay step to the last bit, and the sampled SeReNe against its definition."""

from __future__ import annotations

import copy
import io
import math
import warnings
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from seams.sensitivity import draw_classes
from snello.errors import ConfigError
from snello.sensitivity import Lobster, OutputSensitivity, SeReNe
from zoo import CalledTwice


def mlp(inplace: bool = False) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 6),
        nn.ReLU(inplace),
        nn.Linear(6, 5),
        nn.LeakyReLU(0.1, inplace),
        nn.Linear(5, 3),
    )
    return model.double()


def convnet(inplace: bool = False) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.ReLU(inplace),
        nn.Conv2d(4, 3, 3),
        nn.Sigmoid(),
        nn.Flatten(),
        nn.Linear(12, 3),
    ).double()


MODELS: dict[str, tuple[Callable[..., nn.Module], tuple[int, ...]]] = {
    "mlp": (mlp, (4, 4)),
    "convnet": (convnet, (3, 2, 6, 6)),
}


def inputs_of(name: str) -> Tensor:
    return torch.randn(
        MODELS[name][1], dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )


def observed(serene: SeReNe, model: nn.Module, x: Tensor, times: int = 1) -> dict[str, Tensor]:
    for _ in range(times):
        serene.observe(model(x))
    return serene.sensitivity()


def full_sensitivity(model: nn.Module, x: Tensor, name: str) -> Tensor:
    """The definition, by a plain double loop over examples and classes: shape ``(neurons,)``."""
    captured: list[Tensor] = []
    handle = model.get_submodule(name).register_forward_hook(lambda m, i, y: captured.append(y))
    total = torch.zeros(())
    for example in range(len(x)):
        captured.clear()
        outputs = model(x[example : example + 1])[0]
        for k in range(len(outputs)):
            (gradient,) = torch.autograd.grad(outputs[k], captured[0], retain_graph=True)
            per_position = gradient[0].abs().reshape(gradient.shape[1], -1)
            total = total + per_position.mean(1) / (len(x) * len(outputs))
    handle.remove()
    return total


# Lobster


@pytest.mark.parametrize("lmbda", [0.25, 0.3, 1e-4])
def test_lobster_is_the_formula_to_the_last_bit(lmbda: float) -> None:
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(48, 3)
    ).double()
    lobster = Lobster(model, lmbda)
    (3 * model(inputs_of("convnet")).square().sum()).backward()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    lobster.step()
    shares = set()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        flat = zip(
            before[name].flatten(),
            parameter.grad.flatten(),
            parameter.detach().flatten(),
            strict=True,
        )
        for w, g, found in flat:
            share = max(0.0, 1 - abs(g.item()))
            shares.add((share > 0) + (share == 1))
            assert found.item() == w.item() - lmbda * w.item() * share
    assert shares >= {0, 1}  # some decay, some are too sensitive to


def test_an_overflow_of_scaled_gradients_decays_nothing() -> None:
    layer = nn.Linear(3, 1, bias=False)
    before = layer.weight.detach().clone()
    layer.weight.grad = torch.tensor([[math.nan, math.inf, -math.inf]])
    Lobster(layer, 0.5).step()
    assert torch.equal(layer.weight, before)


def test_lobster_reports_gradient_magnitudes() -> None:
    model = mlp()
    lobster = Lobster(model)
    assert lobster.sensitivity() == {}
    model(inputs_of("mlp")).sum().backward()
    assert lobster.sensitivity().keys() == dict(model.named_parameters()).keys()
    for name, p in model.named_parameters():
        assert p.grad is not None
        assert torch.equal(lobster.sensitivity()[name], p.grad.abs())


def test_lobster_leaves_what_it_knows_nothing_about() -> None:
    model = mlp()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with pytest.warns(UserWarning, match="no parameter has a gradient"):
        Lobster(model, 0.5).step()
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    lobster = Lobster(model, 0.5, exclude=["2"])
    (0.01 * model(inputs_of("mlp")).sum()).backward()
    lobster.step()
    changed = {name for name, p in model.named_parameters() if not torch.equal(before[name], p)}
    assert changed == {"0.weight", "0.bias", "4.weight", "4.bias"}


def test_lobster_decays_tied_weights_once() -> None:
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)).double()
    model[1].weight = model[0].weight
    before = model[0].weight.detach().clone()
    model[0].weight.grad = torch.zeros_like(before)
    Lobster(model, 0.25).step()
    assert torch.equal(model[0].weight, before - 0.25 * before)


# SeReNe


@pytest.mark.parametrize("name", MODELS)
def test_serene_converges_to_the_full_sum_over_classes(name: str) -> None:
    build, _ = MODELS[name]
    model, x = build(), inputs_of(name)

    def error(draws: int) -> float:
        # Many copies of the batch are many draws per example.
        serene = SeReNe(model, seed=3)
        found = observed(serene, model, x.repeat(draws, *[1] * (x.dim() - 1)))
        serene.remove()
        expected = {layer: full_sensitivity(model, x, layer) for layer in found}
        assert len(found) == 2
        return max(float((found[n] - expected[n]).norm() / expected[n].norm()) for n in found)

    few, many = error(64), error(64 * 64)
    assert many < 0.05
    assert many < 0.5 * few


def test_serene_decays_rows_by_their_insensitivity() -> None:
    model, x = mlp(), inputs_of("mlp")
    serene = SeReNe(model, 0.25)
    found = observed(serene, model, x)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    serene.step()
    for name, p in model.named_parameters():
        layer, _, kind = name.partition(".")
        expected = before[name]
        if kind == "weight" and layer in found:
            expected = expected - 0.25 * (expected * (1 - found[layer]).clamp(min=0)[:, None])
        assert torch.equal(p, expected)
    assert not torch.equal(before["0.weight"], model[0].weight)


@pytest.mark.parametrize("name", MODELS)
def test_in_place_activations_change_nothing(name: str) -> None:
    build, _ = MODELS[name]
    found = [
        observed(SeReNe(m), m, inputs_of(name)) for m in (build(inplace=False), build(inplace=True))
    ]
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][n], found[1][n]) for n in found[0])
    assert all(s.any() for s in found[0].values())


def test_observing_changes_no_gradient_and_no_weight() -> None:
    gradients = []
    for observing in (False, True):
        model = mlp()
        serene = SeReNe(model)
        outputs = model(inputs_of("mlp"))
        if observing:
            serene.observe(outputs)
            assert all(p.grad is None for p in model.parameters())
        outputs.square().mean().backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_observations_before_a_step_are_averaged() -> None:
    model, x = mlp(), inputs_of("mlp")
    serene, single = SeReNe(model, every=1, seed=5), SeReNe(model, every=1, seed=5)
    parts = []
    for _ in range(3):
        outputs = model(x)
        serene.observe(outputs)
        single.observe(outputs)
        parts.append(single.sensitivity())
        single.step()
    for name, value in serene.sensitivity().items():
        assert not torch.equal(parts[0][name], parts[1][name])
        torch.testing.assert_close(value, sum(p[name] for p in parts) / 3, rtol=1e-12, atol=0)


def test_every_nth_call_observes() -> None:
    model, x = mlp(), inputs_of("mlp")
    serene = SeReNe(model, 0.0, every=3)
    seen = []
    for _ in range(7):
        serene.observe(model(x))
        serene.step()
        seen.append(serene.sensitivity()["0"].clone())
    fresh = [not torch.equal(a, b) for a, b in pairwise(seen)]
    assert fresh == [False, False, True, False, False, True]


def test_the_head_is_excluded_by_default() -> None:
    model, x = mlp(), inputs_of("mlp")
    assert observed(SeReNe(model), model, x).keys() == {"0", "2"}
    assert observed(SeReNe(model, exclude=()), model, x).keys() == {"0", "2", "4"}
    assert observed(SeReNe(model, exclude=["0"]), model, x).keys() == {"2", "4"}


def test_the_head_is_as_sensitive_as_its_share() -> None:
    # An output is 1/C sensitive to itself: of B draws, those of class k.
    model, x = mlp(), inputs_of("mlp").repeat(2000, 1)
    found = observed(SeReNe(model, exclude=()), model, x)["4"]
    torch.testing.assert_close(
        found, torch.full((3,), 1 / 3, dtype=torch.float64), rtol=0, atol=0.03
    )
    torch.testing.assert_close(found.sum(), torch.tensor(1.0, dtype=torch.float64))


@pytest.mark.parametrize("examples", [None, 3])
def test_forwards_without_gradients_are_not_observed(examples: int | None) -> None:
    model, x = mlp(), inputs_of("mlp")
    expected = observed(SeReNe(model, examples=examples), model, x)
    serene = SeReNe(model, every=1, examples=examples)
    outputs = model(x)
    with torch.no_grad():
        model(-x)  # the validation between a forward and its observation
    serene.observe(outputs)
    found = serene.sensitivity()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_resumed_run_repeats_the_draws() -> None:
    model, x = mlp(), inputs_of("mlp")
    serene = SeReNe(model, 0.0, every=2, seed=7)
    observed(serene, model, x, 3)
    serene.step()
    buffer = io.BytesIO()
    torch.save(serene.state_dict(), buffer)
    buffer.seek(0)
    resumed = SeReNe(model, 0.0, every=2, seed=7)
    resumed.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(resumed.sensitivity()["0"], serene.sensitivity()["0"])
    for _ in range(4):
        outputs = model(x)
        serene.observe(outputs)
        resumed.observe(outputs)
        assert torch.equal(resumed.sensitivity()["0"], serene.sensitivity()["0"])
        serene.step()
        resumed.step()


def test_seeds_differ_and_the_global_generator_is_left_alone() -> None:
    model, x = mlp(), inputs_of("mlp")
    torch.manual_seed(0)
    state = torch.get_rng_state()
    a, b, c = (observed(SeReNe(model, seed=seed), model, x)["0"] for seed in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_layer_called_twice_is_one_neuron_at_more_positions() -> None:
    torch.manual_seed(0)
    model = CalledTwice().double()
    x = torch.randn(4, 6, dtype=torch.float64)
    captured: list[Tensor] = []
    serene = SeReNe(model, seed=2)
    model.shared.register_forward_hook(lambda m, i, y: captured.append(y))
    outputs = model(x)
    serene.observe(outputs)
    drawn = draw_classes(4, 3, seed=2, call=0, group=None)
    gradients = torch.autograd.grad(outputs.gather(1, drawn).sum(), captured)
    expected = torch.cat([g.abs() for g in gradients]).mean(0)
    torch.testing.assert_close(serene.sensitivity()["shared"], expected, rtol=1e-12, atol=0)


def test_a_layer_that_does_not_reach_the_outputs_is_insensitive() -> None:
    class Aside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.out = nn.Linear(4, 3), nn.Linear(4, 2), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            self.b(x)
            return self.out(self.a(x))

    model = Aside().double()
    found = observed(SeReNe(model), model, inputs_of("mlp"))
    assert torch.equal(found["b"], torch.zeros(2, dtype=torch.float64))
    assert found["a"].all()


def test_remove_takes_every_hook_out() -> None:
    model, x = mlp(), inputs_of("mlp")
    serene = SeReNe(model)
    assert any(m._forward_hooks for m in model.modules())
    assert model._forward_pre_hooks
    serene.remove()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert observed(serene, model, x) == {}


# Refusals


@pytest.mark.parametrize("method", [Lobster, SeReNe])
@pytest.mark.parametrize("lmbda", [-0.1, 1.0, float("nan"), float("inf")])
def test_lmbda_out_of_range_is_refused(method: type, lmbda: float) -> None:
    with pytest.raises(ConfigError, match=f"not {lmbda}"):
        method(mlp(), lmbda)


@pytest.mark.parametrize("method", [Lobster, SeReNe])
def test_an_unknown_layer_is_refused_with_those_that_exist(method: type) -> None:
    with pytest.raises(ConfigError, match=r"'7'.*0, 2, 4"):
        method(mlp(), exclude=["7"])


def test_every_out_of_range_is_refused() -> None:
    with pytest.raises(ConfigError, match="not 0"):
        SeReNe(mlp(), every=0)


@pytest.mark.parametrize("method", [SeReNe, OutputSensitivity])
def test_outputs_of_another_shape_or_without_graph_are_refused(method: Any) -> None:
    model, x = mlp(), inputs_of("mlp")
    with pytest.raises(ConfigError, match=r"\(12,\)"):
        method(model).observe(model(x).flatten())
    with pytest.raises(ConfigError, match="requires_grad=False"):
        method(model).observe(model(x).detach())
    for dim in (0, -2, 2):
        with pytest.raises(ConfigError, match=f"dimension {dim}"):
            method(model, class_dim=dim).observe(model(x))


@pytest.mark.parametrize(
    ("options", "value"),
    [({"estimate": "half"}, "'half'"), ({"examples": 0}, "0"), ({"classes_per_pass": 0}, "0")],
)
def test_bad_options_are_refused(options: dict[str, Any], value: str) -> None:
    with pytest.raises(ConfigError, match=f"not {value}"):
        SeReNe(mlp(), **options)


@pytest.mark.parametrize(
    "build",
    [
        lambda m: Lobster(m, 0.1),
        lambda m: SeReNe(m, 0.1, every=1, exclude=()),
        lambda m: SeReNe(m, 0.1, every=1, examples=3),
        lambda m: OutputSensitivity(m, 0.1, every=1),
    ],
    ids=["LOBSTER", "SeReNe", "SeReNe, some examples", "output"],
)
def test_a_copy_with_its_model_goes_on_alike(build: Callable[[nn.Module], Any]) -> None:
    """The copy observes the copied model and decays it; the original is left alone."""
    model = mlp()
    method = build(model)
    x = torch.randn(7, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def trained(net: nn.Module, own: Any) -> list[Tensor]:
        outputs = net(x)
        own.observe(outputs)
        net.zero_grad()
        outputs.square().sum().backward()
        own.step()
        return [p.detach().clone() for p in net.parameters()]

    trained(model, method)
    twin, own = copy.deepcopy((model, method))
    before = [p.detach().clone() for p in model.parameters()]
    decayed = trained(twin, own)
    assert not all(map(torch.equal, decayed, before))
    assert all(map(torch.equal, before, model.parameters()))
    assert all(map(torch.equal, decayed, trained(model, method)))


def test_a_step_without_a_gradient_is_reported_once() -> None:
    """Called after the gradients were zeroed, LOBSTER would be plain training without a word."""
    model = mlp()
    lobster = Lobster(model, 0.1)
    with pytest.warns(UserWarning, match="before the gradients are zeroed"):
        lobster.step()
    with warnings.catch_warnings(action="error"):
        lobster.step()
        frozen = mlp().requires_grad_(False)
        Lobster(frozen, 0.1).step()


@pytest.mark.parametrize("method", [SeReNe, OutputSensitivity])
def test_an_empty_batch_and_half_a_step_are_refused(method: Any) -> None:
    model = mlp()
    with pytest.raises(ConfigError, match=r"got shape \(0, 3\)"):
        method(model).observe(model(torch.empty(0, 4, dtype=torch.float64)))
    with pytest.raises(ConfigError, match=r"at least 1, not 1\.5"):
        method(model, every=1.5)
