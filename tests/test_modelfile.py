"""Model files: what is saved is what is loaded, or an error says why not."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from snello import ModelSpec, Record, load, plan_of, save, simplify
from snello.codec import CodecSettings, compress, quantised
from snello.errors import ConfigError, ModelError, OutputError
from snello.files import write_file
from snello.store import build, from_dict, read, summary, to_dict

RECORD = Record(ModelSpec("resnet-20", {"classes": 7}), (3, 32, 32))


def _model(dead: bool = False) -> nn.Module:
    torch.manual_seed(0)
    model = build(RECORD.model)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-1, 1)  # type: ignore[union-attr]
                module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
            if dead and isinstance(module, nn.Conv2d):
                module.weight[1::2] = 0
    return model.eval()


def _same(loaded: nn.Module, saved: nn.Module) -> None:
    expected = saved.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, expected[name]), name
        assert value.dtype == expected[name].dtype


def test_round_trip_dense(tmp_path: Path) -> None:
    model = _model()
    path = save(tmp_path / "model.pt", model, RECORD)
    loaded, record = load(path)
    assert record == RECORD
    assert plan_of(loaded) is None
    assert not loaded.training
    _same(loaded, model)
    inputs = RECORD.example_inputs()
    assert torch.equal(loaded(inputs), model(inputs))


def test_round_trip_simplified(tmp_path: Path) -> None:
    model = _model(dead=True)
    inputs = RECORD.example_inputs()
    lean = simplify(model, inputs)
    loaded, _ = load(save(tmp_path / "lean.pt", lean, RECORD))
    assert plan_of(loaded) == plan_of(lean) is not None
    _same(loaded, lean)
    assert torch.equal(loaded(inputs), lean(inputs))
    assert _parameters(loaded) < _parameters(model)
    # And again: what was loaded saves to the same.
    again, _ = load(save(tmp_path / "again.pt", loaded, RECORD))
    _same(again, lean)


def _parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_record_survives_json() -> None:
    lean = simplify(_model(dead=True), RECORD.example_inputs())
    data = json.loads(json.dumps(to_dict(lean, RECORD)))
    model, record = from_dict(data, lean.state_dict(), "here")
    assert record == RECORD
    _same(model, lean)


def test_file_is_data_and_no_code(tmp_path: Path) -> None:
    path = save(tmp_path / "model.pt", _model(), RECORD)
    content = torch.load(path, weights_only=True)
    assert set(content) == {"format", "record", "state_dict"}
    assert content["format"] == "snello model 1"
    assert json.loads(content["record"])["input_shape"] == [3, 32, 32]


def test_example_inputs_have_the_shape_and_repeat() -> None:
    assert RECORD.example_inputs(5).shape == (5, 3, 32, 32)
    assert torch.equal(RECORD.example_inputs(), RECORD.example_inputs())


# Writing


class _PulledPlugError(Exception):
    pass


def test_failed_write_leaves_the_old_file_whole(tmp_path: Path) -> None:
    path = write_file(tmp_path / "kept", lambda beside: beside.write_bytes(b"old"))

    def half(beside: Path) -> None:
        beside.write_bytes(b"ne")
        raise _PulledPlugError

    with pytest.raises(_PulledPlugError):
        write_file(path, half)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path], "nothing is left beside it"


def test_failed_save_leaves_the_old_model_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _model()
    path = save(tmp_path / "model.pt", model, RECORD)

    def full(content: object, beside: Path) -> None:
        beside.write_bytes(b"half a fi")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OutputError, match=r"cannot write .*model\.pt: No space left on device"):
        save(path, _model(dead=True), RECORD)
    monkeypatch.undo()
    _same(load(path)[0], model)
    assert list(tmp_path.iterdir()) == [path]


def test_write_makes_folders_and_honours_the_umask(tmp_path: Path) -> None:
    path = write_file(tmp_path / "a" / "b" / "c", lambda beside: beside.write_bytes(b"x"))
    (tmp_path / "plain").write_bytes(b"x")
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_write_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"x")
    with pytest.raises(OutputError, match=r"cannot write .*plain"):
        save(tmp_path / "plain" / "model.pt", _model(), RECORD)


# Reading


def _content(tmp_path: Path, **changes: object) -> Path:
    content = torch.load(save(tmp_path / "whole.pt", _model(), RECORD), weights_only=True)
    content.update(changes)
    torch.save(
        {name: value for name, value in content.items() if value is not None}, tmp_path / "bad.pt"
    )
    return tmp_path / "bad.pt"


def test_missing_file() -> None:
    with pytest.raises(ModelError, match=r"there is no model file nowhere\.pt"):
        load("nowhere.pt")


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.999])
def test_truncated_file(keep: float, tmp_path: Path) -> None:
    data = save(tmp_path / "model.pt", _model(), RECORD).read_bytes()
    (tmp_path / "cut.pt").write_bytes(data[: int(keep * len(data)) if keep < 1 else int(keep)])
    with pytest.raises(ModelError, match=r"cut\.pt is truncated, damaged"):
        load(tmp_path / "cut.pt")


def test_pickled_code_is_refused(tmp_path: Path) -> None:
    torch.save(_model(), tmp_path / "module.pt")
    with pytest.raises(ModelError, match=r"module\.pt"):
        load(tmp_path / "module.pt")


def test_weights_alone_are_no_model_file(tmp_path: Path) -> None:
    torch.save(_model().state_dict(), tmp_path / "weights.pt")
    with pytest.raises(ModelError, match=r"not a snello model file.*--weights=.*weights\.pt"):
        load(tmp_path / "weights.pt")


@pytest.mark.parametrize("record", [None, "{", "[]", "{}", '{"model": {"name": "lenet-5"}}', 3])
def test_damaged_record(record: object, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"bad\.pt: the record of the model is damaged"):
        load(_content(tmp_path, record=record))


def test_weights_of_another_model(tmp_path: Path) -> None:
    other = build(ModelSpec("resnet-20", {"classes": 8})).state_dict()
    with pytest.raises(ModelError, match=r"bad\.pt: these weights belong to another model"):
        load(_content(tmp_path, state_dict=other))


def test_missing_weights(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"bad\.pt"):
        load(_content(tmp_path, state_dict=None))


def test_a_file_of_weights_holds_tensors_only(tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match=r"bad\.pt: the state_dict contains values that are not tensors"
    ):
        read(_content(tmp_path, state_dict={"w": 3}))


# What is in a file


def test_read_and_summary_build_no_model(tmp_path: Path) -> None:
    lean = simplify(_model(dead=True), RECORD.example_inputs())
    data, state = read(save(tmp_path / "lean.pt", lean, RECORD))
    assert data == to_dict(lean, RECORD)
    assert state.keys() == lean.state_dict().keys()
    found, plan = summary(data), plan_of(lean)
    assert plan is not None
    assert found["model"] == RECORD.model.to_dict()
    assert found["plan"]["layers"] == len(plan.layers)
    assert 0 < found["plan"]["kept_outputs"] < found["plan"]["outputs"]
    assert summary(to_dict(_model(), RECORD))["plan"] is None


def test_summary_takes_any_record() -> None:
    assert summary({}) == {}
    assert summary({"a": 1, "model": "toy", "folded_batchnorms": 3}) == {
        "model": "toy",
        "other_keys": ["a"],
    }
    with pytest.raises(ModelError, match="plan"):
        summary({"plan": "{}"})


# Strangers' files


def test_a_strangers_file_cannot_name_code_to_call(tmp_path: Path) -> None:
    data = {
        "model": {"name": "os:mkdir", "arguments": {"path": str(tmp_path / "made")}},
        "input_shape": [1],
    }
    data |= {"plan": None}
    with pytest.raises(ModelError, match=r"'os:mkdir'.*trust='os:mkdir'"):
        from_dict(data, {}, "stranger.snello")
    assert not (tmp_path / "made").exists()
    torch.save(
        {"format": "snello model 1", "record": json.dumps(data), "state_dict": {}},
        tmp_path / "stranger.pt",
    )
    with pytest.raises(ModelError, match=r"stranger\.pt.*'os:mkdir'"):
        load(tmp_path / "stranger.pt")
    assert not (tmp_path / "made").exists()


# From one machine to another


def _to_ship() -> Iterator[tuple[str, nn.Module, Record]]:
    yield "lenet", build("lenet-5"), Record(ModelSpec("lenet-5"), (1, 28, 28))
    yield "lean", simplify(_model(dead=True), RECORD.example_inputs()), RECORD
    if pytest.importorskip("torchvision"):
        spec = ModelSpec("mobilenet_v3_small", {"num_classes": 10, "width_mult": 0.5})
        yield "mobilenet", build(spec), Record(spec, (3, 64, 64))


READER = """
import sys, pathlib, torch
from snello import load
for path in sorted(pathlib.Path('.').glob('*.snello')):
    model, record = load(path)
    sent = torch.load(path.with_suffix('.pt'), weights_only=True)
    with torch.no_grad():
        assert torch.equal(model(sent['inputs']), sent['outputs']), path
    print(path.stem, record.model.name)
"""


def test_what_one_machine_compresses_another_computes_with(tmp_path: Path) -> None:
    """In a process that has never seen the model: its outputs are those of the quantised original,
    bit by bit.
    """
    pytest.importorskip("nncodec")
    torch.manual_seed(0)
    settings = CodecSettings(qp=-26, dependent_quantisation=False, codebook=True)
    expected = []
    for name, model, record in _to_ship():
        model.eval()
        state = model.state_dict()
        save(tmp_path / f"{name}.snello", model, record, settings=settings)
        floats = {key: value for key, value in state.items() if value.is_floating_point()}
        before = {key: value.clone() for key, value in state.items()}
        for key, value in quantised(floats, settings).items():
            state[key].copy_(value.reshape(state[key].shape))
        assert any(
            not torch.equal(before[key], state[key]) for key in state
        )  # quantisation has changed it
        inputs = record.example_inputs()
        with torch.no_grad():
            torch.save({"inputs": inputs, "outputs": model(inputs)}, tmp_path / f"{name}.pt")
        expected.append(f"{name} {record.model.name}")
    done = subprocess.run(
        [sys.executable, "-c", READER], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == sorted(expected)


# One verb for both kinds of files


def test_the_suffix_says_which_kind_is_written(tmp_path: Path) -> None:
    pytest.importorskip("nncodec")
    model, record = build("lenet-5").eval(), Record(ModelSpec("lenet-5"), (1, 28, 28))
    settings = CodecSettings(qp=-26)
    path = save(tmp_path / "net.snello", model, record, settings=settings)
    assert path.read_bytes() == compress(model.state_dict(), settings, to_dict(model, record))
    decoded, found = load(path)
    assert found == record
    assert not decoded.training
    # Coded once more with the same settings, nothing is lost any more.
    again = save(tmp_path / "again.snello", decoded, found, settings=settings)
    _same(load(again)[0], decoded)
    with pytest.raises(ConfigError, match=r"net\.pt.*\*\.snello"):
        save(tmp_path / "net.pt", model, record, settings=settings)
    with pytest.raises(ConfigError, match=r"net\.onnx.*snello\.export"):
        save(tmp_path / "net.onnx", model, record)
