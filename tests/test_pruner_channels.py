"""Channels pruned by masks while a network trains, then removed without index operations."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from pair import begin
from snello import simplify
from snello.errors import ConfigError
from snello.pruning import Cubic, OneShot, Pruner, Ratio
from snello.pruning.channels import group_taylor, magnitude


class Residual(nn.Module):
    """Two residual blocks, the second with a depthwise layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU())
        self.first = nn.Sequential(
            nn.Conv2d(12, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12),
        )  # fmt: skip
        self.second = nn.Sequential(
            nn.Conv2d(12, 20, 1), nn.BatchNorm2d(20), nn.ReLU(),
            nn.Conv2d(20, 20, 3, padding=1, groups=20), nn.BatchNorm2d(20), nn.ReLU(),
            nn.Conv2d(20, 12, 1), nn.BatchNorm2d(12),
        )  # fmt: skip
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.relu(x + self.first(x))
        x = torch.relu(x + self.second(x))
        return self.head(x.mean((2, 3)))


def trained(steps: int = 3) -> tuple[nn.Module, torch.optim.Optimizer, list[tuple[Tensor, Tensor]]]:
    torch.manual_seed(0)
    model = Residual().double()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=1e-3)
    batches = [(torch.randn(8, 3, 8, 8).double(), torch.randint(5, (8,))) for _ in range(steps)]
    for batch in batches:
        step(model, optimizer, batch)
    return model, optimizer, batches


def step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: tuple[Tensor, Tensor]) -> None:
    model.train()
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(batch[0]), batch[1]).backward()
    optimizer.step()


X = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("importance", ["l2", "taylor"])
def test_pruned_channels_leave_a_plain_narrower_network_after_training_on(importance: str) -> None:
    model, optimizer, batches = trained()
    pruner = Pruner(
        model, optimizer, granularity="channel", amount=Ratio(0.4), schedule=OneShot(),
        importance=group_taylor(batches) if importance == "taylor" else magnitude(2),
        example_inputs=X,
    )  # fmt: skip
    pruner.prune()
    for batch in batches:
        step(model, optimizer, batch)
    model.eval()
    lean = simplify(model, X, prefer="plain")
    assert type(lean) is Residual, "no index operation: the user's own class"
    assert lean.second[3].groups == int(pruner.masks["second.3.bias"].sum()) < 20  # type: ignore[operator]
    assert torch.allclose(lean(X), model(X), rtol=1e-9, atol=1e-12)
    bytes_ = simplify(model, X, prefer="bytes")
    shapes = [p.shape for p in lean.parameters()]
    assert shapes == [p.shape for p in bytes_.parameters()]


def test_a_stream_loses_the_same_channels_in_all_that_touches_it() -> None:
    model, _, _ = trained()
    pruner = Pruner(
        model, None, granularity="channel", amount=Ratio(0.4), schedule=OneShot(), example_inputs=X
    )
    pruner.prune()
    kept = pruner.masks["stem.0.bias"]
    assert 0 < int(kept.sum()) < 12
    for name in ("stem.1.weight", "first.4.bias", "second.6.bias", "second.7.weight"):
        assert torch.equal(pruner.masks[name], kept), name
    assert torch.equal(pruner.masks["head.weight"].any(0), kept)
    assert "head.bias" not in pruner.masks


def test_a_cubic_schedule_reaches_its_share_and_survives_saving_and_copying() -> None:
    model, optimizer, batches = trained()
    pruner = Pruner(
        model, optimizer, granularity="channel", amount=Ratio(0.5), schedule=Cubic(over=3),
        example_inputs=X,
    )  # fmt: skip
    pruner.step()
    state, weights = copy.deepcopy(pruner.state_dict()), copy.deepcopy(model.state_dict())
    twin_model, twin_optimizer, twin = copy.deepcopy((model, optimizer, pruner))
    again, _, _ = trained()
    again.load_state_dict(weights)
    resumed = Pruner(
        again, None, granularity="channel", amount=Ratio(0.5), schedule=Cubic(over=3),
        example_inputs=X,
    )  # fmt: skip
    resumed.load_state_dict(state)
    step(model, optimizer, batches[0])
    step(twin_model, twin_optimizer, batches[0])
    again.load_state_dict(model.state_dict())
    for own in (pruner, twin, resumed):
        own.step()
        own.step()
        assert own.finished
    for name, mask in pruner.masks.items():
        assert torch.equal(mask, twin.masks[name]), name
        assert torch.equal(mask, resumed.masks[name]), name
    plan = pruner.plan()
    assert plan.before / plan.units == pytest.approx(0.5, abs=1 / plan.units)


def test_channels_of_an_excluded_layer_stay() -> None:
    model, _, _ = trained()
    pruner = Pruner(
        model, None, granularity="channel", amount=Ratio(0.5), schedule=OneShot(),
        example_inputs=X, exclude=["stem.0", "head"],
    )  # fmt: skip
    pruner.prune()
    assert "stem.1.weight" not in pruner.masks
    assert pruner.masks["second.6.weight"].flatten(1).any(1).all(), "the stream that stem.0 writes"
    assert not pruner.masks["first.0.weight"].all()


def test_channels_without_example_inputs_are_refused() -> None:
    model, _, _ = trained()
    with pytest.raises(ConfigError, match="needs example_inputs"):
        Pruner(model, None, granularity="channel", amount=Ratio(0.5), schedule=OneShot())
    with pytest.raises(ConfigError, match="one of weight, neuron, channel, not 'filter'"):
        Pruner(model, None, granularity="filter", amount=Ratio(0.5))  # type: ignore[arg-type]


def taylor_masks(batches: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    model, _, _ = trained()
    pruner = Pruner(
        model, None, granularity="channel", amount=Ratio(0.4), schedule=OneShot(),
        importance=group_taylor(batches), example_inputs=X,
    )  # fmt: skip
    pruner.prune()
    return pruner.masks


def _half(rank: int) -> dict[str, Tensor]:
    _, _, batches = trained(4)
    return taylor_masks(batches[rank::2])


def test_processes_with_other_batches_prune_what_one_with_all_of_them_prunes() -> None:
    together = begin(_half)
    expected = taylor_masks(trained(4)[2])
    for rank, found in enumerate(together()):
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], mask) for name, mask in expected.items()), rank
