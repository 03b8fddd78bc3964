"""What, how much, when: importances, amounts, schedules, plans, masks of torch, and the pruning potential."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from laws import assert_zero_where
from snello.errors import ConfigError, DataError
from snello.neurons import Masks, count_parameters, dead_neurons, neuron_count, rows, weighted_layers
from snello.pruning import (
    IMPORTANCES,
    Budget,
    Cubic,
    LossBound,
    OneShot,
    Plateau,
    Pruner,
    Ratio,
    export_masks,
    import_masks,
    nonzero_macs,
    nonzero_parameters,
    pruning_potential,
    taylor,
)
from snello.sensitivity import lobster_scores, serene_scores


def convnet(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, groups=2), nn.ReLU(), nn.Flatten(),
        nn.Linear(32, 10), nn.Tanh(), nn.Linear(10, 3),
    ).double()  # fmt: skip


def batch(size: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(size, 2, 6, 6, dtype=torch.float64, generator=generator)
    return x, torch.randint(3, (size,), generator=generator)


@torch.no_grad()
def loss(model: nn.Module) -> float:
    x, y = batch()
    return float(nn.functional.cross_entropy(model(x), y))


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: m.weight.detach().clone() for name, m in weighted_layers(model).items()}  # type: ignore[union-attr, operator]


def pruned_units(model: nn.Module, granularity: str) -> dict[str, Tensor]:
    """Layer name -> which units are zero, flat."""
    if granularity == "neuron":
        return {name: dead_neurons(m) for name, m in weighted_layers(model).items()}
    return {name: (w == 0).flatten() for name, w in weights(model).items()}


# Importances


def by_loops(model: nn.Module, name: str, granularity: str) -> dict[str, Tensor]:
    """The definitions, a neuron at a time."""
    found = {}
    for layer, module in weighted_layers(model).items():
        weight: Tensor = module.weight.detach()  # type: ignore[union-attr, operator, assignment]
        if granularity == "weight":
            found[layer] = weight.abs() / (weight.std() if name == "han" else 1)
            continue
        values = []
        for row in rows(module, weight):
            l1 = sum(abs(w) for w in row.tolist()) / len(row)
            l2 = math.sqrt(sum(w * w for w in row.tolist()) / len(row))
            values.append({"l1": l1, "l2": l2, "han": l1 / float(weight.std())}[name])
        found[layer] = torch.tensor(values, dtype=torch.float64)
    return found


@pytest.mark.parametrize("granularity", ["weight", "neuron"])
@pytest.mark.parametrize("name", ["l1", "l2", "han"])
def test_magnitudes_are_their_definitions(name: str, granularity: Any) -> None:
    model = convnet()
    found = IMPORTANCES[name](model, granularity)
    for layer, expected in by_loops(model, name, granularity).items():
        torch.testing.assert_close(found[layer], expected, rtol=1e-12, atol=0)


def test_hans_spread_is_that_of_what_is_left() -> None:
    model = convnet()
    with torch.no_grad():
        model[6].weight[:5] = 0
    std = model[6].weight[5:].std()
    torch.testing.assert_close(IMPORTANCES["han"](model, "weight")["6"], model[6].weight.detach().abs() / std)


@pytest.mark.parametrize("granularity", ["weight", "neuron"])
def test_taylor_is_the_first_order_change_of_the_loss(granularity: Any) -> None:
    model = convnet().eval()
    x, y = batch()
    found = taylor([(x, y)])(model, granularity)
    nn.functional.cross_entropy(model(x), y).backward()
    for name, module in weighted_layers(model).items():
        product = (module.weight * module.weight.grad).detach()  # type: ignore[union-attr, operator]
        expected = product.abs() if granularity == "weight" else rows(module, product).sum(1).abs()
        torch.testing.assert_close(found[name], expected, rtol=1e-12, atol=0)
    step = 1e-6
    before = loss(model)
    with torch.no_grad():  # shrink one neuron a little: the loss changes by step times its score
        model[6].weight[2] *= 1 - step
    if granularity == "neuron":
        assert abs(loss(model) - before) == pytest.approx(step * float(found["6"][2]), rel=1e-3)


def test_bn_scale_is_that_of_the_norm_behind() -> None:
    model = convnet()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([-3.0, 1, 2, 0.5, 4, 5]))
    assert IMPORTANCES["bn-scale"](model, "neuron")["0"].tolist() == [3, 1, 2, 0.5, 4, 5]
    pruner = Pruner(model, None, granularity="neuron", importance="bn-scale", amount=Ratio(0.5))
    pruner.prune()
    assert dead_neurons(model[0]).tolist() == [False, True, True, True, False, False]
    assert not dead_neurons(model[3]).any()
    for bad in (
        lambda: IMPORTANCES["bn-scale"](model, "weight"),
        lambda: IMPORTANCES["bn-scale"](model[3:], "neuron"),
    ):
        with pytest.raises(ConfigError, match="bn-scale"):
            bad()


def test_random_is_the_same_for_a_seed_and_different_for_another() -> None:
    from snello.pruning import random

    model = convnet()
    a, b, c = (random(seed)(model, "weight")["0"] for seed in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


@pytest.mark.parametrize("scores", [taylor, lobster_scores, serene_scores])
@pytest.mark.parametrize("granularity", ["weight", "neuron"])
def test_calibrated_importances_prune(scores: Callable[..., Any], granularity: Any) -> None:
    model = convnet()
    importance = scores([batch()])
    expected = importance(model, granularity)
    pruner = Pruner(model, None, granularity=granularity, importance=importance, amount=Ratio(0.4))
    search = pruner.prune()
    for name, gone in pruned_units(model, granularity).items():
        low = expected[name].flatten() < search.threshold
        assert torch.equal(gone, low if name != "8" else torch.zeros_like(gone))


def test_scores_that_do_not_fit_are_refused() -> None:
    model = convnet()
    with pytest.raises(DataError, match="no batch"):
        taylor([])(model, "weight")
    for importance, message in (
        (lambda m, g: {"0": torch.ones(6)}, r"'0'.*\(6,\)"),
        (lambda m, g: {"0": -torch.ones(6, 2, 3, 3)}, "negative"),
        (lambda m, g: {"0": torch.full((6, 2, 3, 3), math.nan)}, "finite"),
    ):
        with pytest.raises(ConfigError, match=message):
            Pruner(model, None, importance=importance, amount=Ratio(0.5)).plan()


# Amounts


@given(share=st.floats(0, 1), seed=st.integers(0, 9), scope=st.sampled_from(["global", "layer"]))
@pytest.mark.parametrize("granularity", ["weight", "neuron"])
@settings(max_examples=25, deadline=None, derandomize=True)
def test_a_ratio_takes_the_lowest_share(granularity: Any, share: float, seed: int, scope: Any) -> None:
    model = convnet(seed)
    scores = by_loops(model, "l1", granularity)
    scores.pop("8")
    pruner = Pruner(model, None, granularity=granularity, scope=scope, amount=Ratio(share))
    pruner.prune()
    gone = pruned_units(model, granularity)
    total = sum(len(gone[name]) for name in scores)
    # Ranks of several layers may tie: then a layer stays one short of its share.
    missing = math.floor(share * total + 1e-6) - sum(int(gone[name].sum()) for name in scores)
    assert 0 <= missing <= (2 if scope == "layer" else 0)
    assert not gone["8"].any()
    for name, score in scores.items():
        if scope == "layer":
            assert abs(int(gone[name].sum()) - share * len(gone[name])) <= 1
        if gone[name].any() and not gone[name].all():
            assert score.flatten()[gone[name]].max() <= score.flatten()[~gone[name]].min()
    if scope == "global":
        everything = torch.cat([score.flatten() for score in scores.values()])
        where = torch.cat([gone[name] for name in scores])
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
    pruner = Pruner(model, None, granularity=granularity, amount=Budget(limit, cost))
    plan = pruner.plan()
    before = weights(model)
    search = pruner.prune()
    assert search == plan.search
    assert search.cost == cost(model) <= limit
    # One unit less, and the limit is broken.
    lowest = [s for n, s in IMPORTANCES["l1"](convnet(), granularity).items() if n != "8"]
    scores = torch.cat([s.flatten() for s in lowest])
    taken = int((scores < search.threshold).sum())
    twin = convnet().eval()
    Pruner(twin, None, granularity=granularity, amount=Ratio((taken - 1) / len(scores))).prune()
    assert cost(twin) > limit
    assert all(torch.equal(w, before[n] * (w != 0)) for n, w in weights(model).items())
    assert pruner.prune().threshold == 0
    assert pruner.finished


def test_a_budget_that_cannot_be_met_is_refused_and_nothing_changes() -> None:
    model = convnet()
    before = weights(model)
    with pytest.raises(ConfigError, match="cannot be met"):
        Pruner(model, None, amount=Budget(10, nonzero_parameters)).prune()
    assert all(torch.equal(w, before[n]) for n, w in weights(model).items())


def test_macs_count_what_meets_neither_a_zero_weight_nor_a_dead_channel() -> None:
    model = convnet().eval()
    cost = nonzero_macs(batch(300)[0])  # enough for every ReLU to be positive once
    assert cost(model) == 6 * 2 * 9 * 16 + 8 * 3 * 9 * 4 + 32 * 10 + 10 * 3
    with torch.no_grad():
        model[0].weight[1] = 0
        model[1].weight[1] = model[1].bias[1] = 0  # channel 1 is zero: it feeds the first group of 4 outputs
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
    assert [pruner.step().search is not None for _ in range(5)] == [False, True, False, False, False]
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


@pytest.mark.parametrize("bad", [lambda: OneShot(after=0), lambda: Cubic(over=0), lambda: Cubic(begin=-1)])
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
    text = str(plan).splitlines()
    assert text[0].split()[:2] == ["layer", f"{granularity}s"]
    assert text[-2].split()[:4] == ["all", str(plan.units), "0", str(plan.after)]
    assert f"{plan.search.threshold:.4g}" in text[-1]


# Masks of torch


def test_masks_of_torch_are_taken_over_and_handed_back() -> None:
    model = convnet()
    parameters = {id(p) for p in model.parameters()}
    original = weights(model)
    torch_prune.random_unstructured(model[0], "weight", 0.5)
    torch_prune.ln_structured(model[6], "weight", 0.3, 1, 0)
    torch_prune.l1_unstructured(model[6], "bias", 0.2)
    expected: Masks = {
        "0.weight": model[0].weight_mask != 0, "6.weight": model[6].weight_mask != 0, "6.bias": model[6].bias_mask != 0
    }  # fmt: skip
    outputs = model(batch()[0]).detach()
    masks = import_masks(model)
    assert masks.keys() == expected.keys()
    assert all(torch.equal(masks[name], mask) for name, mask in expected.items())
    assert {id(p) for p in model.parameters()} == parameters  # the optimizer still trains them
    torch.testing.assert_close(model(batch()[0]), outputs)
    assert import_masks(model) == {}
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    pruner = Pruner(model, optimizer, amount=Ratio(0.3))
    pruner.adopt(masks)
    for _ in range(3):
        optimizer.zero_grad()
        model(batch()[0]).square().sum().backward()
        optimizer.step()
    assert_zero_where(model, masks)
    pruner.prune()
    assert all(not (pruner.masks[name] & ~mask).any() for name, mask in masks.items())
    kept = weights(model)
    export_masks(model, pruner.masks)
    assert torch_prune.is_pruned(model)
    assert {id(p) for p in model.parameters()} == parameters
    with pytest.raises(ConfigError, match="already"):
        export_masks(model, pruner.masks)
    back = import_masks(model)
    assert all(torch.equal(back[name], mask) for name, mask in pruner.masks.items())
    assert all(torch.equal(w, kept[name]) for name, w in weights(model).items())
    assert not torch.equal(kept["0"], original["0"])


# The pruning potential


def test_a_pruning_potential_is_one_shot_from_the_whole_network_at_every_point() -> None:
    model = convnet()
    before = copy.deepcopy(model.state_dict())
    trained: list[float] = []

    def finetune(twin: nn.Module, pruner: Pruner) -> None:
        optimizer = torch.optim.SGD(twin.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
        pruner.attach(optimizer)
        for _ in range(2):
            optimizer.zero_grad()
            x, y = batch()
            nn.functional.cross_entropy(twin(x), y).backward()
            optimizer.step()
        trained.append(pruner.pruned)

    importances = {"magnitude": "l1", "random": "random", "taylor": taylor([batch()])}
    points = pruning_potential(model, loss, importances, (0.0, 0.5, 1.0), exclude=(), finetune=finetune)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert [(p.method, p.ratio) for p in points] == [(m, r) for m in importances for r in (0.0, 0.5, 1.0)]
    total = count_parameters(model)[0]
    prunable = sum(w.numel() for w in weights(model).values())
    for point, share in zip(points, trained, strict=True):
        assert (
            point.pruned
            == pytest.approx(share)
            == pytest.approx(math.floor(point.ratio * prunable) / total, abs=0.01)
        )
    assert [p.dead_neurons for p in points if p.ratio == 1] == [1.0] * 3
    plain = pruning_potential(model, loss, {"magnitude": "l1"}, (0.0,))
    assert plain[0].value == loss(model.eval())
    with pytest.raises(ConfigError, match="at least one"):
        pruning_potential(model, loss, {})


def test_neurons_are_counted_whole() -> None:
    model = convnet()
    (point,) = pruning_potential(model, loss, {"l2": "l2"}, (0.5,), granularity="neuron")
    assert point.dead_neurons == 12 / sum(neuron_count(m) for m in weighted_layers(model).values())
