"""A budget of measured time, and the learning rate that follows velocities."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from equilibrium_samples import batch, network, same, sgd, train
from seams.equilibrium import worth_module
from snello.equilibrium import (
    GradientChange,
    NEq,
    NeVe,
    PhaseTiming,
    Prefix,
    SelectiveUpdate,
    StepTimes,
    StepTiming,
    Stochastic,
    TimeBudget,
    Velocity,
    WatchedLayer,
    time_step,
)
from snello.errors import ConfigError


def test_a_budget_takes_the_smallest_depth_that_keeps_it() -> None:
    times = StepTimes((0, 2, 4), (10.0, 6.0, 3.0))
    assert [times.depth(ms) for ms in (10.0, 9.9, 6.0, 3.0)] == [0, 2, 2, 4]
    with pytest.raises(ConfigError, match="no step takes at most"):
        times.depth(2.9)


def test_layers_rest_to_the_depth_of_the_budget_and_further_if_at_rest() -> None:
    layers = {name: WatchedLayer(10, 1) for name in "abcd"}
    most, half = torch.arange(10) < 9, torch.arange(10) < 5  # 0.9 is the share

    class Fixed(Stochastic):
        def select(self, layers: object, similarities: object) -> dict[str, Tensor]:
            return {"a": half, "b": half, "c": most, "d": half}

    for rule, expected in ((None, ["a", "b"]), (Fixed(0.0), ["a", "b", "c"])):
        budget = TimeBudget(6.0, rule)
        with pytest.raises(ConfigError, match="nothing has been measured"):
            budget.select(layers, {})
        budget.times = StepTimes((0, 2, 4), (10.0, 6.0, 3.0))
        assert list(budget.select(layers, {})) == expected
        again = TimeBudget(6.0, rule)
        again.load_state_dict(budget.state_dict())
        assert again.times == budget.times


def _training_state(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Weights, statistics, gradients and momentum."""
    momentum = [state["momentum_buffer"] for state in optimizer.state.values()]
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return [t.detach().clone() for t in (*model.state_dict().values(), *gradients, *momentum)]


def test_measuring_changes_nothing_and_times_never_rise() -> None:
    model = network()
    optimizer = sgd(model)
    x, y = batch()
    budget = TimeBudget(1e9)
    update = SelectiveUpdate(model, optimizer, x, budget)
    train(model, optimizer, 2)
    before = _training_state(model, optimizer)
    times = budget.measure(update, x, y, cross_entropy, depths=2, repeats=1)
    assert same(before, _training_state(model, optimizer))
    assert times.depths[0] == 0
    assert times.depths[-1] == len(update.frozen)
    assert list(times.milliseconds) == sorted(times.milliseconds, reverse=True)
    update.step()
    assert update.freezer.resting == ()
    budget.milliseconds = times.milliseconds[-1]
    update.step()
    assert len(update.freezer.resting) in times.depths


def test_timed_steps_are_none_of_the_training() -> None:
    """AutoFreeze's rule adds up the gradients of all optimizer steps."""
    model = network()
    optimizer = sgd(model)
    rule = GradientChange(model)
    budget = TimeBudget(1e9, rule)
    update = SelectiveUpdate(model, optimizer, batch()[0], budget)
    train(model, optimizer)
    before = rule.state_dict()["sums"]
    time_step(update, *batch(), cross_entropy, repeats=1)
    budget.measure(update, *batch(), cross_entropy, depths=1, repeats=1)
    after = rule.state_dict()["sums"]
    assert set(after) == {"0", "1", "3", "4", "7", "9"}
    assert all(torch.equal(after[name], total) for name, total in before.items())


def _steps(update: SelectiveUpdate, phis: list[list[float]], neve: NeVe) -> list[object]:
    found = []
    for phi in phis:
        update.similarities = {"a": torch.tensor(phi, dtype=torch.float64)}
        found.append(neve.step())
    return found


def test_neve_follows_its_equation_and_lowers_the_rate_on_a_plateau() -> None:
    model = network()
    optimizer = sgd(model)
    neq = NEq(model, optimizer, batch()[0])
    neve = NeVe(neq, factor=0.5, patience=1, bound=0.05)
    with pytest.raises(ConfigError, match="call the selective update's step"):
        neve.step()
    first, second = _steps(neq, [[0.2, 0.6], [0.6, 0.8]], neve)
    assert math.isinf(first.change)
    assert first.speed == pytest.approx(0.6)
    # v = (0.4 - 0.5 * 0.8, 0.2 - 0.5 * 0.4) = 0
    assert second.speed == pytest.approx(0, abs=1e-12)
    assert second.change == pytest.approx((0.8**2 + 0.4**2) / 2)
    assert (first.stop, second.stop) == (False, True)
    rates = []
    for phi in ([0.9, 0.9], [0.1, 0.1], [0.95, 0.95], [0.0, 0.0]):
        lowered = _steps(neq, [phi], neve)[0].lowered
        rates.append((lowered, optimizer.param_groups[0]["lr"]))
    # The change fell at the first of these; two steps without a lower one follow.
    assert rates == [(False, 0.1), (False, 0.1), (True, 0.05), (False, 0.05)]


def test_neve_resumes_from_its_state() -> None:
    model = network()
    neq = NEq(model, sgd(model), batch()[0])
    first, second = NeVe(neq, patience=0), NeVe(neq, patience=0)
    _steps(neq, [[0.5], [0.7]], first)
    with pytest.raises(ConfigError, match="call the selective update's step"):
        first.step()  # twice for one step of the update
    second.load_state_dict(first.state_dict())
    assert _steps(neq, [[0.1], [0.9]], first) == _steps(neq, [[0.1], [0.9]], second)


def test_a_state_of_something_else_is_refused() -> None:
    model = network()
    neve = NeVe(neq := NEq(model, sgd(model), batch()[0]))
    with pytest.raises(ConfigError, match="lacks best, velocity, waited"):
        neve.load_state_dict(neq.state_dict())
    neve.load_state_dict({"velocity": torch.ones(3), "best": 1.0, "waited": 0})
    neq.step()
    with pytest.raises(ConfigError, match="a network of 3 watched neurons, not 99"):
        neve.step()


def test_neve_uses_the_probe_of_any_selection_that_observes() -> None:
    model = network()
    optimizer = sgd(model)
    neq = NEq(model, optimizer, batch()[0])
    train(model, optimizer)
    neq.step()
    step = NeVe(neq).step()
    expected = torch.cat([1 - phi for phi in neq.selection.phi.values()]).abs().mean()
    assert step.speed == pytest.approx(float(expected), rel=1e-6)
    blind = SelectiveUpdate(network(), None, batch()[0], Prefix(0.5))
    with pytest.raises(ConfigError, match="its selection Prefix runs no probe"):
        NeVe(blind)
    careful = NEq(network(), None, batch()[0], only_if_faster=True)
    with pytest.raises(ConfigError, match="leave it out to follow velocities"):
        NeVe(careful)
    with pytest.raises(ConfigError, match="it has no optimizer"):
        NeVe(SelectiveUpdate(network(), None, batch()[0], Velocity()))
    with pytest.raises(
        ConfigError, match="must be a SelectiveUpdate, such as NEq, not a Sequential"
    ):
        NeVe(network())  # type: ignore[arg-type]


@pytest.mark.parametrize("ratio", [0.5, 1.5])
def test_nothing_is_frozen_where_it_costs_time(
    monkeypatch: pytest.MonkeyPatch, ratio: float
) -> None:
    measured = []

    def timed(update: SelectiveUpdate, *_: object) -> StepTiming:
        measured.append(len(update.freezer.resting))
        phase = PhaseTiming(1.0, 1.0, 1.0, ratio, ratio, ratio)
        return StepTiming(phase, phase, phase, phase, 1, 8, "cpu", 1)

    monkeypatch.setattr(worth_module, "time_step", timed)
    model = network()
    optimizer = sgd(model)
    shares = iter((0.0, 0.5, 0.5, 1.0))
    update = SelectiveUpdate(
        model, optimizer, batch()[0], Prefix(lambda _: next(shares)), only_if_faster=True
    )
    kinds = [type(module) for module in model]
    steps = [update.step() for _ in range(3)]
    assert measured == [2]  # the third decision is the second again
    assert steps[0].note == ""
    if ratio > 1:
        assert "nothing is frozen" in steps[2].note
        assert steps[2].total == 1
        assert [type(module) for module in model] == kinds
        before = [p.detach().clone() for p in model.parameters()]
        train(model, optimizer)
        assert not any(map(torch.equal, before, model.parameters()))
    else:
        assert steps[2].note == ""
        assert len(update.freezer.resting) == 2
    update.step()
    assert measured == [2, 5]
    again = network()
    resumed = SelectiveUpdate(again, sgd(again), batch()[0], Prefix(0.5), only_if_faster=True)
    resumed.load_state_dict(update.state_dict())
    assert resumed.status() == update.status()
    if ratio > 1:  # two losses: the selection is not asked any more, and would raise
        assert resumed.step().note == update.status().note
        assert update.step().note == update.status().note != ""
        assert update.step().step == 6


def test_too_few_neurons_to_gain_by_are_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []

    def timed(update: SelectiveUpdate, *_: object) -> StepTiming:
        frozen = update.frozen.values()
        measured.append(sum(int(mask.sum()) for mask in frozen) / sum(map(len, frozen)))
        phase = PhaseTiming(1.0, 1.0, 1.0, 0.5, 0.5, 0.5)
        return StepTiming(phase, phase, phase, phase, 1, 8, "cpu", 1)

    monkeypatch.setattr(worth_module, "time_step", timed)
    model = network()
    update = SelectiveUpdate(model, sgd(model), batch()[0], Stochastic(0.13), only_if_faster=True)
    for _ in range(2):
        step = update.step()
        assert "too little to gain by" in step.note
        assert step.total == 1
    assert len(measured) == 1  # once, with most neurons frozen
    assert measured[0] > 0.8
    update.selection.p = 0.5
    assert update.step().note == ""
    assert len(measured) == 2
    again = network()
    resumed = SelectiveUpdate(again, sgd(again), batch()[0], Stochastic(0.13), only_if_faster=True)
    resumed.load_state_dict(update.state_dict())
    resumed.step()
    assert len(measured) == 2


@pytest.mark.parametrize("given", [True, False], ids=["optimizer", "none yet"])
def test_a_refused_decision_changes_nothing(given: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even the momentum of neurons that were frozen for the measurement."""
    monkeypatch.setattr(worth_module, "FASTER", 0.0)  # measured, and never fast enough
    model = network()
    optimizer = sgd(model)
    update = SelectiveUpdate(
        model, optimizer if given else None, batch()[0], Stochastic(0.5), only_if_faster=True
    )
    update.apply({"0": torch.ones(6, dtype=torch.bool)})
    train(model, optimizer)  # an optimizer that steps is known from then on
    update.apply({})
    train(model, optimizer)
    before = _training_state(model, optimizer)
    step = update.step()
    assert "nothing is frozen" in step.note
    assert step.total == 1
    assert same(before, _training_state(model, optimizer))
