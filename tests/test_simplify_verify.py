"""Verification: what differs is refused, in whatever it is returned; what rounding explains is
not.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hard_cases import Net
from laws import generator, kill, randomise
from snello.errors import ModelError, SimplifyError
from snello.graph import capture
from snello.simplification import fold_batchnorm, simplify
from snello.simplification.verify import difference, structure, verify, worst_difference
from zoo import tiny_mlp


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


@dataclass
class Record:
    first: Any
    second: Any


X = (torch.randn(3, 4, dtype=torch.float64, generator=generator()),)

RETURNS: dict[str, Callable[[Tensor], object]] = {
    "a tensor": lambda y: y,
    "a tuple of one": lambda y: (y,),
    "a tuple with None": lambda y: (y, None),
    "a tuple with nothing": lambda y: (y, ()),
    "a list": lambda y: [y],
    "another dict": lambda y: {"aux": y},
    "a dict": lambda y: {"out": y},
    "a dict and a number": lambda y: {"out": y, "width": y.shape[1]},
    "a number": lambda y: (y, 1),
    "another number": lambda y: (y, 2),
    "two tensors": lambda y: (y, 2 * y),
    "a nested tuple": lambda y: (y, (2 * y,)),
    "a record": lambda y: Record(y, None),
}


def net(wrap: Callable[[Tensor], object]) -> nn.Module:
    """One and the same layer; what is made of its output differs."""
    layer = nn.Linear(4, 3).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.linspace(-1, 1, parameter.numel()).reshape(parameter.shape))
    return Net(lambda m, x: wrap(m.layer(x)), layer=layer).eval()


@pytest.mark.sampled(40)
@pytest.mark.parametrize("found", RETURNS)
@pytest.mark.parametrize("expected", RETURNS)
def test_outputs_that_are_put_together_in_another_way_are_refused(
    expected: str, found: str
) -> None:
    reference, lean = net(RETURNS[expected]), net(RETURNS[found])
    if expected == found:
        verify(reference, lean, {}, {}, X)
        return
    with pytest.raises(
        SimplifyError, match=r"put together in another way: .* instead of .*\(3, 4\)"
    ):
        verify(reference, lean, {}, {}, X)


@pytest.mark.parametrize("name", RETURNS)
def test_whatever_holds_the_tensors_they_are_compared(name: str) -> None:
    wrap = RETURNS[name]
    reference, wrong = net(wrap), capture(net(lambda y: wrap(y + 1e-3))).module
    with pytest.raises(SimplifyError, match=r"differ by .* the first difference is at"):
        verify(reference, wrong, {}, {}, X)


def test_a_structure_is_told_in_words() -> None:
    x = torch.zeros(2)
    assert (
        structure({"out": (x, None), "aux": [x, 3]})
        == "{'out': (tensor, None), 'aux': [tensor, 3]}"
    )
    assert structure(Pair(x, x)) == "(tensor, tensor)"
    assert structure(Record(x, "y")) == "{first: tensor, second: 'y'}"
    assert structure((x, object())) == "(tensor, object)"


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_one_wrong_number_in_any_output_is_a_difference(place: int, value: float) -> None:
    """Also where it is none: the maximum of 0 and NaN is 0 in Python."""
    expected = tuple(torch.arange(6.0, dtype=torch.float64).reshape(2, 3) + i for i in range(3))
    found = tuple(y.clone() for y in expected)
    assert worst_difference(expected, found) == 0
    found[place][1, 1] = value
    assert not worst_difference(expected, found) <= 1
    assert not worst_difference(found, expected) <= 1


def test_a_lean_model_whose_second_output_is_not_a_number_is_refused() -> None:
    reference = net(lambda y: (y, y))
    lean = capture(net(lambda y: (y, y * float("nan")))).module
    with pytest.raises(SimplifyError, match="nan"):
        verify(reference, lean, {}, {}, X)


@given(seed=st.integers(0, 99), wrong=st.sampled_from([0.0, 1e-6]))
@settings(max_examples=20, deadline=None, derandomize=True)
def test_infinities_are_outputs_like_others_and_hide_nothing(seed: int, wrong: float) -> None:
    expected = torch.randn(3, 5, dtype=torch.float64, generator=generator(seed))
    mask = torch.rand(3, 5, generator=generator(seed)) < 0.4
    found = expected + wrong * torch.rand(3, 5, dtype=torch.float64, generator=generator(seed + 1))
    plain = difference(expected.masked_fill(mask, 0), found.masked_fill(mask, 0))
    masked = [y.masked_fill(mask, -torch.inf) for y in (expected, found)]
    assert difference(*masked) == plain
    assert plain == 0 if not wrong else plain > 1e-9
    if mask.any():
        assert difference(masked[0], -masked[1]) == float("inf")


def test_a_tensor_with_a_nan_is_named() -> None:
    model = tiny_mlp()
    with torch.no_grad():
        model[2].weight[1, 2] = torch.nan
    with pytest.raises(ModelError, match=r"'2.weight' has 1 of"):
        simplify(model, X)


def test_scores_masked_with_infinity_are_simplified() -> None:
    torch.manual_seed(
        0
    )  # for some weights the mask is empty, and the test would have nothing to see
    model = Net(
        lambda m, x: m.last(torch.relu(m.first(x))).masked_fill(m.mask(x) > 0, -torch.inf),
        first=nn.Linear(4, 6), last=nn.Linear(6, 3), mask=nn.Linear(4, 3),
    )  # fmt: skip
    model = randomise(model.double(), generator()).eval()
    kill(model, "first", torch.arange(6) < 3, with_norms=False)
    lean = simplify(model, X)
    with torch.no_grad():
        expected, found = model(*X), lean(*X)
    assert expected.isinf().any()
    assert lean.get_submodule("first").weight.shape == (3, 4)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


class Amplifier(nn.Module):
    """Differences grow by a factor of up to 60 at each of five steps: rounding does too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sigmoid(self.norm(self.first(x)))
        for _ in range(5):
            x = torch.sin(60 * x)
        return self.last(x)


@pytest.fixture
def amplifier() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = randomise(Amplifier().double(), generator()).eval()
    with torch.no_grad():
        rounding = difference(model(*X), model(X[0] * (1 + 2**-52)))
    assert rounding > 1e-9, "nothing is amplified: the tests would show nothing"
    return model


@pytest.mark.parametrize("wrong", [0.0, 1e-12])
@torch.no_grad()
def test_rounding_that_a_network_amplifies_is_no_difference(
    amplifier: nn.Module, wrong: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill(amplifier, "first", torch.arange(6) < 2, with_norms=False)
    module = importlib.import_module("snello.simplification.candidate")
    right = module.write_values

    def slightly_wrong(lean: nn.Module, values: dict[str, Tensor]) -> None:
        right(lean, {name: value + wrong for name, value in values.items()})

    monkeypatch.setattr(module, "write_values", slightly_wrong)
    if wrong:
        with pytest.raises(SimplifyError):
            simplify(amplifier, X)
    else:
        simplify(amplifier, X)


@pytest.mark.parametrize("wrong", [0.0, 1e-12])
@torch.no_grad()
def test_nor_is_it_where_norms_are_folded(
    amplifier: nn.Module, wrong: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("snello.simplification.batchnorm")
    right = module.affine_of
    monkeypatch.setattr(module, "affine_of", lambda norm: (right(norm)[0], right(norm)[1] + wrong))
    if wrong:
        with pytest.raises(SimplifyError, match="with its BatchNorms folded"):
            fold_batchnorm(amplifier, X)
    else:
        folded = fold_batchnorm(amplifier, X)
        assert difference(amplifier(*X), folded(*X)) > 1e-9, (
            "the bound without the allowance would do"
        )


def test_a_damaged_rewrite_is_refused_naming_the_first_layer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_mlp().double().eval()
    kill(model, "0", torch.arange(6) < 3, with_norms=False)
    with torch.no_grad():
        model[0].bias.fill_(0.5)
    before = copy.deepcopy(model.state_dict())
    module = importlib.import_module("snello.simplification.candidate")
    monkeypatch.setattr(module, "write_values", lambda *_: None)
    with pytest.raises(SimplifyError, match=r"first difference is at '2'"):
        simplify(model, X)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
