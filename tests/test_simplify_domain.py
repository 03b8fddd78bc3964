"""Wrong graphs are caught before anything is planned; a lean graph says where it was checked."""

from __future__ import annotations

import copy
import json
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from laws import assert_same_outputs, generator, randomise
from snello.errors import ModelError
from snello.graph import capture
from snello.simplification import SimplificationPlan, apply, plan_of, simplify

X = torch.randn(2, 3, 16, 16, dtype=torch.float64, generator=generator(0))


class Net(nn.Module):
    """Two convolutions in a residual sum, whose operands lose different channels.

    Args:
        kind: of the path that the forward takes.
    """

    def __init__(self, kind: str = "plain") -> None:
        super().__init__()
        self.kind = kind
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.head, self.aux = nn.Conv2d(8, 2, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        # torch.fx takes the branch that fits the example, and no other.
        if self.kind == "batch" and not isinstance(x, torch.fx.Proxy) and len(x) > 2:
            x = 2 * x
        y = F.relu(self.a(x))
        if self.kind == "dropout":
            y = F.dropout(y, 0.5, self.training)
        y = y + self.b(y)
        if self.kind == "auxiliary" and self.training:
            return self.head(y) + self.aux(y)
        if self.kind == "one size":
            torch._assert(x.shape[2] == 16, "one resolution")
        return self.head(y)


def masked(kind: str) -> Net:
    model = randomise(Net(kind).double(), generator(1)).eval()
    with torch.no_grad():
        for layer, dead in ((model.a, slice(0, 3)), (model.b, slice(2, 6))):
            layer.weight[dead] = 0
            layer.bias[dead] = 0
    return model


def plan(lean: nn.Module) -> SimplificationPlan:
    found = plan_of(lean)
    assert found is not None
    return found


def test_the_plan_records_what_was_checked() -> None:
    lean = simplify(masked("plain"), X)
    domain = plan(lean).domain
    assert domain is not None
    assert domain.shapes == ((None, 3, None, None),)
    assert (domain.batch, domain.positions, domain.training) == (True, True, "same")
    assert not domain.is_limited
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lean.train()(torch.cat([X, X])[:, :, :9])
    assert SimplificationPlan.from_json(plan(lean).to_json()) == plan(lean)


def test_another_length_of_sequences_is_checked() -> None:
    x = torch.randn(2, 6, 4, dtype=torch.float64, generator=generator(3))
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 3)).double()
    domain = plan(simplify(model, x)).domain
    assert domain is not None
    assert domain.shapes == ((None, None, 4),)
    assert not domain.is_limited


def test_functional_dropout_is_compared_with_the_same_random_numbers() -> None:
    domain = plan(simplify(masked("dropout"), X)).domain
    assert domain is not None
    assert domain.training == "same"


def test_a_graph_that_is_wrong_at_another_batch_size_is_not_used() -> None:
    model = masked("batch")
    lean = simplify(model, X)
    assert type(lean) is Net
    assert "other outputs than the model" in plan(lean).reason
    assert "(3, 3, 12, 12)" in plan(lean).reason
    for x in (X, torch.cat([X, X])):
        assert_same_outputs(model, lean, x)


class Adapting(Net):
    """Keeps the width of the smallest input that it has seen."""

    width = 16

    def forward(self, x: Tensor) -> Tensor:
        if not isinstance(x, torch.fx.Proxy):
            self.width = min(self.width, x.shape[3])
        return super().forward(x) * self.width


def test_a_model_that_adapts_to_sizes_is_not_changed() -> None:
    model = randomise(Adapting().double(), generator(1)).eval()
    with torch.no_grad():
        model.a.weight[:3] = model.a.bias[:3] = 0
    expected = model(X)
    lean = simplify(model, X, keep_class=True)
    assert model.width == lean.width == 16
    torch.testing.assert_close(lean(X), expected, rtol=1e-10, atol=1e-10)


def test_another_mode_is_said_once() -> None:
    lean = simplify(masked("auxiliary"), X)
    domain = plan(lean).domain
    assert domain is not None
    assert domain.training == "differs"
    for one in (lean, copy.deepcopy(lean)):
        with pytest.warns(UserWarning, match="keep_class=True"):
            one.train()(X)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            one(X)
            one.eval()(X)


def test_another_resolution_than_the_models_own_is_said() -> None:
    model = masked("one size")
    lean = simplify(model, X)
    domain = plan(lean).domain
    assert domain is not None
    assert domain.shapes == ((None, 3, 16, 16),)
    with pytest.warns(UserWarning, match=r"\(any, 3, 16, 16\)"), pytest.raises(AssertionError):
        lean(X[:, :, :8])
    again = apply(plan(lean), masked("one size"))
    with pytest.warns(UserWarning, match=r"\(any, 3, 16, 16\)"), pytest.raises(AssertionError):
        again(X[:, :, :8])


def test_a_plan_without_a_domain_is_read() -> None:
    own = plan(simplify(masked("plain"), X))
    data = json.loads(own.to_json())
    assert data["version"] == 5
    del data["domain"], data["reason"]
    older = SimplificationPlan.from_json(json.dumps(data))
    assert older.domain is None
    assert older.layers == own.layers


def test_the_representation_says_why() -> None:
    assert "test_simplify_domain.py:" in plan(simplify(masked("plain"), X)).reason
    assert "keep_class" in plan(simplify(masked("plain"), X, keep_class=True)).reason
    linear = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    own = plan(simplify(linear, X[0, :, 0, :3]))
    assert own.representation == "module"
    assert "narrower layers" in own.reason


class Part(nn.Module):
    """A part that takes one width."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x[:, :3])


class Whole(nn.Module):
    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: Tensor, mask: Tensor | None = None, *, size: int) -> Tensor:
        y: Tensor = self.part(x)
        if y.sum() > 0:
            y = -y
        return y * size


def test_errors_name_submodule_file_and_line() -> None:
    with pytest.raises(ModelError, match=r"'part.inner'.*test_simplify_domain.py:\d+"):
        simplify(Whole(Part()), {"x": torch.zeros(2, 4), "size": 1})
    with pytest.raises(ModelError, match="by keyword"):
        simplify(Whole(Part()), torch.zeros(2, 4))


def test_errors_name_the_wrapper_inside() -> None:
    wrapped = Whole(nn.DataParallel(nn.Linear(4, 4)))
    with pytest.raises(ModelError, match=r"give part\.module"):
        capture(wrapped)
    with pytest.raises(ModelError, match=r"test_simplify_domain.py:\d+"):
        capture(wrapped)
