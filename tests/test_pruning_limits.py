"""Scores on one scale, and the least that stays of every layer."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pruning_samples import convnet, pruned_units
from snello.errors import ConfigError
from snello.pruning import LayerLimits, Pruner, Ratio, comparable, taylor


def _scores() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    scores = {n: torch.rand(c, generator=generator).double() + 0.1 for n, c in (("a", 7), ("b", 9))}
    scores["b"] *= 100
    scores["a"][2] = 0  # pruned already
    return scores


@pytest.mark.parametrize("how", ["mean", "max", "standard", "rank", None])
def test_order_zeros_and_shapes_stay(how: Any) -> None:
    scores = _scores()
    for name, value in comparable(scores, how).items():
        assert torch.equal(value == 0, scores[name] == 0)
        assert (value >= 0).all()
        assert torch.equal(value.argsort(), scores[name].argsort())


@pytest.mark.parametrize("how", ["mean", "max", "standard", "rank"])
def test_the_scale_of_a_layer_does_not_matter(how: Any) -> None:
    scores = _scores()
    scaled = comparable({**scores, "b": scores["b"] * 1e-6}, how)
    for name, value in comparable(scores, how).items():
        torch.testing.assert_close(scaled[name], value, rtol=1e-9, atol=1e-12)


def test_normalisations_are_their_definitions() -> None:
    scores = _scores()
    live = {name: score[score > 0] for name, score in scores.items()}
    for name, value in comparable(scores, "mean").items():
        torch.testing.assert_close(value, scores[name] / live[name].mean())
    for value in comparable(scores, "max").values():
        assert value.max() == 1
    standard = comparable(scores, "standard")
    for value in standard.values():
        there = value[value > 0]
        torch.testing.assert_close(there.std(), torch.tensor(1.0).double())
    means = [float(value[value > 0].mean()) for value in standard.values()]
    assert means[0] == pytest.approx(means[1])
    assert sorted(comparable(scores, "rank")["b"].tolist()) == [k / 9 for k in range(1, 10)]


def test_auto_fits_the_importance() -> None:
    x = torch.randn(4, 2, 6, 6).double(), torch.zeros(4).long()
    for importance, expected in (("l1", "mean"), ("han", "mean"), (taylor([x]), None)):
        pruner = Pruner(convnet(), None, amount=Ratio(0.5), importance=importance)
        assert pruner.normalise == expected


def test_scope_layer_is_the_rank() -> None:
    masks = []
    for options in ({"scope": "layer"}, {"normalise": "rank"}):
        pruner = Pruner(convnet(), None, granularity="neuron", amount=Ratio(0.5), **options)  # type: ignore[arg-type]
        pruner.prune()
        masks.append(pruner.masks)
    assert masks[0].keys() == masks[1].keys()
    assert all(torch.equal(mask, masks[1][name]) for name, mask in masks[0].items())


@given(share=st.floats(0, 1), least=st.one_of(st.floats(0, 0.99), st.integers(1, 12)))
@pytest.mark.parametrize("normalise", [None, "mean"])
@settings(max_examples=20, deadline=None, derandomize=True)
def test_every_layer_keeps_its_minimum(normalise: Any, share: float, least: float | int) -> None:
    model = convnet()
    limits = LayerLimits(keep_at_least=least)
    pruner = Pruner(
        model, None, granularity="neuron", amount=Ratio(share), normalise=normalise, limits=limits
    )
    plan = pruner.plan()
    pruner.prune(plan)
    for name, gone in pruned_units(model, "neuron").items():
        count = len(gone)
        kept = least if isinstance(least, int) else math.ceil(least * count - 1e-6)
        assert int((~gone).sum()) >= min(count, max(1, kept)), name
    most = sum(row.units - row.least for row in plan.layers)
    assert plan.after <= min(most, math.floor(share * plan.units + 1e-6))


def test_minimum_holds_over_many_steps() -> None:
    model = convnet()
    pruner = Pruner(
        model, None, granularity="neuron", amount=Ratio(0.5, of_rest=True),
        limits=LayerLimits(keep_at_least=2),
    )  # fmt: skip
    with pytest.warns(UserWarning, match="every layer is at its minimum"):
        _ = [pruner.prune() for _ in range(20)]
    left = [int((~gone).sum()) for gone in pruned_units(model, "neuron").values()]
    assert left == [2, 2, 2, 3]
    assert pruner.finished


def test_max_ratio_goes_by_layer() -> None:
    model = nn.ModuleDict({"body": convnet()})
    limits = LayerLimits(max_ratio={"body": 0.5, "body.6": 0.1})
    pruner = Pruner(model, None, amount=Ratio(0.9), limits=limits)
    rows = {row.name: row for row in pruner.plan().layers}
    assert rows["body.0"].after == rows["body.0"].units // 2
    assert rows["body.6"].after == rows["body.6"].units // 10


def test_a_plan_warns_of_layers_that_lose_nearly_everything() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 2)
    )
    with torch.no_grad():
        model[2].weight.mul_(1e-3)
    options: dict[str, Any] = {
        "granularity": "neuron", "amount": Ratio(0.5), "normalise": None
    }  # fmt: skip
    pruner = Pruner(model, None, limits=LayerLimits(keep_at_least=1), **options)
    with pytest.warns(UserWarning, match=r"1 of 2 layers .* 90%.*'2' 39 of 40.*keep_at_least"):
        plan = pruner.plan()
    assert "warning: 1 of 2 layers" in str(plan)
    assert Pruner(model, None, **options).plan().warnings == ()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda: LayerLimits(keep_at_least=1.0), "not 1.0"),
        (lambda: LayerLimits(keep_at_least=0), "not 0"),
        (lambda: LayerLimits(keep_at_least=True), "not True"),
        (lambda: LayerLimits(keep_at_least=math.nan), "not nan"),
        (lambda: LayerLimits(max_ratio=1.5), "not 1.5"),
        (lambda: LayerLimits(max_ratio={"0": -1}), "'0'.*not -1"),
        (lambda: Pruner(convnet(), None, amount=Ratio(0.5), normalise="median"), "rank, not 'median'"),  # type: ignore[arg-type]
        (lambda: Pruner(convnet(), None, amount=Ratio(0.5), limits=LayerLimits(max_ratio={"9": 0.5})), "'9'.*0, 3, 6"),
    ],
)  # fmt: skip
def test_impossible_limits_are_refused(bad: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        bad()


def test_layers_are_named_by_texts() -> None:
    with pytest.raises(ConfigError, match="not by 1"):
        LayerLimits(max_ratio={1: 0.5})  # type: ignore[dict-item]
