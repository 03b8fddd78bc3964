"""Neurons frozen in models that torch.compile has run before: the gradients are those of the plain
model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snello.equilibrium import NEq

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def _no_graphs_of_others() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def _model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 10), nn.ReLU(), nn.Linear(10, 3)
    ).double()  # fmt: skip


def _batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(6, 2, 6, 6, generator=generator).double()
    return x, torch.randint(3, (6,), generator=generator)


def _in_place(model: nn.Module) -> nn.Module:
    model.compile(backend="aot_eager")
    return model


COMPILED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "compiled": lambda m: torch.compile(m, backend="aot_eager"),  # type: ignore[dict-item, return-value]
    "in place": _in_place,
}
MASKS = [
    {"0": torch.arange(8) < 4, "1": torch.arange(8) < 2, "4": torch.ones(10, dtype=torch.bool)},
    {"0": torch.ones(8, dtype=torch.bool), "4": torch.arange(10) % 2 == 0},
    {},
]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("how", COMPILED)
@pytest.mark.parametrize("ran", ["this model", "another of its class"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_frozen_after_compiling(how: str, ran: str, wrapped: bool) -> None:
    x, y = _batch()
    model = _model()
    run = COMPILED[how](model)
    (run if ran == "this model" else COMPILED[how](_model()))(x).sum().backward()
    model.load_state_dict(_model().state_dict())  # BatchNorm has seen a batch
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=0.1)
    neq = NEq(run if wrapped else model, optimizer, x[:3], dispatch="fixed")
    assert set(neq.frozen) == {"0", "1", "4"}
    plain = _model()
    twin = torch.optim.SGD(plain.parameters(), 0.05, momentum=0.9, weight_decay=0.1)
    other = NEq(plain, twin, x[:3], dispatch="fixed")
    for masks in MASKS:
        neq.apply(masks)
        other.apply(masks)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        for _ in range(2):
            for net, updates in ((run, optimizer), (plain, twin)):
                updates.zero_grad()
                F.cross_entropy(net(x), y).backward()
                updates.step()
        for name, mask in masks.items():
            assert torch.equal(
                model.get_parameter(f"{name}.weight")[mask], before[f"{name}.weight"][mask]
            )
        for name, parameter in plain.named_parameters():
            torch.testing.assert_close(model.get_parameter(name), parameter, rtol=1e-11, atol=1e-13)
    assert neq.step().step == 1
