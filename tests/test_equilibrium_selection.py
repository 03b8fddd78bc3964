"""Selections of frozen neurons, each against its definition, written out in plain Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from equilibrium_samples import batch, network, sgd, train
from snello.equilibrium import (
    EquilibriumStep,
    FreezeOut,
    MatchedStochastic,
    NEq,
    ParameterBudget,
    Prefix,
    SelectiveUpdate,
    Settled,
    Stochastic,
    TimeBudget,
    Velocity,
    WatchedLayer,
)
from snello.errors import ConfigError

LAYERS = {"a": WatchedLayer(5, 4), "b": WatchedLayer(3, 40), "c": WatchedLayer(8, 2)}

similarities = st.lists(st.floats(-1, 1), min_size=1, max_size=12)


def observed(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: 1 - 0.1 * torch.rand(layer.neurons, generator=generator, dtype=torch.float64)
        for name, layer in LAYERS.items()
    }


# --- velocity
# -------------------------------------------------------------------------------------------


def paper(history: list[float], mu: float) -> list[float]:
    """v^t = (phi^t - phi^{t-1}) - mu v^{t-1}, from phi = 1 and v = 0."""
    velocities, last, velocity = [], 1.0, 0.0
    for phi in history:
        velocity = (phi - last) - mu * velocity
        last = phi
        velocities.append(velocity)
    return velocities


def released(history: list[float], mu: float) -> list[float]:
    """The steps of the authors' code, in their order."""
    velocities, buffer, last_delta = [], 0.0, 0.0
    for phi in history:
        delta = 1 - phi
        velocity = buffer + (last_delta - delta)
        buffer = mu * velocity - (last_delta - delta)
        last_delta = delta
        velocities.append(velocity)
    return velocities


@pytest.mark.parametrize(("formula", "reference"), [("paper", paper), ("released", released)])
@given(history=similarities, mu=st.floats(0, 0.99), eps=st.floats(0, 0.5))
@settings(max_examples=60, deadline=None)
def test_velocity_is_its_formula(
    formula: Any, reference: Callable[..., list[float]], history: list[float], mu: float, eps: float
) -> None:
    rule = Velocity(eps, mu, formula)
    for t, (phi, velocity) in enumerate(zip(history, reference(history, mu), strict=True), start=1):
        frozen = rule.select(
            {"layer": WatchedLayer(1, 1)}, {"layer": torch.tensor([phi], dtype=torch.float64)}
        )
        found = float(rule.velocity["layer"])
        assert found == pytest.approx(velocity, rel=1e-9, abs=1e-9 * t)
        assert rule.phi["layer"].tolist() == [phi]
        assert frozen["layer"].tolist() == [abs(found) < eps]


def test_the_two_formulas_disagree_on_steady_growth() -> None:
    """The released velocity is a smoothed second difference: it calls a steady change an
    equilibrium.
    """
    history = [0.1 + 0.02 * t for t in range(40)]
    assert paper(history, 0.5)[-1] == pytest.approx(0.02 / 1.5)
    assert released(history, 0.5)[-1] == pytest.approx(0, abs=1e-9)


def test_what_a_rule_shows_is_not_what_it_keeps() -> None:
    rule = Velocity()
    rule.select(LAYERS, observed(0))
    rule.velocity["a"].zero_()
    rule.phi["a"].zero_()
    assert rule.velocity["a"].count_nonzero() == 5
    assert rule.phi["a"].count_nonzero() == 5


# --- random baselines
# -----------------------------------------------------------------------------------


def shares(masks: dict[str, Tensor]) -> dict[str, int]:
    return {name: int(mask.sum()) for name, mask in masks.items()}


def test_stochastic_draws_the_share_anew_from_its_own_generator() -> None:
    model = network()
    state = torch.get_rng_state()
    method = SelectiveUpdate(model, sgd(model), batch()[0], Stochastic(0.4, seed=1))
    drawn = []
    for _ in range(3):
        method.step()
        drawn.append(method.frozen)
        assert all(int(mask.sum()) == int(0.4 * len(mask)) for mask in drawn[-1].values())
    assert not torch.equal(drawn[0]["4"], drawn[1]["4"])
    assert torch.equal(state, torch.get_rng_state())
    with pytest.raises(ConfigError, match="share"):
        Stochastic(1.5)


def test_stochastic_star_matches_a_finished_run() -> None:
    model = network()
    optimizer = sgd(model)
    neq = NEq(model, optimizer, batch()[0], eps=2e-2)
    run = []
    for _ in range(4):
        train(model, optimizer, 1)
        run.append(neq.step())
    frozen = [1 - step.total for step in run]
    assert min(frozen) < max(frozen)
    layers = {"wide": WatchedLayer(1000, 1)}
    mean, each = MatchedStochastic(run), MatchedStochastic(run, per_step=True)
    given_as_shares = MatchedStochastic(frozen, per_step=True)
    for share in [*frozen, frozen[-1]]:  # after the end of the run its last share stays
        assert shares(mean.select(layers, {}))["wide"] == int(1000 * sum(frozen) / 4 + 1e-9)
        masks = each.select(layers, {})["wide"]
        assert int(masks.sum()) == int(1000 * share + 1e-9)
        assert torch.equal(masks, given_as_shares.select(layers, {})["wide"])
    assert not mean.observes


@given(seeds=st.lists(st.integers(0, 99), min_size=1, max_size=6))
@settings(max_examples=20, deadline=None)
def test_stochastic_star_follows_the_running_mean_of_a_rule(seeds: list[int]) -> None:
    twin, matched = Velocity(0.02), MatchedStochastic(Velocity(0.02), seed=3)
    assert matched.observes
    frozen = 0
    for steps, seed in enumerate(seeds, start=1):
        frozen += sum(shares(twin.select(LAYERS, observed(seed))).values())
        expected = {n: frozen * layer.neurons // (16 * steps) for n, layer in LAYERS.items()}
        assert shares(matched.select(LAYERS, observed(seed))) == expected


@given(count=st.integers(1, 200), frozen=st.integers(0, 200))
@settings(max_examples=60, deadline=None)
def test_as_many_neurons_are_drawn_as_the_share_was_taken_from(count: int, frozen: int) -> None:
    """Also where 1 - 0.9 in floating point is less than a tenth."""
    frozen = min(frozen, count)
    layers, learning = {"a": WatchedLayer(count, 1)}, (count - frozen) / count
    for rule in (
        Stochastic(frozen / count),
        MatchedStochastic([EquilibriumStep(1, {"a": learning}, learning, 1.0, 2.0)]),
    ):
        assert shares(rule.select(layers, {})) == {"a": frozen}


def test_a_mask_for_no_layer_is_refused() -> None:
    class Misspelt(Stochastic):
        def select(self, *_: Any) -> dict[str, Tensor]:
            return {"conv": torch.ones(6, dtype=torch.bool)}

    update = SelectiveUpdate(network(), None, batch()[0], Misspelt(0.5))
    with pytest.raises(ConfigError, match="mask 'conv': no such watched layer"):
        update.step()


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: Settled(Velocity), "rule: must be a selection, .*not Velocity"),
        (lambda: TimeBudget(1.0, 0.9), "rule: must be a selection, .*not a float"),
        (lambda: NEq(network(), None, batch()[0]).apply({"0": [True] * 6}), "mask '0': .*a list"),
        (lambda: SelectiveUpdate(network(), None, batch()[0], Velocity), "selection: .*Velocity"),
        (lambda: MatchedStochastic([]), "run: it is empty"),
        (lambda: MatchedStochastic([0.5, 1.5]), "run: .*1.5"),
        (lambda: MatchedStochastic(Velocity(), per_step=True), "per_step"),
        (lambda: Prefix(-0.1), "share"),
        (lambda: Prefix(lambda step: 2.0).select(LAYERS, {}), "step 1.*2.0"),
        (lambda: FreezeOut(0), "steps"),
        (lambda: FreezeOut(10, t0=0), "t0"),
        (lambda: ParameterBudget(-1), "budget"),
        (lambda: ParameterBudget(1.5), "budget.*1.5"),
        (lambda: ParameterBudget(float("nan")), "budget"),
        (lambda: ParameterBudget(True), "budget"),
        (lambda: ParameterBudget(10, mu=2), "mu"),
    ],
)
def test_impossible_selections(build: Callable[[], Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        build()


# --- prefix
# ---------------------------------------------------------------------------------------------


class Backwards(nn.Module):
    """Registers its layers in the opposite of the order in which it calls them."""

    def __init__(self) -> None:
        super().__init__()
        self.third, self.second, self.first = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.third(self.second(self.first(x))))


def test_a_prefix_is_frozen_whole_and_in_forward_order() -> None:
    model = Backwards()
    method = SelectiveUpdate(
        model, sgd(model), torch.randn(3, 4), Prefix(lambda step: min(step, 3) / 3), warmup=1
    )
    expected = [{"first"}, {"first", "second"}, {"first", "second", "third"}]
    for names in [*expected, expected[-1]]:
        method.step()
        frozen = method.frozen
        assert {name for name, mask in frozen.items() if mask.all()} == names
        assert not any(mask.any() for name, mask in frozen.items() if name not in names)
    first, head = model.first.weight.detach().clone(), model.head.weight.detach().clone()
    optimizer = method.optimizer
    model(torch.randn(3, 4)).square().sum().backward()
    optimizer.step()
    assert torch.equal(model.first.weight, first)
    assert not torch.equal(model.head.weight, head)


@given(count=st.integers(1, 60), frozen=st.integers(0, 60))
@settings(max_examples=60, deadline=None)
def test_a_prefix_counts_layers_exactly(count: int, frozen: int) -> None:
    frozen = min(frozen, count)
    layers = {str(i): WatchedLayer(2, 1) for i in range(count)}
    masks = Prefix(frozen / count).select(layers, {})
    assert [bool(mask.all()) for mask in masks.values()] == [i < frozen for i in range(count)]


@pytest.mark.parametrize("cubed", [False, True])
@given(t0=st.floats(0.05, 1), layers=st.integers(1, 30))
@settings(max_examples=40, deadline=None)
def test_freezeout_stops_layer_after_layer(cubed: bool, t0: float, layers: int) -> None:
    """Layer i of n has stopped when its time t0 + (1 - t0) i / n, or its cube, has passed."""
    steps = 50
    schedule = FreezeOut(steps, t0, cubed)
    found = [schedule(step) for step in range(1, steps + 1)]
    assert found == sorted(found)
    assert found[-1] == 1
    for step, share in enumerate(found, start=1):
        times = [t0 + (1 - t0) * i / layers for i in range(1, layers + 1)]
        stops = [time**3 if cubed else time for time in times]
        if all(abs(stop - step / steps) > 1e-9 for stop in stops):
            assert int(share * layers + 1e-9) == sum(stop < step / steps for stop in stops)


# --- budget
# ---------------------------------------------------------------------------------------------


@given(
    budget=st.one_of(st.integers(0, 200), st.floats(0, 1)),
    seeds=st.lists(st.integers(0, 99), min_size=1, max_size=3),
)
@settings(max_examples=60, deadline=None)
def test_a_budget_is_spent_on_the_fastest_neurons_per_parameter(
    budget: int | float, seeds: list[int]
) -> None:
    rule, twin = ParameterBudget(budget, mu=0.3), Velocity(0, 0.3)
    for seed in seeds:
        frozen = rule.select(LAYERS, observed(seed))
        twin.select(LAYERS, observed(seed))
    line = [
        (abs(v) / LAYERS[name].parameters, LAYERS[name].parameters, bool(mask))
        for name in LAYERS
        for v, mask in zip(twin.velocity[name].tolist(), frozen[name].tolist(), strict=True)
    ]
    limit = budget if isinstance(budget, int) else budget * sum(cost for _, cost, _ in line)
    learning = [entry for entry in line if not entry[2]]
    resting = sorted((entry for entry in line if entry[2]), reverse=True)
    spent = sum(cost for _, cost, _ in learning)
    assert spent <= limit + 1e-6
    if learning and resting:
        assert min(learning)[0] >= resting[0][0]
    if resting:
        assert spent + resting[0][1] > limit - 1e-6  # the next in line would not have fitted
    assert rule.velocity.keys() == twin.velocity.keys()


def test_a_budget_counts_the_trained_parameters_of_a_neuron() -> None:
    model = network()
    model[0].bias.requires_grad_(False)
    optimizer = sgd(model)
    method = SelectiveUpdate(model, optimizer, batch()[0], ParameterBudget(100))
    train(model, optimizer, 2)
    method.step()
    each = {"0": 18, "1": 2, "3": 54, "4": 2, "7": 73}
    spent = sum(each[name] * int((~mask).sum()) for name, mask in method.frozen.items())
    assert 100 - max(each.values()) < spent <= 100


def test_a_step_of_a_run_says_what_it_froze() -> None:
    step = EquilibriumStep(3, {"a": 0.25}, 0.25, 1.0, 2.0)
    assert shares(MatchedStochastic([step]).select({"x": WatchedLayer(100, 1)}, {})) == {"x": 75}
