"""Model files in safetensors: the same laws as for `.pt`, and other tools read the weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("safetensors")

import safetensors.torch as library

from snello import ModelSpec, Record, load, plan_of, save, simplify
from snello.codec import CodecSettings
from snello.errors import ConfigError, ModelError
from snello.store import build, inspect, load_weights, read

RECORD = Record(ModelSpec("lenet-300-100"), (1, 28, 28))


def _lean() -> torch.nn.Module:
    torch.manual_seed(0)
    model = build("lenet-300-100").double().eval()
    with torch.no_grad():
        model.fc1.weight[::3] = 0
        model.fc1.bias[::3] = 0
    return simplify(model, RECORD.example_inputs(2).double())


def test_a_lean_model_comes_back_with_its_plan(tmp_path: Path) -> None:
    lean, x = _lean(), torch.randn(5, 1, 28, 28, dtype=torch.float64)
    path = save(tmp_path / "lean.safetensors", lean, RECORD)
    again, record = load(path)
    assert torch.equal(again(x), lean(x))
    assert plan_of(again) == plan_of(lean)
    assert record.model == RECORD.model
    assert inspect(path)["bytes"]["tensors"] == sum(8 * p.numel() for p in lean.parameters())
    for name, value in library.load_file(path).items():
        assert torch.equal(value, lean.state_dict()[name]), "as any other tool reads it"


def test_tied_weights_are_stored(tmp_path: Path) -> None:
    model = build("lenet-300-100")
    model.fc1.bias.data = model.fc1.weight.data[:, 0]  # shares memory, and is not contiguous
    again, _ = load(save(tmp_path / "tied.safetensors", model, RECORD))
    assert torch.equal(again.fc1.bias, model.fc1.bias)


@pytest.mark.parametrize("place", [0, 4, 20, 0.5, -1])
def test_every_damaged_byte_is_found(place: float, tmp_path: Path) -> None:
    path = save(tmp_path / "a.safetensors", _lean(), RECORD)
    data = bytearray(path.read_bytes())
    data[int(place * len(data)) if isinstance(place, float) else place] ^= 0x55
    path.write_bytes(data)
    with pytest.raises(ModelError):
        load(path)
    path.write_bytes(bytes(data)[: len(data) // 2])
    with pytest.raises(ModelError):
        load(path)


def test_a_changed_header_is_found(tmp_path: Path) -> None:
    """Names, shapes and the record would give another model, without an error."""
    path = save(tmp_path / "a.safetensors", build("lenet-300-100"), RECORD)
    data = path.read_bytes()
    for old, new in (
        (b"[1, 28, 28]", b"[1, 82, 28]"),
        (b'"fc1.bias":{"dtype":"F32"', b'"fc1.bias":{"dtype":"I32"'),
    ):
        assert data.count(old) == 1
        path.write_bytes(data.replace(old, new))
        with pytest.raises(ModelError, match="its digest does not fit"):
            load(path)
    path.write_bytes(data)
    load(path)


def test_dtypes_that_the_format_lacks_are_refused(tmp_path: Path) -> None:
    model = build("lenet-300-100")
    model.fc1.bias = torch.nn.Parameter(model.fc1.bias.to(torch.complex128))
    with pytest.raises(ConfigError, match=r"complex128.*name the file \*\.pt"):
        save(tmp_path / "a.safetensors", model, RECORD)
    assert not list(tmp_path.iterdir())


def test_files_of_other_tools_give_weights_and_no_model(tmp_path: Path) -> None:
    model, other = build("lenet-300-100"), build("lenet-300-100")
    path = tmp_path / "weights.safetensors"
    library.save_file(model.state_dict(), path)
    with pytest.raises(ModelError, match="not a snello model file"):
        read(path)
    load_weights(other, path)
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True)
    )
    path.write_bytes(b"nonsense")
    with pytest.raises(ModelError, match="damaged"):
        load_weights(other, path)


def test_codec_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="snello files only"):
        save(tmp_path / "a.safetensors", _lean(), RECORD, settings=CodecSettings())
    assert not list(tmp_path.iterdir())
