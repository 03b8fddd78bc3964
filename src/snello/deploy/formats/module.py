"""Exported files as modules, to be evaluated like the network that they were exported from."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import final

import torch
from torch import Tensor, nn

from snello.deploy._verify import flat

from .registry import format_of


@final
class FileModel(nn.Module):
    """Module that runs an exported file on the CPU and returns its first output.

    Any batch is accepted: a file with a fixed batch is run several times.

    >>> FileModel(export(model, x, "net.onnx"))(x).shape
    torch.Size([1, 10])

    Args:
        path: the file, of a format in [`snello.deploy.FORMATS`][snello.deploy.formats.FORMATS].
        threads: number of threads of the runtime.

    Raises:
        ModelError: if the file is missing or damaged.
        ConfigError: for an unknown suffix.
        MissingExtraError: without the runtime.
    """

    def __init__(self, path: str | os.PathLike[str], threads: int = 1) -> None:
        super().__init__()
        format, path = format_of(path), Path(path)
        self._bind = format.opened(path, threads)
        self._batch = None if format.any_batch else len(format.inputs_of(path)[0])

    def forward(self, *inputs: Tensor) -> Tensor:
        """Compute the first output; the batch is dimension 0 of every input."""
        with torch.no_grad():
            if self._batch is None:
                return flat(self._bind(inputs)())[0]
            return torch.cat([self._chunk(part) for part in _chunks(inputs, self._batch)])

    def _chunk(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Outputs of at most a batch of the file's fixed size; the last sample fills it up."""
        assert self._batch is not None
        count = len(inputs[0])
        filled = tuple(
            torch.cat([x, x[-1:].expand(self._batch - count, *x.shape[1:])]) for x in inputs
        )
        return flat(self._bind(filled)())[0][:count].clone()


def _chunks(inputs: tuple[Tensor, ...], batch: int) -> Iterator[tuple[Tensor, ...]]:
    return zip(*(torch.split(x, batch) for x in inputs), strict=True)
