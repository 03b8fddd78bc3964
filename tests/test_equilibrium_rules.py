"""Rules that judge whole layers, smoothed similarities, and optimizer state of layers at rest."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from equilibrium_samples import batch, network, same, sgd, tensors, train
from snello.equilibrium import (
    GradientChange,
    NEq,
    Plasticity,
    Prefix,
    Selection,
    SelectiveUpdate,
    Settled,
    StableCKA,
    TimeBudget,
    Velocity,
    WatchedLayer,
)
from snello.errors import ConfigError

LAYERS = {"a": WatchedLayer(3, 1), "b": WatchedLayer(2, 1)}


def outputs(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(5, layer.neurons, 4, generator=generator, dtype=torch.float64)
        for name, layer in LAYERS.items()
    }


def frozen(masks: dict[str, Tensor]) -> set[str]:
    assert all(bool(m.all()) or not m.any() for m in masks.values())
    return {name for name, mask in masks.items() if mask.all()}


def test_plasticity_is_its_formula() -> None:
    rule, first, second = Plasticity(1e-6), outputs(1), outputs(2)
    rule.observe(first)
    assert frozen(rule.select(LAYERS, {})) == set()  # nothing to compare with yet
    turned = torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64))[0]
    # A rotation of the features keeps the relations between the samples.
    rule.observe({"a": (first["a"].flatten(1) @ turned * 3).view(5, 3, 4), "b": second["b"]})
    assert frozen(rule.select(LAYERS, {})) == {"a"}
    grams = []
    for values in (first["b"], second["b"]):
        rows = values.reshape(5, -1)
        gram = torch.tensor([[float(x @ y) for y in rows] for x in rows], dtype=torch.float64)
        grams.append(gram / gram.square().sum(1, keepdim=True).sqrt())
    expected = float((grams[0] - grams[1]).square().sum()) / 25
    assert rule.plasticity["b"] == pytest.approx(expected, rel=1e-12)


def test_cka_is_its_formula() -> None:
    rule, first, second = StableCKA(1e-9), outputs(1), outputs(2)
    rule.observe(first)
    assert rule.cka == pytest.approx({"a": 1.0, "b": 1.0})
    rule.observe(second)
    assert frozen(rule.select(LAYERS, {})) == set()
    x, y = (v["b"].flatten(1) - v["b"].flatten(1).mean(0) for v in (first, second))
    cross, own = (x.t() @ y).norm() ** 2, (x.t() @ x).norm() * (y.t() @ y).norm()
    assert rule.cka["b"] == pytest.approx(float(cross / own), rel=1e-12)
    rule.observe({"a": second["a"] * 2, "b": first["b"]})
    assert frozen(rule.select(LAYERS, {})) == {"a"}  # as far from the start as before
    rule.observe({name: torch.zeros_like(v) for name, v in first.items()})
    assert rule.cka == {"a": 0.0, "b": 0.0}


def test_gradient_change_is_its_formula() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2), nn.Linear(2, 2)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    rule = GradientChange(model)
    layers = {str(i): WatchedLayer(layer.out_features, 1) for i, layer in enumerate(model)}

    def interval(*values: float | None) -> set[str]:
        """Two steps, in which the gradients of each layer sum up to a value per entry."""
        for share in (0.25, 0.75):
            for layer, value in zip(model, values, strict=True):
                for p in layer.parameters():
                    p.grad = None if value is None else torch.full_like(p, share * value)
            optimizer.step()
        return frozen(rule.select(layers, {}))

    assert interval(1.0, -2.0, 4.0) == set()
    assert interval(1.1, -3.0, 8.0) == {"0"}  # 0.1 < 0.5 < 1
    assert rule.eta == pytest.approx({"0": 0.1, "1": 0.5, "2": 1.0})
    assert interval(None, -3.1, 16.0) == {"0", "1"}  # at rest without a gradient
    assert interval(5.0, None, 17.0) == {"1"}  # thawed: it has no last gradient
    with pytest.raises(ConfigError, match="quantile: must be in"):
        GradientChange(model, 1.5)


def test_gradients_of_weights_and_biases_may_come_in_two_steps() -> None:
    """As where one optimizer has the matrices and another all else, or a bias learns later."""
    found = []
    for apart in (False, True):
        model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)).double()
        matrices, others = ([p for p in model.parameters() if p.dim() == d] for d in (2, 1))
        groups = [matrices, others] if apart else [[*matrices, *others]]
        optimizers = [torch.optim.SGD(group, lr=0.0) for group in groups]
        rule = GradientChange(model)
        layers = {str(i): WatchedLayer(layer.out_features, 1) for i, layer in enumerate(model)}
        for interval in (1.0, 1.5):
            for step in range(3):
                for p in model.parameters():
                    still = step == 1 and p.dim() == 1
                    p.grad = None if still else torch.full_like(p, interval * (step + 1) + p.dim())
                for optimizer in optimizers:
                    optimizer.step()
            rule.select(layers, {})
        found.append(rule.eta)
    assert found[0] == pytest.approx(found[1])
    assert found[0].keys() == {"0", "1"}


def test_a_fused_step_that_overflowed_changes_no_sum() -> None:
    model = nn.Linear(2, 3)
    optimizer, rule = torch.optim.Adam(model.parameters(), fused=True), GradientChange(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for worst in (1.0, torch.inf):
        model.weight.grad, model.bias.grad = torch.ones(3, 2), torch.full((3,), worst)
        scaler.scale(torch.ones(()))
        scaler.step(optimizer)
        scaler.update()
    (summed,) = rule.state_dict()["sums"].values()
    assert torch.equal(summed, torch.full((9,), 0.25))  # unscaled


RULES: dict[str, Callable[[nn.Module], Selection]] = {
    "plasticity": lambda model: Settled(Plasticity(3e-3)),
    "cka": lambda model: Settled(StableCKA(1e-2)),
    "gradients": lambda model: Settled(GradientChange(model), share=1, scattered=False),
    "smoothed": lambda model: Velocity(2e-2, smoothing=0.7),
}


@pytest.mark.parametrize("name", RULES)
def test_layers_rest_and_a_resumed_run_is_the_same(name: str) -> None:
    def built() -> tuple[nn.Module, torch.optim.Optimizer, SelectiveUpdate]:
        model = network()
        model[8].p = 0.0
        optimizer = sgd(model)
        rule = RULES[name](model)
        return (
            model,
            optimizer,
            SelectiveUpdate(model, optimizer, batch()[0], rule, dispatch="fixed"),
        )

    def go_on(model: nn.Module, optimizer: torch.optim.Optimizer, update: SelectiveUpdate) -> list:
        found = []
        for _ in range(4):
            train(model, optimizer, 2)
            update.step()
            found.append(torch.cat([*update.frozen.values()]))
        return [*found, *tensors(model)]

    parts = built()
    train(*parts[:2], 2)
    parts[2].step()
    train(*parts[:2], 1)  # in the middle of an interval
    file = io.BytesIO()
    torch.save([part.state_dict() for part in parts], file)
    file.seek(0)
    twin = built()
    for part, state in zip(twin, torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    copied = copy.deepcopy(parts)
    found = go_on(*parts)
    assert same(found, go_on(*twin))
    assert same(found, go_on(*copied))
    assert sum(int(mask.sum()) for mask in found[:4]) > 0


def test_a_rule_of_representations_is_shown_the_probe_through_others() -> None:
    model = network()
    for selection in (Settled(Plasticity()), TimeBudget(1.0, Plasticity())):
        SelectiveUpdate(model, None, batch()[0], selection)
        assert set(selection.rule.state_dict()["last"]) == {"0", "1", "3", "4", "7"}


@pytest.mark.parametrize("build", [Plasticity, StableCKA])
def test_a_negative_bound_is_refused(build: Callable[[float], Selection]) -> None:
    for eps in (-1.0, float("nan")):
        with pytest.raises(ConfigError, match="eps: must be at least 0"):
            build(eps)


def test_a_smoothed_velocity_is_that_of_the_moving_average() -> None:
    rule, layer = Velocity(0.1, mu=0.5, smoothing=0.8), {"a": WatchedLayer(1, 1)}
    average, velocity = 1.0, 0.0
    for phi in (0.5, 0.9, 0.7):
        rule.select(layer, {"a": torch.tensor([phi], dtype=torch.float64)})
        last, average = average, 0.8 * average + 0.2 * phi
        velocity = average - last - 0.5 * velocity
        assert float(rule.velocity["a"]) == pytest.approx(velocity, rel=1e-12)
    model = network()
    assert NEq(model, None, batch()[0], smoothing=0.3).selection.smoothing == 0.3
    with pytest.raises(ConfigError, match="smoothing: must be in"):
        Velocity(smoothing=1.0)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_optimizer_state_of_layers_at_rest_is_dropped(kind: type[torch.optim.Optimizer]) -> None:
    options = {"momentum": 0.9} if kind is torch.optim.SGD else {}
    model = network()
    model[8].p = 0.0
    twin = copy.deepcopy(model)
    ends = []
    for one, drops in ((model, True), (twin, False)):
        optimizer = kind(one.parameters(), lr=0.01, weight_decay=0.1, **options)
        shares = iter((0.4, 0.0))
        rule = Prefix(lambda _, shares=shares: next(shares))
        update = SelectiveUpdate(one, optimizer, batch()[0], rule, dispatch="fixed")
        train(one, optimizer, 2)
        update.step()
        at_rest = [p for i in (0, 1) for p in one[i].parameters()]
        before = [p.detach().clone() for p in at_rest]
        if drops:
            each = sum(p.numel() * 8 for p in at_rest)
            steps = 4 * len(at_rest)  # Adam's counters, in float32
            assert update.drop_optimizer_state() == (
                each if kind is torch.optim.SGD else 2 * each + steps
            )
            assert update.drop_optimizer_state() == 0
        train(one, optimizer, 2)
        assert same(before, at_rest)
        optimizer.load_state_dict(optimizer.state_dict())
        update.step()
        train(one, optimizer, 2)
        assert not any(map(torch.equal, before, at_rest))
        ends.append(tensors(one))
    assert same(*ends) is (kind is torch.optim.SGD)
