"""The training dynamics of every sample, from which all static scores are computed."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from snello.errors import ConfigError, DataError, check_option
from snello.processes import meet, rank_and_size, sum_on_cpu


@dataclass(frozen=True, eq=False, repr=False)
class Recording:
    """Outputs of a network for every sample and epoch; NaN where a sample was not seen.

    Attributes:
        probability: of the label, $p_y$, float32 `(T, N)`.
        margin: $p_y$ less the largest other probability, float32 `(T, N)`; positive where
            the network was right.
        error: norm of softmax − one-hot label, float32 `(T, N)`.
        labels: int64 `(N,)`; −1 for samples that were never seen.
        seconds: wall-clock time of the training that was recorded.
        presentations: samples that it trained on, over all epochs.
    """

    probability: Tensor
    margin: Tensor
    error: Tensor
    labels: Tensor
    seconds: float
    presentations: int

    @property
    def epochs(self) -> int:
        """Number T of recorded epochs."""
        return len(self.probability)

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"Recording({len(self)} samples, {self.epochs} epochs, {self.seconds:.1f} s)"


class Recorder:
    """Record the outputs of a training, for scores of its samples.

    With several processes each has one, for its own samples.

    >>> import torch
    >>> recorder = Recorder(4)
    >>> for epoch in range(3):
    ...     index, labels = torch.arange(4), torch.tensor([0, 1, 0, 1])
    ...     recorder.record(torch.eye(2)[labels] * epoch, labels, index)   # every batch
    ...     recorder.step()                                                # every epoch
    >>> recorder.recording()
    Recording(4 samples, 3 epochs, 0.0 s)

    Args:
        samples: length N of the dataset.

    Raises:
        ConfigError: for fewer than one.
    """

    def __init__(self, samples: int) -> None:
        check_option(
            samples >= 1, f"samples is the length of the dataset, at least 1, not {samples}"
        )
        self._labels = torch.full((samples,), -1, dtype=torch.int64)
        self._epochs: list[Tensor] = []
        self._batches: list[tuple[Tensor, Tensor, Tensor]] = []
        self._started, self._seconds = time.perf_counter(), 0.0

    @torch.no_grad()
    def record(self, logits: Tensor, labels: Tensor, index: Tensor) -> None:
        """Note the outputs of a batch; of training batches, since they cost no further forward.

        Args:
            logits: `(B, C)`, before the softmax.
            labels: int64 `(B,)`.
            index: indices of the samples, `(B,)`.

        Raises:
            ConfigError: for other shapes or types, or fewer than two classes.
        """
        if (
            logits.dim() != 2
            or logits.shape[1] < 2
            or not labels.shape == index.shape == logits.shape[:1]
        ):
            raise ConfigError(
                f"logits {tuple(logits.shape)}, labels {tuple(labels.shape)}, index {tuple(index.shape)}: expected "
                "(B, C), (B,), (B,), with at least two classes"
            )
        if any(t.dtype == torch.bool or t.is_floating_point() for t in (labels, index)):
            raise ConfigError(f"labels ({labels.dtype}) and index ({index.dtype}) must be integers")
        # Copies: buffers may be used again for the next batch, as with CUDA graphs.
        labels = labels.detach().to(logits.device).long().clone()
        index = index.detach().long().clone()
        wrong = (labels < 0) | (labels >= logits.shape[1])
        self._batches.append(
            (
                _figures(logits.detach(), labels.masked_fill(wrong, 0)),
                labels.masked_fill(wrong, -1),
                index,
            )
        )

    def step(self) -> None:
        """End an epoch; every process has to call it.

        Raises:
            DataError: if nothing was recorded since the last one, or an index or a label is out of
                range.
        """
        if not self._batches and rank_and_size()[1] == 1:
            raise DataError(
                "no batch was recorded in this epoch: call record() for each, then step()"
            )
        row = torch.full((3, len(self._labels)), torch.nan)
        for figures, labels, index in self._batches:
            self._put(row, figures.cpu(), labels.cpu(), index.cpu())
        self._batches = []
        self._epochs.append(_shared(row))
        self._seconds = time.perf_counter() - self._started

    def _put(self, row: Tensor, figures: Tensor, labels: Tensor, index: Tensor) -> None:
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < len(self._labels):
            raise DataError(
                f"the index has {int(index.min())} … {int(index.max())}, and the recorder was made for "
                f"{len(self._labels)} samples: give it the length of the dataset"
            )
        if len(labels) and int(labels.min()) < 0:
            raise DataError(
                f"{int((labels < 0).sum())} labels of a batch are none of the classes of the logits: from 0, and "
                "below their number"
            )
        row[:, index] = figures
        self._labels[index] = labels

    def recording(self) -> Recording:
        """Everything recorded so far.

        Raises:
            DataError: before the first [`step`][snello.curation.Recorder.step].
        """
        if not self._epochs:
            raise DataError(
                "nothing is recorded: call record() for every batch and step() after every epoch"
            )
        probability, margin, error = torch.stack(self._epochs, 1)
        labels = _shared_labels(self._labels)
        seen = int(probability.isfinite().sum())
        return Recording(probability, margin, error, labels, self._seconds, seen)


def _figures(logits: Tensor, labels: Tensor) -> Tensor:
    """Probability of the label, margin and error norm: float32 `(3, B)`."""
    probabilities = logits.float().softmax(1)
    own = probabilities.gather(1, labels.view(-1, 1)).squeeze(1)
    others = probabilities.scatter(1, labels.view(-1, 1), -1.0).amax(1)
    # ‖p − onehot‖² = Σ p² − 2 p_y + 1 cancels where p_y is close to 1.
    error = probabilities.scatter_add(1, labels.view(-1, 1), -torch.ones_like(own).view(-1, 1))
    return torch.stack([own, own - others, error.norm(dim=1)])


def _shared(row: Tensor) -> Tensor:
    """One epoch of all processes; each sample was seen by one of them."""
    if rank_and_size()[1] == 1:
        return row
    meet("Recorder.step")
    seen = row.isfinite()
    both = torch.stack([seen.float(), row.nan_to_num(nan=0.0)])
    count, total = sum_on_cpu(both)
    return torch.where(count > 0, total / count, torch.nan)


def _shared_labels(labels: Tensor) -> Tensor:
    if rank_and_size()[1] == 1:
        return labels.clone()
    meet("Recorder.recording")
    seen = labels >= 0
    both = torch.stack([seen.long(), torch.where(seen, labels, 0)])
    count, total = sum_on_cpu(both)
    return torch.where(count > 0, total // count.clamp(min=1), -1)
