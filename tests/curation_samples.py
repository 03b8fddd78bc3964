"""A small dataset, and trainings of it with a dynamic subset."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from snello.curation import DynamicSubset, InfoBatch, OrderDP, RandomSubset

SAMPLES = 103
METHODS: dict[str, Any] = {
    "random": lambda data, **o: RandomSubset(data, 0.3, **o),
    "random with replacement": lambda data, **o: RandomSubset(data, 0.3, replacement=True, **o),
    "infobatch": lambda data, **o: InfoBatch(data, 0.5, epochs=7, **o),
    "infobatch by batch": lambda data, **o: InfoBatch(
        data, 0.5, window=2, rescaling="cumulative", **o
    ),
    "infobatch averaged": lambda data, **o: InfoBatch(data, 0.5, smoothing=0.5, **o),
    "orderdp": lambda data, **o: OrderDP(data, 0.7, **o),
}


def dataset(samples: int = SAMPLES) -> TensorDataset:
    random = torch.Generator().manual_seed(0)
    inputs = torch.randn(samples, 5, generator=random, dtype=torch.float64)
    return TensorDataset(inputs, torch.randint(3, (samples,), generator=random))


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Linear(5, 3).double()


def epoch_of(
    keep: DynamicSubset, loader: DataLoader[Any], model: nn.Module, optimizer: torch.optim.Optimizer,
    stop: int | None = None,
) -> list[Tensor]:  # fmt: skip
    """Train an epoch, or ``stop`` batches of it; the indices of each batch."""
    seen = []
    for (inputs, labels), index in loader:
        losses = cross_entropy(model(inputs), labels, reduction="none")
        optimizer.zero_grad()
        keep.weigh(losses, index).backward()
        optimizer.step()
        seen.append(index)
        if len(seen) == stop:
            break
    return seen
