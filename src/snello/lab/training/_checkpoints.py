"""A trainer's checkpoints as sealed files in the run folder: no other folder is written to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch.plugins.io import CheckpointIO

from snello.store import archives


class SealedCheckpoints(CheckpointIO):
    """Write and read the checkpoints of a Lightning trainer with :mod:`snello.store.archives`.

    Lightning's own writer goes by way of a file in ``$TMPDIR`` and replaces the old checkpoint
    before anybody has read the new one.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Write a checkpoint; the one before stays until this one has been read back."""
        archives.save(path, checkpoint)

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint, whose digest is compared."""
        checkpoint: dict[str, Any] = archives.load(path, map_location or "cpu")
        return checkpoint

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a file, if it is there."""
        Path(path).unlink(missing_ok=True)


def epochs_in(checkpoint: dict[str, Any]) -> int:
    """Number of epochs in a checkpoint of Lightning, which is written at the end of one."""
    return int(checkpoint["epoch"]) + 1
