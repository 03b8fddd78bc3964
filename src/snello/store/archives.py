"""Files of `torch.save` with a digest of all bytes, read without running pickled code.

A sealed file is a zip archive as written by torch, with an archive comment that contains `snello
sha256` and the SHA-256 of all bytes before the digest. Zip readers ignore the comment, so that
`torch.load` can read the file too.

>>> save("state.pt", {"weight": torch.zeros(3)})
>>> load("state.pt")["weight"]
tensor([0., 0., 0.])
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import pickletools
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch

from snello.errors import ModelError, OutputError, reason_of
from snello.files import NoRoomError, is_full, write_file

_LABEL = b"snello sha256 "
_DIGEST = 64  # hexadecimal digits
_END = struct.Struct("<4s4H2LH")  # a zip archive's last record, up to its comment
_CHUNK = 1 << 20
_TENSORS = ("torch._utils", "torch._tensor", "torch.storage", "torch.nn.parameter")
_PLAIN = ("collections.OrderedDict", "__builtin__.set", "builtins.set")


def save(path: str | Path, content: Any) -> Path:
    """Write a sealed file; an existing one is replaced only after the new one was read back.

    Args:
        path: path of the file.
        content: tensors and plain data, as accepted by `torch.save`.

    Raises:
        OutputError: if the file cannot be written, or the bytes read back differ.
    """

    def check(temporary: Path) -> None:
        if not _fits(temporary):
            raise OutputError(
                f"cannot write {path}: the bytes read back differ from those written; the disk may "
                "be failing"
            )

    return write_file(path, lambda temporary: _write(temporary, content), check)


def load(path: str | Path, map_location: Any = "cpu") -> Any:
    """Read a file of tensors and plain data; no code in it is run.

    Args:
        path: path of the file, sealed or not.
        map_location: as for `torch.load`.

    Raises:
        ModelError: if the file is damaged, of another kind, or contains pickled code (named in the
            message).
    """
    if not _fits(path):
        raise ModelError(
            f"{path} is truncated, damaged or changed: its SHA-256 differs from the recorded one; "
            "copy it again from its source"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other kinds of files get the errors below
            content = torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # torch raises various exceptions for a damaged file
        if names := _pickled_code(Path(path)):
            raise ModelError(
                f"{path} contains pickled code ({', '.join(names[:3])}), which snello never runs: "
                "if you trust the file, load it with torch and save model.state_dict() with "
                "torch.save, or the model with snello.save"
            ) from error
        raise ModelError(f"{path} is truncated, damaged, or not a file of weights") from error
    return content


def _write(path: Path, content: Any) -> None:
    try:
        torch.save(content, path)
    except RuntimeError as error:  # torch's zip writer does not report the cause of a failed write
        raise _cause(path, content, error) from error
    with open(path, "r+b") as file:
        size = file.seek(0, 2)
        *fields, _ = _END.unpack(_read_at(file, size - _END.size, _END.size))
        file.seek(size - _END.size)
        file.write(_END.pack(*fields, len(_LABEL) + _DIGEST) + _LABEL)
        file.write(_sha256(file, size + len(_LABEL)).encode())


def _cause(path: Path, content: Any, error: RuntimeError) -> OSError:
    """Find the operating system's error behind a failed write of torch."""
    needed = _size_of(content)
    try:
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, needed)
    except OSError as found:
        return NoRoomError(found, needed) if is_full(found) else found
    except AttributeError:  # not on this system
        pass
    return OSError(errno.EIO, f"torch could not write {needed:,} bytes: {reason_of(error)}")


def _size_of(content: Any) -> int:
    """Size in bytes of a sealed file with this content."""
    sink = _Counter()
    torch.save(content, sink)  # type: ignore[arg-type]
    return sink.size + len(_LABEL) + _DIGEST


class _Counter:
    """A file object that counts the bytes written to it and discards them."""

    def __init__(self) -> None:
        self.size = 0

    def write(self, data: Any) -> int:
        self.size += len(data)
        return len(data)

    def flush(self) -> None:
        """Do nothing; torch calls it after the last write."""


def _fits(path: str | Path) -> bool:
    """Return True if a file's digest matches its bytes, or the file has no digest.

    Raises:
        ModelError: if the file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            if _is_torchs(file, size):
                return True
            if size < _END.size + len(_LABEL) + _DIGEST:
                return False
            label = _read_at(file, size - _DIGEST - len(_LABEL), len(_LABEL))
            return label == _LABEL and _sha256(file, size - _DIGEST).encode() == file.read()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from error


def _is_torchs(file: BinaryIO, size: int) -> bool:
    """Return True for a file without a digest: no zip archive, or an archive without a comment.

    Torch writes no archive comments, so that an archive with a comment must be a sealed one, even
    if its label is damaged.
    """
    if _read_at(file, 0, 2) != b"PK":
        return True
    if size < _END.size:
        return False
    signature, *_, comment = _END.unpack(_read_at(file, size - _END.size, _END.size))
    return bool(signature == b"PK\5\6" and comment == 0)


def _read_at(file: BinaryIO, place: int, size: int) -> bytes:
    file.seek(place)
    return file.read(size)


def _sha256(file: BinaryIO, size: int) -> str:
    """SHA-256 of the first `size` bytes of a file; leaves its position after them."""
    sha = hashlib.sha256()
    file.seek(0)
    while size:
        chunk = file.read(min(size, _CHUNK))
        if not chunk:
            break  # the file was truncated while it was read
        sha.update(chunk)
        size -= len(chunk)
    return sha.hexdigest()


def _pickled_code(path: Path) -> list[str]:
    """Names of functions and classes in the pickles of a file, except those of tensors."""
    try:
        return list(dict.fromkeys(name for data in _pickles(path) for name in _names_in(data)))
    except (OSError, zipfile.BadZipFile, ValueError, IndexError, KeyError, RuntimeError):
        return []


def _pickles(path: Path) -> list[bytes]:
    if not zipfile.is_zipfile(path):
        return [path.read_bytes()]
    with zipfile.ZipFile(path) as archive:
        return [archive.read(name) for name in archive.namelist() if name.endswith("data.pkl")]


def _names_in(data: bytes) -> list[str]:
    """Names of the globals in a sequence of pickles, read without running them."""
    names, texts, stream = [], ["", ""], io.BytesIO(data)
    try:
        while stream.tell() < len(data):
            for code, argument, _ in pickletools.genops(stream):
                if code.name == "GLOBAL":
                    names.append(str(argument).replace(" ", "."))
                elif code.name == "STACK_GLOBAL":
                    names.append(".".join(texts[-2:]))  # the last two strings are module and name
                elif isinstance(argument, str):
                    texts.append(argument)
    except (ValueError, IndexError, OverflowError):
        pass  # in torch's legacy format the raw bytes of tensors follow
    return [name for name in names if not _is_of_tensors(name)]


def _is_of_tensors(name: str) -> bool:
    """Return True for a name that an ordinary state_dict refers to."""
    module, _, last = name.rpartition(".")
    if module == "torch":
        return last.endswith("Storage") or isinstance(
            getattr(torch, last, None), (torch.dtype, type)
        )
    return module in _TENSORS or name in _PLAIN
