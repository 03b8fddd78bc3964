"""Sensitivities in real training loops: gradient scaling, accumulation, autocast, two processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pair import begin
from snello.pruning import LossBound, Pruner
from snello.sensitivity import (
    Lobster,
    OutputSensitivity,
    Sensitivity,
    SeReNe,
    lobster_scores,
    serene_scores,
)

CE = nn.functional.cross_entropy


def convnet() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(True), nn.Conv2d(4, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(20, 6), nn.Tanh(),
        nn.Linear(6, 3),
    ).double()  # fmt: skip


def batch(seed: int, size: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, 1, 6, 6, dtype=torch.float64, generator=generator)
    return x, torch.randint(3, (size,), generator=generator)


METHODS: dict[str, Callable[[nn.Module], Sensitivity]] = {
    "lobster": lambda m: Lobster(m, 0.05),
    "serene sampled": lambda m: SeReNe(m, 0.05, every=2, seed=4),
    "serene full": lambda m: SeReNe(m, 0.05, estimate="full", every=1),
    "serene lower bound": lambda m: SeReNe(m, 0.05, estimate="lower-bound"),
    "serene local": lambda m: SeReNe(m, 0.05, estimate="local"),
    "output sampled": lambda m: OutputSensitivity(m, 0.05, every=2),
    "output full": lambda m: OutputSensitivity(m, 0.05, estimate="full"),
    "output specific": lambda m: OutputSensitivity(m, 0.05, kind="specific"),
}


def train(
    model: nn.Module,
    method: Sensitivity,
    batches: list[tuple[Tensor, Tensor]],
    accumulate: int = 1,
    scaler: Any = None,
    wrapped: nn.Module | None = None,
) -> nn.Module:
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for number, (x, y) in enumerate(batches, 1):
        outputs = (wrapped or model)(x)
        method.observe(outputs, y)
        loss = CE(outputs, y) / accumulate
        (scaler.scale(loss) if scaler else loss).backward()
        if number % accumulate == 0:
            if scaler:
                scaler.step(optimizer)
                scaler.update()
            else:
                optimizer.step()
            method.step()
            optimizer.zero_grad()
    return model


def assert_same_weights(a: nn.Module, b: nn.Module, rtol: float) -> None:
    for (name, p), q in zip(a.named_parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(
            p, q, rtol=rtol, atol=rtol, msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", METHODS)
def test_scaled_gradients_are_read_unscaled(name: str) -> None:
    batches = [batch(seed) for seed in range(4)]
    plain, scaled = convnet(), convnet()
    train(plain, METHODS[name](plain), batches)
    # A power of two: scaling and unscaling lose nothing.
    train(
        scaled,
        METHODS[name](scaled),
        batches,
        scaler=torch.amp.GradScaler("cpu", init_scale=2.0**12),
    )
    assert_same_weights(plain, scaled, 1e-14)
    untouched = train(convnet(), Lobster(convnet(), 0.0), batches)
    assert any(
        not torch.equal(p, q)
        for p, q in zip(plain.parameters(), untouched.parameters(), strict=True)
    )


def test_a_step_that_the_scaler_skips_decays_nothing() -> None:
    model = convnet()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    model[0].weight.register_hook(lambda gradient: gradient / 0)  # the others' gradients are finite
    train(model, Lobster(model, 0.5), [batch(0)], scaler=torch.amp.GradScaler("cpu"))
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize("name", ["lobster", "serene full", "serene lower bound"])
def test_accumulated_batches_are_one_batch(name: str) -> None:
    # ``every`` counts batches: here every one is looked at.
    build: dict[str, Callable[[nn.Module], Sensitivity]] = {
        **METHODS, "serene lower bound": lambda m: SeReNe(m, 0.05, estimate="lower-bound", every=1)
    }  # fmt: skip
    whole = [batch(seed) for seed in range(3)]
    parts = [(x[i : i + 4], y[i : i + 4]) for x, y in whole for i in (0, 4)]
    once, twice = convnet(), convnet()
    train(once, build[name](once), whole)
    train(twice, build[name](twice), parts, accumulate=2)
    assert_same_weights(once, twice, 1e-12)


@pytest.mark.parametrize("examples", [None, 4])
def test_autocast_measures_the_same_up_to_its_precision(examples: int | None) -> None:
    model = convnet().float()
    x, _ = batch(0)
    found = []
    for enabled in (False, True):
        serene = SeReNe(model, estimate="full", examples=examples)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            outputs = model(x.float())
        serene.observe(outputs)
        found.append(serene.sensitivity())
        serene.remove()
    for name, exact in found[0].items():
        rounded = found[1][name]
        assert rounded.dtype == torch.float32
        assert not torch.equal(rounded, exact)
        torch.testing.assert_close(rounded, exact, rtol=0.1, atol=1e-3)


# Two processes


def _everything(rank: int, size: int = 2) -> dict[str, Any]:
    """Every method trained, and a network pruned, on this process's half of each batch."""
    half = 8 // size
    batches = [(x[rank * half :][:half], y[rank * half :][:half]) for x, y in map(batch, range(4))]
    found: dict[str, Any] = {}
    for name, build in METHODS.items():
        model = convnet()
        wrapped = DistributedDataParallel(model) if size > 1 else model
        found[name] = train(model, build(model), batches, wrapped=wrapped).state_dict()
    for name, scores in (("lobster scores", lobster_scores), ("serene scores", serene_scores)):
        found[name] = scores(batches)(convnet(), "weight")  # type: ignore[operator]
    model, dense = convnet(), convnet()

    def loss(model: nn.Module) -> float:
        """Its mean over the processes is that of the joined batches."""
        return 1 + sum(float((model(x) - dense(x)).square().mean()) for x, _ in batches)

    pruner = Pruner(model, None, loss, amount=LossBound(0.02), exclude=())
    pruner.prune()
    assert 0.05 < pruner.pruned < 0.95
    found["masks"] = pruner.masks
    return found


@pytest.fixture(scope="module")
def outcomes() -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """One process with the joined batches, and the two that had half of each."""
    together = begin(_everything)
    alone = _everything(0, 1)
    first, second = together()
    return alone, first, second


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", [*METHODS, "serene scores", "masks"])
def test_two_processes_give_what_one_gives_with_the_joined_batch(name: str, outcomes: Any) -> None:
    alone, first, second = (outcome[name] for outcome in outcomes)
    assert alone.keys() == first.keys() == second.keys()
    for key, expected in alone.items():
        assert torch.equal(first[key], second[key]), f"{key}: the ranks disagree"
        if expected.dtype == torch.bool:
            assert torch.equal(first[key], expected)
        else:
            torch.testing.assert_close(first[key], expected, rtol=1e-11, atol=1e-13)


def test_scores_of_the_loss_agree_between_processes(outcomes: Any) -> None:
    # Each process has batches of its own: the magnitudes are of half batches, not of joined ones.
    _, first, second = (outcome["lobster scores"] for outcome in outcomes)
    assert all(torch.equal(first[key], second[key]) for key in first)
