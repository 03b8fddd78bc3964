"""A network, its data and its training on any device, and comparisons of what two devices found."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Found = dict[str, Tensor]
CPU = torch.device("cpu")


def network(device: torch.device, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(5)
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, 3, stride=2, bias=False), nn.GroupNorm(2, 8), nn.ReLU(), nn.Flatten(),
        nn.Linear(72, 16), nn.ReLU(), nn.Linear(16, 4),
    ).to(device, dtype)  # fmt: skip


def images(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 2, 8, 8, generator=generator, dtype=torch.float64)
    return x, torch.randint(4, (count,), generator=generator)


def batches(like: nn.Module, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches on the device, and in the dtype, of a model."""
    parameter = next(like.parameters())
    for step in range(steps):
        x, y = images(8, step)
        yield x.to(parameter), y.to(parameter.device)


def momentum(model: nn.Module, **options: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=1e-2, **options)


def train(model: nn.Module, optimizer: Any, steps: int = 2, sensitivity: Any = None) -> None:
    for x, y in batches(model, steps):
        outputs = model(x)
        if sensitivity is not None:
            sensitivity.observe(outputs, y)
        optimizer.zero_grad()
        F.cross_entropy(outputs, y).backward()
        optimizer.step()
        if sensitivity is not None:
            sensitivity.step()


def held_out(model: nn.Module) -> float:
    """The loss on images that the training does not see."""
    ((x, y),) = batches(model, 1)
    return float(F.cross_entropy(model(x), y))


def state(model: nn.Module) -> Found:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def assert_same(found: Found, expected: Found, tolerance: float = 1e-8) -> None:
    """Compare tensors of two devices, relative to the largest value of each."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        a, b = found[name].cpu(), value.cpu()
        assert a.shape == b.shape, name
        if b.is_floating_point():
            scale = float(b.abs().max()) if b.numel() else 0.0
            assert float((a - b).abs().max() if b.numel() else 0) <= tolerance * scale, name
        else:
            assert torch.equal(a, b), name


def assert_zero(model: nn.Module, masks: Found) -> None:
    """Pruned weights are zero, and there are some."""
    assert sum(int((~mask).sum()) for mask in masks.values()) > 0
    for name, mask in masks.items():
        weight = model.get_parameter(name).detach()
        assert bool((weight[~mask.to(weight.device)] == 0).all()), name


def frozen_rows(model: nn.Module, frozen: Found) -> Found:
    weights = {name: model.get_parameter(f"{name}.weight").detach() for name in frozen}
    return {name: weights[name][mask.to(weights[name].device)] for name, mask in frozen.items()}
