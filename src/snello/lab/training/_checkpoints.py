"""Lightning checkpoints as files with a digest, written inside the run folder only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch.plugins.io import CheckpointIO

from snello.store import archives


class SealedCheckpoints(CheckpointIO):
    """Write and read the checkpoints of a Lightning trainer with [`snello.store.archives`][].

    Lightning's own writer needs room in `$TMPDIR` and replaces the old checkpoint before the new
    one is known to be readable.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Write a checkpoint; the previous one is kept until the new one has been read back."""
        archives.save(path, checkpoint)

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint and verify its digest."""
        checkpoint: dict[str, Any] = archives.load(path, map_location or "cpu")
        return checkpoint

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a checkpoint file if it exists."""
        Path(path).unlink(missing_ok=True)


def epochs_in(checkpoint: dict[str, Any]) -> int:
    """Number of finished epochs in a Lightning checkpoint, written at the end of an epoch."""
    return int(checkpoint["epoch"]) + 1
