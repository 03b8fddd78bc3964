"""Two processes decide as one, even where they measure different things."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import ProfilerActivity, profile

from equilibrium_samples import batch, network, sgd, train
from pair import in_two_processes
from snello.equilibrium import (
    FeatureCache,
    MatchedStochastic,
    ParameterBudget,
    Prefix,
    SelectiveUpdate,
    Stochastic,
    TimeBudget,
    Velocity,
)
from snello.errors import ConfigError, DivergenceError

SELECTIONS: dict[str, Any] = {
    "velocity": lambda seed: Velocity(2e-2),
    "stochastic": lambda seed: Stochastic(0.5, seed=seed),
    "matched": lambda seed: MatchedStochastic(Velocity(5e-2), seed=seed),
    "prefix": lambda seed: Prefix(0.4),
    "budget": lambda seed: ParameterBudget(0.5),
}


def _everything(rank: int) -> dict[str, Any]:
    found = {name: _decided(name, rank) for name in SELECTIONS}
    found["diverged"] = {"stopped": torch.tensor(_stops(rank))}
    found["refused"] = {"wrappers": torch.tensor(_refused())}
    found["cached"] = _cached(rank, 2)
    found["cached untraced"] = _cached(rank, 2, Untraced())
    found["other cut"] = {"says": _cut_apart(rank)}
    found["measured"] = _measured()
    found["scaled"] = _scaled(rank, 2)
    return found | {f"trained {name}": _trained(name, rank) for name in SELECTIONS}


def _decided(name: str, rank: int) -> dict[str, Any]:
    """Masks and state of the selection after three steps of ranks that have drifted apart."""
    model = network()
    model[8].p = 0.0
    optimizer = sgd(model)
    # The ranks have other probes and, without DDP's averaging, other weights and other seeds.
    probe = batch(100 + rank)[0]
    method = SelectiveUpdate(_wrapped(model), optimizer, probe, SELECTIONS[name](rank))
    masks = {}
    for step in range(3):
        train(model, optimizer, 1 + rank)
        method.step()
        masks |= {f"{step} {layer}": mask for layer, mask in method.frozen.items()}
    assert method.model is model
    own = torch.cat([p.detach().flatten() for p in model.parameters()])
    return {"masks": masks, "own": own, "state": method.selection.state_dict()}


def _wrapped(model: nn.Module) -> nn.Module:
    """As the user hands it over; the loop here trains the model inside, so that the ranks drift
    apart.
    """
    if not distributed.is_initialized():
        return model
    return DistributedDataParallel(model, find_unused_parameters=True)


def _trained(name: str, rank: int) -> dict[str, Any]:
    """A real training with DDP: another part of the data on every rank, gradients
    averaged.
    """
    model = network()
    model[8].p = 0.0
    wrapped, optimizer = _wrapped(model), sgd(model)
    method = SelectiveUpdate(model, optimizer, batch()[0], SELECTIONS[name](rank))
    frozen = []
    for step in range(4):
        x, y = batch(10 * step + rank)
        optimizer.zero_grad()
        cross_entropy(wrapped(x), y).backward()
        optimizer.step()
        method.step()
        frozen.append(torch.cat(list(method.frozen.values())))
    return {
        "weights": {key: p.detach().clone() for key, p in model.named_parameters()},
        "frozen": torch.stack(frozen),
    }


class Scaled(nn.Module):
    """A model with a parameter of its own in front of its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.gain, self.body = nn.Parameter(torch.ones(2, 1, 1)), convolutions()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(self.gain * x)


def convolutions() -> nn.Sequential:
    torch.manual_seed(5)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 4)
    ).double()


def _scaled(rank: int, size: int) -> dict[str, Any]:
    """A training whose first layer rests in the second and third of four steps."""
    model = Scaled().double()
    wrapped, optimizer = _wrapped(model), sgd(model)
    shares = iter((0.0, 0.5, 0.5, 0.0))
    update = SelectiveUpdate(
        wrapped, optimizer, batch()[0], Prefix(lambda _: next(shares)), dispatch="fixed"
    )
    gains = []
    for step in range(4):
        update.step()
        x, y = batch(step)
        optimizer.zero_grad()
        cross_entropy(wrapped(x[rank::size]), y[rank::size]).backward()
        optimizer.step()
        gains.append(model.gain.detach().clone())
    weights = {key: p.detach().clone() for key, p in model.named_parameters()}
    return {"weights": weights, "gains": torch.stack(gains)}


class Untraced(nn.Module):
    """The same with a branch on values, which torch.fx cannot trace."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = convolutions()

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x if float(x.detach().abs().max()) < 1e6 else x / 2)


def _cached(rank: int, size: int, model: nn.Module | None = None) -> dict[str, Any]:
    """A training with cached features whose layers rest after an epoch and are thawed at last."""
    model = convolutions() if model is None else model
    wrapped, optimizer = _wrapped(model), sgd(model)
    shares = iter((0.0, 0.5, 0.5, 0.0))
    update = SelectiveUpdate(wrapped, optimizer, batch()[0], Prefix(lambda _: next(shares)))
    cache = FeatureCache(update, 8, measured=False)
    x, y = batch(3)
    stored, sent = [], []
    for _ in range(4):
        update.step()
        for index in torch.arange(8).view(2, 4):
            own = index[rank::size]
            optimizer.zero_grad()
            loss = cross_entropy(cache(x[own], own), y[own])
            with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
                loss.backward()
            optimizer.step()
        stored.append(cache.status.stored)
        sent.append(_averaged(profiler))
    cache.close()
    weights = {key: p.detach().clone() for key, p in model.named_parameters()}
    return {"weights": weights, "stored": stored, "sent": sent}


def _cut_apart(rank: int) -> str:
    """The error of ranks that store the outputs of different layers."""
    model = convolutions()
    update = SelectiveUpdate(_wrapped(model), sgd(model), batch()[0], Prefix(0.0))
    update.apply({name: torch.ones(4, dtype=torch.bool) for name in ("0", "2")[: 1 + rank]})
    cache = FeatureCache(update, 8, measured=False)
    try:
        cache(batch()[0], range(8))
    except ConfigError as error:
        return str(error)
    finally:
        cache.close()
    return ""


def _measured() -> dict[str, Any]:
    """Times of steps, which no two processes measure alike."""
    model = network()
    budget = TimeBudget(1e9)
    update = SelectiveUpdate(model, sgd(model), batch()[0], budget)
    times = budget.measure(update, *batch(), cross_entropy, depths=3, repeats=1)
    return {"ms": torch.tensor(times.milliseconds, dtype=torch.float64)}


def _averaged(profiler: profile) -> int:
    """Number of values that the processes averaged in a backward pass."""
    shapes = [e.input_shapes[0] for e in profiler.events() if e.name == "gloo:all_reduce"]
    return sum(math.prod(shape[0] if isinstance(shape[0], list) else shape) for shape in shapes)


def _stops(rank: int) -> bool:
    model = network()
    method = SelectiveUpdate(model, sgd(model), batch()[0], Velocity())
    if rank == 0:
        with torch.no_grad():
            model[3].weight.fill_(float("nan"))
    try:
        method.step()
    except DivergenceError:
        return True
    return False


def _refused() -> int:
    """Number of refused wrappers that could not bear layers without a gradient."""
    count = 0
    for options in ({}, {"find_unused_parameters": True, "static_graph": True}):
        model = network()
        try:
            SelectiveUpdate(
                DistributedDataParallel(model, **options), sgd(model), batch()[0], Velocity()
            )
        except ConfigError as error:
            count += "find_unused_parameters=True" in str(error)
    return count


@pytest.fixture(scope="module")
def outcomes() -> list[dict[str, Any]]:
    return in_two_processes(_everything)


@pytest.mark.parametrize("name", SELECTIONS)
def test_masks_are_the_first_ranks_on_every_rank(name: str, outcomes: Any) -> None:
    first, second = (outcome[name] for outcome in outcomes)
    assert not torch.equal(first["own"], second["own"]), (
        "the ranks measured the same: nothing is shown"
    )
    assert first["masks"].keys() == second["masks"].keys()
    for key, mask in first["masks"].items():
        assert torch.equal(mask, second["masks"][key]), key
    alone = _decided(name, 0)["masks"]
    assert all(torch.equal(mask, alone[key]) for key, mask in first["masks"].items())
    frozen = torch.cat(list(first["masks"].values()))
    assert 0 < int(frozen.sum()) < len(frozen)


@pytest.mark.parametrize("name", SELECTIONS)
def test_the_copies_of_the_model_stay_one(name: str, outcomes: Any) -> None:
    first, second = (outcome[f"trained {name}"] for outcome in outcomes)
    assert torch.equal(first["frozen"], second["frozen"])
    assert 0 < int(first["frozen"].sum()) < first["frozen"].numel()
    start = network().state_dict()
    for key, weights in first["weights"].items():
        assert torch.equal(weights, second["weights"][key]), key
        assert not torch.equal(weights, start[key])


@pytest.mark.parametrize("name", ["velocity", "budget"])
def test_what_a_rule_remembers_is_the_same_on_every_rank(name: str, outcomes: Any) -> None:
    first, second = (outcome[name]["state"] for outcome in outcomes)
    for kind in ("phi", "velocity", "change"):
        for layer, values in first[kind].items():
            assert torch.equal(values, second[kind][layer])


def test_a_budget_follows_the_times_of_the_first_process(outcomes: Any) -> None:
    first, second = (outcome["measured"]["ms"] for outcome in outcomes)
    assert torch.equal(first, second)
    assert len(first) == 4
    assert float(first.min()) > 0


@pytest.mark.parametrize(
    ("name", "build"), [("cached", convolutions), ("cached untraced", Untraced)]
)
def test_two_processes_with_cached_features_are_one(outcomes: Any, name: str, build: Any) -> None:
    """Also after thawing; gradients before the cut are not sent."""
    alone = _cached(0, 1, build())
    assert alone["stored"] == [0, 8, 8, 0]
    # Values, and for each tensor a flag: whether it was used.
    front, whole = 2 * 4 * 9 + 4 + 2, sum(w.numel() + 1 for w in alone["weights"].values())
    for outcome in outcomes:
        found = outcome[name]
        assert found["stored"] == [0, 4, 4, 0]
        assert found["sent"] == [whole, whole - front, whole - front, whole]
        for key, weights in found["weights"].items():
            assert torch.allclose(weights, alone["weights"][key], rtol=1e-12, atol=1e-14), key


def test_ranks_that_cut_a_network_at_different_layers_are_told(outcomes: Any) -> None:
    for outcome in outcomes:
        assert "the ranks do not do the same" in outcome["other cut"]["says"]
        assert "layers before the cut: 0, 2" in outcome["other cut"]["says"]


def test_parameters_of_the_model_rest_and_thaw_on_every_rank(outcomes: Any) -> None:
    alone = _scaled(0, 1)
    start, *gains = alone["gains"]
    assert torch.equal(gains[0], start)
    assert torch.equal(gains[1], start)
    assert not torch.equal(gains[2], start)
    for outcome in outcomes:
        for key, weights in outcome["scaled"]["weights"].items():
            assert torch.allclose(weights, alone["weights"][key], rtol=1e-12, atol=1e-14), key


def test_wrappers_that_want_every_gradient_are_refused(outcomes: Any) -> None:
    assert [int(outcome["refused"]["wrappers"]) for outcome in outcomes] == [2, 2]


def test_all_ranks_stop_when_the_first_one_diverges(outcomes: Any) -> None:
    assert [bool(outcome["diverged"]["stopped"]) for outcome in outcomes] == [True, True]
