"""The last loss of every sample, collected without waiting for the device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, distributed

from snello.errors import ConfigError, check_state
from snello.processes import rank_and_size, sum_on_cpu

BATCH_SMOOTHING = 0.8
"""Share of the past where a batch's mean loss stands for its samples' losses."""


class LossScores:
    """Scores of samples: their last loss, or a running average of losses.

    Args:
        samples: length N of the dataset.
        smoothing: share of the past in the average, in [0, 1); None: 0 for losses of samples, 0.8
            for those of batches.
        window: number of batches whose mean loss a sample is compared with; None: none is.
    """

    def __init__(self, samples: int, smoothing: float | None, window: int | None) -> None:
        self._smoothing, self._window = smoothing, window
        self._values = torch.full((samples,), torch.nan, dtype=torch.float64)
        self._easy = torch.zeros(samples, dtype=torch.bool)
        self._fresh = torch.zeros(samples, dtype=torch.bool)
        self._waiting: list[tuple[Tensor, Tensor]] = []
        self._open: list[tuple[Tensor, Tensor]] = []

    def __len__(self) -> int:
        return len(self._values)

    def add(self, losses: Tensor, index: Tensor) -> None:
        """Take the losses of one batch, `(B,)` or the mean `()`, and the indices `(B,)`.

        Raises:
            ConfigError: for indices outside of the dataset; of indices on a device only when the
                scores are read.
        """
        if index.device.type == "cpu":
            self._check(index)
        # Reading them now would stall the device at every step. Copies, since buffers may be used
        # again for the next batch, as with CUDA graphs.
        self._waiting.append((index.detach().clone(), losses.detach().clone()))

    def _check(self, index: Tensor) -> None:
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < len(self):
            raise ConfigError(
                f"index has {int(index.min())} … {int(index.max())}, and the dataset has {len(self)} samples: give "
                "the index of the batch as the DataLoader yields it"
            )

    @property
    def values(self) -> Tensor:
        """Scores, float64 `(N,)`; NaN for samples that have not been seen."""
        self._fold()
        return self._values

    @property
    def easy(self) -> Tensor:
        """Samples whose last loss was below the mean of its window, bool `(N,)`."""
        self._fold()
        return self._easy

    def _fold(self) -> None:
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        sizes = [len(index) for index, _ in waiting]
        index = torch.cat([index.cpu().long() for index, _ in waiting])
        self._check(index)
        losses = _gathered([loss for _, loss in waiting], sizes)
        for (_, given), places, values in zip(
            waiting, torch.split(index, sizes), torch.split(losses, sizes), strict=True
        ):
            # Not a number, or infinite where a loss scaler overflowed: the step is skipped as well.
            finite = values.isfinite()
            self._update(places[finite], values[finite], whole_batch=given.dim() == 0)

    def _update(self, places: Tensor, losses: Tensor, *, whole_batch: bool) -> None:
        smoothing = self._smoothing
        if smoothing is None:
            smoothing = BATCH_SMOOTHING if whole_batch else 0.0
        old = self._values[places]
        mixed = torch.where(old.isnan(), losses, smoothing * old + (1 - smoothing) * losses)
        self._values[places], self._fresh[places] = mixed, True
        if self._window is not None:
            self._open.append((places, mixed))
            if len(self._open) >= self._window:
                self._close_window()

    def _close_window(self) -> None:
        places, losses = (torch.cat(parts) for parts in zip(*self._open, strict=True))
        self._open = []
        if len(losses):
            self._easy[places] = losses < losses.mean()
            # The scores themselves may have been shared since.
            self._fresh[places] = True

    def end_epoch(self) -> None:
        """Close the last window, and share what the processes have seen."""
        self._fold()
        if self._open:
            self._close_window()
        self.share()

    def share(self) -> None:
        """Give every process the scores of all; each has to call it.

        Every sample is seen by one process per epoch, so the sum of what is new is the new score.
        """
        self._fold()
        if rank_and_size()[1] == 1:
            self._fresh.zero_()
            return
        fresh = self._fresh
        new = torch.stack([
            fresh.double(), torch.where(fresh, self._values, 0.0), (fresh & self._easy).double()
        ])  # fmt: skip
        count, total, easy = sum_on_cpu(new)
        seen = count > 0
        self._values[seen] = (total / count)[seen]
        self._easy[seen] = (easy / count)[seen] > 0.5
        fresh.zero_()

    def state_dict(self) -> dict[str, Any]:
        """Scores, and the windows that are open on each process; each has to call it."""
        self.share()
        size = rank_and_size()[1]
        windows: list[Any] = [list(self._open)] * size
        if size > 1:
            distributed.all_gather_object(windows, self._open)
        return {"values": self._values.clone(), "easy": self._easy.clone(), "windows": windows}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore scores.

        Raises:
            ConfigError: for another number of samples, and for anything but a state of scores.
        """
        check_state(
            state, {"values": Tensor, "easy": Tensor}, "LossScores", {"windows": list[list[object]]}
        )
        if not state["values"].shape == state["easy"].shape == self._values.shape:
            raise ConfigError(
                f"the state has scores of {len(state['values'])} samples, the dataset has {len(self)}: "
                "resume with the dataset that the run began with"
            )
        self._waiting = []
        self._values = state["values"].cpu().double().clone()
        self._easy = state["easy"].cpu().clone()
        self._fresh = torch.zeros_like(self._easy)
        windows, (rank, size) = state.get("windows", []), rank_and_size()
        # On another number of processes the epoch begins again.
        self._open = list(windows[rank]) if len(windows) == size else []

    def __getstate__(self) -> dict[str, Any]:
        self._fold()  # losses on a GPU cannot be sent to worker processes
        return vars(self).copy()


def _gathered(losses: list[Tensor], sizes: list[int]) -> Tensor:
    """Losses of all samples, float64 on the CPU, in one transfer."""
    flat = [
        loss.expand(size) if loss.dim() == 0 else loss
        for loss, size in zip(losses, sizes, strict=True)
    ]
    return (
        torch.cat([loss.float() if loss.dtype.itemsize < 4 else loss for loss in flat])
        .cpu()
        .double()
    )
