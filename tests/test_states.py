"""States with entries that are missing, of another type or out of range are refused before anything
of them is loaded.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from snello.curation import InfoBatch, OrderDP, RandomSubset
from snello.equilibrium import (
    FreezeOut,
    GradientChange,
    MatchedStochastic,
    NeVe,
    ParameterBudget,
    Plasticity,
    Prefix,
    SelectiveUpdate,
    Settled,
    StableCKA,
    Stochastic,
    TimeBudget,
    Velocity,
)
from snello.errors import ConfigError
from snello.pruning import Cubic, OneShot, Plateau, Pruner, Ratio
from snello.sensitivity import OutputSensitivity, SeReNe

X = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
RULES: dict[str, Callable[[nn.Module], Any]] = {
    "Velocity": lambda model: Velocity(),
    "Stochastic": lambda model: Stochastic(0.5),
    "MatchedStochastic": lambda model: MatchedStochastic(Velocity()),
    "Prefix": lambda model: Prefix(FreezeOut(4)),
    "ParameterBudget": lambda model: ParameterBudget(0.5),
    "Settled": lambda model: Settled(Velocity()),
    "GradientChange": GradientChange,
    "Plasticity": lambda model: Plasticity(),
    "StableCKA": lambda model: StableCKA(),
    "TimeBudget": lambda model: TimeBudget(1.0, Velocity()),
}


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


def updated(rule: str, **options: Any) -> SelectiveUpdate:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    update = SelectiveUpdate(model, optimizer, X, RULES[rule](model), dispatch="fixed", **options)
    for _ in range(2):
        optimizer.zero_grad()
        model(X).square().sum().backward()
        optimizer.step()
        if rule != "TimeBudget":  # it needs times, which are measured
            update.step()
    return update


def neve() -> NeVe:
    slower = NeVe(updated("Velocity"))
    slower.step()
    return slower


def pruner(schedule: Any) -> Pruner:
    model = mlp()
    found = Pruner(
        model, None, lambda m: float(m(X).square().sum()), schedule=schedule, amount=Ratio(0.5)
    )
    found.step()
    return found


def observed(method: Any) -> Any:
    model = mlp()
    found = method(model)
    found.observe(model(X))
    found.step()
    return found


def subset(kind: Any) -> Any:
    keep = kind(TensorDataset(X), 0.5)
    index = torch.tensor(list(keep.sampler()))
    keep.weigh(torch.ones(len(index)), index)
    return keep


OWNERS: dict[str, Callable[[], Any]] = {
    **{name: lambda name=name: updated(name) for name in RULES},  # type: ignore[misc]
    "only_if_faster": lambda: updated("Velocity", only_if_faster=True),
    "NeVe": neve,
    "OneShot": lambda: pruner(OneShot()),
    "Cubic": lambda: pruner(Cubic(3)),
    "Plateau": lambda: pruner(Plateau(2)),
    "SeReNe": lambda: observed(SeReNe),
    "OutputSensitivity": lambda: observed(OutputSensitivity),
    "InfoBatch": lambda: subset(InfoBatch),
    "OrderDP": lambda: subset(OrderDP),
    "RandomSubset": lambda: subset(RandomSubset),
}
USERS = {"sampler"}
"""Entries with the state of an object of the user."""


def damaged(state: Mapping[str, Any], owner: str) -> Iterator[tuple[str, Any]]:
    """Copies of a state with one value that no state has, and the path of the value."""
    for name, value in state.items():
        wrong: list[Any] = [object()]
        if isinstance(value, int) and not isinstance(value, bool):
            wrong += [-1, "x", 0.5, True]
        elif isinstance(value, (float, bool, str)) or value is None:
            wrong += [["x"]]
        elif isinstance(value, Tensor):
            wrong += ["x", 0]
        elif isinstance(value, list):
            wrong += [[object()], "x"]
        for each in wrong:
            yield name, {**state, name: each}
        if isinstance(value, Mapping) and name not in USERS:
            for path, inner in damaged(value, owner):
                yield f"{name}.{path}", {**state, name: inner}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a.nan_to_num(-1.0), b.nan_to_num(-1.0))
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(same(a[name], b[name]) for name in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


@pytest.mark.parametrize("name", OWNERS)
def test_a_damaged_state_is_refused_and_nothing_of_it_is_loaded(name: str) -> None:
    owner = OWNERS[name]()
    before = copy.deepcopy(owner.state_dict())
    owner.load_state_dict(before)
    assert same(owner.state_dict(), before)
    assert len(list(damaged(before, name))) > 3
    for path, state in damaged(before, name):
        with pytest.raises(ConfigError) as refused:
            owner.load_state_dict(state)
        assert path.rpartition(".")[2] in str(refused.value) or "." in path, (path, refused.value)
        assert same(owner.state_dict(), before), path
    for odd in (None, 3, {}, []):
        with pytest.raises(ConfigError, match="not a state of"):
            owner.load_state_dict(odd)


def test_options_out_of_range_are_refused_in_a_state() -> None:
    schedule = Plateau(2)
    with pytest.raises(ConfigError, match="pwe"):
        schedule.load_state_dict({**schedule.state_dict(), "pwe": 0})
    assert schedule == Plateau(2)
