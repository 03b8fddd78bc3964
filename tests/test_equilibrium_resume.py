"""A run that was saved and resumed goes on as if nothing had happened, under every selection."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from equilibrium_samples import batch, network, same, sgd, tensors, train
from snello.equilibrium import (
    EquilibriumStep,
    FreezeOut,
    MatchedStochastic,
    NEq,
    ParameterBudget,
    Prefix,
    Selection,
    SelectiveUpdate,
    Settled,
    Stochastic,
    Velocity,
)
from snello.errors import ConfigError

SELECTIONS: dict[str, Callable[[], Selection]] = {
    "paper": lambda: Velocity(2e-2),
    "released": lambda: Velocity(2e-2, formula="released"),
    "stochastic": lambda: Stochastic(0.4, seed=9),
    "matched to a run": lambda: MatchedStochastic([0.0, 0.6, 0.2, 0.5, 0.3, 0.4], per_step=True),
    "matched to a mean": lambda: MatchedStochastic([0.2, 0.6]),
    "matched to a rule": lambda: MatchedStochastic(Velocity(5e-2)),
    "prefix": lambda: Prefix(0.4),
    "freezeout": lambda: Prefix(FreezeOut(8, t0=0.3)),
    "budget": lambda: ParameterBudget(0.5),
    "settled": lambda: Settled(Velocity(3e-2), share=0.5, patience=2),
}


def run(name: str) -> tuple[nn.Module, torch.optim.Optimizer, SelectiveUpdate]:
    model = network()
    model[8].p = 0.0
    optimizer = sgd(model)
    return (
        model,
        optimizer,
        SelectiveUpdate(model, optimizer, batch()[0], SELECTIONS[name](), dispatch="fixed"),
    )


def go_on(
    model: nn.Module, optimizer: torch.optim.Optimizer, method: SelectiveUpdate
) -> list[tuple[EquilibriumStep, list[Any]]]:
    decided = []
    for _ in range(3):
        train(model, optimizer, 1)
        decided.append((method.step(), [mask.tolist() for mask in method.frozen.values()]))
    return decided


def saved(*parts: Any) -> Any:
    file = io.BytesIO()
    torch.save([part.state_dict() for part in parts], file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", SELECTIONS)
def test_a_resumed_run_and_a_copied_one_give_identical_masks_and_weights(name: str) -> None:
    model, optimizer, method = run(name)
    for _ in range(2):
        train(model, optimizer, 2)
        method.step()
    train(model, optimizer, 1)  # in the middle of a step
    states = saved(model, optimizer, method)
    twin = run(name)
    for part, state in zip(twin, states, strict=True):
        part.load_state_dict(state)
    assert twin[2].status() == method.status()
    copied = copy.deepcopy((model, optimizer, method))
    steps = go_on(model, optimizer, method)
    for other in (twin, copied):
        assert steps == go_on(*other)
        assert same(tensors(model), tensors(other[0]))
    assert 0 < steps[-1][0].total < 1
    assert steps[-1][0].step == 5


@pytest.mark.parametrize("name", SELECTIONS)
def test_a_saved_state_is_a_copy(name: str) -> None:
    model, optimizer, method = run(name)
    train(model, optimizer, 1)
    method.step()
    state = method.state_dict()
    then = copy.deepcopy(state)
    go_on(model, optimizer, method)
    assert repr(state) == repr(then)
    method.load_state_dict(state)
    assert method.status().step == 1
    go_on(model, optimizer, method)
    assert repr(state) == repr(then)


def test_a_state_of_something_else_is_refused_and_changes_nothing() -> None:
    model = network()
    neq = NEq(model, sgd(model), batch()[0])
    neq.step()
    before = neq.status()
    with pytest.raises(ConfigError, match="lacks"):
        neq.load_state_dict({"step": 1})
    fresh = network()
    other = NEq(fresh, sgd(fresh), batch()[0], exclude=["0"])
    with pytest.raises(ConfigError, match="other layers"):
        neq.load_state_dict(other.state_dict())
    smaller = NEq(fresh, sgd(fresh), batch()[0][:2])
    with pytest.raises(ConfigError, match="same probe"):
        neq.load_state_dict(smaller.state_dict())
    sketched = NEq(fresh, sgd(fresh), batch()[0], positions=3)
    with pytest.raises(ConfigError, match="keeps 3 positions, not all"):
        neq.load_state_dict(sketched.state_dict())
    assert neq.status() == before
    for selection in (Stochastic(0.5), Prefix(0.5), Settled(Velocity()), MatchedStochastic([0.5])):
        blind = SelectiveUpdate(fresh, None, batch()[0], selection)
        state = {**neq.state_dict(), "reference": blind.state_dict()["reference"]}
        kept = copy.deepcopy(selection.state_dict())
        with pytest.raises(ConfigError, match=f"not a state of {type(selection).__name__}: "):
            blind.load_state_dict(state)
        assert repr(selection.state_dict()) == repr(kept)
    blind = SelectiveUpdate(fresh, None, batch()[0], Prefix(0.5))
    later = SelectiveUpdate(network(), None, batch()[0], Prefix(0.5))
    later.step()
    narrowed = {**later.state_dict(), "frozen": {**later.frozen, "0": later.frozen["0"][:1]}}
    with pytest.raises(ConfigError, match=r"mask '0': .* shape \(6,\)"):
        blind.load_state_dict(narrowed)
    assert blind.selection.state_dict() == {"steps": 0}
    rule, shares = MatchedStochastic(Velocity()), MatchedStochastic([0.5])
    with pytest.raises(ConfigError, match="finished run"):
        shares.load_state_dict(rule.state_dict())
    with pytest.raises(ConfigError, match="finished run"):
        rule.load_state_dict(shares.state_dict())
