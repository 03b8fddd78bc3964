"""Sealed files: torch reads them, every flipped bit is found, pickled code is named and never
run.
"""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import snello
from snello import Record, load, save
from snello.errors import ModelError, OutputError
from snello.store import ModelSpec, archives, build

CONTENT = {
    "w": torch.arange(60.0).reshape(6, 10),
    "half": torch.ones(3, dtype=torch.bfloat16),
    "n": 3,
}


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    return archives.save(tmp_path / "sealed.pt", CONTENT)


def _assert_content(found: Any) -> None:
    assert found.keys() == CONTENT.keys()
    assert torch.equal(found["w"], CONTENT["w"])
    assert found["half"].dtype == torch.bfloat16


def test_round_trip_here_and_in_torch(sealed: Path) -> None:
    _assert_content(archives.load(sealed))
    _assert_content(torch.load(sealed, weights_only=True))
    with zipfile.ZipFile(sealed) as archive:
        assert archive.testzip() is None


@pytest.mark.parametrize(
    "part", [0, *(pytest.param(part, marks=pytest.mark.exhaustive) for part in range(1, 20))]
)
def test_every_flipped_bit_is_found(sealed: Path, part: int) -> None:
    """A twentieth of the bits in each part, and those of the last bytes in all of them."""
    data = sealed.read_bytes()
    for place in range(8 * len(data)):
        if place % 20 == part or place > 8 * (len(data) - 20):
            flipped = bytearray(data)
            flipped[place // 8] ^= 1 << place % 8
            sealed.write_bytes(flipped)
            with pytest.raises(ModelError, match="damaged"):
                archives.load(sealed)


def test_every_truncation_and_appended_byte_is_found(sealed: Path) -> None:
    data = sealed.read_bytes()
    for end in (*range(0, len(data), 101), len(data) - 1):
        sealed.write_bytes(data[:end])
        with pytest.raises(ModelError, match=r"truncated|damaged"):
            archives.load(sealed)
    sealed.write_bytes(data + b"x")
    with pytest.raises(ModelError, match="damaged"):
        archives.load(sealed)


def test_files_of_torch_are_read_too(tmp_path: Path) -> None:
    for new in (True, False):
        torch.save(CONTENT, tmp_path / "plain.pt", _use_new_zipfile_serialization=new)
        assert torch.equal(archives.load(tmp_path / "plain.pt")["w"], CONTENT["w"])


def test_a_flipped_weight_in_a_model_file_is_found(tmp_path: Path) -> None:
    spec = ModelSpec("lenet-300-100", {"in_features": 64})
    path = save(tmp_path / "model.pt", build(spec), Record(spec, (1, 8, 8)))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ModelError, match=r"model\.pt is truncated, damaged.*SHA-256"):
        load(path)


# Pickled code


class _Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("ran",)


WRITERS: dict[str, Callable[[Any, Path], Any]] = {
    "torch": torch.save,
    "old torch": lambda content, path: torch.save(
        content, path, _use_new_zipfile_serialization=False
    ),
    **{
        f"pickle {protocol}": lambda content, path, protocol=protocol: path.write_bytes(
            pickle.dumps(content, protocol)
        )
        for protocol in range(6)
    },
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize(
    ("content", "name"), [(_Hostile(), "mkdir"), (nn.Linear(2, 2), "torch.nn.modules")]
)
def test_pickled_code_is_named_and_not_run(
    writer: str, content: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    WRITERS[writer]({"state_dict": content}, tmp_path / "code.pt")
    for read in (archives.load, load):
        with pytest.raises(ModelError, match=rf"code\.pt contains pickled code \(.*{name}"):
            read(tmp_path / "code.pt")
    assert not (tmp_path / "ran").exists()


# Disks that are full or failing


LIMITED = """
import resource, sys, torch
from snello.store import archives
from snello.errors import OutputError
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
try:
    archives.save(sys.argv[1], {"w": torch.zeros(100, 100)})
except OutputError as error:
    print(error)
"""


def test_what_does_not_fit_leaves_the_old_file(sealed: Path) -> None:
    pytest.importorskip("resource")
    source = str(Path(snello.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(sealed)], env={**os.environ, "PYTHONPATH": source},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"cannot write {sealed}: File too large" in done.stdout
    assert "41," in done.stdout, "the size of the whole file, although it broke off before"
    _assert_content(archives.load(sealed))
    assert [path.name for path in sealed.parent.iterdir()] == ["sealed.pt"]


def test_a_full_disk_names_folder_and_need(sealed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _fill(monkeypatch, after=1000)
    with pytest.raises(OutputError) as caught:
        archives.save(sealed, {"w": torch.zeros(100, 100)})
    message = str(caught.value)
    assert (
        f"cannot write {sealed}: No space left on device; the folder {sealed.parent} needs 41,"
        in message
    )
    assert "free" in message
    assert "make room" in message
    monkeypatch.undo()
    _assert_content(archives.load(sealed))


def _fill(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Let the disk take so many bytes of a file and no more, and torch say so in its own way."""

    def limited(content: Any, path: Any) -> None:
        if not isinstance(path, Path):
            return torch_save(content, path)
        path.write_bytes(bytes(after))
        raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0")

    def fallocate(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    torch_save = torch.save
    monkeypatch.setattr(torch, "save", limited)
    monkeypatch.setattr(os, "posix_fallocate", fallocate, raising=False)


def test_a_disk_that_loses_bits_is_found_before_the_old_file_goes(
    sealed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = archives._write

    def losing(path: Path, content: Any) -> None:
        write(path, content)
        data = bytearray(path.read_bytes())
        data[700] ^= 64
        path.write_bytes(data)

    monkeypatch.setattr(archives, "_write", losing)
    with pytest.raises(OutputError, match="bytes read back differ from those written"):
        archives.save(sealed, {"w": torch.ones(100)})
    monkeypatch.undo()
    _assert_content(archives.load(sealed))
