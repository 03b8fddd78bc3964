"""Frozen neurons where people train: compiled, checkpointed, accumulated, under AMP, in several
processes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from pair import begin
from seams.equilibrium import Decision, Dispatch, Freezer, Work

FROZEN = {"0": 0.5, "3": 0.75, "6": 1.0, "10": 0.4}
"""Layer -> share of its neurons that is frozen."""


class Sliced(Dispatch):
    """Slices wherever it can, so that small tests take the road of large networks."""

    def decision(self, work: Work) -> Decision:
        return Decision(sliced=True)


def network(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1),
        nn.GroupNorm(
            2, 12
        ),  # no statistics over the batch, which two processes would each have of their own
        nn.ReLU(),
        nn.Conv2d(12, 8, 3, padding=1),
        nn.GroupNorm(2, 8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 20),
        nn.ReLU(),
        nn.Linear(20, 5),
    ).to(dtype)


def watched(model: nn.Module) -> dict[str, nn.Module]:
    return {name: model.get_submodule(name) for name in FROZEN}


def masks(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, layer in watched(network()).items():
        count = layer.weight.shape[0]
        frozen = torch.zeros(count, dtype=torch.bool)
        frozen[torch.randperm(count, generator=generator)[: round(FROZEN[name] * count)]] = True
        found[name] = frozen
    return found


def sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-2)


def data(seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(8, 3, 6, 6, generator=generator, dtype=torch.float64).to(dtype),
        torch.randint(5, (8,), generator=generator),
    )


def masked_dense(
    model: nn.Module, x: Tensor, y: Tensor, frozen: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Expected gradients: those of a plain copy, zero in the frozen rows."""
    plain = copy.deepcopy(model)
    plain.zero_grad()
    F.cross_entropy(plain(x), y).backward()
    found = {name: p.grad.clone() for name, p in plain.named_parameters()}
    for name, mask in frozen.items():
        found[f"{name}.weight"][mask] = 0
        found[f"{name}.bias"][mask] = 0
    return found


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {
        n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()
    }


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], **tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(
            found[name], values, msg=lambda m, n=name: f"{n}: {m}", **tolerance
        )


@pytest.fixture(params=["sliced", "fixed", "measured"])
def dispatch(request: pytest.FixtureRequest) -> Dispatch:
    return Sliced() if request.param == "sliced" else Dispatch(request.param)


@pytest.fixture
def compiled() -> Iterator[Callable[[nn.Module], Any]]:
    torch._dynamo.reset()
    yield lambda model: torch.compile(model, backend="aot_eager")
    torch._dynamo.reset()


def test_compiled(compiled: Callable[[nn.Module], Any], dispatch: Dispatch) -> None:
    model = network()
    step = compiled(model)
    freezer = Freezer(watched(model), sgd(model), dispatch)
    for seed in range(3):  # the masks change under the compiled network
        frozen = masks(seed)
        x, y = data(seed)
        freezer.apply(frozen)
        model.zero_grad()
        F.cross_entropy(step(x), y).backward()
        assert_same(gradients(model), masked_dense(model, x, y, frozen))
    freezer.remove()
    model.zero_grad()
    F.cross_entropy(step(x), y).backward()
    assert_same(gradients(model), masked_dense(model, x, y, {}))


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(reentrant: bool, dispatch: Dispatch) -> None:
    model, (x, y), frozen = network(), data(1), masks()
    freezer = Freezer(watched(model), sgd(model), dispatch)
    freezer.apply(frozen)
    hidden = checkpoint(model[:6], x.requires_grad_(), use_reentrant=reentrant)
    F.cross_entropy(checkpoint(model[6:], hidden, use_reentrant=reentrant), y).backward()
    assert_same(gradients(model), masked_dense(model, x.detach(), y, frozen))
    expected = torch.autograd.grad(F.cross_entropy(copy.deepcopy(model)(x), y), x)[0]
    torch.testing.assert_close(x.grad, expected)


def test_a_replica_is_a_plain_layer() -> None:
    """DataParallel makes them without asking the layer."""
    model, (x, _), frozen = network(), data(0), masks()
    Freezer(watched(model), sgd(model), Sliced()).apply(frozen)
    replica = model[0]._replicate_for_data_parallel()
    replica.weight, replica.bias = (p.detach().requires_grad_() for p in model[0].parameters())
    replica(x).sum().backward()
    assert replica.weight.grad[frozen["0"]].count_nonzero() > 0


class Standardised(nn.Conv2d):
    """A convolution with a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding) + 1


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_a_layer_with_a_forward_of_its_own_keeps_it(share: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Standardised(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 3)).double()
    x = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    expected = model(x)
    expected.square().sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    frozen = torch.arange(8) < share * 8
    freezer = Freezer({"0": model[0]}, sgd(model), Sliced())
    freezer.apply({"0": frozen})
    found = model(x)
    assert torch.equal(found, expected)
    found.square().sum().backward()
    gradients["0.weight"][frozen], gradients["0.bias"][frozen] = 0, 0
    for name, parameter in model.named_parameters():
        grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(grad, gradients[name], rtol=1e-10, atol=1e-12)


def test_gradient_accumulation(dispatch: Dispatch) -> None:
    model, frozen = network(), masks()
    freezer = Freezer(watched(model), sgd(model), dispatch)
    freezer.apply(frozen)
    parts = [masked_dense(model, *data(seed), frozen) for seed in range(3)]
    for seed in range(3):
        x, y = data(seed)
        F.cross_entropy(model(x), y).backward()
    assert_same(gradients(model), {name: sum(part[name] for part in parts) for name in parts[0]})


def test_a_penalty_on_the_weights_does_not_reach_frozen_rows(dispatch: Dispatch) -> None:
    model, (x, y), frozen = network(), data(0), masks()
    freezer = Freezer(watched(model), sgd(model), dispatch)
    freezer.apply(frozen)
    (F.cross_entropy(model(x), y) + sum(p.square().sum() for p in model.parameters())).backward()
    for name, mask in frozen.items():
        layer = model.get_submodule(name)
        assert layer.weight.grad[mask].count_nonzero() == 0
        if not mask.all():
            assert layer.weight.grad[~mask].count_nonzero() > 0


@pytest.mark.parametrize("scaled", [False, True])
def test_autocast_with_and_without_a_gradient_scaler(scaled: bool, dispatch: Dispatch) -> None:
    model, (x, y), frozen = network(torch.float32), data(0, torch.float32), masks()
    optimizer = sgd(model)
    freezer = Freezer(watched(model), optimizer, dispatch)
    freezer.apply(frozen)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    scaler = torch.amp.GradScaler("cpu", enabled=scaled, init_scale=16.0)
    for _ in range(3):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(model(x), y)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    for name, mask in frozen.items():
        for kind in ("weight", "bias"):
            now, old = model.get_parameter(f"{name}.{kind}"), before[f"{name}.{kind}"]
            assert torch.equal(now[mask], old[mask])
            assert mask.all() or not torch.equal(now[~mask], old[~mask])


def test_a_gradient_of_bfloat16_is_the_dense_one_times_the_mask() -> None:
    model, (x, y), frozen = network(torch.float32), data(0, torch.float32), masks()

    def run(net: nn.Module) -> dict[str, Tensor]:
        net.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(net(x), y)
        loss.backward()
        return gradients(net)

    expected = run(copy.deepcopy(model))
    for name, mask in frozen.items():
        expected[f"{name}.weight"][mask] = 0
        expected[f"{name}.bias"][mask] = 0
    Freezer(watched(model), sgd(model), Sliced()).apply(frozen)
    assert_same(run(model), expected, rtol=2e-2, atol=2e-3)


def test_a_fully_frozen_batchnorm_ends_the_backward_and_its_statistics_move() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3)
    ).double()
    vanilla = copy.deepcopy(model)
    freezer = Freezer({"0": model[0], "1": model[1]}, sgd(model))
    freezer.apply({name: torch.ones(4, dtype=torch.bool) for name in ("0", "1")})
    x = data(0)[0]
    assert not model[:3](x).requires_grad
    model(x)
    vanilla(x)
    vanilla(x)
    for kind in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(getattr(model[1], kind), getattr(vanilla[1], kind))
    model.eval()
    vanilla.eval()
    torch.testing.assert_close(model(x), vanilla(x))


# Two processes


def train(model: nn.Module, step: nn.Module, rank: int, size: int) -> dict[str, Tensor]:
    """Steps with changing masks, each process on its share of the batch."""
    optimizer = sgd(model)
    freezer = Freezer(watched(model), optimizer, Sliced())
    for seed in range(6):
        freezer.apply(masks(seed // 2) if seed else {})
        x, y = (part[rank * (8 // size) :][: 8 // size] for part in data(seed))
        optimizer.zero_grad()
        F.cross_entropy(step(x), y).backward()
        optimizer.step()
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def _half(rank: int) -> dict[str, Tensor]:
    model = network()
    # Layers that are frozen whole give no gradient, which DDP has to be told.
    wrapped = DistributedDataParallel(model, find_unused_parameters=True)
    return train(model, wrapped, rank, 2)


def test_two_processes_equal_one() -> None:
    together = begin(_half)
    model = network()
    alone = train(model, model, 0, 1)
    first, second = together()
    for name, values in alone.items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], values)
    start = network()
    for name, mask in masks(1).items():  # in force in steps 3 and 4: the others moved
        moved = model.get_submodule(name).weight != start.get_submodule(name).weight
        assert mask.all() or moved[~mask].any()


def test_torch_func_sees_a_model_with_frozen_rows_as_it_is() -> None:
    """Its transforms differentiate with parameters of their own; frozen rows are held by the
    optimizer's step.
    """
    model, (x, y) = network(), data(3)
    plain = copy.deepcopy(model)

    def found(of: nn.Module) -> tuple[dict[str, Tensor], Tensor]:
        parameters = {name: p.detach() for name, p in of.named_parameters()}
        run = torch.func.functional_call
        loss = lambda p: F.cross_entropy(run(of, p, (x,)), y)  # noqa: E731
        each = torch.func.vmap(lambda one: run(of, parameters, (one,)))
        return torch.func.grad(loss)(parameters), each(x.unsqueeze(1)).squeeze(1)

    Freezer(watched(model), sgd(model), Sliced()).apply(masks())
    (gradient, outputs), (expected, dense) = found(model), found(plain)
    assert_same(gradient, expected)
    torch.testing.assert_close(outputs, dense)
