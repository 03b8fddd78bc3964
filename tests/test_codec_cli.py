"""``snello compress --raw`` and ``snello inspect``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from snello import Record, save
from snello.cli import main
from snello.codec import compress, decode, decompress, encode
from snello.store import ModelSpec, build

pytest.importorskip("nncodec", reason="the extra nnc is not installed")
pytest.importorskip("rich", reason="the extra report is not installed")

RECORD = Record(ModelSpec("resnet-20", {"classes": 3}), (3, 32, 32))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file, and its container and plain stream."""
    path = tmp_path_factory.mktemp("inspected")
    torch.manual_seed(0)
    save(path / "model.pt", build(RECORD.model).eval(), RECORD)
    options = ["--qp=-20", "--uniform", "--codebook"]
    assert (
        main(["compress", str(path / "model.pt"), f"--out={path / 'model.snello'}", *options]) == 0
    )
    assert (
        main(["compress", str(path / "model.pt"), f"--out={path / 'model.nnc'}", *options, "--raw"])
        == 0
    )
    return path


def test_a_plain_stream_is_not_named_like_a_container(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["compress", str(folder / "model.pt"), "--raw"]
    assert main([*words, "--out=lean.snello"]) == 1
    assert "such as lean.nnc" in capsys.readouterr().err
    assert main(words) == 0
    assert (tmp_path / "model.nnc").is_file()


def inspected(path: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    capsys.readouterr()
    assert main(["inspect", str(path), "--json"]) == 0
    content: dict[str, object] = json.loads(capsys.readouterr().out)
    return content


def test_raw_is_the_stream_of_the_container_and_readable_by_nncodec(folder: Path) -> None:
    stream = (folder / "model.nnc").read_bytes()
    assert (folder / "model.snello").read_bytes().endswith(stream)
    tensors = decompress((folder / "model.snello").read_bytes()).tensors
    floats = {name: value for name, value in tensors.items() if value.is_floating_point()}
    decoded = decode(stream)
    assert list(decoded) == list(floats) != list(tensors)
    assert all(
        torch.equal(decoded[name].reshape(value.shape), value) for name, value in floats.items()
    )


def test_inspect_shows_a_container(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "model.snello"
    content = inspected(path, capsys)
    assert content["format"] == ".snello 2"
    assert content["bytes"]["total"] == path.stat().st_size  # type: ignore[index]
    assert content["bytes"]["stream"] == (folder / "model.nnc").stat().st_size  # type: ignore[index]
    settings = content["settings"]
    assert (settings["qp"], settings["codebook"], settings["qp_of"]) == (-20, True, {})  # type: ignore[index]
    assert content["record"]["model"] == RECORD.model.to_dict()  # type: ignore[index]
    rows = {row["name"]: row for row in content["tensors"]}  # type: ignore[attr-defined]
    state = build(RECORD.model).state_dict()
    assert list(rows) == list(state)
    for name, value in state.items():
        coded = value.is_floating_point()
        qp = None if not coded else -20 if value.dim() > 1 else -75
        assert rows[name]["shape"] == list(value.shape)
        assert (rows[name]["coding"], rows[name]["qp"]) == ("NNC" if coded else "exact", qp)
    assert main(["inspect", str(path)]) == 0
    drawn = capsys.readouterr().out
    assert all(text in drawn for text in ("resnet-20", "num_batches_tracked", "0.03125", "sha256"))


def test_inspect_shows_a_model_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = inspected(folder / "model.pt", capsys)
    state = build(RECORD.model).state_dict()
    assert [row["name"] for row in content["tensors"]] == list(state)  # type: ignore[attr-defined]
    assert content["bytes"]["tensors"] == sum(v.numel() * v.element_size() for v in state.values())  # type: ignore[index]
    assert main(["inspect", str(folder / "model.pt")]) == 0
    assert "snello model 1" in capsys.readouterr().out


def test_inspect_needs_no_codec(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nncodec", None)
    for name in [name for name in sys.modules if name.startswith("nncodec.")]:
        monkeypatch.delitem(sys.modules, name)
    assert inspected(folder / "model.snello", capsys)["format"] == ".snello 2"
    assert inspected(folder / "model.pt", capsys)["format"] == "snello model 1"


def test_a_strangers_words_do_not_reach_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = compress({"\x1b[31mred": torch.arange(2)}, record={"model": "a\x1b[2Jb"})
    (tmp_path / "odd.snello").write_bytes(data)
    assert main(["inspect", str(tmp_path / "odd.snello")]) == 0
    out = capsys.readouterr().out
    assert "red" in out
    assert "\x1b" not in out


@pytest.mark.parametrize("name", ["cut.snello", "stream.nnc", "nowhere.snello"])
def test_inspect_of_something_else_is_one_line(
    name: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cut.snello").write_bytes((folder / "model.snello").read_bytes()[:-1])
    (tmp_path / "stream.nnc").write_bytes(encode({"w": torch.ones(2, 2)}))
    assert main(["inspect", str(tmp_path / name)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("snello: error: ")
    assert name in error or "truncated" in error
    assert error.count("\n") == 1


def test_a_strangers_bitstream_cannot_name_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = {"model": {"name": "os:mkdir", "arguments": {"path": str(tmp_path / "made")}}}
    path = tmp_path / "stranger.snello"
    path.write_bytes(
        compress({"n": torch.arange(2)}, record=record | {"input_shape": [1], "plan": None})
    )
    assert main(["decompress", str(path), f"--out={tmp_path / 'out.pt'}"]) == 1
    assert "--own-code" in capsys.readouterr().err
    assert not (tmp_path / "made").exists()
    assert not (tmp_path / "out.pt").exists()
