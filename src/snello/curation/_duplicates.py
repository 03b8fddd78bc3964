"""Samples that a network cannot tell from one another."""

from __future__ import annotations

import torch
from torch import Tensor

from snello.errors import DataError, check_option

_CHUNK = 1024


@torch.no_grad()
def near_duplicates(features: Tensor, count: int = 20) -> tuple[Tensor, Tensor]:
    """The pairs of samples with the most similar features.

    Args:
        features: `(N, F)`, such as the inputs of a trained network's last layer. All pairs are
            compared, N² F multiplications, in chunks of 1024 rows.
        count: number of pairs.

    Returns:
        Pairs of indices, int64 `(K, 2)`, the smaller first, with K the smaller of `count` and
        the number of pairs; and their cosine similarities, `(K,)`, falling. A sample without any
        feature, all zero, is like none.

    Raises:
        ConfigError: for a count below 1, or features of another shape.
        DataError: for features that are not finite, whose similarities would not be numbers.
    """
    check_option(count >= 1, f"count is a number of pairs, at least 1, not {count}")
    check_option(
        features.dim() >= 2, f"features must have the shape (N, F), not {tuple(features.shape)}"
    )
    wrong = int((~features.flatten(1).isfinite().all(1)).sum())
    if wrong:
        raise DataError(f"the features of {wrong} of {len(features)} samples are not finite")
    unit = torch.nn.functional.normalize(features.flatten(1).float(), dim=1)
    pairs = torch.empty(0, 2, dtype=torch.int64, device=unit.device)
    found = torch.empty(0, device=unit.device)
    for start in range(0, len(unit), _CHUNK):
        rows = unit[start : start + _CHUNK]
        similar = rows @ unit[start:].T
        # Only pairs whose second index is the larger one.
        first, second = torch.tril_indices(*similar.shape, device=unit.device)
        similar[first, second] = -2.0
        values, places = similar.flatten().topk(min(count, similar.numel()))
        width = len(unit) - start
        new = torch.stack([places // width, places % width], 1) + start
        found, pairs = torch.cat([found, values]), torch.cat([pairs, new])
        found, order = found.sort(descending=True, stable=True)
        pairs = pairs[order][:count]
        found = found[:count]
    real = found > -1.5  # not of the masked half
    return pairs[real].cpu(), found[real].cpu()
