"""The traced graph: who follows whom, what is shared, shapes, and modes that come back."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from snello.errors import ModelError
from snello.graph import as_inputs, evaluation, shape_of, trace
from snello.models import CifarResNet
from snello.neurons import is_batchnorm, weighted_layers
from zoo import ZOO, CalledTwice, Tied, tiny_mlp


@pytest.mark.parametrize("name", ZOO)
def test_the_graph_computes_what_the_model_computes_and_changes_nothing(name: str) -> None:
    model = ZOO[name].build().double()
    inputs = ZOO[name].inputs(torch.Generator().manual_seed(0))
    before = copy.deepcopy(model.state_dict())
    graph = trace(model, inputs[0])
    assert all(m.training for m in model.modules())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    model.eval()
    graph.module.eval()
    for x in inputs:
        assert torch.equal(graph.module(x), model(x))
    assert weighted_layers(model).keys() <= graph.calls.keys()


def test_every_convolution_of_a_resnet_is_followed_by_its_norm() -> None:
    model = CifarResNet(8)
    graph = trace(model)
    for name, module in weighted_layers(model).items():
        expected = name.replace("conv", "bn") if isinstance(module, nn.Conv2d) else None
        assert graph.norm_after(name) == expected


class TwoReaders(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x + self.norm(x)


class SharedNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.b(self.norm(self.a(x))))


def test_a_norm_must_read_the_layer_alone() -> None:
    assert trace(nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3))).norm_after("0") == "1"
    assert trace(TwoReaders()).norm_after("conv") is None
    assert trace(SharedNorm()).norm_after("a") is None
    assert trace(nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU(), nn.BatchNorm2d(3))).norm_after("0") is None
    assert trace(nn.Sequential(nn.Conv2d(2, 4, 1), nn.GroupNorm(2, 4))).norm_after("0") is None
    assert trace(tiny_mlp()).norm_after("4") is None
    assert trace(tiny_mlp()).norm_after("no such layer") is None


def test_shared_layers() -> None:
    twice = trace(CalledTwice())
    assert [twice.is_shared(name) for name in ("first", "shared", "last")] == [False, True, False]
    assert len(twice.calls["shared"]) == 2
    tied = trace(Tied())
    assert [tied.is_shared(name) for name in ("first", "second", "third")] == [False, True, True]


def test_one_module_under_two_names_is_one_layer() -> None:
    layer = nn.Linear(3, 3)
    graph = trace(nn.Sequential(layer, nn.ReLU(), layer))
    assert len(graph.calls["0"]) == 2
    assert graph.is_shared("0")


def test_nodes_carry_the_shape_of_their_output() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3, stride=2), nn.BatchNorm2d(3), nn.Flatten())
    graph = trace(model, torch.randn(4, 2, 7, 9))
    assert [shape_of(node) for node in graph.nodes[:-1]] == [
        (4, 2, 7, 9),
        (4, 3, 3, 4),
        (4, 3, 3, 4),
        (4, 36),
    ]
    assert all(shape_of(node) is None for node in trace(model).nodes)
    layers = [graph.layer(node) for node in graph.nodes]
    assert layers[0] is layers[-1] is None
    assert layers[1] is model[0]
    assert is_batchnorm(layers[2])


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_what_cannot_be_traced_is_refused() -> None:
    with pytest.raises(ModelError, match=r"cannot trace Branching.*branches or loops"):
        trace(Branching())


def test_inputs_that_do_not_fit_are_refused_with_their_shape() -> None:
    model = tiny_mlp()
    with pytest.raises(ModelError, match=r"shape \(2, 5\)"):
        trace(model, torch.randn(2, 5))
    assert model.training


def test_evaluation_gives_every_module_its_mode_back() -> None:
    model = CifarResNet(8)
    model.bn1.eval()
    modes = [m.training for m in model.modules()]
    with evaluation(model):
        assert not any(m.training for m in model.modules())
        assert not model.linear(torch.zeros(1, 64)).requires_grad
    assert [m.training for m in model.modules()] == modes

    def fails() -> None:
        with evaluation(model):
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert [m.training for m in model.modules()] == modes
    assert torch.is_grad_enabled()


def test_example_inputs_as_a_tuple() -> None:
    x, y = torch.zeros(1), torch.ones(1)
    assert as_inputs(x) == (x,)
    assert as_inputs((x, y)) == (x, y)
