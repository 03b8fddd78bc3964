"""Wrong arguments of public functions: snello's own errors, Python's for a wrong type, or none."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import snello
from snello.errors import SnelloError
from snello.graph import capture
from snello.pruning import Pruner, Ratio, export_masks, import_masks, pin, unpin, zero_masks
from snello.sensitivity import Lobster, OutputSensitivity, SeReNe
from snello.simplification import SimplificationPlan, apply, apply_folds, fold_batchnorm

pytestmark = pytest.mark.usefixtures("one_thread")


def _model(**options: Any) -> nn.Sequential:
    layers = (
        nn.Linear(6, 8, **options),
        nn.ReLU(),
        nn.Linear(8, 6, **options),
        nn.Linear(6, 3, **options),
    )
    return nn.Sequential(*layers)


GIVEN: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "a tensor": lambda: torch.randn(3),
    "meta": lambda: _model(device="meta"),
    "empty": nn.Sequential,
    "no neurons": lambda: nn.Sequential(nn.Linear(0, 4), nn.Linear(4, 0), nn.Linear(0, 2)),
    "half": lambda: _model().half(),
    "complex": lambda: _model(dtype=torch.complex64),
    "no layer": lambda: nn.Embedding(3, 4),
    "one layer": lambda: nn.Linear(3, 2),
    "DataParallel": lambda: nn.DataParallel(_model()),
    "compiled": lambda: torch.compile(_model(), backend="eager"),
    "TorchScript": lambda: torch.jit.script(_model()),
    "plain": _model,
}


def _pruned(model: Any, **options: Any) -> Pruner:
    pruner = Pruner(model, None, amount=Ratio(0.5), **options)
    pruner.plan()
    pruner.prune()
    return pruner


CALLS: dict[str, Callable[[Any], object]] = {
    "Pruner": _pruned,
    "Pruner of neurons": lambda m: _pruned(m, granularity="neuron", importance="l2"),
    "Pruner of all layers": lambda m: _pruned(m, exclude=()),
    "optimizer": lambda m: Pruner(_model(), m, amount=Ratio(0.5)),
    "attach": lambda m: _pruned(_model()).attach(m),
    "follow": lambda m: _pruned(_model()).follow(m),
    "adopt": lambda m: _pruned(_model()).adopt(m),
    "adopt floats": lambda m: _pruned(m).adopt({"0.weight": torch.ones(8, 6)}),
    "pin": lambda m: pin(m, None, {}),
    "pin None": lambda m: pin(m, None, None),  # type: ignore[arg-type]
    "pin floats": lambda m: pin(m, None, {"0.weight": torch.ones(8, 6)}),
    "pin nothing": lambda m: pin(m, None, {"0.weight": None}),  # type: ignore[dict-item]
    "unpin": unpin,
    "zero_masks": zero_masks,
    "import_masks": import_masks,
    "export_masks": lambda m: export_masks(m, {}),
    "export_masks of others": lambda m: export_masks(m, {"9.weight": torch.ones(8, 6) > 0}),
    "NEq": lambda m: snello.NEq(m, None, torch.randn(4, 6)).step(),
    "NEq without a probe": lambda m: snello.NEq(m, None, None),  # type: ignore[arg-type]
    "NEq with an empty probe": lambda m: snello.NEq(m, None, torch.randn(0, 6)),
    "SeReNe": SeReNe,
    "Lobster": lambda m: Lobster(m).step(),
    "OutputSensitivity": OutputSensitivity,
    "observe": lambda m: SeReNe(_model()).observe(m),
    "targets": lambda m: OutputSensitivity(_model(), kind="specific").observe(
        _model()(torch.randn(2, 6)), m
    ),
    "save": lambda m: snello.save(
        "m.pt", m, snello.Record(snello.ModelSpec("lenet-5"), (1, 28, 28))
    ),
    "save a record": lambda m: snello.save("m.pt", _model(), m),
    "load": snello.load,
    "simplify": lambda m: snello.simplify(m, torch.randn(2, 6)),
    "simplify on nothing": lambda m: snello.simplify(m, None),
    "simplify on no samples": lambda m: snello.simplify(m, torch.randn(0, 6)),
    "simplify in its own class": lambda m: snello.simplify(m, torch.randn(2, 6), keep_class=True),
    "example inputs": lambda m: snello.simplify(_model(), m),
    "preference": lambda m: snello.simplify(_model(), torch.randn(2, 6), prefer=m),
    "optimizer of simplify": lambda m: snello.simplify(_model(), torch.randn(2, 6), optimizer=m),
    "plan_of": snello.plan_of,
    "apply": lambda m: apply(SimplificationPlan(), m),
    "apply a plan": lambda m: apply(m, _model()),
    "fold_batchnorm": lambda m: fold_batchnorm(m, torch.randn(2, 6)),
    "apply_folds": lambda m: apply_folds({}, m),
    "capture": lambda m: capture(m, torch.randn(2, 6)),
    "capture without inputs": capture,
    "footprint": lambda m: snello.footprint(m, torch.randn(2, 6)),
    "footprint of inputs": lambda m: snello.footprint(_model(), m),
    "measure": lambda m: snello.measure(m, torch.randn(2, 6), repeats=1, warmup=0),
    "measure inputs": lambda m: snello.measure(_model(), m, repeats=1, warmup=0),
    "export": lambda m: snello.export(m, torch.randn(2, 6), "m.pt2"),
    "compress": snello.compress,
    "decompress": snello.decompress,
}


@pytest.mark.parametrize(
    ("given", "call"),
    [
        # Every call and everything that can be given meet by turns; all pairs behind the marker.
        pytest.param(given, call, marks=() if (i + j) % 4 == 0 else pytest.mark.exhaustive)
        for (i, given), (j, call) in itertools.product(enumerate(GIVEN), enumerate(CALLS))
    ],
)
def test_own_errors_or_none(
    call: str, given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with suppress(SnelloError, TypeError):  # Python's own for a wrong type
            CALLS[call](GIVEN[given]())
    left = [path.name for path in tmp_path.iterdir()]
    assert left in ([], ["m.pt2"]), "nothing but what was asked for"


def test_a_model_that_is_one_layer_is_pruned() -> None:
    model = nn.Linear(6, 4)
    pruner = _pruned(model, exclude=(), granularity="neuron")
    assert set(pruner.masks) == {"weight", "bias"}
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for _ in range(3):
        model(torch.randn(3, 6)).square().sum().backward()
        optimizer.step()
    assert not model.weight[~pruner.masks["weight"]].any()
