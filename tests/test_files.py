"""Atomic files: whole or absent, read back, temporary names gone; JSON that is none."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from snello.errors import ConfigError, ModelError, OutputError
from snello.files import (
    check_writable,
    folder_beside,
    read_json,
    read_json_object,
    write_bytes,
    write_file,
    write_text,
    writing_folder,
)


@pytest.mark.parametrize("old", [None, b"the old content"])
def test_a_failing_writer_leaves_the_old_file_alone(tmp_path: Path, old: bytes | None) -> None:
    path = tmp_path / "result.bin"
    if old is not None:
        path.write_bytes(old)

    def write(temporary: Path) -> None:
        temporary.write_bytes(b"half of the n")
        raise ValueError("interrupted")

    with pytest.raises(ValueError, match="interrupted"):
        write_file(path, write)
    assert (path.read_bytes() if path.exists() else None) == old
    assert [p.name for p in tmp_path.iterdir()] == ([] if old is None else ["result.bin"])


def test_a_disk_that_returns_other_bytes_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "result.bin"
    write_bytes(path, b"old")
    monkeypatch.setattr(Path, "read_bytes", lambda self: b"garbled")
    with pytest.raises(OutputError, match=r"result\.bin: other bytes are read back"):
        write_bytes(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"


def test_many_may_check_one_file_at_the_same_time(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(check_writable, [path] * 400)) == {path}
    assert list(tmp_path.iterdir()) == []


def test_a_name_too_long_for_its_temporary_file_is_told_before_the_work(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 250)
    for write in (check_writable, lambda where: write_bytes(where, b"")):
        with pytest.raises(OutputError, match=f"cannot write {re.escape(str(path))}: .*too long"):
            write(path)


def test_text_is_written_in_utf_8(tmp_path: Path) -> None:
    path = write_text(tmp_path / "new" / "folder" / "page.md", "Größe × 2")
    assert path.read_bytes() == "Größe × 2".encode()


def test_a_temporary_folder_shares_the_disk_and_goes(tmp_path: Path) -> None:
    with folder_beside(tmp_path / "model.onnx") as folder:
        assert folder.parent == tmp_path
        (folder / "part").write_bytes(b"1")
        (folder / "part").rename(tmp_path / "model.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize(
    ("making", "named"), [(folder_beside, "part"), (writing_folder, "kit/part")]
)
def test_errors_name_no_temporary_folder(making: Any, named: str, tmp_path: Path) -> None:
    def interrupted() -> None:
        with making(tmp_path / "kit") as folder:
            (folder / "part").mkdir()
            write_bytes(folder / "part", b"1")

    with pytest.raises(OutputError, match=re.escape(f"cannot write {tmp_path / named}: ")):
        interrupted()
    assert not list(tmp_path.iterdir())


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    def interrupted() -> None:
        with writing_folder(tmp_path / "kit") as inside:
            (inside / "a").write_bytes(b"1")
            raise ValueError("interrupted")

    with pytest.raises(ValueError, match="interrupted"):
        interrupted()
    assert not [*tmp_path.iterdir()]
    with writing_folder(tmp_path / "kit") as inside:
        (inside / "a").write_bytes(b"1")
    assert [p.name for p in (tmp_path / "kit").iterdir()] == ["a"]


def test_json_is_read_or_refused_with_its_path(tmp_path: Path) -> None:
    path = write_text(tmp_path / "result.json", '{"cpu": "Ünix"}')
    assert read_json(path) == {"cpu": "Ünix"}
    for damaged in (b"", b"{", b"\xff", b"[" * 100_000):
        path.write_bytes(damaged)
        with pytest.raises(ConfigError, match=r"result\.json is not valid JSON"):
            read_json(path)
    with pytest.raises(ConfigError, match=r"missing\.json cannot be read: No such file"):
        read_json(tmp_path / "missing.json")
    for encoding in ("utf-8-sig", "utf-16"):  # of editors and shells of Windows
        path.write_text('{"cpu": "Ünix"}', encoding)
        assert read_json(path) == {"cpu": "Ünix"}


def test_json_objects_are_read_or_refused_with_the_remedy(tmp_path: Path) -> None:
    path = write_text(tmp_path / "result.json", '{"a": 1}')
    assert read_json_object(path) == {"a": 1}
    for damaged in ("[]", "1", "null", "{", "[" * 100_000):
        path.write_text(damaged)
        with pytest.raises(ModelError, match=r"result\.json is .*; write it again$"):
            read_json_object(path, "write it again", ModelError)
    path.unlink()
    path.mkdir()  # unreadable, but not damaged: the remedy could lose something
    with pytest.raises(ModelError, match=r"result\.json cannot be read: Is a directory$"):
        read_json_object(path, "remove it", ModelError)
