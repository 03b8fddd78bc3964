"""Forwards that refuse narrower tensors: an attribute is mended, or one module is left alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from laws import assert_same_outputs, generator, randomise
from snello.simplification import SimplificationPlan, apply, plan_of, simplify


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


class Parts(nn.Module):
    """A convolution on one part of its input, as in FasterNet and InceptionNeXt.

    Args:
        held: kind of the attribute with the widths of the parts: tuple, list, int, or slice for an
            end of two slices; None for widths that are written into the forward.
    """

    def __init__(self, held: type | None) -> None:
        super().__init__()
        self.held = held
        if held in (tuple, list):
            self.sections = held((6, 10))
        elif held is int:
            self.dim_conv, self.untouched = 6, 10
        elif held is slice:
            self.num_c = 6
        self.conv = nn.Conv2d(6, 6, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if self.held in (tuple, list):
            first, second = torch.split(x, self.sections, dim=1)
        elif self.held is int:
            first, second = x.split([self.dim_conv, self.untouched], dim=1)
        elif self.held is slice:
            first, second = x[:, : self.num_c], x[:, self.num_c :]
        else:
            first, second = x[:, :6], x[:, 6:]
        return torch.cat((self.conv(first), second), 1)


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


@pytest.mark.parametrize("keep_class", [False, True])
@pytest.mark.parametrize("held", [tuple, list, int, slice])
def test_attributes_with_the_widths_of_parts_follow(held: type, keep_class: bool) -> None:
    model = network(Parts(held))
    with torch.no_grad():
        for dead in (0, 1, 2, 7):  # not the same number in each part
            model[0].weight[dead], model[0].bias[dead] = 0, 0
            model[0].weight[dead + 8], model[0].bias[dead + 8] = 1, 1
        kill(model[2].conv)
    x = torch.randn(2, 3, 12, 12, dtype=torch.float64, generator=generator(2))
    lean = simplify(model, x, keep_class=keep_class)
    assert type(lean) is type(model)
    kept = (model[0].weight.flatten(1) != 0).any(1)
    first, second = int(kept[:6].sum()), int(kept[6:].sum())
    assert first != second
    assert lean[0].weight.shape[0] == first + second
    assert lean[2].conv.weight.shape == (3, first, 3, 3)
    assert lean[3].weight.shape[1] == 3 + second
    wanted = {
        tuple: {"2.sections": (first, second)},
        list: {"2.sections": (first, second)},
        int: {"2.dim_conv": first, "2.untouched": second},
        slice: {"2.num_c": first},
    }
    assert plan_of(lean).attributes == wanted[held]
    again = apply(SimplificationPlan.from_json(plan_of(lean).to_json()), network(Parts(held)))
    again.load_state_dict(lean.state_dict())
    if held is list:
        assert again[2].sections == [first, second]
    for other in (lean, again):
        assert_same_outputs(model, other, x, tolerance=1e-12)


class Ghost(nn.Module):
    """As many channels as asked for, of the two halves that are made."""

    def __init__(self) -> None:
        super().__init__()
        self.out = 16
        self.first, self.cheap = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return torch.cat((x, self.cheap(x)), 1)[:, : self.out]


@pytest.mark.parametrize("keep_class", [False, True])
def test_a_slice_that_takes_all_channels_needs_no_new_end(keep_class: bool) -> None:
    model = network(Ghost())
    kill(model[2].first)
    kill(model[2].cheap)
    x = torch.randn(2, 3, 12, 12, dtype=torch.float64, generator=generator(2))
    lean = simplify(model, x, keep_class=keep_class)
    assert type(lean) is type(model)
    assert lean[3].weight.shape[1] == 8
    assert_same_outputs(model, lean, x, tolerance=1e-12)


def test_widths_of_parts_that_are_written_into_the_forward_are_kept() -> None:
    """With `keep_class`, the parts keep their widths; a graph may cut them."""
    model = network(Parts(None))
    x = torch.randn(2, 3, 12, 12, dtype=torch.float64, generator=generator(2))
    kept = simplify(model, x, keep_class=True)
    assert type(kept) is type(model)
    assert kept[0].weight.shape[0] == 16
    free = simplify(model, x)
    assert free.get_submodule("0").weight.shape[0] == 8
    for lean in (kept, free):
        assert_same_outputs(model, lean, x, tolerance=1e-12)


class Spectral(nn.Module):
    """A complex weight for the lowest frequencies, and a spectrum as second output."""

    def __init__(self) -> None:
        super().__init__()
        self.lift = nn.Conv1d(3, 12, 1)
        self.weight = nn.Parameter(torch.randn(12, 12, 4, dtype=torch.complex64))
        self.hidden = nn.Conv1d(12, 16, 1)
        self.out = nn.Conv1d(16, 2, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.lift(x)
        low = torch.einsum("bif,iof->bof", torch.fft.rfft(x)[..., :4], self.weight)
        x = x + torch.fft.irfft(low, n=x.shape[-1])
        x = self.out(self.hidden(x).relu())
        return x, torch.fft.rfft(x)


def test_complex_weights_and_outputs_are_verified_in_double_precision() -> None:
    model, x = Spectral().eval(), torch.randn(2, 3, 16)
    with torch.no_grad():
        model.hidden.weight[::2] = 0
    lean = simplify(model, x)
    assert lean.get_submodule("hidden").weight.shape == (8, 12, 1)
    assert lean.get_parameter("weight").dtype is torch.complex64
    for found, expected in zip(lean(x), model(x), strict=True):
        torch.testing.assert_close(found, expected)


@torch.fx.wrap
def add_to(x: Tensor, other: Tensor) -> None:
    """Write in place where the graph does not show it."""
    x.add_(other)


class Hidden(nn.Module):
    """A sum in place, through a view or in a function that torch.fx does not trace."""

    def __init__(self, through: str) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(3, 8), nn.Linear(3, 8), nn.Linear(8, 2)
        self.through = through

    def forward(self, x: Tensor) -> Tensor:
        y, z = self.first(x), self.second(x)
        if self.through == "function":
            add_to(y, z)
        else:
            y[:, 1:].add_(z[:, 1:])
        return self.last(y.relu())


@pytest.mark.parametrize("through", ["view", "function"])
def test_hidden_writes_keep_the_class(through: str) -> None:
    model = Hidden(through).double().eval()
    with torch.no_grad():
        for layer in (model.first, model.second):
            layer.weight[3:5] = layer.bias[3:5] = 0
    x = torch.randn(4, 5, 3, dtype=torch.float64)
    lean = simplify(model, x)
    assert (type(lean), lean.last.in_features) == (Hidden, 6)
    assert_same_outputs(model, lean, x, tolerance=1e-12)
