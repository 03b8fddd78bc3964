"""Layers whose weight is computed in every forward: left alone with a reason, or made plain by a
named helper.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

from laws import assert_zero_where
from snello.equilibrium import NEq
from snello.errors import ConfigError
from snello.neurons import computed
from snello.pruning import (
    Budget,
    Pruner,
    Ratio,
    import_masks,
    nonzero_macs,
    pin,
    pruning_potential,
    taylor,
)
from snello.sensitivity import lobster_scores, serene_scores

pytestmark = pytest.mark.usefixtures("one_thread")


class _Symmetric(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


KINDS: dict[str, tuple[Callable[[nn.Module], object], str]] = {
    "prune mask": (lambda m: prune.random_unstructured(m, "weight", 0.5), "import_masks"),
    "prune bias": (lambda m: prune.random_unstructured(m, "bias", 0.5), "import_masks"),
    "weight_norm": (parametrizations.weight_norm, "remove_parametrizations"),
    "old weight_norm": (weight_norm, "remove_weight_norm"),
    "spectral_norm": (parametrizations.spectral_norm, "remove_parametrizations"),
    "old spectral_norm": (spectral_norm, "remove_spectral_norm"),
    "orthogonal": (lambda m: parametrizations.orthogonal(m, orthogonal_map="matrix_exp"), "remove_parametrizations"),
    "own": (lambda m: parametrize.register_parametrization(m, "weight", _Symmetric()), "remove_parametrizations"),
    "own bias": (lambda m: parametrize.register_parametrization(m, "bias", _Symmetric()), "remove_parametrizations"),
}  # fmt: skip


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.mark.filterwarnings("ignore::FutureWarning")
def _model(kind: str) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 3)
    ).double()  # fmt: skip
    KINDS[kind][0](model[2])
    return model


def _batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(16, 6, generator=generator).double(), torch.randint(
        3, (16,), generator=generator
    )


def _train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    for _ in range(steps):
        x, y = _batch()
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


def _sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=0.1)


IMPORTANCES: dict[str, Any] = {
    "l1": "l1",
    "l2": "l2",
    "han": "han",
    "random": "random",
    "taylor": taylor([_batch()]),
    "lobster": lobster_scores([_batch()]),
    "serene": serene_scores([_batch()]),
}


@pytest.mark.sampled(40)
@pytest.mark.parametrize("granularity", ["weight", "neuron"])
@pytest.mark.parametrize("importance", IMPORTANCES)
@pytest.mark.parametrize("trained", [False, True])
def test_the_pruner_leaves_the_layer_alone_and_prunes_the_others(
    kind: str, importance: str, granularity: Any, trained: bool
) -> None:
    model = _model(kind)
    optimizer = _sgd(model)
    if trained:  # the old ones keep the weight of the last forward, with its graph
        _train(model, optimizer)
    before = {name: value.clone() for name, value in model[2].state_dict().items()}
    pruner = Pruner(
        model,
        optimizer,
        granularity=granularity,
        importance=IMPORTANCES[importance],
        amount=Ratio(0.5),
    )
    assert list(pruner.left_alone) == ["2"]
    assert KINDS[kind][1] in pruner.left_alone["2"]
    pruner.prune()
    assert not any(name.startswith("2.") for name in pruner.masks)
    assert any((~mask).any() for mask in pruner.masks.values())
    for name, value in model[2].state_dict().items():
        if not name.endswith(("_u", "_v")):  # power iterations go on in every forward
            assert torch.equal(value, before[name])
    _train(model, optimizer)
    assert_zero_where(model, pruner.masks)


def test_without_another_layer_the_reason_is_told(kind: str) -> None:
    model = nn.Sequential(_model(kind)[2], nn.ReLU(), nn.Linear(10, 3).double())
    with pytest.raises(ConfigError, match=rf"no layer to prune; left alone: .*{KINDS[kind][1]}"):
        Pruner(model, None, amount=Ratio(0.5))


def test_pin_says_why_it_cannot(kind: str) -> None:
    model, key = _model(kind), "bias" if "bias" in kind else "weight"
    shape = getattr(model[2], key).shape
    with pytest.raises(ConfigError, match=KINDS[kind][1]):
        pin(model, _sgd(model), {f"2.{key}": torch.ones(shape, dtype=torch.bool)})


def test_neq_leaves_the_layer_alone(kind: str) -> None:
    model = _model(kind)
    optimizer = _sgd(model)
    neq = NEq(model, optimizer, _batch()[0][:4], eps=1e9)
    assert KINDS[kind][1] in neq.left_alone["2"]
    neq.step()
    before = model[0].weight.detach().clone()
    _train(model, optimizer)
    assert torch.equal(model[0].weight, before)


def test_copies_and_potentials_work(kind: str) -> None:
    model = _model(kind)
    optimizer = _sgd(model)
    _train(model, optimizer)
    pruner = Pruner(model, None, amount=Ratio(0.5))
    twin = copy.deepcopy(pruner)
    twin.prune()
    assert twin.model is not model
    assert not any((p == 0).all() for p in model[0].parameters())
    x, y = _batch()
    (point,) = pruning_potential(
        model, lambda m: float(F.cross_entropy(m(x), y)), {"l1": "l1"}, (0.5,)
    )
    assert point.value > 0
    x, _ = _batch()
    _train(twin.model, _sgd(twin.model))
    assert_zero_where(twin.model, twin.masks)


def test_a_budget_of_macs_counts_the_layer(kind: str) -> None:
    model = _model(kind)
    cost = nonzero_macs(_batch()[0])
    before = cost(model)
    pruner = Pruner(model, None, amount=Budget(0.9 * before, cost))
    pruner.prune()
    assert cost(model) <= 0.9 * before


@pytest.mark.parametrize("granularity", ["weight", "neuron"])
def test_a_neuron_is_left_alone_with_its_norm(granularity: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 3), nn.Flatten(), nn.Linear(20, 3)
    )
    parametrize.register_parametrization(model[1], "weight", _Symmetric())
    pruner = Pruner(model, None, granularity=granularity, amount=Ratio(0.5))
    assert ("0" in pruner.left_alone) is (granularity == "neuron")
    pruner.prune()


def test_lazy_layers_are_left_alone_until_they_have_a_shape() -> None:
    model = nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 3))
    assert "run the model once" in Pruner(model, None, amount=Ratio(0.5)).left_alone["0"]
    model(torch.randn(2, 5))
    assert Pruner(model, None, amount=Ratio(0.5)).left_alone == {}
    assert computed(model[0]) is None


@pytest.mark.parametrize("granularity", ["weight", "neuron"])
def test_tied_weights_are_pruned_once(granularity: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.Linear(6, 3)).double()
    model[2].weight = model[0].weight
    optimizer = _sgd(model)
    pruner = Pruner(model, optimizer, granularity=granularity, amount=Ratio(0.4))
    pruner.prune()
    _train(model, optimizer)
    assert_zero_where(model, pruner.masks)


def test_imported_masks_are_those_of_the_next_pruner() -> None:
    model = _model("prune mask")
    optimizer = _sgd(model)
    _train(model, optimizer)
    masks = import_masks(model)
    pruner = Pruner(model, _sgd(model), amount=Ratio(0.3))
    assert torch.equal(pruner.masks["2.weight"], masks["2.weight"])
    assert pruner.left_alone == {}
    _train(model, _sgd(model))
    assert_zero_where(model, masks)
