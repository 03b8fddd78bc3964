"""Pruned models that are copied, loaded, averaged and pruned again: masks carry on, or a warning
says otherwise.
"""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from laws import assert_zero_where
from snello.errors import ConfigError
from snello.neurons import Masks
from snello.pruning import Cubic, Pruner, Ratio, pin, unpin, zero_masks

pytestmark = pytest.mark.usefixtures("one_thread")


def _model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 12),
        nn.BatchNorm1d(12),
        nn.ReLU(),
        nn.Linear(12, 10),
        nn.ReLU(),
        nn.Linear(10, 3),
    ).double()


def _train(
    model: nn.Module, optimizer: torch.optim.Optimizer | None = None, steps: int = 3
) -> None:
    generator = torch.Generator().manual_seed(1)
    optimizer = optimizer or _sgd(model)
    for _ in range(steps):
        x, y = (
            torch.randn(16, 6, generator=generator).double(),
            torch.randint(3, (16,), generator=generator),
        )
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


def _sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.1)


def _pruner(model: nn.Module, share: float = 0.5) -> Pruner:
    return Pruner(model, None, amount=Ratio(share))


def _pruned(share: float = 0.5) -> tuple[nn.Sequential, Pruner]:
    model = _model()
    pruner = _pruner(model, share)
    pruner.prune()
    return model, pruner


@contextmanager
def _silent() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def _same(found: Masks, expected: Masks) -> bool:
    return found.keys() == expected.keys() and all(
        torch.equal(m, expected[n]) for n, m in found.items()
    )


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


# Another pruner


@pytest.mark.parametrize("removed", [False, True])
def test_the_next_pruner_begins_with_the_masks(removed: bool) -> None:
    model, first = _pruned()
    if removed:
        first.remove()
    with _silent():
        second = _pruner(model)
    assert _same(second.masks, first.masks)
    _train(model)
    assert_zero_where(model, first.masks)


def test_what_has_moved_since_is_not_pruned_by_the_next_pruner() -> None:
    model, first = _pruned()
    first.remove()
    _train(model)
    before = _state(model)
    second = _pruner(model)
    assert "0.weight" not in second.masks
    for name, mask in second.masks.items():  # inputs that were never active got no gradient
        assert (before[name][~mask] == 0).all()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_pruner_of_the_whole_begins_with_the_masks_of_its_parts() -> None:
    part, first = _pruned()
    whole = nn.ModuleDict({"part": part, "other": nn.Linear(3, 2).double()})
    with _silent():
        second = _pruner(whole)
    assert _same(second.masks, {f"part.{name}": mask for name, mask in first.masks.items()})


def test_lost_masks_are_pointed_at_and_found_again() -> None:
    model, first = _pruned()
    fresh = _model()
    fresh.load_state_dict(model.state_dict())  # a checkpoint without the pruner's state
    with pytest.warns(
        UserWarning, match=r"exactly zero and no mask holds them.*zero_masks\(model\)"
    ):
        second = _pruner(fresh)
    with _silent():
        second.adopt(zero_masks(fresh))
    assert _same(second.masks, first.masks)
    _train(fresh)
    assert_zero_where(fresh, first.masks)


def test_layers_that_begin_at_zero_are_no_lost_masks() -> None:
    model = _model()
    nn.init.zeros_(model[3].weight)
    with _silent():
        pruner = _pruner(model)
    assert pruner.masks == {}
    assert zero_masks(model) == {}


# Loading


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("part", [False, True])
def test_dense_weights_loaded_over_a_pruned_model_are_masked(part: bool, assign: bool) -> None:
    model, pruner = _pruned()
    dense = _model()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        target, source = (model[3], dense[3]) if part else (model, dense)
        target.load_state_dict(_state(source), assign=assign)
    assert_zero_where(model, pruner.masks)
    if not part:
        assert [
            "load_state_dict brought back weights that are pruned" in str(w.message) for w in said
        ] == [True]
    for name, mask in pruner.masks.items():  # all that is kept was loaded
        if not part or name.startswith("3."):
            assert torch.equal(model.get_parameter(name)[mask], dense.get_parameter(name)[mask])


def test_its_own_weights_are_loaded_silently() -> None:
    model, _ = _pruned()
    state = _state(model)
    _train(model)
    with _silent():
        model.load_state_dict(state)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("order", ["model first", "pruner first"])
@pytest.mark.filterwarnings("ignore:load_state_dict brought back")
def test_an_earlier_checkpoint_is_restored_in_either_order(order: str) -> None:
    model = _model()
    optimizer = _sgd(model)
    pruner = Pruner(model, optimizer, amount=Ratio(0.3))
    pruner.prune()
    _train(model, optimizer)
    weights, state = _state(model), copy.deepcopy(pruner.state_dict())
    pruner.amount = Ratio(0.8)
    pruner.prune()
    _train(model, optimizer)
    parts = [lambda: model.load_state_dict(weights), lambda: pruner.load_state_dict(state)]
    for load in parts if order == "model first" else reversed(parts):
        load()
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert _same(pruner.masks, state["masks"])


@pytest.mark.parametrize("state", ["nothing", "other schedule", "other model", "none"])
def test_a_state_of_something_else_is_refused_and_changes_nothing(state: str) -> None:
    model, pruner = _pruned()
    other = Pruner(nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3)), None, amount=Ratio(0.5))
    other.prune()
    given: Any = {
        "nothing": {},
        "none": None,
        "other schedule": Pruner(_model(), None, amount=Ratio(0.2), schedule=Cubic(3)).state_dict(),
        "other model": other.state_dict(),
    }[state]
    weights, before = _state(model), copy.deepcopy(pruner.state_dict())
    with pytest.raises(ConfigError):
        pruner.load_state_dict(given)
    assert _same(pruner.masks, before["masks"])
    assert pruner.schedule.state_dict() == before["schedule"]
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_after_remove_anything_may_be_loaded() -> None:
    model, pruner = _pruned()
    pruner.remove()
    with _silent():
        model.load_state_dict(_model().state_dict())
    assert all(
        torch.equal(p, q) for p, q in zip(model.parameters(), _model().parameters(), strict=True)
    )


# Copies


def test_a_copy_keeps_the_masks_that_it_was_made_with() -> None:
    model, pruner = _pruned()
    masks = dict(pruner.masks)
    twin = copy.deepcopy(model)
    pruner.amount = Ratio(0.8)
    pruner.prune()
    _train(twin)
    assert_zero_where(twin, masks)
    for name, mask in masks.items():
        newly = mask & ~pruner.masks[name]
        assert (twin.get_parameter(name)[newly] != 0).any(), (
            "later masks are those of the original alone"
        )
    pruner.remove()
    _train(twin)
    assert_zero_where(twin, masks)
    unpin(twin)
    _train(twin)
    assert any((twin.get_parameter(name)[~mask] != 0).any() for name, mask in masks.items())


def test_a_pruner_takes_the_masks_of_a_copy_over() -> None:
    model, first = _pruned()
    twin = copy.deepcopy(model)
    with _silent():
        second = _pruner(twin)
    assert _same(second.masks, first.masks)
    second.remove()
    _train(twin)
    assert any((twin.get_parameter(name)[~mask] != 0).any() for name, mask in first.masks.items())
    assert_zero_where(model, first.masks)


def test_a_dense_copy_stays_dense() -> None:
    model = _model()
    pruner = _pruner(model)
    teacher, before = copy.deepcopy(model), _state(model)
    pruner.prune()
    _train(model)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_pickles_and_shared_copies_hold_no_masks_of_their_own() -> None:
    model, pruner = _pruned()
    again = pickle.loads(pickle.dumps(model))
    with _silent():
        again.load_state_dict(_model().state_dict())
    assert torch.equal(again[0].weight, _model()[0].weight)
    shared = copy.deepcopy(model, {id(p): p for p in model.parameters()})
    pruner.remove()
    _train(model)
    assert any(
        (shared.get_parameter(name)[~mask] != 0).any() for name, mask in pruner.masks.items()
    )


def test_a_pin_of_masks_alone_carries_on_too() -> None:
    model = _model()
    masks = {"0.weight": model[0].weight > 0}
    handle = pin(model, None, masks)
    _train(model, steps=1)
    twin = copy.deepcopy(model)
    _train(twin)
    assert_zero_where(twin, masks)
    with pytest.warns(UserWarning, match="brought back"):
        model.load_state_dict(_model().state_dict())
    assert_zero_where(model, masks)
    handle.remove()
    _train(model)
    assert (model[0].weight[~masks["0.weight"]] != 0).any()


def test_a_pin_keeps_its_own_copy_of_the_masks() -> None:
    model = _model()
    masks = {"0.weight": model[0].weight > 0}
    before = copy.deepcopy(masks)
    pin(model, None, masks)
    masks["0.weight"].fill_(True)
    masks.clear()
    _train(model)
    assert_zero_where(model, before)


# Averages


class ModelEma(nn.Module):
    """As timm has it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.module = copy.deepcopy(model)

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        for mine, other in zip(self.module.parameters(), model.parameters(), strict=True):
            mine.lerp_(other, 0.1)


@pytest.mark.parametrize("kind", [AveragedModel, ModelEma])
def test_an_average_made_before_pruning_is_pointed_at_until_it_is_followed(kind: Any) -> None:
    model = _model()
    average = kind(model)
    pruner = _pruner(model)
    with pytest.warns(UserWarning, match=rf"{kind.__name__}.*pruner\.follow\(average\)"):
        pruner.prune()
    pruner.follow(average)
    pruner.amount = Ratio(0.8)
    with _silent():
        pruner.prune()
    for _ in range(3):
        _train(model)
        average.update_parameters(model)
        assert_zero_where(average.module, pruner.masks)


def test_an_average_made_after_pruning_or_of_another_model_is_not() -> None:
    model, pruner = _pruned()
    averages = [AveragedModel(model), AveragedModel(nn.Linear(2, 2)), nn.DataParallel(_model())]
    with _silent():
        pruner.adopt(dict(pruner.masks))
    averages[0].update_parameters(model)
    assert_zero_where(averages[0].module, pruner.masks)
