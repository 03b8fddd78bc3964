"""Amounts, schedules, and the plans that show them beforehand."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pruning_samples import batch, by_loops, convnet, loss, pruned_units, weights
from snello.errors import ConfigError
from snello.pruning import (
    Budget,
    Cubic,
    LayerLimits,
    LossBound,
    OneShot,
    Plateau,
    Pruner,
    Ratio,
    nonzero_macs,
    nonzero_parameters,
)

ONE_STAYS = LayerLimits(keep_at_least=1)

# Amounts


@given(share=st.floats(0, 1), seed=st.integers(0, 9), scope=st.sampled_from(["global", "layer"]))
@pytest.mark.parametrize("granularity", ["weight", "neuron"])
@settings(max_examples=25, deadline=None, derandomize=True)
def test_a_ratio_takes_the_lowest_share(
    granularity: Any, share: float, seed: int, scope: Any
) -> None:
    model = convnet(seed)
    scores = by_loops(model, "l1", granularity)
    scores.pop("8")
    pruner = Pruner(
        model, None, granularity=granularity, scope=scope, amount=Ratio(share), normalise=None, limits=ONE_STAYS
    )  # fmt: skip
    pruner.prune()
    gone = pruned_units(model, granularity)
    total = sum(len(gone[name]) for name in scores)
    # Ranks of several layers may tie: then a layer stays one short of its share.
    most = min(math.floor(share * total + 1e-6), total - len(scores))
    missing = most - sum(int(gone[name].sum()) for name in scores)
    assert 0 <= missing <= (2 if scope == "layer" else 0)
    assert not gone["8"].any()
    for name, score in scores.items():
        if scope == "layer":
            assert abs(int(gone[name].sum()) - share * len(gone[name])) <= 1
        if gone[name].any() and not gone[name].all():
            assert score.flatten()[gone[name]].max() <= score.flatten()[~gone[name]].min()
    if scope == "global":
        free = {name: score.flatten() < score.max() for name, score in scores.items()}
        everything = torch.cat([score.flatten()[free[name]] for name, score in scores.items()])
        where = torch.cat([gone[name][free[name]] for name in scores])
        if where.any() and not where.all():
            assert everything[where].max() <= everything[~where].min()


def test_a_ratio_of_the_rest_takes_its_share_each_time() -> None:
    model = nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 2)).double()
    pruner = Pruner(model, None, amount=Ratio(0.2, of_rest=True))
    left = []
    for _ in range(3):
        pruner.prune()
        left.append(int((model[0].weight != 0).sum()))
    assert left == [80, 64, 52]


def test_a_ratio_that_is_reached_ends_the_pruning() -> None:
    model = convnet()
    pruner = Pruner(model, None, loss, amount=Ratio(0.5))
    first = pruner.prune()
    assert not pruner.finished
    assert first.loss == pruner.loss()
    assert pruner.prune().threshold == 0
    assert pruner.finished


@pytest.mark.parametrize("granularity", ["weight", "neuron"])
@pytest.mark.parametrize("kind", ["parameters", "macs", "own"])
def test_a_budget_is_met_by_the_least_pruning(kind: str, granularity: Any) -> None:
    costs: dict[str, Callable[[nn.Module], float]] = {
        "parameters": nonzero_parameters,
        "macs": nonzero_macs(batch()[0]),
        "own": lambda m: 3.0 * float((m[6].weight != 0).sum()),
    }
    cost = costs[kind]
    model = convnet().eval()
    limit = 0.4 * cost(model)
    options: dict[str, Any] = {
        "granularity": granularity, "normalise": None, "limits": ONE_STAYS
    }  # fmt: skip
    pruner = Pruner(model, None, amount=Budget(limit, cost), **options)
    plan = pruner.plan()
    before = weights(model)
    search = pruner.prune()
    assert search == plan.search
    assert search.cost == cost(model) <= limit
    # One unit less, and the limit is broken.
    twin = convnet().eval()
    Pruner(twin, None, amount=Ratio((plan.after - 1) / plan.units), **options).prune()
    assert cost(twin) > limit
    assert all(torch.equal(w, before[n] * (w != 0)) for n, w in weights(model).items())
    assert pruner.prune().threshold == 0
    assert pruner.finished


@pytest.mark.parametrize("cost", [nonzero_parameters, lambda _: math.nan])
def test_a_budget_that_cannot_be_met_is_refused_and_nothing_changes(cost: Any) -> None:
    model = convnet()
    before = weights(model)
    with pytest.raises(ConfigError, match="cannot be met"):
        Pruner(model, None, amount=Budget(10, cost)).prune()
    assert all(torch.equal(w, before[n]) for n, w in weights(model).items())


def test_macs_count_what_meets_neither_a_zero_weight_nor_a_dead_channel() -> None:
    model = convnet().eval()
    cost = nonzero_macs(batch(300)[0])  # enough for every ReLU to be positive once
    assert cost(model) == 6 * 2 * 9 * 16 + 8 * 3 * 9 * 4 + 32 * 10 + 10 * 3
    with torch.no_grad():
        model[0].weight[1] = 0
        model[1].weight[1] = model[1].bias[1] = (
            0  # channel 1 is zero: it feeds the first group of 4 outputs
        )
        model[8].weight[0, 0] = 0
    assert cost(model) == 5 * 2 * 9 * 16 + (8 * 3 - 4) * 9 * 4 + 32 * 10 + 10 * 3 - 1
    transposed = nn.Sequential(nn.ConvTranspose2d(2, 3, 2, stride=2), nn.Conv1d(1, 1, 1))[0]
    assert nonzero_macs(torch.ones(2, 2, 4, 4))(transposed) == 2 * 3 * 4 * 16


@pytest.mark.parametrize(
    "bad",
    [
        lambda: Ratio(1.1),
        lambda: Ratio(math.nan),
        lambda: Budget(-1, nonzero_parameters),
        lambda: LossBound(-1),
        lambda: LossBound(math.nan),
    ],
)
def test_impossible_amounts_are_refused(bad: Callable[[], Any]) -> None:
    with pytest.raises(ConfigError, match=r"not (1\.1|nan|-1)"):
        bad()


def test_a_bound_on_the_loss_needs_a_loss() -> None:
    with pytest.raises(ConfigError, match="evaluate"):
        Pruner(convnet(), None)


# Schedules


def test_cubic_follows_its_formula() -> None:
    model = nn.Sequential(nn.Linear(100, 50), nn.Linear(50, 2))
    pruner = Pruner(model, None, amount=Ratio(0.9), schedule=Cubic(over=6, begin=2, every=2))
    found = []
    for _ in range(12):
        pruner.step()
        found.append(int((model[0].weight == 0).sum()))
    expected = [math.floor(5000 * 0.9 * (1 - (1 - t / 6) ** 3) + 1e-6) for t in (2, 4, 6)]
    assert found == [0] * 3 + [expected[0]] * 2 + [expected[1]] * 2 + [expected[2]] * 5
    assert expected[2] == 4500
    assert pruner.finished


def test_one_shot_prunes_once() -> None:
    model = convnet()
    pruner = Pruner(model, None, loss, amount=Ratio(0.5), schedule=OneShot(after=2))
    assert [pruner.step().search is not None for _ in range(5)] == [
        False,
        True,
        False,
        False,
        False,
    ]
    assert pruner.finished


@pytest.mark.parametrize("schedule", [Plateau(2), OneShot(3), Cubic(over=4, begin=1)])
def test_schedules_resume(schedule: Any) -> None:
    losses = [1.0, 0.9, 0.95, 0.9, 0.9, 0.5, 0.6, 0.6]
    twin = None
    trail: list[list[Any]] = [[], []]
    for number, value in enumerate(losses):
        if number == 3:
            twin = copy.deepcopy(type(schedule)(**{**vars(schedule)}))
            twin.load_state_dict(schedule.state_dict())
        for one, kept in ((schedule, trail[0]), (twin, trail[1])):
            if one is not None and number >= (0 if one is schedule else 3):
                kept.append((one.update(value), one.reached, one.progress))
                if one.reached:
                    one.reset(value)
    assert trail[0][3:] == trail[1]
    assert any(reached for _, reached, _ in trail[0])


def test_a_state_of_another_schedule_is_refused() -> None:
    for one, other in ((Plateau(2), OneShot(3)), (OneShot(3), Cubic(4)), (Cubic(4), Plateau(2))):
        with pytest.raises(ConfigError, match=f"another schedule than {type(other).__name__}"):
            other.load_state_dict(one.state_dict())


def test_a_bound_relative_to_a_negative_loss_is_refused() -> None:
    """Minus the accuracy as a loss: 1.05 times it is lower, and nothing would be pruned, silently."""
    pruner = Pruner(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)), None, lambda m: -0.9)
    with pytest.raises(ConfigError, match=r"is -0\.9, and a bound relative to it"):
        pruner.prune()


def test_a_threshold_that_prunes_nothing_is_zero_and_ends_the_pruning() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    dense = Pruner(
        model, None, lambda m: float(1 + 9 * int((m[0].weight == 0).any())), exclude=["1"]
    )
    equal = nn.Linear(4, 3)
    nn.init.ones_(equal.weight)
    for pruner in (dense, Pruner(equal, None, amount=Ratio(0.5), exclude=())):
        search = pruner.prune()
        assert search.threshold == 0
        assert pruner.finished
        assert pruner.pruned == 0


def test_the_first_argument_of_a_schedule_is_its_option_not_its_state() -> None:
    assert OneShot(3) == OneShot(after=3)
    assert Cubic(4, 1, 2) == Cubic(over=4, begin=1, every=2)
    assert Plateau(4, 0.1) == Plateau(pwe=4, tolerance=0.1)
    with pytest.raises(TypeError):
        Plateau(4, 0.1, 0.5)  # type: ignore[misc]


@pytest.mark.parametrize(
    "bad", [lambda: OneShot(after=0), lambda: Cubic(over=0), lambda: Cubic(begin=-1)]
)
def test_impossible_schedules_are_refused(bad: Callable[[], Any]) -> None:
    with pytest.raises(ConfigError, match=r"not .*(0|-1)"):
        bad()


# Plans


@pytest.mark.parametrize("amount", [LossBound(0.5), Ratio(0.5), Budget(300, nonzero_parameters)])
@pytest.mark.parametrize("granularity", ["weight", "neuron"])
def test_a_plan_changes_nothing_and_is_what_happens(amount: Any, granularity: Any) -> None:
    model, seen = convnet(), []
    pruner = Pruner(model, None, loss, granularity=granularity, amount=amount, on_plan=seen.append)
    before = copy.deepcopy(model.state_dict())
    plan = pruner.plan()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert pruner.masks == {}
    assert seen == []
    assert pruner.prune(plan) == plan.search
    assert seen == [plan]
    gone = pruned_units(model, granularity)
    assert [(row.name, row.units, row.before, row.after) for row in plan.layers] == [
        (name, len(gone[name]), 0, int(gone[name].sum())) for name in ("0", "3", "6")
    ]
    assert plan.after == sum(row.after for row in plan.layers) > plan.before == 0
    text = [line for line in str(plan).splitlines() if not line.startswith("warning: ")]
    assert text[0].split()[:2] == ["layer", f"{granularity}s"]
    assert text[-2].split()[:4] == ["all", str(plan.units), "0", str(plan.after)]
    assert f"{plan.search.threshold:.4g}" in text[-1]
