"""Nothing collapses: with the defaults, half of the units go and every network still lives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from snello.neurons import dead_neurons, weighted_layers
from snello.pruning import OneShot, Pruner, Ratio
from zoo import ZOO

pytestmark = pytest.mark.usefixtures("one_thread")

ORDINARY = ("mlp", "grouped", "residual", "concat")
"""Members of the zoo that run in every test run; the others are exhaustive."""


def _torchvision(name: str, size: int = 64) -> Callable[[], tuple[nn.Module, Tensor]]:
    def build() -> tuple[nn.Module, Tensor]:
        models = pytest.importorskip("torchvision").models
        return getattr(models, name)(weights=None), torch.randn(2, 3, size, size)

    return build


def _timm() -> tuple[nn.Module, Tensor]:
    timm = pytest.importorskip("timm")
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False, img_size=64)
    return model, torch.randn(2, 3, 64, 64)


LARGE: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "densenet121": _torchvision("densenet121"),
    "efficientnet_b0": _torchvision("efficientnet_b0"),
    "mobilenet_v2": _torchvision("mobilenet_v2"),
    "resnet50": _torchvision("resnet50"),
    "vgg11": _torchvision("vgg11", 32),
    "vgg16_bn": _torchvision("vgg16_bn", 32),
    "vit_tiny": _timm,
}


def _depends(model: nn.Module, x: Tensor) -> bool:
    """Return True if two inputs give two outputs, beyond rounding."""
    with torch.no_grad():
        y = model(x).flatten(1).double()
    return bool((y[0] - y[1]).abs().max() > 1e-9 * y.abs().max())


def _check(model: nn.Module, x: Tensor, granularity: Any) -> None:
    model = model.double().eval()
    x = x.double()
    assert _depends(model, x)
    dead = {name for name, m in weighted_layers(model).items() if dead_neurons(m).all()}
    pruner = Pruner(model, None, granularity=granularity, amount=Ratio(0.5), schedule=OneShot())
    plan = pruner.plan()
    pruner.prune(plan)
    for name, layer in weighted_layers(model).items():
        assert name in dead or not dead_neurons(layer).all(), name
    assert all(row.after <= 0.9 * row.units for row in plan.layers if row.name not in dead)
    assert plan.warnings == ()
    assert _depends(model, x)


def _sample(name: str) -> tuple[nn.Module, Tensor]:
    shape = next(s for s in (*ZOO[name].shapes, (2, *ZOO[name].shapes[0][1:])) if s[0] >= 2)
    return ZOO[name].build(), torch.randn(shape)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("granularity", ["neuron", "weight"])
@pytest.mark.parametrize(
    "name", [n if n in ORDINARY else pytest.param(n, marks=pytest.mark.exhaustive) for n in ZOO]
)
def test_half_of_a_network_of_the_zoo_leaves_it_alive(name: str, granularity: Any) -> None:
    torch.manual_seed(0)
    _check(*_sample(name), granularity)


@pytest.mark.parametrize("granularity", ["neuron", "weight"])
@pytest.mark.parametrize(
    "name",
    [n if n == "mobilenet_v2" else pytest.param(n, marks=pytest.mark.exhaustive) for n in LARGE],
)
def test_half_of_a_large_network_leaves_it_alive(name: str, granularity: Any) -> None:
    torch.manual_seed(0)
    _check(*LARGE[name](), granularity)
