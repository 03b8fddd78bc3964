"""Importances are their definitions, one neuron or one weight at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from pruning_samples import batch, by_loops, convnet, loss, pruned_units
from snello.errors import ConfigError, DataError
from snello.neurons import dead_neurons, rows, weighted_layers
from snello.pruning import IMPORTANCES, LayerLimits, Pruner, Ratio, taylor
from snello.sensitivity import lobster_scores, serene_scores


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
    torch.testing.assert_close(
        IMPORTANCES["han"](model, "weight")["6"], model[6].weight.detach().abs() / std
    )


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
    pruner = Pruner(
        model, None, granularity=granularity, importance=importance, amount=Ratio(0.4), normalise=None,
        limits=LayerLimits(keep_at_least=1),
    )  # fmt: skip
    search = pruner.prune()
    for name, gone in pruned_units(model, granularity).items():
        score = expected[name].flatten()
        low = (score < search.threshold) & (score < score.max())
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
