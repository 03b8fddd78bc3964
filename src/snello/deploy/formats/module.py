"""Exported files as modules, to be evaluated like the network that they were exported from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import final

import torch
from torch import Tensor, nn

from snello.deploy._verify import flat

from .registry import format_of


@final
class FileModel(nn.Module):
    """Module that runs an exported file on the CPU and returns its first output.

    >>> FileModel(export(model, x, "net.onnx"))(x).shape
    torch.Size([1, 10])

    Args:
        path: the file, of a format in :data:`snello.deploy.FORMATS`.
        threads: number of threads of the runtime.

    Raises:
        ModelError: if the file is missing or damaged.
        ConfigError: for an unknown suffix.
        MissingExtraError: without the runtime.
    """

    def __init__(self, path: str | os.PathLike[str], threads: int = 1) -> None:
        super().__init__()
        self._bind = format_of(path).opened(Path(path), threads)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Compute the first output; the batch is dimension 0 of every input."""
        with torch.no_grad():
            return flat(self._bind(inputs)())[0]
