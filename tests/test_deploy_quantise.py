"""Int8: what is reported is what the file does, and calibration data that cannot be right is
refused.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from snello.deploy import (
    export,
    export_int8,
    file_bytes,
    file_runner,
    footprint,
    quantise,
)
from snello.deploy.formats import onnx_int8
from snello.errors import ConfigError, ModelError, OutputError

onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
for package in ("onnxscript", "onnxruntime"):
    pytest.importorskip(package, reason="the extra onnx is not installed")


def small() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, bias=False),
        nn.ReLU(),
    ]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * 16, 5)).eval()


def batches(count: int = 4, size: int = 16) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(size, 3, 8, 8, generator=generator) for _ in range(count)]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(small(), batches()[0], tmp_path_factory.mktemp("float32") / "net.onnx")


def outputs(path: Path) -> torch.Tensor:
    return torch.cat([torch.from_numpy(file_runner(path, x)()[0]) for x in batches()]).double()  # type: ignore[index]


def test_the_report_is_what_the_file_does(plain: Path, tmp_path: Path) -> None:
    found = quantise(plain, tmp_path / "made" / "int8.onnx", batches())
    a, b = outputs(plain), outputs(found.path)
    assert found.difference == pytest.approx(float((a - b).abs().max() / a.abs().max()), rel=1e-6)
    assert found.mean_difference == pytest.approx(
        float((a - b).abs().mean() / a.abs().mean()), rel=1e-6
    )
    assert found.agreement == float((a.argmax(1) == b.argmax(1)).double().mean())
    assert (found.samples, found.bytes) == (64, file_bytes(found.path))
    # Three layers of 8-bit rounding: some error, and little of it.
    assert 1e-4 < found.difference < 0.1
    assert [p.name for p in found.path.parent.iterdir()] == ["int8.onnx"]


def test_one_value_per_sample_has_no_largest_output(tmp_path: Path) -> None:
    """Its argmax is always the first: the share of equal ones would say 100 % of any file."""
    model = nn.Sequential(small(), nn.Linear(5, 1)).eval()
    source = export(model, batches()[0], tmp_path / "net.onnx")
    assert quantise(source, tmp_path / "int8.onnx", batches()).agreement is None


class ChannelsLast(nn.Module):
    """(N, classes, height, width) -> (N, positions, classes), as language models return them."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(2).transpose(1, 2)


@pytest.mark.parametrize(("last", "axis"), [(nn.Identity(), 1), (ChannelsLast(), 2)])
def test_agreement_is_over_the_classes_of_each_position(
    last: nn.Module, axis: int, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 1), last).eval()
    source = export(model, batches()[0], tmp_path / "net.onnx")
    found = quantise(source, tmp_path / "int8.onnx", batches())
    a, b = outputs(source), outputs(found.path)
    assert a.shape[axis] == 6
    assert found.agreement == float((a.argmax(axis) == b.argmax(axis)).double().mean())
    assert 0.9 < found.agreement < 1


def test_weights_are_int8_per_channel_and_activations_unsigned(plain: Path, tmp_path: Path) -> None:
    found = quantise(plain, tmp_path / "int8.onnx", batches())
    graph = onnx.load(str(found.path)).graph
    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    weights = [t for t in tensors.values() if t.ndim > 1]
    assert sorted(t.shape for t in weights) == sorted([(8, 3, 3, 3), (16, 8, 3, 3), (5, 256)])
    assert {t.dtype.name for t in weights} == {"int8"}
    zeros = [tensors[n.input[2]] for n in graph.node if n.op_type == "QuantizeLinear"]
    assert {z.dtype.name for z in zeros} == {"uint8"}
    scales = [tensors[n.input[1]] for n in graph.node if n.op_type == "DequantizeLinear"]
    assert {8, 16} <= {s.size for s in scales}
    assert footprint(found.path).macs == footprint(plain).macs


def test_seven_bits_where_asked(plain: Path, tmp_path: Path) -> None:
    found = quantise(plain, tmp_path / "int8.onnx", batches(), reduce_range=True)
    graph = onnx.load(str(found.path)).graph
    weights = [onnx.numpy_helper.to_array(t) for t in graph.initializer if len(t.dims) > 1]
    assert max(abs(int(w.min())) for w in weights) <= 64
    assert max(int(w.max()) for w in weights) <= 64


@pytest.mark.parametrize("overflow", [False, True])
def test_seven_bits_where_sums_overflow(
    overflow: bool, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_int8, "_sums_overflow", lambda: overflow)
    found = quantise(plain, tmp_path / "int8.onnx", batches())
    asked = quantise(plain, tmp_path / "asked.onnx", batches(), reduce_range=overflow)
    assert found.reduce_range is asked.reduce_range is overflow
    assert found.path.read_bytes() == asked.path.read_bytes()


def test_the_overflow_is_that_of_a_layer(tmp_path: Path) -> None:
    """Weights of 127 times inputs of 255: a sum of four is exact, or half of it."""
    model = nn.Linear(4, 1, bias=False)
    nn.init.ones_(model.weight)
    x = torch.ones(1, 4)
    source = export(model.eval(), x, tmp_path / "net.onnx")
    found = quantise(source, tmp_path / "int8.onnx", [x], reduce_range=False)
    assert (found.difference > 0.4) is onnx_int8._sums_overflow()


def test_ranges_come_from_the_calibration(plain: Path, tmp_path: Path) -> None:
    good = quantise(plain, tmp_path / "good.onnx", batches())
    _ = quantise(plain, tmp_path / "narrow.onnx", [x / 50 for x in batches()])
    a, b, c = (outputs(p) for p in (plain, good.path, tmp_path / "narrow.onnx"))
    assert (a - c).abs().mean() > 5 * (a - b).abs().mean(), "values beyond the range are cut off"


def test_from_a_model_in_one_call(plain: Path, tmp_path: Path) -> None:
    model = small().train()
    found = export_int8(model, batches()[0], tmp_path / "int8.onnx", iter(batches()))
    assert found.difference == pytest.approx(
        quantise(plain, tmp_path / "b.onnx", batches()).difference, rel=0.2
    )
    assert model.training


def test_calibration_that_cannot_be_right_is_refused(plain: Path, tmp_path: Path) -> None:
    x, target = batches()[0], tmp_path / "int8.onnx"
    for data, words in (
        ([], "no sample"),
        ([x[:0]], "no sample"),
        ([(x, torch.zeros(16))], "Remove the labels"),
        ([x.clone().index_fill_(0, torch.tensor([3]), torch.nan)], "NaN or infinite"),
    ):
        with pytest.raises(ConfigError, match=words):
            quantise(plain, target, data)
    with pytest.raises(ModelError, match=r"net\.onnx"):
        quantise(plain, target, [torch.randn(2, 3, 5, 5)])
    assert list(tmp_path.iterdir()) == []


def test_outputs_that_are_not_finite_are_refused(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = onnx_int8._first_outputs
    monkeypatch.setattr(
        onnx_int8,
        "_first_outputs",
        lambda file, data: [y * (1 if file == plain else torch.nan) for y in real(file, data)],
    )
    with pytest.raises(ModelError, match="not finite"):
        quantise(plain, tmp_path / "int8.onnx", batches())
    assert list(tmp_path.iterdir()) == []


def test_bad_files_and_places(plain: Path, tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("no graph")
    for name in ("text.onnx", "missing.onnx"):
        with pytest.raises(ModelError, match=name):
            quantise(tmp_path / name, tmp_path / "int8.onnx", batches())
    with pytest.raises(OutputError, match="folder"):
        quantise(plain, tmp_path, batches())
