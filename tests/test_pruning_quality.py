"""The bound on the quality: pruning waits at chance, and its last step is undone beyond the bound."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from laws import assert_zero_where
from pruning_samples import convnet, loss
from snello.errors import ConfigError
from snello.pruning import (
    Cubic,
    LossBound,
    OneShot,
    Plateau,
    Pruner,
    QualityBound,
    Ratio,
    at_chance,
)

pytestmark = pytest.mark.usefixtures("one_thread")


class Script:
    """A quality that follows a list; its last value stays."""

    def __init__(self, *values: float) -> None:
        self.values = list(values)

    def __call__(self, model: nn.Module) -> float:
        return self.values.pop(0) if len(self.values) > 1 else self.values[0]


def _pruner(model: nn.Module, bound: QualityBound, **options: Any) -> Pruner:
    given = {"amount": Ratio(0.2, of_rest=True), "schedule": Plateau(1), **options}
    return Pruner(model, None, loss, quality=bound, **given)


def test_at_chance_is_within_three_standard_errors_of_a_guess() -> None:
    edge = 0.1 + 3 * math.sqrt(0.1 * 0.9 / 900)
    assert at_chance(0.05, 0.1, 900)
    assert at_chance(edge - 1e-6, 0.1, 900)
    assert not at_chance(edge + 1e-6, 0.1, 900)
    assert at_chance(math.nan, 0.1, 900)


def test_pruning_waits_while_the_network_guesses() -> None:
    model = convnet()
    pruner = _pruner(
        model, QualityBound(Script(0.34, 0.3, 0.33, 0.9), chance=1 / 3), schedule=Plateau(1, 0.9)
    )
    notes = []
    for _ in range(6):
        with torch.no_grad():
            model[0].weight.mul_(1.01)  # what is learnt meanwhile stays
        before = model[0].weight.clone()
        step = pruner.step()
        if step.search is not None:
            notes.append(step.search.note)
            if step.search.note:
                assert torch.equal(model[0].weight, before)
                assert pruner.masks == {}
                assert not pruner.finished
    assert [bool(note) for note in notes[:4]] == [True, True, True, False]
    assert "not above chance" in notes[0]
    assert pruner.masks


def test_a_step_by_hand_waits_too() -> None:
    pruner = _pruner(convnet(), QualityBound(Script(0.1), chance=0.1))
    search = pruner.prune()
    assert (search.threshold, search.trials) == (0, 0)
    assert pruner.masks == {}


@pytest.mark.parametrize("granularity", ["weight", "neuron"])
def test_beyond_the_bound_the_last_pruning_is_undone(granularity: Any) -> None:
    model = convnet()
    pruner = _pruner(
        model,
        QualityBound(Script(0.9, 0.85, 0.7), max_drop=0.1),
        granularity=granularity,
        schedule=OneShot(),
    )
    pruner.prune()
    masks = dict(pruner.masks)
    with torch.no_grad():
        model[0].weight.mul_(1.5)
    trained = copy.deepcopy(model.state_dict())
    pruner.prune()
    assert any(not torch.equal(mask, masks[name]) for name, mask in pruner.masks.items())
    search = pruner.prune()
    assert "more than max_drop=0.1 below 0.9" in search.note
    assert pruner.finished
    assert all(torch.equal(pruner.masks[name], mask) for name, mask in masks.items())
    for name, value in model.state_dict().items():
        if not name.endswith(("running_mean", "running_var", "num_batches_tracked")):
            assert torch.equal(value, trained[name])
    assert pruner.step().search is None
    assert pruner.prune().note
    assert all(torch.equal(pruner.masks[name], mask) for name, mask in masks.items())


def test_a_network_beyond_the_bound_from_the_start_is_left_whole() -> None:
    pruner = _pruner(convnet(), QualityBound(Script(0.7), max_drop=0.1, dense=0.9))
    assert "below 0.9" in pruner.prune().note
    assert pruner.masks == {}
    assert pruner.finished


def test_a_bound_on_the_loss_keeps_that_on_the_quality_at_once() -> None:
    model = convnet()

    def quality(m: nn.Module) -> float:
        return 1 - sum(
            float((p == 0).double().mean()) for n, p in m.named_parameters() if n == "0.weight"
        )

    bound = QualityBound(quality, max_drop=0.1)
    pruner = _pruner(model, bound, amount=LossBound(1e6))
    dense = quality(model)
    pruner.prune()
    assert 0 < dense - quality(model) <= 0.1
    free = convnet()
    Pruner(free, None, loss, amount=LossBound(1e6)).prune()
    assert dense - quality(free) > 0.1


def test_averages_get_back_what_is_no_longer_pruned() -> None:
    model = convnet()
    pruner = _pruner(model, QualityBound(Script(0.9, 0.1), max_drop=0.1))
    average = AveragedModel(model)
    pruner.follow(average)
    before = copy.deepcopy(average.module.state_dict())
    pruner.prune()
    pruner.prune()
    assert pruner.finished
    assert all(
        torch.equal(value, before[name]) for name, value in average.module.state_dict().items()
    )


def test_a_bounded_run_resumes() -> None:
    def quality(m: nn.Module) -> float:
        return 1 - sum(float((p == 0).sum()) for p in m.parameters()) / 1000

    bound = QualityBound(quality, max_drop=0.2, chance=0.1)
    model = convnet()
    pruner = _pruner(model, bound, schedule=Plateau(1))
    for _ in range(3):
        pruner.step()
    buffer = io.BytesIO()
    torch.save({"model": model.state_dict(), "pruner": pruner.state_dict()}, buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    twin = convnet()
    resumed = _pruner(twin, bound, schedule=Plateau(1))
    twin.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["pruner"])
    both = copy.deepcopy((model, pruner))
    for _ in range(12):
        steps = [one.step() for one in (pruner, resumed, both[1])]
        assert steps[0] == steps[1] == steps[2]
    assert pruner.finished
    assert resumed.finished
    assert_zero_where(twin, pruner.masks)
    assert all(torch.equal(v, twin.state_dict()[n]) for n, v in model.state_dict().items())
    assert quality(model) >= quality(convnet()) - 0.2


def test_a_state_without_a_bound_is_loaded() -> None:
    pruner = _pruner(convnet(), QualityBound(Script(0.9), max_drop=0.1))
    state = pruner.state_dict()
    for name in ("dense", "before", "ended"):
        del state[name]
    pruner.load_state_dict(state)
    assert pruner.dense_quality is None


def test_a_cubic_schedule_catches_up_after_waiting() -> None:
    pruner = _pruner(
        convnet(),
        QualityBound(Script(0.1, 0.1, 0.9), chance=0.1),
        amount=Ratio(0.5),
        schedule=Cubic(over=2),
    )
    for _ in range(4):
        pruner.step()
    assert pruner.finished
    assert pruner.masks


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda: QualityBound(Script(1)), "max_drop, chance"),
        (lambda: QualityBound(0.5, max_drop=0.1), "not 0.5"),  # type: ignore[arg-type]
        (lambda: QualityBound(Script(1), max_drop=-0.1), "not -0.1"),
        (lambda: QualityBound(Script(1), max_drop=math.nan), "not nan"),
        (lambda: QualityBound(Script(1), chance=1.0), "not 1.0"),
        (lambda: QualityBound(Script(1), chance=0.1, samples=0), "not 0"),
    ],
)
def test_impossible_bounds_are_refused(bad: Callable[[], Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        bad()
