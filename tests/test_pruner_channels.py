"""Channels pruned by masks while a network trains, then removed without index operations."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from pair import begin
from snello import plan_of, simplify
from snello.errors import ConfigError
from snello.graph import coupling
from snello.lab.models import CifarResNet
from snello.neurons import dead_neurons, weighted_layers
from snello.pruning import Cubic, LayerLimits, OneShot, Pruner, Ratio, taylor
from snello.pruning.channels import group_taylor, magnitude
from snello.sensitivity import serene_scores
from snello.simplification import apply
from zoo import ZOO


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


@pytest.mark.parametrize("width", [4, 8])
def test_widths_are_rounded_before_channels_are_chosen(width: int) -> None:
    model, optimizer, batches = trained()
    pruner = Pruner(
        model, optimizer, lambda m: 1.0, granularity="channel", amount=Ratio(0.6), schedule=Cubic(4),
        example_inputs=X, round_to=width, limits=LayerLimits(keep_at_least=0.3),
    )  # fmt: skip
    dense = {d.name: d.width for d in pruner._units.layers.values()}
    narrowed = set()
    for batch in batches[:1] * 5:
        step(model, optimizer, batch)
        pruner.step()
        lean = simplify(model.eval(), X)
        torch.testing.assert_close(lean(X), model(X))
        found = widths(lean, dense)
        assert found.keys() == dense.keys()
        for name, kept in found.items():
            assert kept % width == 0 or kept == dense[name]
            assert kept >= min(0.3 * dense[name], width)
            narrowed |= {name} if kept < dense[name] else set()
    assert narrowed


def widths(lean: nn.Module, dense: dict[str, int]) -> dict[str, int]:
    """Width of each dimension of a lean network: rows of the layer that it is named after."""
    return {d.name: d.width for d in coupling(lean, X).dimensions if d.name in dense}


def test_rounding_is_refused_where_there_are_no_widths() -> None:
    model, optimizer, _ = trained()
    with pytest.raises(ConfigError, match="granularity='channel' alone"):
        Pruner(model, optimizer, amount=Ratio(0.5), round_to=8)
    with pytest.raises(ConfigError, match="round_to: must be a whole number, at least 1, not 0"):
        Pruner(
            model, optimizer, amount=Ratio(0.5), granularity="channel", example_inputs=X, round_to=0
        )


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


class Scaled(nn.Module):
    """A parameter scales a value that is none: it alone makes the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.head = nn.Parameter(torch.arange(1.0, 9.0)), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x.mean(-1, keepdim=True) * self.scale)


def test_channels_that_a_parameter_makes_alone_are_pruned() -> None:
    model = Scaled()
    pruner = Pruner(
        model, None, granularity="channel", amount=Ratio(0.5), schedule=OneShot(),
        example_inputs=torch.randn(2, 6), exclude=(),
    )  # fmt: skip
    pruner.prune()
    assert int((model.scale == 0).sum()) == 4
    assert torch.equal((model.head.weight == 0).all(0), model.scale == 0)


def test_scores_of_channels_and_of_neurons_are_not_mixed_up() -> None:
    model, _, _ = trained()
    for granularity, importance, message in (
        ("channel", taylor([]), "scores of weights or neurons"),
        ("channel", serene_scores([]), "scores of weights or neurons"),
        ("neuron", group_taylor([]), "scores of channels, for granularity='channel' alone"),
    ):
        pruner = Pruner(
            model, None, granularity=granularity, importance=importance, amount=Ratio(0.5),
            example_inputs=X,
        )  # type: ignore[arg-type]  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            pruner.prune()


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


@pytest.mark.parametrize("name", ZOO)
def test_half_of_the_channels_of_the_zoo_leave_it_alive_and_its_own_class(name: str) -> None:
    torch.manual_seed(0)
    model, x = ZOO[name].build().double().eval(), torch.randn(ZOO[name].shapes[0]).double()
    pruner = Pruner(
        model, None, granularity="channel", amount=Ratio(0.5), schedule=OneShot(), example_inputs=x
    )
    plan = pruner.plan()
    pruner.prune(plan)
    assert all(row.after <= 0.9 * row.units for row in plan.layers)
    lean = simplify(model, x, prefer="plain")
    assert type(lean) is type(model), "no index operation"
    with torch.no_grad():
        y = model(x).flatten(1)
        torch.testing.assert_close(lean(x).flatten(1), y, rtol=1e-9, atol=1e-12)
    assert float((y[0] - y[1]).abs().max()) > 1e-9 * float(y.abs().max()), "depends on its input"
    if name == "dead branch":  # it has dead neurons of its own, which only a graph can drop
        return
    assert not any(dead_neurons(layer).any() for layer in weighted_layers(lean).values())
    shapes = [p.shape for p in simplify(model, x, prefer="bytes").parameters()]
    assert [p.shape for p in lean.parameters()] == shapes


def test_channels_that_a_norm_depends_on_keep_their_width_and_say_why() -> None:
    torch.manual_seed(0)
    model = VisionTransformer(16, 4, 2, 4, 32, 48, num_classes=5).double().eval()
    nn.init.normal_(model.heads[0].weight, std=0.1)  # zero otherwise: an output without its input
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    pruner = Pruner(
        model, None, granularity="channel", amount=Ratio(0.5), schedule=OneShot(), example_inputs=x
    )
    pruner.prune()
    why = pruner.left_alone["conv_proj:heads"]
    assert why.startswith("layer_norm in encoder.layers.encoder_layer_0.ln_1"), why
    assert "snello.prune" in why
    assert all(".mlp." in name for name in pruner.masks)
    plain, small = (simplify(model, x, prefer=how) for how in ("plain", "bytes"))
    assert type(plain) is VisionTransformer
    assert [p.shape for p in plain.parameters()] == [p.shape for p in small.parameters()]
    assert plain.encoder.layers[0].mlp[0].out_features < 48  # type: ignore[union-attr,operator,index]
    torch.testing.assert_close(plain(x), model(x), rtol=1e-9, atol=1e-12)


def test_a_padded_shortcut_is_cut_without_index_operations_and_trains_on() -> None:
    """Option A of the CIFAR ResNets: the sum of a narrow and a padded map."""
    torch.manual_seed(0)
    model, x = CifarResNet(8).double(), torch.randn(2, 3, 8, 8).double()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    batch = (x, torch.tensor([1, 2]))
    step(model, optimizer, batch)
    pruner = Pruner(
        model, optimizer, granularity="channel", amount=Ratio(0.5), schedule=OneShot(),
        example_inputs=x,
    )  # fmt: skip
    pruner.prune()
    lean = simplify(model.eval(), x, optimizer=optimizer)
    assert type(lean) is CifarResNet
    assert plan_of(lean).representation == "module"  # type: ignore[union-attr]
    twin = apply(plan_of(lean), model)  # type: ignore[arg-type]
    assert torch.equal(twin(x), lean(x))
    step(lean, optimizer, batch)
    for value in (s["momentum_buffer"] for s in optimizer.state.values()):
        assert value.shape in {p.shape for p in lean.parameters()}
