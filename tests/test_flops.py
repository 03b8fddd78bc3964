"""MACs of a layer: those of torch's counter, and of the weights that are not zero."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from snello.flops import counted, flop_counter, layer_macs, weight_uses
from snello.neurons import neuron_axis, outputs_first, rows, spread, spread_inputs
from snello.pruning import nonzero_macs

LAYERS = {
    "linear": (lambda: nn.Linear(6, 4), (3, 5, 6)),
    "conv 1d": (lambda: nn.Conv1d(4, 6, 3, 2), (3, 4, 9)),
    "conv 2d, grouped": (lambda: nn.Conv2d(6, 9, 3, padding=1, groups=3), (2, 6, 5, 4)),
    "conv 3d, depthwise": (lambda: nn.Conv3d(3, 6, 2, groups=3), (2, 3, 4, 4, 4)),
    "transposed 1d": (lambda: nn.ConvTranspose1d(4, 3, 2, 2), (2, 4, 5)),
    "transposed 2d, grouped": (lambda: nn.ConvTranspose2d(6, 9, 3, 2, 1, groups=3), (2, 6, 4, 5)),
}  # fmt: skip


@pytest.fixture(params=LAYERS)
def sample(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    build, shape = LAYERS[request.param]
    return build(), torch.rand(shape) + 0.1


def test_macs_of_a_layer_are_those_that_torch_counts(sample: tuple[nn.Module, Tensor]) -> None:
    layer, x = sample
    with torch.no_grad(), flop_counter() as counter:
        output = layer(x)
    assert layer_macs(layer, x, output) * 2 == counter.get_total_flops()


def test_macs_need_no_batch() -> None:
    for layer, x in (
        (nn.Conv2d(4, 6, 3), torch.rand(4, 5, 5)),
        (nn.ConvTranspose1d(4, 6, 3), torch.rand(4, 5)),
    ):
        batched = x[None]
        assert layer_macs(layer, x, layer(x)) == layer_macs(layer, batched, layer(batched))
        assert nonzero_macs(batched)(layer) == layer_macs(layer, x, layer(x))


def test_every_weight_is_used_as_often_as_the_output_says(sample: tuple[nn.Module, Tensor]) -> None:
    """With inputs and weights of ones, the outputs add up the products that were made."""
    layer, x = sample
    if padding := getattr(layer, "padding", None):
        layer.padding = tuple(0 for _ in padding)  # padded positions count, but add nothing
    nn.init.ones_(layer.weight)
    nn.init.zeros_(layer.bias)
    output = layer(torch.ones_like(x))
    assert int(output.sum()) == layer.weight.numel() * weight_uses(layer, x, output)


def test_heads_that_share_keys_count_like_those_with_their_own() -> None:
    """Of the fused attention of CPUs, forward and backward."""
    counts = []
    for repeats in (1, 2):
        query = torch.randn(2, 4, 5, 8, requires_grad=True)
        key, value = (torch.randn(2, 4 // repeats, 5, 8, requires_grad=True) for _ in range(2))
        with flop_counter() as counter:
            scaled_dot_product_attention(query, key, value, enable_gqa=True).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


class Latents(nn.Module):
    """A layer that is given a view of a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.zeros(5, 6))
        self.layer = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.layer(self.queries.expand(len(x), -1, -1)).mT


def test_views_of_parameters_are_inputs_like_others() -> None:
    model, x = Latents().requires_grad_(), torch.rand(1, 3, 4)
    model.layer.bias.requires_grad_(False)
    with counted(model) as counter:
        model(x)
    assert counter.get_total_flops() == 2 * (5 * 6 * 4 + 3 * 4 * 5)
    assert [p.requires_grad for p in model.parameters()] == [True, True, False]


def test_norms_count_two_per_entry() -> None:
    x = torch.rand(3, 4, 5)
    assert layer_macs(nn.BatchNorm1d(4), x, x) == 2 * x.numel()


def test_weights_at_zero_and_dead_inputs_cost_nothing(sample: tuple[nn.Module, Tensor]) -> None:
    layer, x = sample
    inputs = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
    dense = layer_macs(layer, x, layer(x)) / len(x)
    cost = nonzero_macs(x)
    assert cost(layer) == dense
    live = torch.arange(inputs) % 3 != 0
    axis = x.dim() - 1 if isinstance(layer, nn.Linear) else 1
    dead = x * live.reshape([-1 if d == axis else 1 for d in range(x.dim())])
    assert nonzero_macs(dead)(layer) == pytest.approx(dense * float(live.double().mean()))
    with torch.no_grad():  # the same inputs, dead by their weights
        layer.weight.mul_(spread_inputs(layer, live))
    assert cost(layer) == nonzero_macs(dead)(layer)


def test_outputs_first_is_the_plain_convolution_of_the_transpose() -> None:
    torch.manual_seed(0)
    for groups in (1, 2, 3):
        layer = nn.ConvTranspose2d(6, 12, 3, groups=groups, bias=False).double()
        plain = nn.Conv2d(6, 12, 3, groups=groups, bias=False, padding=2).double()
        with torch.no_grad():
            plain.weight.copy_(outputs_first(layer.weight, groups).flip(2, 3))
        x = torch.randn(2, 6, 5, 4, dtype=torch.float64)
        torch.testing.assert_close(plain(x), layer(x), rtol=0, atol=1e-12)
        assert torch.equal(rows(layer, layer.weight), rows(plain, plain.weight.flip(2, 3)))


def test_the_neuron_axis_is_where_neurons_are_spread(sample: tuple[nn.Module, Tensor]) -> None:
    layer, _ = sample
    axis = neuron_axis(layer)
    if getattr(layer, "groups", 1) > 1 and axis == 1:
        assert layer.weight.shape[axis] * layer.groups == layer.out_channels
        return
    values = torch.arange(layer.weight.shape[axis], dtype=torch.float32)
    shape = [-1 if d == axis else 1 for d in range(layer.weight.dim())]
    expected = values.reshape(shape).expand(layer.weight.shape)
    assert torch.equal(spread(layer, values).expand(layer.weight.shape), expected)
    assert neuron_axis(nn.LayerNorm(3)) is None
