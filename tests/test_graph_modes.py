"""Runs of a model by snello leave no trace in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from snello import simplify
from snello.deploy import footprint, profile_layers
from snello.graph import capture, coupling, evaluation


class Caching(nn.Module):
    """As timm's attention: what depends on weights alone is computed once in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 8)
        self.scale = nn.Parameter(torch.rand(8) + 0.5)
        self.head = nn.Linear(8, 2)
        self.cache: dict[str, Tensor] = {}
        self.seen: list[Any] = []

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.cache.clear()
        if "scale" not in self.cache:
            self.cache["scale"] = self.scale * 2
        self.seen.append(x.shape)
        return self.head(self.layer(x) * self.cache["scale"])


X = torch.rand(3, 4)
RUNS: dict[str, Callable[[nn.Module], object]] = {
    "capture": lambda m: capture(m, X),
    "coupling": lambda m: coupling(m, X),
    "simplify": lambda m: simplify(m, X),
    "footprint": lambda m: footprint(m, X),
    "profile_layers": lambda m: profile_layers({"net": (m, X)}, repeats=1),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_cache_of_the_model_is_as_before(name: str) -> None:
    torch.manual_seed(0)
    model = Caching().eval()
    RUNS[name](model)
    assert not model.cache
    assert not model.seen
    with torch.no_grad():
        model.scale.zero_()
        assert torch.equal(model(X), model.head.bias.expand(3, 2)), "not what was stored before"


def test_an_evaluation_under_autocast_takes_no_gradients_from_the_training() -> None:
    """Autocast keeps the weights that it has cast; the fast path of transformers casts them first."""
    torch.manual_seed(0)
    model, x = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), torch.randn(2, 3, 8)
    with torch.autocast("cpu", torch.bfloat16):
        with evaluation(model):
            model(x)
        model(x).square().mean().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert torch.is_autocast_cache_enabled()
