"""Programs of torch.export, OpenVINO and ExecuTorch: loaded again they compute the same, or they do
not appear.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from seams.deploy import verify
from snello.deploy import (
    Onnx,
    Subject,
    compare,
    export,
    file_runner,
    footprint,
)
from snello.errors import ConfigError, MissingExtraError, ModelError, OutputError


def small() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 6, 3, groups=3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.ConvTranspose2d(6, 4, 2, groups=2),
    ]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(), nn.Linear(196, 5))
    model[1].running_mean.normal_()
    return model.eval()


class FixedBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(4, 3) + 1


@pytest.mark.parametrize("batch", [1, 3])
def test_a_program_computes_the_same_at_every_batch_size(tmp_path: Path, batch: int) -> None:
    model = small().double()
    path = export(model, torch.randn(batch, 3, 8, 8).double(), tmp_path / "made" / "net.pt2")
    for size in (1, 2, 7):
        x = torch.randn(size, 3, 8, 8).double()
        found = file_runner(path, x)()
        assert isinstance(found, Tensor)
        torch.testing.assert_close(found, model(x), rtol=1e-12, atol=1e-12)
    assert [p.name for p in path.parent.iterdir()] == ["net.pt2"]


def test_a_program_is_counted_as_its_model(tmp_path: Path) -> None:
    model, x = small(), torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        model[0].weight[1] = 0
        model[3].weight[:3, 1] = 0  # neuron 1: the first group of inputs feeds outputs 0 and 1
        model[6].weight[2] = 0
    path = export(model, x, tmp_path / "net.pt2")
    (found,) = compare([Subject("net", file=path)], repeats=1, warmup=0)
    expected = footprint(model, x)
    assert expected.dead_neurons == 3
    assert found.footprint == expected
    assert list(found.latencies) == ["torch.export"]
    assert found.peak_memory is not None
    assert found.peak_memory.bytes > 4 * expected.parameters


def test_the_example_is_not_shipped(tmp_path: Path) -> None:
    """It may be a picture of somebody."""
    secret = torch.full((2, 3), 1234.5678)
    path = export(nn.Linear(3, 2), secret, tmp_path / "net.pt2")
    assert secret[:1].numpy().tobytes() not in path.read_bytes()
    assert torch.export.load(path).example_inputs is None


def test_a_differing_program_never_appears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "TOLERANCE", -1.0)
    with pytest.raises(ModelError, match="differs from PyTorch by"):
        export(nn.Linear(3, 2), torch.randn(2, 3), tmp_path / "net.pt2")
    assert list(tmp_path.iterdir()) == []


def test_bad_programs_are_model_errors(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="FixedBatch"):
        export(FixedBatch(), torch.randn(4, 3), tmp_path / "net.pt2")
    (tmp_path / "text.pt2").write_text("no program")
    for name in ("text.pt2", "missing.pt2"):
        with pytest.raises(ModelError, match=name):
            file_runner(tmp_path / name, torch.randn(1, 3))
    with pytest.raises(OutputError, match="folder"):
        export(nn.Linear(3, 2), torch.randn(2, 3), tmp_path)


@pytest.mark.parametrize(("package", "name"), [("openvino", "net.xml"), ("executorch", "net.pte")])
def test_a_missing_runtime_says_what_to_install(
    package: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in [m for m in sys.modules if m.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"pip install 'snello\[{package}\]'"):
        export(nn.Linear(3, 2), torch.randn(2, 3), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_openvino_computes_the_same(tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="the extra openvino is not installed")
    model = small()
    path = export(model, torch.randn(2, 3, 8, 8), tmp_path / "net.xml")
    for size in (1, 5):
        x = torch.randn(size, 3, 8, 8)
        (found,) = file_runner(path, x)()  # type: ignore[misc]
        torch.testing.assert_close(torch.from_numpy(found), model(x), rtol=1e-4, atol=1e-5)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.bin", "net.xml"]
    (profile,) = compare([Subject("net", file=path)], batch=3, repeats=1, warmup=0)
    assert profile.latencies["openvino"].batch == 3
    assert profile.file_bytes == sum(p.stat().st_size for p in tmp_path.iterdir())
    (tmp_path / "broken.xml").write_text("no model")
    with pytest.raises(ModelError, match=r"broken\.xml"):
        file_runner(tmp_path / "broken.xml", x)


@pytest.mark.parametrize("name", ["net.openvino", "net.pt", "net"])
def test_an_unknown_suffix_says_which_there_are(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"{name}: no runtime.*\.onnx, \.pt2, \.xml, \.pte"):
        export(nn.Linear(3, 2), torch.randn(2, 3), tmp_path / name)
    with pytest.raises(ConfigError, match=r"ONNX files are named \*\.onnx"):
        export(nn.Linear(3, 2), torch.randn(2, 3), tmp_path / name, format=Onnx())
    assert list(tmp_path.iterdir()) == []


def test_executorch_computes_the_same(tmp_path: Path) -> None:
    pytest.importorskip("executorch", reason="the extra executorch is not installed")
    model, x = small(), torch.randn(2, 3, 8, 8)
    path = export(model, x, tmp_path / "net.pte")
    (found,) = file_runner(path, x)()  # type: ignore[misc]
    torch.testing.assert_close(found, model(x), rtol=1e-4, atol=1e-5)
    (profile,) = compare([Subject("net", file=path)], batch=2, repeats=1, warmup=0)
    assert profile.latencies["executorch"].batch == 2
    with pytest.raises(ConfigError, match="only accepts a batch of 2"):
        compare([Subject("net", file=path)], batch=1)
    (tmp_path / "broken.pte").write_bytes(b"no program")
    with pytest.raises(ModelError, match=r"broken\.pte"):
        file_runner(tmp_path / "broken.pte", x)
