"""Neurons: rows and spread against plain loops, dead neurons, tied parameters, masks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from snello.errors import ConfigError
from snello.lab.models import CifarResNet
from snello.neurons import (
    apply_masks,
    count_parameters,
    dead_neurons,
    head,
    is_norm,
    is_weighted,
    iter_rows,
    neuron_count,
    neuron_layers,
    rows,
    select_layers,
    spread,
    tied_parameters,
    weighted_layers,
)
from zoo import CalledTwice, Tied, tiny_mlp

LAYERS: dict[str, nn.Module] = {
    "linear": nn.Linear(4, 6),
    "conv1d": nn.Conv1d(3, 5, 3),
    "conv2d": nn.Conv2d(3, 4, (2, 3)),
    "conv3d": nn.Conv3d(2, 3, 2),
    "grouped": nn.Conv2d(6, 4, 3, groups=2),
    "depthwise": nn.Conv2d(4, 8, 3, groups=4),
    "transposed 1d": nn.ConvTranspose1d(4, 3, 2),
    "transposed, grouped": nn.ConvTranspose2d(6, 8, (2, 3), groups=2),
    "transposed 3d, grouped": nn.ConvTranspose3d(6, 9, 2, groups=3),
}


def incoming(layer: nn.Module, neuron: int) -> Tensor:
    """The weights that feed one neuron, by a plain loop over inputs."""
    weight = layer.weight.detach()
    if not isinstance(layer, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        return weight[neuron].flatten()
    per_group = layer.out_channels // layer.groups
    fan_in = layer.in_channels // layer.groups
    group, column = divmod(neuron, per_group)
    return torch.cat(
        [weight[i, column].flatten() for i in range(group * fan_in, (group + 1) * fan_in)]
    )


@pytest.mark.parametrize("name", LAYERS)
def test_row_i_holds_the_weights_that_feed_neuron_i(name: str) -> None:
    layer = LAYERS[name]
    regrouped = rows(layer, layer.weight.detach())
    assert len(regrouped) == neuron_count(layer)
    for neuron in range(neuron_count(layer)):
        assert torch.equal(regrouped[neuron], incoming(layer, neuron))


@pytest.mark.parametrize("name", LAYERS)
def test_zeroing_a_row_silences_exactly_that_output(name: str) -> None:
    """A neuron is told by the computation of the layer."""
    layer = LAYERS[name]
    dims = layer.weight.dim() - 2
    x = (
        torch.randn(2, 4)
        if isinstance(layer, nn.Linear)
        else torch.randn(2, layer.in_channels, *[4] * dims)
    )
    before, original, last = layer(x), layer.weight.detach().clone(), neuron_count(layer) - 1
    with torch.no_grad():
        layer.weight *= spread(layer, (torch.arange(last + 1) != last).float())
        after = layer(x)
        layer.weight.copy_(original)
    silenced = after[:, last] - layer.bias[last]
    assert silenced.abs().max() == 0
    torch.testing.assert_close(after[:, :last], before[:, :last])


@pytest.mark.parametrize("name", [*LAYERS, "LayerNorm", "BatchNorm"])
@given(seed=st.integers(0, 99))
@settings(max_examples=5, deadline=None, derandomize=True)
def test_spread_is_the_inverse_of_rows(name: str, seed: int) -> None:
    layer = {**LAYERS, "LayerNorm": nn.LayerNorm((2, 3)), "BatchNorm": nn.BatchNorm2d(5)}[name]
    values = torch.randn(neuron_count(layer), generator=torch.Generator().manual_seed(seed))
    regrouped = rows(layer, spread(layer, values).expand_as(layer.weight))
    assert torch.equal(regrouped, values[:, None].expand_as(regrouped))


@pytest.mark.parametrize("name", LAYERS)
@given(seed=st.integers(0, 99))
@settings(max_examples=5, deadline=None, derandomize=True)
def test_dead_neurons_are_those_whose_every_weight_is_zero(name: str, seed: int) -> None:
    layer = LAYERS[name]
    dead = torch.rand(neuron_count(layer), generator=torch.Generator().manual_seed(seed)) < 0.5
    original = layer.weight.detach().clone()
    with torch.no_grad():
        layer.weight.masked_fill_(spread(layer, dead), 0)
        found = dead_neurons(layer)
        layer.weight.copy_(original)
    assert torch.equal(found, dead)


def test_a_zero_sum_is_not_dead() -> None:
    layer = nn.Conv2d(1, 2, 3)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]]).expand(2, 1, 3, 3))
        layer.weight[1] = -0.0
    assert dead_neurons(layer).tolist() == [False, True]


def test_which_layers_have_neurons() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.GroupNorm(2, 6),
        nn.BatchNorm2d(6, affine=False), nn.Flatten(), nn.Linear(6, 4), nn.LayerNorm(4),
    )  # fmt: skip
    assert list(weighted_layers(model)) == ["0", "6"]
    assert list(neuron_layers(model)) == ["0", "1", "3", "6", "7"]
    assert [is_weighted(m) for m in model] == [True, False, False, False, False, False, True, False]
    assert [is_norm(m) for m in model] == [False, True, False, True, False, False, False, True]
    assert [neuron_count(m) for m in neuron_layers(model).values()] == [6, 6, 6, 4, 4]
    with pytest.raises(ConfigError, match="ReLU has no neurons"):
        neuron_count(model[2])
    with pytest.raises(ConfigError, match="BatchNorm2d has no neurons"):
        neuron_count(model[4])


def test_the_head_is_the_last_layer_with_weights() -> None:
    assert head(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2), nn.LayerNorm(2))) == "1"
    assert head(CifarResNet(8)) == "linear"
    assert head(nn.ReLU()) is None


def test_shared_modules_and_tied_parameters_are_found_once() -> None:
    assert tied_parameters(tiny_mlp()) == []
    assert tied_parameters(Tied()) == [["second.weight", "third.weight"]]
    assert tied_parameters(CalledTwice()) == []
    layer = nn.Linear(3, 3)
    shared = nn.Sequential(layer, nn.ReLU(), layer)
    assert tied_parameters(shared) == [["0.weight", "2.weight"], ["0.bias", "2.bias"]]
    assert list(weighted_layers(shared)) == ["0"]


def test_select_layers_excludes_by_name_or_says_which_exist() -> None:
    layers = weighted_layers(tiny_mlp())
    assert list(select_layers(layers, ["2"], "here")) == ["0", "4"]
    assert list(select_layers(layers, [], "here")) == ["0", "2", "4"]
    for kind in (nn.Linear, [nn.Linear], lambda name, module: isinstance(module, nn.Linear)):
        assert not select_layers(layers, kind, "here")
    for odd in ([layers["0"]], layers["0"], 3):
        with pytest.raises(ConfigError, match="here: names of layers, types"):
            select_layers(layers, odd, "here")
    with pytest.raises(ConfigError, match=r"here: no layer is called '1'; the layers are: 0, 2, 4"):
        select_layers(layers, ["0", "1"], "here")


@given(share=st.floats(0, 1), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None, derandomize=True)
def test_masks_zero_what_they_prune_and_keep_the_rest(share: float, seed: int) -> None:
    model, generator = tiny_mlp(), torch.Generator().manual_seed(seed)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    masks = {
        name: torch.rand(p.shape, generator=generator) >= share
        for name, p in model.named_parameters()
    }
    apply_masks(model, masks)
    for name, p in model.named_parameters():
        assert torch.equal(p, torch.where(masks[name], before[name], torch.zeros(())))
    assert count_parameters(model)[1] == sum(int(mask.sum()) for mask in masks.values())


def test_masks_zero_what_is_not_a_number() -> None:
    model = nn.Linear(2, 1)
    with torch.no_grad():
        model.weight.fill_(float("nan"))
    apply_masks(model, {"weight": torch.tensor([[False, False]])})
    assert torch.equal(model.weight, torch.zeros(1, 2))


def test_masks_that_do_not_fit_are_refused() -> None:
    model = tiny_mlp()
    with pytest.raises(ConfigError, match=r"'9.weight'.*no such parameter"):
        apply_masks(model, {"9.weight": torch.ones(6, 4, dtype=torch.bool)})
    with pytest.raises(ConfigError, match=r"'0.weight' of shape \(4, 6\).*shape \(6, 4\)"):
        apply_masks(model, {"0.weight": torch.ones(4, 6, dtype=torch.bool)})


def test_parameters_are_counted_once() -> None:
    assert count_parameters(Tied())[0] == 6 * 8 + 8 + 8 * 8 + 8 + 8 + 8 * 3 + 3


def test_iter_rows_gives_every_layer_by_neuron() -> None:
    layers = weighted_layers(tiny_mlp())
    for (name, module, grouped), (expected, layer) in zip(
        iter_rows(layers), layers.items(), strict=True
    ):
        assert (name, module) == (expected, layer)
        assert torch.equal(grouped, layer.weight)
