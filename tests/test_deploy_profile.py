"""The profile of a device: operations timed alone, and latencies that follow from them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch
from tests.seams.deploy import session_of
from torch import Tensor, nn

from snello import Record, save
from snello.cli import main
from snello.deploy.operations import (
    DeviceProfile,
    Operation,
    OperationTable,
    ProfiledModel,
    fit_latency,
    operation_model,
    operations_of,
    read_profile,
    this_device,
)
from snello.errors import ConfigError
from snello.flops import counted
from snello.store import ModelSpec, build

for package in ("onnx", "onnxscript", "onnxruntime", "rich"):
    pytest.importorskip(package, reason="the extras onnx and report are not installed")


class Mixed(nn.Module):
    """Grouped and strided convolutions, attention, products."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.b = nn.Conv2d(8, 8, (3, 1), groups=8, dilation=(2, 1))
        self.block = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.b(self.a(x)).flatten(2).transpose(1, 2)).mean(1))


def test_recorded_operations_are_those_that_torch_counts() -> None:
    model, x = Mixed().eval(), torch.randn(3, 3, 16, 16)
    found = operations_of(model, x)
    with counted(model) as counter:
        model(x)
    assert sum(o.macs for o in found) == counter.get_total_flops() / 2
    assert {o.kind for o in found} == {"conv", "linear", "matmul"}
    assert [Operation.from_key(o.key) for o in found] == list(found)


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_models_of_operations_compute_their_shapes(precision: str) -> None:
    operations = {
        o.at(precision).key: o.at(precision)  # type: ignore[arg-type]
        for o in operations_of(Mixed().eval(), torch.randn(1, 3, 16, 16))
    }
    for operation in operations.values():
        for branches in (1, 3):
            session = session_of(operation_model(operation, branches), 1)
            feed = {i.name: numpy.ones(i.shape, "f4") for i in session.get_inputs()}
            found = session.run(None, feed)[0]
            if operation.kind == "conv":
                expected = (operation.shape[0], operation.shape[2], *operation.output_size)
            else:
                expected = (*operation.shape[:-2], operation.shape[-1])
            assert found.shape == expected


def test_offset_and_slope_are_recovered() -> None:
    fit = fit_latency([(x, 0.3 + 1.5 * x) for x in (0.1, 1.0, 4.0)])
    assert (fit.offset, fit.slope) == pytest.approx((0.3, 1.5))
    assert fit.residual < 1e-9
    assert fit(2.0) == pytest.approx(3.3)
    assert fit_latency([])(2.0) == 2.0
    assert fit_latency([(1.0, 2.0)])(3.0) == pytest.approx(6.0)
    negative = fit_latency([(1.0, 0.5), (2.0, 2.0)])
    assert negative.offset == 0
    assert negative.slope > 0


def _linear(into: int, out: int) -> Operation:
    return Operation("linear", (1, into, out))


def test_times_between_widths_are_interpolated() -> None:
    table = OperationTable(
        {_linear(a, b).key: a * b / 64 for a in (8, 16, 24) for b in (8, 16)}, origin="the profile"
    )
    assert table(_linear(16, 8)) == 2.0
    assert table(_linear(20, 12)) == pytest.approx(20 * 12 / 64)  # exact for a bilinear function
    assert table(_linear(48, 16)) == pytest.approx(48 * 16 / 64)  # beyond the grid, scaled
    with pytest.raises(ConfigError, match="--profile"):
        table(Operation("conv", (1, 3, 8, 1, 8, 8), (3, 3, 1, 1, 1, 1, 1, 1)))


def test_measured_times_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    operation = _linear(64, 32)
    _, table = this_device(cache=tmp_path)
    first = table(operation)
    assert first > 0
    profile, again = this_device(cache=tmp_path)
    assert again.times == {operation.key: first}
    assert profile.times == again.times
    _, other = this_device(threads=2, cache=tmp_path)
    assert not other.times, "another number of threads is another device"


def test_a_profile_is_read_back(tmp_path: Path) -> None:
    operation = _linear(8, 8)
    models = (ProfiledModel("a", "float32", 3.0, (operation.key, operation.key)),)
    profile = DeviceProfile({"cpu": "x", "onnxruntime": "1"}, 1, {operation.key: 0.5}, models, "n")
    assert read_profile(profile.save(tmp_path / "p.json")) == profile
    assert profile.fit().slope == pytest.approx(3.0)
    assert profile.table().sum([operation]) == 0.5
    for damaged in ("{}", "[]", "no", "[" * 100_000, '{"format": "snello device 1"}'):
        (tmp_path / "p.json").write_text(damaged)
        with pytest.raises(ConfigError, match=r"p\.json"):
            read_profile(tmp_path / "p.json")


def _content(**changes: object) -> dict[str, object]:
    key = _linear(8, 8).key
    model = {"name": "a", "precision": "float32", "ms": 3.0, "operations": [key]}
    model |= {n.removeprefix("model_"): v for n, v in changes.items() if n.startswith("model_")}
    plain = {n: v for n, v in changes.items() if not n.startswith("model_")}
    return {
        "format": "snello device profile 1", "device": {}, "threads": 1, "times": {key: 0.5},
        "models": [model], **plain,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"threads": 0}, "threads=0"),
        ({"threads": 1.7}, r"threads=1\.7"),
        ({"threads": 10**9}, "threads="),
        ({"device": "Pi"}, "device='Pi'"),
        ({"times": {"conv 1 2": 1.0}}, "no key of an operation"),
        ({"times": {"linear 0x0x0 float32": 1.0}}, "no key of an operation"),
        ({"times": {"linear 1x8x8 float32": True}}, "True is no time"),
        ({"times": {"linear 1x8x8 float32": -1}}, "-1 is no time"),
        ({"model_ms": float("nan")}, "a: nan is no time"),
        ({"model_ms": -1.0}, r"a: -1\.0 is no time"),
        ({"model_precision": "bf16"}, "precision 'bf16'"),
        ({"model_operations": "conv"}, "no list"),
        ({"model_operations": ["foo"]}, "'foo' is no key"),
        ({"format": "snello device profile 2"}, "profile 2"),
    ],
)
def test_wrong_numbers_in_a_profile_are_named(
    changes: dict[str, object], words: str, tmp_path: Path
) -> None:
    """They had led to predictions of nan, or of networks that no device was asked about."""
    (tmp_path / "p.json").write_text(json.dumps(_content(**changes)))
    with pytest.raises(ConfigError, match=words) as refused:
        read_profile(tmp_path / "p.json")
    assert "p.json" in str(refused.value)


def test_a_network_without_operations_does_not_decide_the_slope(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(json.dumps(_content(model_operations=[])))
    assert read_profile(tmp_path / "p.json").fit().runs == 0


def test_a_digest_tells_profiles_of_one_device_apart() -> None:
    key = _linear(8, 8).key
    first, again = (DeviceProfile({"cpu": "x"}, 1, {key: ms}) for ms in (0.5, 0.6))
    assert first.label == again.label
    assert first.digest != again.digest


def test_a_damaged_cache_is_measured_again(tmp_path: Path) -> None:
    this_device(cache=tmp_path)[1](_linear(8, 8))
    (path,) = tmp_path.glob("operations-*.json")
    path.write_text(path.read_text()[:40])
    with pytest.warns(UserWarning, match="measured again"):
        _, table = this_device(cache=tmp_path)
    assert table.times == {}
    with pytest.warns(UserWarning, match="measured again"):
        table(_linear(8, 8))
    assert read_profile(path).times == table.times


def test_a_kit_brings_back_a_profile(tmp_path: Path) -> None:
    """From the model to the kit, to the profile that a machine with onnxruntime alone measures."""
    spec = ModelSpec("lenet-300-100", {"in_features": 64})
    torch.manual_seed(0)
    save(tmp_path / "net.pt", build(spec).eval(), Record(spec, (1, 8, 8)))
    kit = tmp_path / "kit"
    argv = ["bench-device", str(kit), str(tmp_path / "net.pt"), "--profile", "--no-int8"]
    assert main(argv) == 0
    entries = json.loads((kit / "operations.json").read_text())
    assert all(len(entry["many"]) < 20_000 for entry in entries["operations"]), "weights are stored"
    command = [sys.executable, "-I", "bench.py", "--profile", "--repeats=3", "--warmup=1"]
    done = subprocess.run(command, cwd=kit, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    profile = read_profile(kit / "profile.json")
    assert [m.name for m in profile.models] == ["net", "net-w75", "net-w50", "net-w25"]
    table = profile.table()
    for model in profile.models:
        assert table.sum(map(Operation.from_key, model.operations)) > 0
    assert profile.fit().runs == 4
    (kit / "device.json").unlink()
    again = subprocess.run([*command, "--batch=2"], cwd=kit, capture_output=True, text=True, check=False)  # fmt: skip
    assert again.returncode == 1
    assert "--batch" in again.stderr
    assert not (kit / "device.json").exists(), "nothing was timed"
