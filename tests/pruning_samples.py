"""Shared parts of tests of pruning: a small convolutional network, a batch, importances by their
definitions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from snello.neurons import dead_neurons, rows, weighted_layers


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
