"""Model files keep every dtype, and nothing is written that could not be loaded."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from snello import ModelSpec, Record, load, save, simplify
from snello.codec import compress
from snello.errors import ModelError
from snello.store import build, check_loadable, from_dict, to_dict

pytestmark = pytest.mark.usefixtures("one_thread")

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
SPECS = {
    "lenet-300-100": Record(ModelSpec("lenet-300-100", {"in_features": 64}), (1, 8, 8)),
    "resnet-20": Record(ModelSpec("resnet-20"), (3, 32, 32)),
}


def _dead(record: Record) -> nn.Module:
    torch.manual_seed(0)
    model = build(record.model).eval()
    with torch.no_grad():
        for module in list(model.modules())[:-2]:
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                module.weight[::2] = 0
                if module.bias is not None:
                    module.bias[::2] = 0
    return model


def _dtypes(model: nn.Module) -> dict[str, torch.dtype]:
    return {name: value.dtype for name, value in model.state_dict().items()}


def _assert_same(loaded: nn.Module, saved: nn.Module, record: Record, dtype: torch.dtype) -> None:
    assert _dtypes(loaded) == _dtypes(saved)
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, saved.state_dict()[name]), name
    inputs = record.example_inputs()
    assert inputs.dtype is dtype
    assert torch.equal(loaded(inputs), saved.eval()(inputs)), "it takes its own inputs"


@pytest.mark.sampled(6)
@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("lean", [False, True])
def test_round_trip_in_any_dtype(name: str, dtype: torch.dtype, lean: bool, tmp_path: Path) -> None:
    model = _dead(SPECS[name]).to(dtype)
    if lean:
        model = simplify(model, SPECS[name].example_inputs().to(dtype))
    loaded, record = load(save(tmp_path / "m.pt", model, SPECS[name]))
    assert record == SPECS[name]
    _assert_same(loaded, model, record, dtype)
    again, record = load(save(tmp_path / "again.pt", loaded, record))
    _assert_same(again, model, record, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_bitstream_keeps_the_dtype(dtype: torch.dtype, tmp_path: Path) -> None:
    model = _dead(SPECS["lenet-300-100"]).to(dtype)
    data = compress(model.state_dict(), record=to_dict(model, SPECS["lenet-300-100"]))
    (tmp_path / "m.snello").write_bytes(data)
    loaded, record = load(tmp_path / "m.snello")
    assert _dtypes(loaded) == _dtypes(model)
    assert loaded(record.example_inputs()).dtype is dtype


def test_a_model_of_several_dtypes_keeps_each(tmp_path: Path) -> None:
    model = _dead(SPECS["resnet-20"])
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.double()
    loaded, record = load(save(tmp_path / "m.pt", model, SPECS["resnet-20"]))
    assert _dtypes(loaded) == _dtypes(model)
    assert record.dtype is torch.float64


class Odd(nn.Module):
    """Tied weights, a buffer that is not saved, an integer buffer, a frozen parameter."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(width, width), nn.Linear(width, width)
        self.b.weight = self.a.weight
        self.register_buffer("scale", torch.full((width,), 2.0), persistent=False)
        self.register_buffer("count", torch.tensor(3))
        self.a.bias.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.b(self.a(x) * self.scale)
        return found


def test_ties_flags_and_unsaved_buffers_survive() -> None:
    name = "test_modelfile_dtypes:Odd"
    data = to_dict(Odd(), Record(ModelSpec(name), (4,)))
    model, record = from_dict(data, Odd().double().state_dict(), "here", trust=name)
    assert record.dtype is torch.float64
    assert model.b.weight is model.a.weight
    assert not model.a.bias.requires_grad
    assert model.scale.dtype is torch.float64
    assert model.count.dtype is torch.int64
    assert model(torch.randn(2, 4).double()).dtype is torch.float64


# What cannot be loaded is not written


REFUSED: dict[str, tuple[Callable[[], nn.Module], Record, str]] = {
    "unknown": (lambda: nn.Linear(3, 2), Record(ModelSpec("no-such-network"), (3,)), "no model 'no-such-network'"),
    "no module": (lambda: nn.Linear(3, 2), Record(ModelSpec("nowhere:Net"), (3,)), "there is no module 'nowhere'"),
    "no such name": (lambda: nn.Linear(3, 2), Record(ModelSpec("torch.nn:Liner"), (3,)), "has no function or class"),
    "arguments": (
        lambda: nn.Linear(3, 2), Record(ModelSpec("lenet-5", {"colour": 3}), (3,)), "cannot be built"
    ),
    "another network": (
        lambda: build("resnet-20"), Record(ModelSpec("resnet-32"), (3, 32, 32)), "belong to another model"
    ),
    "other arguments": (
        lambda: build("resnet-20", classes=7), Record(ModelSpec("resnet-20"), (3, 32, 32)), "another model"
    ),
    "a class of one's own": (
        lambda: nn.Linear(3, 2),
        Record(ModelSpec("torch.nn:Linear", {"in_features": 3, "out_features": 5}), (3,)),
        "another model",
    ),
    "loads weights": (
        lambda: build("resnet18"), Record(ModelSpec("resnet18", {"weights": "DEFAULT"}), (3, 64, 64)), "would load"
    ),
    "not plain JSON data": (
        lambda: build("lenet-5"), Record(ModelSpec("lenet-5", {"classes": {1, 2}}), (1, 28, 28)), "not plain JSON data"
    ),
    "lean": (
        lambda: simplify(_dead(SPECS["resnet-20"]), SPECS["resnet-20"].example_inputs()),
        Record(ModelSpec("resnet-32"), (3, 32, 32)),
        "another",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_save_refuses_before_it_writes(case: str, tmp_path: Path) -> None:
    make, record, words = REFUSED[case]
    model, path = make(), tmp_path / "folder" / "m.pt"
    with pytest.raises(
        ModelError, match=f"(?s)(not written|its model is built by).*{words}|{words}"
    ):
        save(path, model, record)
    assert not path.parent.exists()


def _wide() -> nn.Module:
    calls.append(1)
    return nn.Linear(3, 2)


calls: list[int] = []


def test_a_function_of_ones_own_is_called_only_if_trusted(tmp_path: Path) -> None:
    name, sys.modules["own_factories"] = "own_factories:wide", sys.modules[__name__]
    try:
        sys.modules["own_factories"].wide = _wide  # type: ignore[attr-defined]
        record = Record(ModelSpec(name), (3,))
        path = save(tmp_path / "m.pt", nn.Linear(3, 2), record)
        assert calls == []
        loaded, _ = load(path, trust=name)
        assert loaded.weight.shape == (2, 3)
        with pytest.raises(ModelError, match="another model"):
            save(tmp_path / "m.pt", nn.Linear(3, 5), record, trust=name)
    finally:
        del sys.modules["own_factories"]


def test_the_check_draws_no_random_numbers() -> None:
    torch.manual_seed(3)
    model, state = build(SPECS["resnet-20"].model), torch.get_rng_state()
    drawn = random.getstate()
    check_loadable(model, SPECS["resnet-20"], "m.pt")
    assert torch.equal(torch.get_rng_state(), state)
    assert random.getstate() == drawn


@pytest.mark.parametrize("model", [nn.Linear(3, 2).double()])
def test_a_class_of_ones_own_is_kept_in_its_dtype(model: Any, tmp_path: Path) -> None:
    record = Record(ModelSpec("torch.nn:Linear", {"in_features": 3, "out_features": 2}), (3,))
    loaded, record = load(save(tmp_path / "m.pt", model, record), trust="torch.nn:Linear")
    _assert_same(loaded, model, record, torch.float64)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_evaluation_gives_a_model_inputs_of_its_dtype(dtype: torch.dtype) -> None:
    from snello.lab.training import evaluate

    model = _dead(SPECS["lenet-300-100"]).to(dtype)
    batches = [(SPECS["lenet-300-100"].example_inputs(6), torch.arange(6))]
    assert evaluate(model, batches).images == 6
