"""Features of samples in files or in memory, and checksums of what they were computed from."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from snello.errors import ConfigError
from snello.files import is_full

from ._sketch import GOLDEN


@dataclass(frozen=True)
class Feature:
    """One output of the layers at rest.

    Attributes:
        shape: its shape without the batch.
        dtype: dtype in which it is computed.
        order: its dimensions from the outermost to the innermost in memory.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    order: tuple[int, ...]

    @classmethod
    def of(cls, output: Tensor) -> Feature:
        """The feature of a batch of outputs."""
        strides = output.stride()[1:]
        # Sorting is stable: equal strides of dimensions of one entry stay in order.
        order = sorted(range(len(strides)), key=lambda i: -strides[i])
        return cls(tuple(output.shape[1:]), output.dtype, tuple(order))

    @property
    def entries(self) -> int:
        """Number of entries of one sample."""
        return torch.Size(self.shape).numel()

    def stored_as(self, dtype: torch.dtype | None) -> torch.dtype:
        """Dtype of its entries in a store of another dtype: whole numbers are stored as they are."""
        return dtype if dtype is not None and self.dtype.is_floating_point else self.dtype


class FeatureStore:
    """Features of each sample of a dataset, in the memory layout in which they are computed.

    Files that are already in the folder are used again. A sample counts as stored from the moment
    its checksum is, which is written last: a process may be killed at any time.

    Args:
        place: a folder of its own, which is made, for memory-mapped files; or the device in whose
            memory they are.
        samples: number of samples of the dataset.
        features: the features of a sample.
        dtype: dtype to store instead of their own; see `Feature.stored_as`.

    Raises:
        OSError: if the disk or the memory has no room for all of them.
    """

    def __init__(
        self,
        place: Path | torch.device,
        samples: int,
        features: Sequence[Feature],
        dtype: torch.dtype | None,
    ) -> None:
        if isinstance(place, Path):
            place.mkdir(exist_ok=True)
        self._features = tuple(features)
        self._tensors = tuple(
            _zeros(place, f"{i}.bin", samples * feature.entries, feature.stored_as(dtype)).view(
                samples, *(feature.shape[axis] for axis in feature.order)
            )
            for i, feature in enumerate(features)
        )
        # Compared on the CPU, also where the features are not.
        checksums = place if isinstance(place, Path) else torch.device("cpu")
        self._checksums = _zeros(checksums, "samples.bin", samples, torch.int64)

    @property
    def stored(self) -> int:
        """Number of samples whose features are stored."""
        return int(self._checksums.count_nonzero())

    def has(self, where: Tensor, checksums: Tensor) -> bool:
        """Return true if the features of all these samples are stored.

        Args:
            where: indices of the samples, shape (B,).
            checksums: checksum of each sample, shape (B,).

        Raises:
            ConfigError: if a sample is another one than when its features were stored.
        """
        known = self._checksums[where]
        if torch.equal(known, checksums):
            return True
        other = ((known != 0) & (known != checksums)).nonzero().flatten()
        if len(other):
            raise ConfigError(
                f"index: sample {int(where[other[0]])} is another one than when its features were stored, by a "
                "random augmentation as it seems: features can be kept only if a sample depends on its index "
                "alone; turn the augmentation off, seed it by the index, or set limit=0 to compute features "
                "every time"
            )
        return False  # some are not stored yet

    def write(self, where: Tensor, checksums: Tensor, values: Sequence[Tensor]) -> None:
        """Store the features of some samples.

        Raises:
            ConfigError: for two samples with one index, unless they are the same.
        """
        for store, feature, value in zip(self._tensors, self._features, values, strict=True):
            axes = (0, *(axis + 1 for axis in feature.order))
            store[where.to(store.device)] = value.detach().permute(axes).to(store)
        self._checksums[where] = checksums
        self.has(where, checksums)

    def read(self, where: Tensor, device: torch.device) -> tuple[Tensor, ...]:
        """Features of some samples, in the dtype and layout in which they were computed."""
        found = []
        for store, feature in zip(self._tensors, self._features, strict=True):
            back = (0, *(feature.order.index(axis) + 1 for axis in range(len(feature.order))))
            chosen = store.index_select(0, where.to(store.device))
            value = chosen.to(device=device, dtype=feature.dtype)
            found.append(value.permute(back))
        return tuple(found)


def _zeros(place: Path | torch.device, name: str, entries: int, dtype: torch.dtype) -> Tensor:
    """A tensor of shape (entries,), zero where it is new: of a file in a folder, or in memory."""
    if isinstance(place, torch.device):
        try:
            return torch.zeros(entries, dtype=dtype, device=place)
        except RuntimeError as error:  # CUDA's OutOfMemoryError is one
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)) from error
    path, size = place / name, entries * dtype.itemsize
    with path.open("ab") as file:
        _reserve(file.fileno(), size, path)
    return torch.from_file(str(path), shared=True, size=entries, dtype=dtype)


def _reserve(file: int, size: int, path: Path) -> None:
    """Make room for a file: a disk that fills up later would kill the process (SIGBUS)."""
    if not hasattr(os, "posix_fallocate"):
        if shutil.disk_usage(path.parent).free < size - path.stat().st_size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return
    try:
        os.posix_fallocate(file, 0, size)
    except OSError as error:
        if is_full(error):
            raise  # others say that the file system cannot reserve


_POSITIONS = 1024
"""Entries of a sample that its checksum depends on."""
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_MULTIPLIER = -7046029254386353131  # 2 ** 64 / golden ratio, as a signed number


def checksums_of(args: Sequence[Tensor]) -> Tensor:
    """Checksum of every sample of a batch, never zero, shape (B,).

    It depends on up to 1024 entries of each input, spread evenly, and on their positions.
    """
    batch = len(args[0])
    first, *others = (_checksums(_some(arg.detach().reshape(batch, -1))) for arg in args)
    for other in others:
        first = 31 * first + other
    return first.cpu() | 1


def _some(rows: Tensor) -> Tensor:
    if rows.shape[1] <= _POSITIONS:
        return rows
    return rows.index_select(1, _positions(rows.shape[1], rows.device))


@lru_cache(8)
def _positions(entries: int, device: torch.device) -> Tensor:
    turns = torch.arange(_POSITIONS, dtype=torch.float64) * GOLDEN % 1
    return (turns * entries).long().to(device)


@lru_cache(8)
def _weights(entries: int, device: torch.device) -> Tensor:
    return torch.arange(1, entries + 1, device=device) * _MULTIPLIER


def _checksums(rows: Tensor) -> Tensor:
    """Sum of the bits of each row as integers, weighted by their positions, modulo 2^64."""
    if rows.is_complex():
        rows = torch.view_as_real(rows).flatten(1)
    whole = rows.contiguous().view(_INTEGERS[rows.element_size()]).long()
    return (whole * _weights(rows.shape[1], rows.device)).sum(1)


def digest_of(facts: object, tensors: Iterable[Tensor]) -> str:
    """Name of a set of tensors: equal if their values, and the facts as text, are."""
    found = hashlib.sha256(repr(facts).encode())
    for tensor in tensors:
        found.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        # In pieces, because the checksum takes eight bytes for every entry.
        for piece in tensor.detach().reshape(1, -1).split(2**20, dim=1):  # type: ignore[no-untyped-call]
            found.update(str(int(_checksums(piece))).encode())
    return found.hexdigest()[:16]


def system_start() -> str:
    """Name of the present start of the operating system; empty where the system has none.

    Mapped files survive a killed process, but after a crash of the machine any part of them may be
    missing.
    """
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
