"""Pruned weights stay zero and frozen neurons stay still, however many optimizers there are and
when they come.
"""

from __future__ import annotations

import copy
import gc
import os
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, Adam, AdamW, Optimizer

import snello.optimizers
from laws import assert_zero_where
from snello.equilibrium import NEq, time_step
from snello.errors import ConfigError
from snello.pruning import OneShot, Pruner, Ratio, pin

pytestmark = pytest.mark.usefixtures("one_thread")

Step = Callable[[], object]
Way = Callable[[nn.Module], tuple[Any, Step]]


def _model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 12),
        nn.LayerNorm(12),
        nn.ReLU(),
        nn.Linear(12, 10),
        nn.ReLU(),
        nn.Linear(10, 3),
    ).double()


def _loss(model: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(16, 6, generator=generator).to(next(model.parameters()))
    return F.cross_entropy(model(x), torch.randint(3, (16,), generator=generator))


def _sgd(parameters: Any) -> Optimizer:
    return SGD(parameters, 0.1, momentum=0.9, weight_decay=0.1)


def _stepping(model: nn.Module, *optimizers: Any) -> Step:
    def step() -> None:
        model.zero_grad()
        _loss(model).backward()
        for optimizer in optimizers:
            optimizer.step()

    return step


# Ways to train: what the user gives, and one step of it


def _one(model: nn.Module) -> tuple[Any, Step]:
    optimizer = _sgd(model.parameters())
    return optimizer, _stepping(model, optimizer)


def _muon_beside_adamw(model: nn.Module) -> tuple[Any, Step]:
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("this torch has no Muon")
    matrices = [p for p in model.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if p.dim() != 2]
    both = [torch.optim.Muon(matrices, 0.02), AdamW(others, 0.01)]
    return both, _stepping(model, *both)


def _layer_wise(model: nn.Module) -> tuple[Any, Step]:
    each = {
        name: _sgd(layer.parameters())
        for name, layer in model.named_children()
        if [*layer.parameters()]
    }
    return each, _stepping(model, *each.values())


def _in_the_backward(model: nn.Module) -> tuple[Any, Step]:
    each = {p: _sgd([p]) for p in model.parameters()}
    for parameter in each:
        parameter.register_post_accumulate_grad_hook(
            lambda p: (each[p].step(), each[p].zero_grad())[1]
        )
    return list(each.values()), lambda: _loss(model).backward()


def _replaced(model: nn.Module) -> tuple[Any, Step]:
    given = _sgd(model.parameters())

    def step() -> None:
        other = Adam(model.parameters(), 0.01, weight_decay=0.1)
        _stepping(model, given)()
        _stepping(model, other)()

    return given, step


def _made_later(model: nn.Module) -> tuple[Any, Step]:
    made: list[Optimizer] = []

    def step() -> None:
        if not made:
            made.append(_sgd(model.parameters()))
        _stepping(model, *made)()

    return None, step


def _restored(model: nn.Module) -> tuple[Any, Step]:
    optimizer = _sgd(model.parameters())

    def step() -> None:
        nonlocal optimizer
        again = _sgd(model.parameters())
        again.load_state_dict(optimizer.state_dict())
        optimizer = again
        _stepping(model, optimizer)()

    return optimizer, step


def _with_more_parameters(model: nn.Sequential) -> tuple[Any, Step]:
    late = model[3]
    for parameter in late.parameters():
        parameter.requires_grad_(False)
    optimizer = _sgd([p for p in model.parameters() if p.requires_grad])

    def step() -> None:
        if not late.weight.requires_grad:
            for parameter in late.parameters():
                parameter.requires_grad_(True)
            optimizer.add_param_group({"params": list(late.parameters())})
        _stepping(model, optimizer)()

    return optimizer, step


def _with_a_closure(kind: Callable[..., Optimizer], **options: Any) -> Way:
    def way(model: nn.Module) -> tuple[Any, Step]:
        optimizer = kind(model.parameters(), **options)

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = _loss(model)
            loss.backward()
            return loss

        def step() -> None:
            optimizer.zero_grad()
            optimizer.step(closure)

        return optimizer, step

    return way


class _Decayed(SGD):
    """Changes the weights before and after the step of its base class."""

    def step(self, closure: Any = None) -> Any:
        parameters = [p for group in self.param_groups for p in group["params"]]
        with torch.no_grad():
            for parameter in parameters:
                parameter.mul_(0.95).add_(1e-3)
            found = super().step(closure)
            for parameter in parameters:
                parameter.mul_(0.95).add_(1e-3)
        return found


def _subclass(model: nn.Module) -> tuple[Any, Step]:
    optimizer = _Decayed(model.parameters(), 0.1, momentum=0.9)
    return optimizer, _stepping(model, optimizer)


class _Outer(Optimizer):
    """An optimizer around another that is stepped by a method of its own, as SAM is."""

    def __init__(self, base: Optimizer) -> None:
        self.base = base
        super().__init__(base.param_groups, {})

    def second_step(self) -> None:
        self.base.step()

    def step(self, closure: Any = None) -> Any:
        raise NotImplementedError


def _by_another_method(model: nn.Module) -> tuple[Any, Step]:
    optimizer = _Outer(_sgd(model.parameters()))
    return optimizer, _stepping(model, SimpleNamespace(step=optimizer.second_step))


def _wrapped(model: nn.Module) -> tuple[Any, Step]:
    inner = _sgd(model.parameters())
    outer = SimpleNamespace(
        optimizer=SimpleNamespace(optimizer=inner, param_groups=inner.param_groups)
    )
    return outer, _stepping(model, inner)


def _accelerate(model: nn.Module) -> tuple[Any, Step]:
    accelerate = pytest.importorskip("accelerate")
    optimizer = accelerate.Accelerator(cpu=True).prepare(_sgd(model.parameters()))
    return optimizer, _stepping(model, optimizer)


def _zero(model: nn.Module) -> tuple[Any, Step]:
    from torch.distributed.optim import ZeroRedundancyOptimizer

    optimizer = ZeroRedundancyOptimizer(
        model.parameters(), SGD, lr=0.1, momentum=0.9, weight_decay=0.1
    )  # fmt: skip
    return optimizer, _stepping(model, optimizer)


def _compiled(model: nn.Module) -> tuple[Any, Step]:
    optimizer = _sgd(model.parameters())
    fast = torch.compile(optimizer.step, backend="eager")
    return optimizer, _stepping(model, SimpleNamespace(step=fast))


def _moved(model: nn.Module) -> tuple[Any, Step]:
    optimizer = _sgd(model.parameters())

    def step() -> None:
        model.to(
            torch.float32 if next(model.parameters()).dtype is torch.float64 else torch.float64
        )
        optimizer.state.clear()  # its momentum has the other dtype
        _stepping(model, optimizer)()

    return optimizer, step


WAYS: dict[str, Way] = {
    "one": _one,
    "Muon beside AdamW": _muon_beside_adamw,
    "layer-wise": _layer_wise,
    "in the backward": _in_the_backward,
    "replaced": _replaced,
    "made later": _made_later,
    "restored": _restored,
    "add_param_group": _with_more_parameters,
    "L-BFGS": _with_a_closure(torch.optim.LBFGS, lr=0.5, max_iter=3),
    "closure": _with_a_closure(SGD, lr=0.1, momentum=0.9, weight_decay=0.1),
    "subclass": _subclass,
    "by another method": _by_another_method,
    "wrapped": _wrapped,
    "Accelerate": _accelerate,
    "ZeRO": _zero,
    "compiled": _compiled,
    "moved": _moved,
}


@pytest.fixture(autouse=True)
def _alone(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[None]:
    """A process group of one for those that ask for a group."""
    if not any(word in request.node.name for word in ("ZeRO", "sharded", "DDP")):
        yield
        return
    os.environ.setdefault("TP_SOCKET_IFNAME", "lo")
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/met", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.sampled(12)
@pytest.mark.parametrize("granularity", ["weight", "neuron"])
@pytest.mark.parametrize("way", WAYS)
def test_nothing_revives(way: str, granularity: Any) -> None:
    model = _model()
    given, step = WAYS[way](model)
    pruner = Pruner(model, given, granularity=granularity, amount=Ratio(0.5), schedule=OneShot())
    if way != "add_param_group":
        step()
    pruner.prune()
    kept = {name: model.get_parameter(name)[mask].clone() for name, mask in pruner.masks.items()}
    for _ in range(3):
        step()
        assert_zero_where(model, pruner.masks)
    for name, before in kept.items():
        assert (model.get_parameter(name)[pruner.masks[name]] != before).any(), "the others learn"
    pruner.remove()
    for _ in range(3):
        step()
    assert any((model.get_parameter(name)[~mask] != 0).any() for name, mask in pruner.masks.items())


def _frozen(model: nn.Sequential) -> dict[str, Tensor]:
    return {
        name: torch.arange(len(model.get_submodule(name).weight)) % 2 == 0
        for name in ("0", "1", "3")
    }


@pytest.mark.sampled(6)
@pytest.mark.parametrize("way", WAYS)
def test_frozen_neurons_are_still(way: str) -> None:
    model = _model()
    given, step = WAYS[way](model)
    neq = NEq(model, given, torch.randn(4, 6).double())
    if way not in ("add_param_group", "moved"):
        step()
    neq.apply(_frozen(model))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for _ in range(3):
        step()
    for name, mask in _frozen(model).items():
        for key in ("weight", "bias"):
            old, new = before[f"{name}.{key}"], model.get_parameter(f"{name}.{key}")
            assert torch.equal(new[mask].to(old), old[mask].to(new.dtype).to(old)), (name, key)
            assert (new[~mask].to(old) != old[~mask]).any(), "the others learn"
    neq.remove()
    for _ in range(2):
        step()
    assert (model[0].weight[::2].to(before["0.weight"]) != before["0.weight"][::2]).any()


# Two networks


def test_the_two_networks_of_a_gan() -> None:
    torch.manual_seed(0)
    generator = nn.Sequential(nn.Linear(3, 12), nn.ReLU(), nn.Linear(12, 4)).double()
    critic = nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 1)).double()
    both = nn.ModuleDict({"generator": generator, "critic": critic})
    g, c = (Adam(m.parameters(), 0.01, weight_decay=0.1) for m in (generator, critic))

    def play(rounds: int = 4) -> None:
        for _ in range(rounds):
            c.zero_grad()
            (
                critic(generator(torch.randn(8, 3).double())) - critic(torch.randn(8, 4).double())
            ).mean().backward()
            c.step()
            g.zero_grad()
            (-critic(generator(torch.randn(8, 3).double()))).mean().backward()
            g.step()

    play()
    one = Pruner(generator, g, amount=Ratio(0.5))  # the critic's optimizer does not matter here
    one.prune()
    with pytest.raises(
        ConfigError, match=r"no optimizer given holds parameter 'critic\.0\.weight'"
    ):
        Pruner(both, g, exclude=(), amount=Ratio(0.6))
    two = Pruner(both, [g, c], exclude=(), amount=Ratio(0.6))
    two.prune()
    play()
    assert_zero_where(generator, one.masks)
    assert_zero_where(both, two.masks)


# Refusals


METHODS: dict[str, Callable[[nn.Module, Any], Any]] = {
    "Pruner": lambda m, o: Pruner(m, o, amount=Ratio(0.5)),
    "pin": lambda m, o: pin(m, o, {"0.weight": m[0].weight > 0, "3.weight": m[3].weight > 0}),
    "NEq": lambda m, o: NEq(m, o, torch.randn(4, 6).double()),
}


@pytest.mark.parametrize("method", METHODS)
def test_an_optimizer_too_few_is_refused(method: str) -> None:
    model = _model()
    with pytest.raises(
        ConfigError, match=r"holds parameter '3\.weight' \(.* missing\).*requires_grad_\(False\)"
    ):
        METHODS[method](model, _sgd(model[:3].parameters()))
    for parameter in model[3:].parameters():
        parameter.requires_grad_(False)
    METHODS[method](model, _sgd(model[:3].parameters()))


@pytest.mark.parametrize("method", METHODS)
def test_an_optimizer_of_another_model_is_refused(method: str) -> None:
    model = _model()
    with pytest.raises(ConfigError, match="not of a copy or of another"):
        METHODS[method](model, _sgd(copy.deepcopy(model).parameters()))
    with pytest.raises(ConfigError, match="not of a copy or of another"):
        pin(model, _sgd(_model().parameters()), {})


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], "list of optimizers is empty"),
        (7, "is a int"),
        ([None], "is a NoneType"),
        ("sgd", "is a str"),
    ],
)
def test_what_is_no_optimizer_is_refused(method: str, given: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        METHODS[method](_model(), given)


@pytest.mark.parametrize("method", ["Pruner", "NEq"])
@pytest.mark.parametrize("model", [None, 3, "resnet-20"])
def test_what_is_no_model_is_refused(method: str, model: Any) -> None:
    with pytest.raises(ConfigError, match=r"not a torch\.nn\.Module"):
        METHODS[method](model, None)


def test_a_refused_optimizer_changes_nothing() -> None:
    model = _model()
    optimizer = _sgd(model.parameters())
    pruner = Pruner(model, optimizer, amount=Ratio(0.5))
    pruner.prune()
    with pytest.raises(ConfigError):
        pruner.attach(_sgd(_model().parameters()))
    for _ in range(3):
        _stepping(model, optimizer)()
    assert_zero_where(model, pruner.masks)


def test_a_sharded_model_is_refused_with_the_way_out() -> None:
    from torch.distributed.fsdp import fully_shard

    model = _model()
    fully_shard(model, mesh=torch.distributed.init_device_mesh("cpu", (1,)))
    for method in ("Pruner", "NEq"):
        with pytest.raises(
            ConfigError, match=r"'0\.weight' is sharded.*before the model is sharded"
        ):
            METHODS[method](model, _sgd(model.parameters()))


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "DataParallel": nn.DataParallel,
    "compile": lambda m: torch.compile(m, backend="eager"),  # type: ignore[dict-item, return-value]
    "DDP": lambda m: DistributedDataParallel(m, find_unused_parameters=True),
    "compile of DDP": lambda m: torch.compile(  # type: ignore[dict-item, return-value]
        DistributedDataParallel(m, find_unused_parameters=True), backend="eager"
    ),
}


@pytest.mark.parametrize("wrap", WRAPPERS)
@pytest.mark.parametrize("granularity", ["weight", "neuron"])
def test_wrapped_models_are_looked_through(wrap: str, granularity: Any) -> None:
    model = _model()
    optimizer = _sgd(model.parameters())
    wrapped = WRAPPERS[wrap](model)
    pruner = Pruner(wrapped, optimizer, granularity=granularity, amount=Ratio(0.5))
    assert pruner.model is model
    pruner.prune()
    assert set(pruner.masks) <= set(dict(model.named_parameters()))
    neq = NEq(wrapped, optimizer, torch.randn(4, 6).double(), eps=1e9)
    neq.step()
    before = model[0].weight.detach().clone()
    for _ in range(3):
        _stepping(wrapped, optimizer)()
    assert_zero_where(model, pruner.masks)
    assert torch.equal(model[0].weight, before)


# Lifetimes


def test_masks_and_frozen_rows_outlive_the_object_that_set_them() -> None:
    model = _model()
    optimizer = _sgd(model.parameters())
    pin(model, None, {"5.weight": model[5].weight > 0})
    dead = model[5].weight <= 0
    NEq(model, optimizer, torch.randn(4, 6).double()).apply(_frozen(model))
    before = model[0].weight[::2].detach().clone()
    gc.collect()
    for _ in range(3):
        _stepping(model, optimizer)()
    assert (model[5].weight[dead] == 0).all()
    assert torch.equal(model[0].weight[::2], before)


@pytest.mark.parametrize("method", METHODS)
def test_nothing_outlives_the_model(method: str) -> None:
    model = _model()
    optimizer = _sgd(model.parameters())
    METHODS[method](model, optimizer)
    alive = weakref.ref(model)
    del model, optimizer
    gc.collect()
    assert alive() is None
    followers = len(snello.optimizers._followers)
    gc.collect()
    assert len(snello.optimizers._followers) <= followers


def test_a_step_that_raised_is_forgotten() -> None:
    model = _model()
    optimizer = _sgd(model.parameters())
    NEq(model, optimizer, torch.randn(4, 6).double()).apply(_frozen(model))
    before = model[0].weight[::2].detach().clone()

    def fails() -> float:
        raise RuntimeError("no batch")

    for _ in range(9):
        with pytest.raises(RuntimeError, match="no batch"):
            optimizer.step(fails)
        _stepping(model, optimizer)()
    assert torch.equal(model[0].weight[::2], before)


def test_the_time_of_a_step_needs_an_optimizer_and_takes_several() -> None:
    model = _model()
    x, y = torch.randn(4, 6).double(), torch.zeros(4, dtype=torch.long)
    with pytest.raises(ConfigError, match="no optimizer whose steps could be timed"):
        time_step(NEq(model, None, x), x, y, F.cross_entropy, repeats=1)
    both = [_sgd(model[:3].parameters()), _sgd(model[3:].parameters())]
    neq = NEq(_model(), None, x)
    neq = NEq(model, both, x)
    before = [p.detach().clone() for p in model.parameters()]
    time_step(neq, x, y, F.cross_entropy, repeats=1)
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
