"""The pruning potential: one-shot from the whole network at every point."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from pruning_samples import batch, convnet, loss, weights
from snello.errors import ConfigError
from snello.neurons import count_parameters, neuron_count, weighted_layers
from snello.pruning import Pruner, pruning_potential, taylor


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
    points = pruning_potential(
        model, loss, importances, (0.0, 0.5, 1.0), exclude=(), finetune=finetune
    )
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert [(p.method, p.ratio) for p in points] == [
        (m, r) for m in importances for r in (0.0, 0.5, 1.0)
    ]
    total = count_parameters(model)[0]
    prunable = sum(w.numel() for w in weights(model).values())
    for point, share in zip(points, trained, strict=True):
        assert (
            point.pruned
            == pytest.approx(share)
            == pytest.approx(math.floor(point.ratio * prunable) / total, abs=0.01)
        )
    neurons = sum(neuron_count(m) for m in weighted_layers(model).values())
    for point in points:
        if point.ratio == 1:  # every layer keeps a weight
            assert point.dead_neurons == pytest.approx(1 - len(weighted_layers(model)) / neurons)
    plain = pruning_potential(model, loss, {"magnitude": "l1"}, (0.0,))
    assert plain[0].value == loss(model.eval())
    with pytest.raises(ConfigError, match="at least one"):
        pruning_potential(model, loss, {})


def test_neurons_are_counted_whole() -> None:
    model = convnet()
    (point,) = pruning_potential(model, loss, {"l2": "l2"}, (0.5,), granularity="neuron")
    assert point.dead_neurons == 12 / sum(neuron_count(m) for m in weighted_layers(model).values())
