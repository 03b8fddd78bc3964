"""Scores of samples from the dynamics of one training."""

from __future__ import annotations

import torch
from torch import Tensor

from snello.errors import DataError, check_option

from ._recorder import Recording


def el2n(recording: Recording, epochs: int = 10) -> Tensor:
    r"""Error norm $\mathrm{E}\,\|p - \mathrm{onehot}(y)\|_2$; large for hard samples.

    Args:
        recording: of one training.
        epochs: number of first epochs whose mean is taken; fewer if fewer were recorded.

    Returns:
        `(N,)`, NaN for samples that were not seen.

    Source: Paul, Ganguli, Dziugaite, "Deep learning on a data diet", NeurIPS 2021,
    https://arxiv.org/abs/2107.07075, where it is averaged over networks; as in CCS, one network and
    its first epochs here.
    """
    check_option(epochs >= 1, f"epochs must be at least 1, not {epochs}")
    return recording.error[:epochs].nanmean(0)


def forgetting(recording: Recording) -> Tensor:
    """Number of times that a sample was classified and then, when next seen, was not.

    Samples that were never classified have the number of epochs, which no other can reach.

    Returns:
        `(N,)`, NaN for samples that were not seen.

    Source: Toneva et al., "An empirical study of example forgetting", ICLR 2019,
    https://arxiv.org/abs/1812.05159 (there infinite for samples never classified).
    """
    margin = recording.margin
    seen, right = margin.isfinite(), margin > 0
    counts = torch.zeros(len(recording))
    before = torch.zeros(len(recording), dtype=torch.bool)  # right when last seen
    for now_seen, now_right in zip(seen, right, strict=True):
        counts += now_seen & before & ~now_right
        before = torch.where(now_seen, now_right, before)
    counts[~right.any(0)] = recording.epochs
    counts[~seen.any(0)] = torch.nan
    return counts


def aum(recording: Recording) -> Tensor:
    r"""Area under the margin: mean over epochs of $p_y - \max_{k \ne y} p_k$.

    Small for hard samples, smallest for wrong labels.

    Returns:
        `(N,)` in [−1, 1], NaN for samples that were not seen.

    Source: Pleiss et al., "Identifying mislabeled data using the area under the margin ranking",
    NeurIPS 2020, https://arxiv.org/abs/2001.10528 (there of logits); of probabilities as in CCS.
    The mean instead of the sum compares samples that were not seen equally often.
    """
    return recording.margin.nanmean(0)


def dual(recording: Recording, window: int = 10) -> Tensor:
    """Difficulty times uncertainty, early in the training.

    Mean over windows of J epochs of std(p_y) × (1 − mean(p_y)); large for samples that are hard and
    still move.

    Args:
        recording: of a short training, all samples in every epoch.
        window: J, in epochs.

    Returns:
        `(N,)`.

    Raises:
        ConfigError: for a window below 2 or longer than the recording.
        DataError: if a sample was not seen in every epoch.

    Source: Cho et al., "Lightweight dataset pruning without full training via example difficulty
    and prediction uncertainty", ICML 2025, https://arxiv.org/abs/2502.06905 (J=10, 30 epochs).
    """
    check_option(
        2 <= window <= recording.epochs,
        f"window={window} must lie between 2 and the recorded epochs, {recording.epochs}",
    )
    probability = recording.probability
    missed = int((~probability.isfinite()).any(0).sum())
    if missed:
        raise DataError(
            f"{missed} samples were not seen in every epoch: record a training without pruning"
        )
    total = torch.zeros(len(recording))
    starts = range(recording.epochs - window + 1)
    for start in starts:  # unfolded at once, it would take J times the memory
        part = probability[start : start + window]
        total += part.std(0) * (1 - part.mean(0))
    return total / len(starts)


def noise(recording: Recording) -> Tensor:
    """Suspicion of a wrong label: −AUM. Large where the network believes another class throughout.

    Returns:
        `(N,)`, NaN for samples that were not seen.
    """
    return -aum(recording)
