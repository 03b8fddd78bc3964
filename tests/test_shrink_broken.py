"""Damaged folders of a search, and predicted bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from snello.deploy.operations import DeviceProfile, Operation
from snello.errors import ConfigError, DataError, ModelError
from snello.pruning.recovery import recalibrate
from snello.search import shrink
from snello.search.shrink import Shrunk

INPUTS = torch.randn(64, 6, generator=torch.Generator().manual_seed(1))


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)
    return nn.Sequential(*layers).eval()


LABELS = network()(INPUTS).argmax(1)


def right(model: nn.Module) -> Tensor:
    dtype = next(model.parameters()).dtype if list(model.parameters()) else torch.float32
    return (model(INPUTS.to(dtype)).argmax(1) == LABELS).double()


def shrunk(model: nn.Module | None = None, **options: Any) -> Shrunk:
    given: dict[str, Any] = {
        "minimise": "macs", "max_drop": 0.5, "allow": ("channels",), "trials": 3, **options
    }  # fmt: skip
    return shrink(model or network(), INPUTS[:1], right, **given)


@pytest.mark.parametrize("kind", ["orders", "front-", "sensitivity-", "float32-"])
def test_lines_without_their_fields_are_computed_again(kind: str, tmp_path: Path) -> None:
    first = shrunk(folder=tmp_path)
    log = tmp_path / "candidates.jsonl"
    lines = log.read_text().splitlines()
    keys = [json.loads(line)["key"] for line in lines]
    assert any(key.startswith(kind) for key in keys)
    log.write_text(
        "".join(
            json.dumps({"key": key}) + "\n" if key.startswith(kind) else line + "\n"
            for key, line in zip(keys, lines, strict=True)
        )
    )
    again = shrunk(folder=tmp_path)
    assert [c.key for c in again.candidates] == [c.key for c in first.candidates]
    assert again.chosen.cost == first.chosen.cost


def test_results_without_their_settings_are_refused(tmp_path: Path) -> None:
    """Another network had taken them over as its own."""
    shrunk(folder=tmp_path)
    log = tmp_path / "candidates.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(ConfigError, match="not the settings"):
        shrunk(folder=tmp_path)


def test_a_damaged_network_says_what_to_do(tmp_path: Path) -> None:
    shrunk(folder=tmp_path)
    for path in tmp_path.glob("network-*.pt"):
        path.write_bytes(b"xx")
    with pytest.raises(ModelError, match="remove the folder"):
        shrunk(folder=tmp_path)


def test_a_profile_that_was_measured_again_is_another_search(tmp_path: Path) -> None:
    def profile(factor: float) -> DeviceProfile:
        widths = [(6, 16), (6, 8), (16, 16), (8, 8), (8, 16), (16, 8), (16, 4), (8, 4)]
        operations = [Operation("linear", (1, a, b)) for a, b in widths]
        return DeviceProfile({"cpu": "x"}, 1, {o.key: factor * o.macs for o in operations})

    shrunk(minimise="latency", device=profile(1.0), folder=tmp_path)
    with pytest.raises(ConfigError, match="device"):
        shrunk(minimise="latency", device=profile(2.0), folder=tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_predicted_bytes_are_those_of_the_network(dtype: torch.dtype) -> None:
    """In float32, with the integers of BatchNorm."""
    model = network()
    model = nn.Sequential(*model[:1], nn.BatchNorm1d(16), *model[1:]).to(dtype).eval()
    found = shrink(
        model, INPUTS[:1].to(dtype), right, minimise="bytes", max_drop=1.0,
        allow=("channels",), trials=3, calibration=[INPUTS.to(dtype)],
    )  # fmt: skip
    predicted = [c for c in found.candidates if c.predicted is not None]
    assert len(predicted) == 3
    for candidate in predicted:
        assert candidate.predicted == candidate.bytes


def test_bytes_of_an_int8_file_include_its_graph() -> None:
    pytest.importorskip("onnxruntime")
    found = shrunk(minimise="bytes", allow=("channels", "int8"), max_drop=1.0)
    dense = next(c for c in found.candidates if c.precision == "int8" and not c.widths)
    assert dense.predicted == dense.bytes
    for candidate in found.candidates:
        if candidate.precision == "int8":
            assert candidate.predicted == pytest.approx(candidate.bytes, rel=0.2)


def test_a_layer_may_be_called_weights(tmp_path: Path) -> None:
    """Its sensitivities had shared a line of the log with those of zero weights."""
    pytest.importorskip("nncodec")
    model = nn.Sequential()
    for name, module in zip(["weights", "r", "b", "s", "c"], network(), strict=True):
        model.add_module(name, module)
    found = shrunk(model, minimise="bytes", allow=("channels", "weights", "nnc"), trials=1)
    assert found.chosen.bytes


def test_a_single_sample_has_no_statistics() -> None:
    """It had ended in an error of PyTorch, with the running statistics reset."""
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)).eval()
    nn.init.constant_(model[1].running_mean, 0.5)
    with pytest.raises(DataError, match="batches of two samples"):
        recalibrate(model, [INPUTS, INPUTS[:1]])
    assert model[1].running_mean.tolist() == [0.5] * 4


@pytest.mark.parametrize(
    "batches",
    [(), [INPUTS, (INPUTS, torch.zeros(len(INPUTS), dtype=torch.long))]],
    ids=["none", "labels"],
)
def test_statistics_stay_after_any_error(batches: Any) -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)).eval()
    nn.init.constant_(model[1].running_mean, 0.5)
    with pytest.raises((DataError, ConfigError)):
        recalibrate(model, batches)
    assert model[1].running_mean.tolist() == [0.5] * 4
    assert model[1].momentum == 0.1
