"""Counting and timing: known numbers, and clocks that treat everybody alike."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from snello.deploy import (
    Runner,
    export,
    file_bytes,
    file_runner,
    footprint,
    latencies,
    measure,
    pytorch_runner,
)
from snello.errors import ConfigError, ModelError


@settings(max_examples=15, deadline=None)
@given(
    st.integers(1, 4),
    st.integers(1, 6),
    st.sampled_from([1, 2]),
    st.integers(1, 3),
    st.integers(1, 4),
)
def test_macs_of_a_convolution(
    channels: int, out: int, groups: int, kernel: int, batch: int
) -> None:
    layer = nn.Conv2d(channels * groups, out * groups, kernel, groups=groups)
    positions = (8 - kernel + 1) ** 2
    found = footprint(layer, torch.randn(batch, channels * groups, 8, 8))
    assert found.macs == positions * out * groups * channels * kernel**2
    assert found.parameters == layer.weight.numel() + out * groups
    assert found.bytes == 4 * found.parameters


def test_resnet18() -> None:
    models = pytest.importorskip("torchvision").models
    found = footprint(models.resnet18(weights=None), torch.randn(1, 3, 224, 224))
    assert (found.macs, found.parameters) == (1_814_073_344, 11_689_512)
    # Parameters, two running statistics for each of 4800 channels, and 20 counters of eight bytes.
    assert found.bytes == 4 * (11_689_512 + 2 * 4800) + 8 * 20


def test_attention_is_counted_and_the_fastpath_restored() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, dim_feedforward=16, batch_first=True)
    before = torch.backends.mha.get_fastpath_enabled()
    tokens, width = 5, 8
    projections = tokens * (4 * width**2 + 2 * width * 16)
    attention = 2 * tokens * tokens * width
    assert footprint(layer, torch.randn(3, tokens, width)).macs == projections + attention
    assert torch.backends.mha.get_fastpath_enabled() == before


def test_zeros_dead_neurons_and_modes() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)).train()
    with torch.no_grad():
        model[0].weight[1] = 0
        model[0].weight[2] = torch.tensor([1.0, -1.0, 0.0, 2.0])
        model[0].bias.fill_(1)
        model[1].bias.fill_(1)
    found = footprint(model, torch.randn(2, 4))
    assert (found.parameters, found.nonzeros, found.dead_neurons) == (29, 24, 1)
    assert all(module.training for module in model.modules())


def test_tied_parameters_count_once() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    found = footprint(model, torch.randn(1, 4))
    assert (found.parameters, found.bytes, found.macs) == (24, 96, 32)


def test_half_precision_is_sized_as_float32() -> None:
    assert footprint(nn.Linear(4, 3).bfloat16(), torch.randn(1, 4).bfloat16()).bytes == 60


def test_wrong_inputs_are_a_model_error_and_modes_survive() -> None:
    model = nn.Linear(4, 3).train()
    for act in (
        lambda: footprint(model, torch.randn(1, 5)),
        lambda: pytorch_runner(model, torch.randn(1, 5)),
    ):
        with pytest.raises(ModelError, match=r"\(1, 5\)"):
            act()
    assert model.training


def test_runners_take_turns() -> None:
    calls: list[str] = []
    runners = {name: (lambda n=name: calls.append(n)) for name in "abc"}
    found = latencies(runners, repeats=4, warmup=2, batch=5)
    rounds = ["".join(calls[i : i + 3]) for i in range(0, len(calls), 3)]
    assert rounds == ["abc", "bca", "cab", "abc", "bca", "cab"]
    assert list(found) == ["a", "b", "c"]
    for result in found.values():
        assert (result.repeats, result.warmup, result.batch, result.threads) == (4, 2, 5, 1)
        assert 0 <= result.p10_ms <= result.median_ms <= result.p90_ms


def test_a_slower_model_takes_longer() -> None:
    x = torch.randn(4, 256)
    one, many = nn.Linear(256, 256), nn.Sequential(*[nn.Linear(256, 256) for _ in range(60)])
    found = latencies(
        {"many": pytorch_runner(many, x), "one": pytorch_runner(one, x)}, repeats=15, warmup=3
    )
    assert found["many"].median_ms > 3 * found["one"].median_ms
    assert found["one"].batch == 4


def test_torch_threads_are_set_and_restored() -> None:
    before, seen = torch.get_num_threads(), []
    latencies(
        {"a": lambda: seen.append(torch.get_num_threads())}, repeats=1, warmup=0, threads=before + 1
    )
    assert (seen, torch.get_num_threads()) == ([before + 1], before)

    def broken() -> None:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        latencies({"a": broken}, threads=before + 1)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("counts", [{"repeats": 0}, {"warmup": -1}, {"threads": 0}, {"batch": 0}])
def test_counts_are_validated(counts: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(iter(counts))):
        latencies({"a": lambda: None}, **counts)


def test_pytorch_runner_evaluates_a_copy() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.9)).train()
    x = torch.randn(2, 3)
    expected = model[0](x).detach()
    runner = pytorch_runner(model, x)
    nn.init.zeros_(model[0].weight)
    found = runner()
    assert isinstance(found, Tensor)
    assert torch.equal(found, expected)
    assert not found.requires_grad
    assert model.training


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="the extra onnx is not installed")
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 2))
    return export(model, torch.randn(2, 3, 4), tmp_path_factory.mktemp("onnx") / "net.onnx")


def test_measure_gives_both_runtimes(exported: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 2))
    found = measure(model, torch.randn(3, 3, 4), onnx=exported, repeats=5, warmup=1)
    assert found.footprint.macs == 70
    assert {name: (t.runtime, t.batch, t.device) for name, t in found.latencies.items()} == {
        "pytorch": ("pytorch", 3, "cpu"),
        "onnxruntime": ("onnxruntime", 3, "cpu"),
    }
    assert list(measure(model, torch.randn(1, 3, 4), repeats=1).latencies) == ["pytorch"]


def test_measure_onnx_alone(exported: Path) -> None:
    found = measure(exported, repeats=3, warmup=0)
    assert (found.footprint.parameters, found.footprint.macs) == (
        12 * 5 + 5 + 5 * 2 + 2,
        12 * 5 + 5 * 2,
    )
    assert file_bytes(exported) == len(exported.read_bytes())
    time = found.latencies["onnxruntime"]
    assert (time.batch, time.repeats, time.runtime) == (1, 3, "onnxruntime")
    assert measure(exported, batch=4, repeats=1).latencies["onnxruntime"].batch == 4


def test_threads_must_agree(exported: Path) -> None:
    runner = file_runner(exported, torch.randn(1, 3, 4), threads=2)
    assert isinstance(runner, Runner)
    with pytest.raises(ConfigError, match="2 threads"):
        latencies({"a": runner}, threads=1)
    assert latencies({"a": runner}, repeats=1, threads=2)["a"].threads == 2


def test_bad_onnx_files_are_model_errors(exported: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a graph")
    for path in (broken, tmp_path / "missing.onnx"):
        with pytest.raises(ModelError, match=path.name):
            measure(path)
    with pytest.raises(ModelError, match="missing"):
        file_bytes(tmp_path / "missing.onnx")
    with pytest.raises(ConfigError, match="1 inputs"):
        file_runner(exported, (torch.randn(1, 3, 4), torch.randn(1)))
    with pytest.raises(ModelError, match=r"\(1, 7\)"):
        file_runner(exported, torch.randn(1, 7))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_time_includes_the_work() -> None:
    x = torch.randn(8192, 8192, device="cuda")
    model = nn.Sequential(*[nn.Linear(8192, 8192) for _ in range(4)]).cuda()
    found = latencies({"m": pytorch_runner(model, x)}, repeats=5, warmup=2)["m"]
    # 8.8e12 operations: no device of today needs less than a millisecond, a launch alone takes
    # microseconds.
    assert found.median_ms > 1
    assert found.device.startswith("cuda")
