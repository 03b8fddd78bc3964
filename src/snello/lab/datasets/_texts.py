"""Immutable list of strings stored in tensors, for millions of file names."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


class Texts:
    """An immutable list of strings in two tensors.

    ImageNet has 1.3 million paths. As Python strings they take 200 MB, and every worker process
    copies their memory pages, because reading a Python object writes its reference count. The
    memory of a tensor stays shared.

    >>> texts = Texts(["a/b.jpg", "c.jpg"])
    >>> texts[1], len(texts.subset(torch.tensor([1, 1, 0])))
    ('c.jpg', 3)
    """

    def __init__(self, texts: Iterable[str]) -> None:
        # File names may be invalid UTF-8: Python decodes them with "surrogateescape".
        encoded = [text.encode("utf-8", "surrogateescape") for text in texts]
        self._bytes = torch.frombuffer(
            bytearray(b"".join(encoded)) or bytearray(1), dtype=torch.uint8
        )
        self._ends = torch.tensor([len(text) for text in encoded], dtype=torch.int64).cumsum(0)
        self._chosen = torch.arange(len(encoded))

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: int) -> str:
        place = int(self._chosen[index])
        start = int(self._ends[place - 1]) if place else 0
        text = bytes(self._bytes[start : int(self._ends[place])].tolist())
        return text.decode("utf-8", "surrogateescape")

    def subset(self, indices: Tensor) -> Texts:
        """The texts at the given indices (int64, 1-D), in that order; the bytes are shared."""
        other = object.__new__(Texts)
        other._bytes, other._ends, other._chosen = self._bytes, self._ends, self._chosen[indices]
        return other
