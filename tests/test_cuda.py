"""Trainings with model and data on a GPU: the same numbers as on the CPU, in float64.

`benchmarks/gpu_equality.py` compares the numerical paths one by one; here they run together, as in
a user's training loop.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, TensorDataset

import snello
from curation_samples import METHODS
from device_samples import (
    CPU,
    Found,
    assert_same,
    assert_zero,
    batches,
    frozen_rows,
    held_out,
    images,
    momentum,
    network,
    state,
    train,
)  # fmt: skip
from snello.curation import Recorder
from snello.equilibrium import (
    FeatureCache,
    GradientChange,
    NEq,
    ParameterBudget,
    Plasticity,
    Prefix,
    SelectiveUpdate,
    Settled,
    StableCKA,
    Stochastic,
    TimeBudget,
    Velocity,
    step_memory,
    time_backward,
    time_step,
)  # fmt: skip
from snello.pruning import LossBound, Plateau, Pruner, QualityBound, Ratio
from snello.sensitivity import SeReNe

# The two loops of the README


def outward(device: torch.device) -> tuple[Found, nn.Module, Tensor]:
    torch.manual_seed(1)
    x, y = images(64, 9)
    x, y = x.flatten(1).to(device), y.to(device)
    model = nn.Sequential(nn.Linear(128, 60), nn.ReLU(), nn.Linear(60, 4)).double().to(device)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.5)
    pruner = Pruner(
        model, optimizer, lambda m: F.cross_entropy(m(x), y).item(), granularity="neuron",
        amount=LossBound(0.3), schedule=Plateau(1),
    )  # fmt: skip
    serene = SeReNe(model, lmbda=1e-3)
    for _ in range(6):
        for part in torch.arange(64, device=device).split(16):
            outputs = model(x[part])
            serene.observe(outputs)
            optimizer.zero_grad()
            F.cross_entropy(outputs, y[part]).backward()
            optimizer.step()
            serene.step()
        pruner.step()
    if not pruner.masks:
        pruner.prune()
    assert_zero(model, pruner.masks)
    lean = snello.simplify(model.eval(), x[:1])
    found = state(model) | {f"lean {name}": value for name, value in state(lean).items()}
    found |= {f"mask of {name}": mask for name, mask in pruner.masks.items()}
    found |= {f"sensitivity of {name}": value for name, value in serene.sensitivity().items()}
    with torch.no_grad():
        return found | {"outputs": lean(x)}, lean, x


def test_outward_as_on_the_cpu(device: torch.device) -> None:
    expected, twin, images_there = outward(CPU)
    found, lean, x = outward(device)
    assert_same(found, expected)
    assert {p.device for p in lean.parameters()} == {device}
    plan = snello.plan_of(lean)
    assert plan is not None
    assert plan.to_json() == snello.plan_of(twin).to_json()  # type: ignore[union-attr]
    assert snello.footprint(lean, x[:1]) == snello.footprint(twin, images_there[:1])
    pytest.importorskip("nncodec")
    on_device, elsewhere = state(lean), {n: v.cpu() for n, v in state(lean).items()}
    assert snello.compress(on_device) == snello.compress(elsewhere)


def homeward(device: torch.device) -> tuple[Found, list[float]]:
    model = network(device)
    optimizer = momentum(model)
    neq = NEq(model, optimizer, probe=next(batches(model, 1))[0], eps=0.02, dispatch="fixed")
    totals = []
    for _ in range(4):
        train(model, optimizer)
        totals.append(neq.step().total)
    masks = {f"frozen in {name}": mask for name, mask in neq.frozen.items()}
    neq.remove()
    return state(model) | masks, totals


def test_homeward_as_on_the_cpu(device: torch.device) -> None:
    (found, totals), (expected, others) = homeward(device), homeward(CPU)
    assert_same(found, expected)
    assert totals == others
    assert min(totals) < 1


# Selections and optimizers

SELECTIONS: dict[str, Callable[[nn.Module, Any], Any]] = {
    "stochastic": lambda m, o: Stochastic(0.5),
    "prefix": lambda m, o: Prefix(0.5),
    "settled": lambda m, o: Settled(Velocity(0.2), 0.5, optimizer=o),
    "budget": lambda m, o: ParameterBudget(0.4),
    "gradient change": lambda m, o: GradientChange(m, 0.5),
    "plasticity": lambda m, o: Plasticity(1e-3),
    "cka": lambda m, o: StableCKA(1e-2),
}


def selected(device: torch.device, kind: str) -> Found:
    model = network(device)
    optimizer = momentum(model)
    probe = next(batches(model, 1))[0]
    update = SelectiveUpdate(model, optimizer, probe, SELECTIONS[kind](model, optimizer), dispatch="fixed")  # fmt: skip
    found: Found = {}
    for step in range(4):
        train(model, optimizer)
        update.step()
        before = frozen_rows(model, update.frozen)
        train(model, optimizer)
        assert all(map(torch.equal, frozen_rows(model, update.frozen).values(), before.values()))
        found |= {f"{name} {step}": mask for name, mask in update.frozen.items()}
    return found | state(model)


@pytest.mark.parametrize("kind", SELECTIONS)
def test_selections_freeze_as_on_the_cpu(device: torch.device, kind: str) -> None:
    found = selected(device, kind)
    assert_same(found, selected(CPU, kind))
    assert any(bool(mask.any()) for mask in found.values() if mask.dtype is torch.bool)


def test_a_time_budget_measures_the_device(device: torch.device) -> None:
    model = network(device)
    x, y = next(batches(model, 1))
    budget = TimeBudget(1e6)
    optimizer = momentum(model)
    update = SelectiveUpdate(model, optimizer, x, budget)
    train(model, optimizer)
    before = state(model)
    times = budget.measure(update, x, y, F.cross_entropy, depths=2, repeats=2)
    assert all(ms > 0 for ms in times.milliseconds)
    assert update.step().total == 1
    timing = time_step(update, x, y, F.cross_entropy, 2)
    assert timing.device == str(device) == time_backward(update, x, y, F.cross_entropy, 2).device
    memory = step_memory(model, x)
    assert memory.saved_bytes > 0
    assert (memory.peak_bytes is None) is (device.type == "cpu")
    assert_same(state(model), before, 0)


# Features, samples, checkpoints


def cached(
    device: torch.device, limit: int, index_on: torch.device, layout: Any, in_memory: bool = False
) -> Found:
    model = network(device).to(memory_format=layout)
    optimizer = momentum(model)
    update = SelectiveUpdate(model, optimizer, images(2)[0].to(device), Prefix(0.5), dispatch="fixed")  # fmt: skip
    update.step()
    cache = FeatureCache(update, 24, measured=False, limit=limit, in_memory=in_memory)
    x, y = images(24)
    data = TensorDataset(x, y, torch.arange(24))
    loader = DataLoader(data, 8, num_workers=1, pin_memory=device.type == "cuda")
    outputs = []
    for _ in range(3):
        for inputs, targets, index in loader:
            inputs = inputs.to(device, non_blocking=True, memory_format=layout)
            scores = cache(inputs, index.to(index_on))
            optimizer.zero_grad()
            F.cross_entropy(scores, targets.to(device)).backward()
            optimizer.step()
            outputs.append(scores.detach())
    assert cache.status.layers
    assert cache.status.stored == (24 if limit else 0)
    with pytest.raises(snello.SnelloError, match="another one than") if limit else _nothing():
        cache(x.flip(0)[:8].to(device), torch.arange(8, device=index_on))
    return state(model) | {"outputs": torch.cat(outputs)}


def _nothing() -> Any:
    return torch.no_grad()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("limit", [2**20, 0], ids=["stored", "computed"])
def test_features_of_resting_layers(device: torch.device, limit: int, layout: Any) -> None:
    expected = cached(CPU, limit, CPU, layout)
    for index_on in (device, CPU):
        assert_same(cached(device, limit, index_on, layout), expected)
    assert_same(cached(device, limit, device, layout, in_memory=True), expected)


def curated(device: torch.device, method: str) -> Found:
    x, y = images(40)
    keep = METHODS[method](TensorDataset(x, y))
    loader = DataLoader(keep, 8, sampler=keep.sampler(), pin_memory=device.type == "cuda")
    model = network(device)
    optimizer, recorder = momentum(model), Recorder(40)
    seen, losses = [], []
    for _ in range(3):
        for (inputs, labels), index in loader:
            index, labels = index.to(device, non_blocking=True), labels.to(device)
            outputs = model(inputs.to(device))
            loss = keep.weigh(F.cross_entropy(outputs, labels, reduction="none"), index)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.record(outputs, labels, index)
            seen.append(index)
            losses.append(loss.detach())
        keep.finish()
        recorder.step()
    kept = recorder.recording()
    assert {t.device for t in (kept.margin, kept.labels, keep.scores)} == {CPU}
    found = state(model) | {"seen": torch.cat(seen), "losses": torch.stack(losses)}
    return found | {"scores": keep.scores.nan_to_num(), "margin": kept.margin.nan_to_num()}


@pytest.mark.parametrize("method", ["infobatch", "infobatch by batch", "orderdp"])
def test_samples_are_chosen_as_on_the_cpu(device: torch.device, method: str) -> None:
    assert_same(curated(device, method), curated(CPU, method), 1e-6)


class Training:
    """Everything that a checkpoint of a training holds."""

    def __init__(self, device: torch.device) -> None:
        self.model = network(device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), 0.01)
        probe = next(batches(self.model, 1))[0]
        self.pruner = Pruner(self.model, self.optimizer, held_out, amount=Ratio(0.5))
        self.serene = SeReNe(self.model, 1e-3, every=2)
        self.neq = NEq(self.model, self.optimizer, probe, eps=0.05, dispatch="fixed")
        self.parts = (self.model, self.optimizer, self.pruner, self.serene, self.neq)

    def epoch(self) -> None:
        train(self.model, self.optimizer, 3, self.serene)
        self.neq.step()

    def saved(self) -> bytes:
        file = io.BytesIO()
        torch.save([part.state_dict() for part in self.parts], file)
        return file.getvalue()

    def resume(self, file: bytes, map_location: Any) -> None:
        states = torch.load(io.BytesIO(file), map_location=map_location, weights_only=True)
        for part, values in zip(self.parts, states, strict=True):
            part.load_state_dict(values)


@pytest.mark.parametrize("target", ["device", "cpu"])
@pytest.mark.parametrize("loaded", ["where it was", "on the CPU"])
def test_a_training_goes_on_from_a_checkpoint(
    device: torch.device, target: str, loaded: str
) -> None:
    whole = Training(device)
    whole.epoch()
    whole.pruner.prune()
    whole.epoch()
    file = whole.saved()
    whole.epoch()
    again = Training(device if target == "device" else CPU)
    again.resume(file, None if loaded == "where it was" else "cpu")
    assert {mask.device for mask in again.pruner.masks.values()} == {
        p.device for p in again.model.parameters()
    }, "masks that are elsewhere are copied at every step"
    again.epoch()
    assert_zero(again.model, again.pruner.masks)
    assert_same(state(again.model), state(whole.model))
    assert_same(again.neq.frozen, whole.neq.frozen)


def test_a_pruning_step_is_undone_beside_the_weights(device: torch.device) -> None:
    """Also after the state was loaded on the CPU."""
    model, qualities = network(device), iter((0.9, 0.9, 0.1))
    bound = QualityBound(lambda _: next(qualities), max_drop=0.1)
    pruner = Pruner(model, None, held_out, amount=Ratio(0.2, of_rest=True), quality=bound)
    average = AveragedModel(model)
    pruner.follow(average)
    pruner.prune()
    expected, masks = state(model), dict(pruner.masks)
    pruner.prune()
    file = io.BytesIO()
    torch.save(pruner.state_dict(), file)
    file.seek(0)
    pruner.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    pruner.prune()
    assert pruner.finished
    assert {mask.device for mask in pruner.masks.values()} == {p.device for p in model.parameters()}
    assert_same(pruner.masks, masks)
    assert_same(state(model), expected, 0)
    assert_same(state(average.module), expected, 0)


def test_copies_train_alone_and_moved_models_go_on(device: torch.device) -> None:
    training = Training(CPU)
    training.epoch()
    training.pruner.prune()
    expected = copy.deepcopy(training.model)
    training.model.to(device)
    training.optimizer = torch.optim.AdamW(training.model.parameters(), 0.01)
    twin = copy.deepcopy(training.model)
    before = frozen_rows(training.model, training.neq.frozen)
    assert sum(len(rows) for rows in before.values()) > 0
    train(training.model, training.optimizer)
    after = frozen_rows(training.model, training.neq.frozen)
    assert all(map(torch.equal, after.values(), before.values()))
    train(training.model, training.optimizer, 3, training.serene)
    assert_zero(training.model, training.pruner.masks)
    assert_zero(twin, training.pruner.masks)
    assert_same(state(twin), state(expected), 0)
    other = torch.optim.AdamW(twin.parameters(), 0.01)
    train(twin, other)
    assert_zero(twin, training.pruner.masks)
