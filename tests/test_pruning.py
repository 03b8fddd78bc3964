"""Pruning: the bound holds, nothing revives, masks only grow, and a run resumes where it
stopped.
"""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from laws import assert_zero_where
from snello.errors import ConfigError, DivergenceError, ModelError
from snello.neurons import dead_neurons, rows, weighted_layers
from snello.pruning import Cubic, LossBound, Plateau, Pruner, Ratio, pin

# The pruner


def convnet() -> nn.Module:
    """A network that has learnt something: pruning costs it some loss."""
    return copy.deepcopy(_trained())


@cache
def _trained() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(20, 3)
    ).double()  # fmt: skip
    train(model, torch.optim.Adam(model.parameters(), 0.01), 60)
    model.zero_grad()
    return model


def batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Noise whose class is the brightest of its three pairs of rows."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(32, 1, 6, 6, dtype=torch.float64, generator=generator)
    return x, x.reshape(32, 3, 12).mean(2).argmax(1)


def cross_entropy(model: nn.Module) -> float:
    x, y = batch()
    return float(nn.functional.cross_entropy(model(x), y))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    model.train()
    for step in range(steps):
        x, y = batch(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, nesterov=True, weight_decay=0.01)


OPTIMIZERS: dict[str, Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
    "AdamW": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1),
    "Adam foreach": lambda p: torch.optim.Adam(p, 0.01, foreach=True),
    "Adam fused": lambda p: torch.optim.Adam(p, 0.01, fused=True),
}


@pytest.mark.parametrize("granularity", ["weight", "neuron"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_nothing_revives(name: str, granularity: Any) -> None:
    model = convnet()
    optimizer = OPTIMIZERS[name](model.parameters())
    pruner = Pruner(model, optimizer, cross_entropy, granularity=granularity, amount=LossBound(0.5))
    train(model, optimizer, 5)  # momentum that would push pruned weights on
    pruner.prune()
    before = [p.detach().clone() for p in model.parameters()]
    for _ in range(20):
        train(model, optimizer, 1)
        assert_zero_where(model, pruner.masks)
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_without_the_pin_they_would_revive() -> None:
    model = convnet()
    optimizer = sgd(model)
    pruner = Pruner(model, optimizer, cross_entropy, amount=LossBound(0.5))
    train(model, optimizer, 5)
    pruner.prune()
    pruner.remove()
    train(model, optimizer, 1)
    assert any(model.state_dict()[name][~mask].any() for name, mask in pruner.masks.items())


def test_pin_by_itself() -> None:
    model = nn.Linear(4, 3)
    optimizer = sgd(model)
    handle = pin(model, optimizer, {"weight": torch.arange(12).reshape(3, 4) % 2 == 0})
    model.weight.grad, model.bias.grad = torch.ones(3, 4), torch.ones(3)
    optimizer.step()
    assert_zero_where(model, {"weight": torch.arange(12).reshape(3, 4) % 2 == 0})
    handle.remove()
    optimizer.step()
    assert model.weight.all()


def test_masks_follow_a_model_to_another_device() -> None:
    model = convnet()
    pruner = Pruner(model, sgd(model), cross_entropy, amount=LossBound(0.5))
    pruner.prune()
    sgd(model.to("meta")).step()
    assert pruner.masks
    assert {mask.device.type for mask in pruner.masks.values()} == {"meta"}


def test_attach_pins_through_another_optimizer() -> None:
    model = convnet()
    pruner = Pruner(model, sgd(model), cross_entropy, amount=LossBound(0.5))
    pruner.prune()
    other = torch.optim.Adam(model.parameters(), 0.01)
    pruner.attach(other)
    train(model, other, 5)
    assert_zero_where(model, pruner.masks)


@pytest.mark.parametrize("granularity", ["weight", "neuron"])
@pytest.mark.parametrize("twt", [0.0, 0.05, 0.5])
def test_one_step_worsens_the_loss_by_twt_at_most(granularity: Any, twt: float) -> None:
    model = convnet()
    pruner = Pruner(
        model, sgd(model), cross_entropy, granularity=granularity, amount=LossBound(twt)
    )
    before = pruner.loss()
    search = pruner.prune()
    assert pruner.loss() == search.loss <= search.bound == (1 + twt) * before
    assert pruner.finished is (search.threshold == 0)
    if twt == 0.5:
        assert pruner.pruned > 0.05


def test_neurons_go_whole_and_the_head_stays() -> None:
    model = convnet()
    pruner = Pruner(model, sgd(model), cross_entropy, granularity="neuron", amount=LossBound(1e6))
    pruner.prune()  # everything may go
    dead = dead_neurons(model[0])
    assert dead.any()
    for tensor in (model[0].bias, model[1].weight, model[1].bias):
        assert not tensor.detach()[dead].any()
    assert not model[3].bias.detach()[dead_neurons(model[3])].any()
    assert not dead_neurons(model[6]).any()
    assert "6.weight" not in pruner.masks
    model.eval()
    with torch.no_grad():
        assert not model[:2](batch()[0])[:, dead].any()


def test_a_neuron_is_scored_by_the_mean_magnitude_of_its_weights() -> None:
    model, bound = convnet(), LossBound(0.5)
    pruner = Pruner(
        model, sgd(model), cross_entropy, granularity="neuron", amount=bound, normalise=None
    )
    scores = {
        n: rows(m, m.weight.detach()).abs().mean(1)
        for n, m in weighted_layers(model).items()
        if n != "6"
    }
    search = pruner.prune()
    for name, score in scores.items():
        assert torch.equal(dead_neurons(model.get_submodule(name)), score < search.threshold)


def test_weights_go_by_magnitude_over_all_layers() -> None:
    model = convnet()
    before = {name: m.weight.detach().clone() for name, m in weighted_layers(model).items()}
    search = Pruner(
        model, sgd(model), cross_entropy, amount=LossBound(0.2), exclude=(), normalise=None
    ).prune()
    assert search.threshold > 0
    for name, weight in before.items():
        expected = torch.where(weight.abs() < search.threshold, 0.0, weight)
        assert torch.equal(model.get_submodule(name).weight, expected)


def test_excluded_layers_are_never_pruned() -> None:
    model = convnet()
    before = model[3].weight.detach().clone()
    pruner = Pruner(model, sgd(model), cross_entropy, amount=LossBound(10), exclude=["3"])
    pruner.prune()
    assert torch.equal(model[3].weight, before)
    assert pruner.masks.keys() == {"0.weight", "6.weight"}


@pytest.mark.parametrize("granularity", ["weight", "neuron"])
def test_masks_only_grow(granularity: Any) -> None:
    model = convnet()
    optimizer = sgd(model)
    pruner = Pruner(model, optimizer, cross_entropy, granularity=granularity, amount=LossBound(0.3))
    pruner.prune()
    growth = [pruner.pruned]
    for _ in range(4):
        older = dict(pruner.masks)
        train(model, optimizer, 5)
        pruner.step()  # its loss is the best so far, or counts as bad
        pruner.amount = LossBound(4 * pruner.amount.twt)  # ever more may go
        pruner.prune()
        assert all(not (mask & ~older[name]).any() for name, mask in pruner.masks.items())
        growth.append(pruner.pruned)
    assert growth == sorted(growth)
    assert growth[-1] > growth[0]


def test_a_plateau_restores_the_best_weights_before_it_prunes() -> None:
    model = convnet()
    pruner = Pruner(model, sgd(model), cross_entropy, amount=LossBound(0.2), schedule=Plateau(2))
    first = pruner.step()
    assert first.improved
    assert first.search is None
    best = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        for p in model.parameters():
            p.add_(5.0)
    assert pruner.step(loss=first.loss).search is None
    second = pruner.step(loss=first.loss)
    assert second.search is not None
    assert second.search.bound == 1.2 * first.loss
    for name, value in model.state_dict().items():
        mask = pruner.masks.get(name, torch.ones(value.shape, dtype=torch.bool))
        assert torch.equal(value, torch.where(mask, best[name], torch.zeros_like(value)))
    assert second.pruned == pruner.pruned > 0
    assert pruner.schedule.bad == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_diverged_loss_is_refused_and_the_weights_stay(bad: float) -> None:
    model = convnet()
    before = copy.deepcopy(model.state_dict())
    pruner = Pruner(model, sgd(model), lambda _: bad)
    for call in (pruner.step, pruner.prune, lambda: pruner.step(loss=bad)):
        with pytest.raises(DivergenceError, match=str(bad)):
            call()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert pruner.masks == {}


def test_an_evaluation_that_fails_midway_leaves_the_weights_whole() -> None:
    model, calls = convnet(), []

    def fails(model: nn.Module) -> float:
        calls.append(1)
        if len(calls) > 1:
            raise RuntimeError("data loader")
        return 1.0

    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError, match="data loader"):
        Pruner(model, sgd(model), fails).prune()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(m.training for m in model.modules())


def test_evaluation_happens_in_evaluation_mode_without_gradients() -> None:
    modes = []

    def evaluate(model: nn.Module) -> float:
        modes.append((model.training, torch.is_grad_enabled()))
        return 1.0

    model = convnet()
    Pruner(model, sgd(model), evaluate).prune()
    assert set(modes) == {(False, False)}
    assert model.training


@pytest.mark.parametrize("granularity", ["weight", "neuron"])
def test_a_resumed_run_goes_on_identically(granularity: Any) -> None:
    options: dict[str, Any] = {
        "granularity": granularity,
        "amount": LossBound(0.3),
        "schedule": Plateau(1),
    }
    model = convnet()
    optimizer = sgd(model)
    pruner = Pruner(model, optimizer, cross_entropy, **options)
    for _ in range(3):
        train(model, optimizer, 2)
        pruner.step()
    pruner.prune()
    buffer = io.BytesIO()
    parts = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "pruner": pruner.state_dict(),
    }
    torch.save(parts, buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    twin = convnet()
    resumed_optimizer = sgd(twin)
    resumed = Pruner(twin, resumed_optimizer, cross_entropy, **options)
    twin.load_state_dict(saved["model"])
    resumed_optimizer.load_state_dict(saved["optimizer"])
    resumed.load_state_dict(saved["pruner"])
    for _ in range(3):
        train(model, optimizer, 2)
        train(twin, resumed_optimizer, 2)
        assert pruner.step() == resumed.step()
        assert_zero_where(twin, resumed.masks)
    assert all(
        torch.equal(model.state_dict()[name], value) for name, value in twin.state_dict().items()
    )


def test_copies_of_model_optimizer_and_pruner_go_on_alike_and_apart() -> None:
    model = convnet()
    optimizer = sgd(model)
    pruner = Pruner(model, optimizer, cross_entropy, amount=LossBound(0.5))
    train(model, optimizer, 2)
    pruner.prune()
    twin, twin_optimizer, twin_pruner = copy.deepcopy((model, optimizer, pruner))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train(twin, twin_optimizer, 3)
    assert_zero_where(twin, pruner.masks)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    train(model, optimizer, 3)
    assert all(
        torch.equal(twin.state_dict()[name], value) for name, value in model.state_dict().items()
    )
    twin_pruner.amount = LossBound(2.0)
    twin_pruner.prune()
    assert twin_pruner.pruned > pruner.pruned
    assert twin_pruner.model is twin


def test_an_average_of_the_weights_keeps_no_memory_of_what_was_pruned() -> None:
    model = convnet()
    optimizer = sgd(model)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    forgotten = copy.deepcopy(average)
    pruner = Pruner(model, optimizer, cross_entropy, amount=LossBound(0.5))
    pruner.follow(average)
    for step in range(6):
        if step in (2, 4):
            pruner.amount = LossBound(2 * pruner.amount.twt)
            pruner.prune()
        train(model, optimizer, 1)
        for averaged in (average, forgotten):
            averaged.update_parameters(model)
        if step >= 2:
            assert_zero_where(average.module, pruner.masks)
    revived = [
        forgotten.module.get_parameter(name)[~mask].any() for name, mask in pruner.masks.items()
    ]
    assert any(revived)  # what following is for


def test_nothing_revives_under_a_gradient_scaler() -> None:
    model = convnet()
    optimizer, scaler = (
        sgd(model),
        torch.amp.GradScaler("cpu", init_scale=2.0**20, growth_interval=1),
    )
    pruner = Pruner(model, optimizer, cross_entropy, amount=LossBound(0.5))
    train(model, optimizer, 3)
    pruner.prune()
    before = model[0].weight.detach().clone()
    for step in range(4):
        x, y = batch(step)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        # The second step overflows and is skipped.
        scaler.scale(loss * (math.inf if step == 1 else 1)).backward()
        scaler.step(optimizer)
        scaler.update()
        assert_zero_where(model, pruner.masks)
    assert not torch.equal(model[0].weight, before)


# Refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"granularity": "row"}, "not 'row'"),
        ({"exclude": ["9"]}, r"'9'.*0, 3, 6"),
        ({"exclude": ["0", "3", "6"]}, "no layer to prune"),
        ({"scope": "model"}, "not 'model'"),
        ({"importance": "l3"}, "l1, l2, han, bn-scale, random, not 'l3'"),
        ({"twt": 0.1}, r"amount=LossBound\(0\.1\)"),
        ({"pwe": 2}, r"schedule=Plateau\(2\)"),
        ({"tolerance": 0.1}, r"schedule=Plateau\(pwe, tolerance=0\.1\)"),
        ({"schedule": Cubic()}, "Ratio"),
        ({"amount": 0.5}, r"amount is an object such as Ratio\(0\.5\)"),
        ({"amount": 0}, "amount is an object such as"),
        ({"schedule": "cubic"}, "schedule is an object such as"),
        ({"limits": {}}, "limits is an object such as"),
        ({"quality": cross_entropy}, "quality is an object such as"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    model = convnet()
    with pytest.raises(ConfigError, match=message):
        Pruner(model, sgd(model), cross_entropy, **options)


class Branching(nn.Module):
    """A layer and what follows it, on a path that depends on the values."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.fc, self.norm, self.out = nn.Linear(3, 8), norm, nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(self.fc(x)) if x.sum() > 0 else x.new_zeros(len(x), 8))


def test_neurons_of_a_model_that_cannot_be_traced() -> None:
    """Only the BatchNorm behind a layer is looked up in the graph."""
    how = {"granularity": "neuron", "amount": Ratio(0.5)}
    model = Branching(nn.BatchNorm1d(8))
    with pytest.raises(ModelError, match=r"cannot trace Branching.* Give example_inputs="):
        Pruner(model, sgd(model), cross_entropy, **how)
    Pruner(model, sgd(model), cross_entropy)  # single weights need no graph
    pruner = Pruner(model, None, example_inputs=torch.ones(2, 3), **how)
    pruner.prune()
    assert list(pruner.masks) == ["fc.weight", "fc.bias", "norm.weight", "norm.bias"]
    plain = Pruner(Branching(nn.LayerNorm(8)), None, **how)
    plain.prune()
    assert list(plain.masks) == ["fc.weight", "fc.bias"]
