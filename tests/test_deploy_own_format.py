"""A format of one's own: its class and one entry, and everything else follows."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from snello import Record, save
from snello.cli import main
from snello.deploy import (
    FORMATS,
    FileModel,
    Footprint,
    Format,
    Subject,
    compare,
    export,
    file_bytes,
    file_runner,
    footprint,
    measure,
    peak_memory,
)
from snello.errors import ConfigError, ModelError
from snello.store import ModelSpec, inspect

MODEL, X = nn.Linear(3, 2).eval(), torch.randn(4, 3)


@dataclass(frozen=True)
class Toy(Format):
    """A linear layer as JSON numbers."""

    name = "toy"
    label = "Toy"
    suffix = ".toy"
    runtime = "toy runtime"

    digits: int = 9

    def write(self, model, inputs, files):  # type: ignore[no-untyped-def]
        if [name for name, _ in model.named_parameters()] != ["weight", "bias"]:
            raise ModelError(f"{type(model).__name__} is no linear layer")
        numbers = {name: value.tolist() for name, value in model.state_dict().items()}
        rounded = json.loads(
            json.dumps(numbers), parse_float=lambda t: round(float(t), self.digits)
        )
        files[0].write_text(json.dumps(rounded))

    def load(self, files, threads):  # type: ignore[no-untyped-def]
        weight, bias = self._numbers(files[0])
        return lambda inputs: partial(nn.functional.linear, inputs[0], weight, bias)

    def inputs_of(self, path, batch=None):  # type: ignore[no-untyped-def]
        return (torch.randn(batch or 1, self._numbers(path)[0].shape[1]),)

    def footprint(self, path):  # type: ignore[no-untyped-def]
        weight, bias = self._numbers(path)
        count = weight.numel() + bias.numel()
        return Footprint(count, count, 0, weight.numel(), 4 * count)

    def _numbers(self, path):  # type: ignore[no-untyped-def]
        content = json.loads(path.read_text())
        return torch.tensor(content["weight"]), torch.tensor(content["bias"])


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORMATS, Toy.suffix, Toy())


def test_export_verifies_and_dispatches(tmp_path: Path) -> None:
    path = export(MODEL, X, tmp_path / "net.toy")
    assert torch.allclose(file_runner(path, X)(), MODEL(X))  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=r"differs from PyTorch by .* in toy runtime"):
        export(MODEL, X, tmp_path / "coarse.toy", format=Toy(digits=1))
    with pytest.raises(ModelError, match="Sequential is no linear layer"):
        export(nn.Sequential(MODEL), X, tmp_path / "other.toy")
    assert list(tmp_path.iterdir()) == [path]


def test_files_are_counted_and_timed_as_their_model(tmp_path: Path) -> None:
    path = export(MODEL, X, tmp_path / "net.toy")
    assert footprint(path) == footprint(MODEL, X)
    assert peak_memory(path) is None, "it does not tell"
    found = measure(path, batch=5, repeats=2, warmup=0)
    assert (found.file_bytes, found.footprint) == (file_bytes(path), footprint(path))
    assert found.latencies["toy runtime"].batch == 5
    given = [Subject("model", MODEL, (X,)), Subject("file", file=path)]
    rows = compare(given, runtimes=("pytorch", "toy runtime"), repeats=1, warmup=0)
    assert [list(row.latencies) for row in rows] == [["pytorch", "toy runtime"], ["toy runtime"]]


def test_a_file_is_described(tmp_path: Path) -> None:
    path = export(MODEL, X, tmp_path / "net.toy")
    found = inspect(path)
    assert (found["format"], found["bytes"]["total"]) == ("Toy", path.stat().st_size)
    assert found["inputs"] == [{"shape": (1, 3), "dtype": "float32"}]
    assert found["footprint"] == footprint(path)


def test_the_commands_know_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rich", reason="the extra report is not installed")
    spec = ModelSpec("torch.nn:Linear", {"in_features": 3, "out_features": 2})
    net, out = save(tmp_path / "net.pt", MODEL, Record(spec, (3,))), tmp_path / "net.toy"
    trust = "--own-code=torch.nn:Linear"
    assert main(["export", str(net), f"--out={out}", trust]) == 0
    assert main(["export", str(net), "--format=toy", f"--out={tmp_path / 'same.toy'}", trust]) == 0
    assert out.read_text() == (tmp_path / "same.toy").read_text()
    assert main(["inspect", str(out)]) == 0
    shown = capsys.readouterr().out
    assert all(text in shown for text in ("Toy", "1 x 3", "footprint: macs"))
    result = tmp_path / "measure.json"
    argv = ["measure", str(out), f"--out={result}", "--repeats=1", "--warmup=0"]
    assert main(argv) == 0
    assert list(json.loads(result.read_text())["latencies"]) == ["toy runtime"]


def test_it_is_no_model_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"net\.toy.*snello\.export"):
        save(tmp_path / "net.toy", MODEL, Record(ModelSpec("torch.nn:Linear"), (3,)))


@dataclass(frozen=True)
class Fixed(Toy):
    """The same with a fixed batch of three."""

    suffix = ".fixed"
    any_batch = False

    def load(self, files, threads):  # type: ignore[no-untyped-def]
        bind = super().load(files, threads)

        def fixed(inputs):  # type: ignore[no-untyped-def]
            assert len(inputs[0]) == 3
            return bind(inputs)

        return fixed

    def inputs_of(self, path, batch=None):  # type: ignore[no-untyped-def]
        return super().inputs_of(path, batch or 3)


@pytest.mark.parametrize("batch", [1, 3, 4, 6, 8])
def test_a_file_is_a_module_for_any_batch(
    batch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(batch, 3)
    for format in (Toy(), Fixed()):
        monkeypatch.setitem(FORMATS, format.suffix, format)
        path = tmp_path / f"m{format.suffix}"
        format.write(MODEL, (x,), (path,))
        with torch.no_grad():
            torch.testing.assert_close(FileModel(path)(x), MODEL(x))
