"""Forwards that refuse narrower tensors: an attribute is mended, or one module is left alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from laws import assert_same_outputs, generator, randomise
from snello.simplification import plan_of, simplify


class Checked(nn.Module):
    """A convolution that compares the width of its input with an attribute."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.conv = nn.Conv2d(channels, 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] != self.channels:
            raise ValueError(f"{x.shape[1]} channels instead of {self.channels}")
        return self.conv(x).relu()


class SameWidth(nn.Module):
    """A convolution whose output is viewed in the shape of the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        if channels < 1:
            raise ValueError("no channels")
        return self.conv(x).view(batch, channels, height, width).sin()


@torch.no_grad()
def kill(layer: nn.Module) -> None:
    layer.weight[::2], layer.bias[::2] = 0, 0


def network(*middle: nn.Module) -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), *middle, nn.Conv2d(16, 4, 1))
    randomise(model, generator(1)).double().eval()
    kill(model[0])
    return model


def simplified(model: nn.Module) -> nn.Module:
    x = torch.randn(2, 3, 12, 12, dtype=torch.float64, generator=generator(2))
    lean = simplify(model, x)
    assert type(lean) is type(model)
    for shape in ((2, 3, 12, 12), (3, 3, 15, 13)):
        other = torch.randn(shape, dtype=torch.float64, generator=generator(3))
        assert_same_outputs(model, lean, other, tolerance=1e-12)
    return lean


def test_an_attribute_that_is_only_compared_follows() -> None:
    model = network(Checked(16), Checked(16))
    kill(model[2].conv)
    lean = simplified(model)
    assert [lean[i].channels for i in (2, 3)] == [8, 8]
    assert lean[2].conv.weight.shape == (8, 8, 3, 3)
    assert lean[3].conv.weight.shape == (16, 8, 3, 3)
    assert plan_of(lean).attributes == {"2.channels": 8, "3.channels": 8}
    assert model[2].channels == 16, "the model itself stays as it is"


@pytest.mark.parametrize("first", [True, False])
def test_one_module_at_fault_leaves_the_others_narrow(first: bool) -> None:
    model = network(*([SameWidth(16), Checked(16)] if first else [Checked(16), SameWidth(16)]))
    at, other = (2, 3) if first else (3, 2)
    kill(model[other].conv)
    lean = simplified(model)
    assert lean[at].conv.weight.shape == (16, 16, 1, 1)
    rows = 16 if not first else 8  # what the module at fault reads stays, too
    assert lean[other].conv.weight.shape == (rows, 16 if first else 8, 3, 3)
    (reason,) = {v for k, v in plan_of(lean).left_alone.items() if k == str(at)}
    assert "does not take narrower tensors" in reason
    assert "test_simplify_own_forward.py" in reason
