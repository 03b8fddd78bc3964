"""Samples of a dataset: distributions of their scores, and sheets of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from snello.lab.datasets import Splits, loader

from ._plots import blank, saved

_COLUMNS = 8


def plot_scores(scores: Mapping[str, Tensor], path: Path, title: str) -> Path:
    """Histograms of scores, one below the other.

    Args:
        scores: name -> `(N,)`.
        path: of the PNG file.
        title: of the figure.
    """
    figure = blank(7, 2.2 * len(scores))
    axes = figure.subplots(len(scores), 1, squeeze=False)[:, 0]
    for axis, (name, values) in zip(axes, scores.items(), strict=True):
        finite = values[values.isfinite()].tolist()
        axis.hist(finite, bins=min(50, max(len(set(finite)), 1)))
        axis.set(xlabel=name, ylabel="samples", yscale="log")
    axes[0].set_title(title)
    return saved(figure, path, dpi=110)


def contact_sheet(
    splits: Splits, indices: Sequence[int], captions: Sequence[str], path: Path, title: str
) -> Path:
    """Images of the training part with captions, eight in a row.

    Args:
        splits: the dataset.
        indices: of the images, in order.
        captions: one for each.
        path: of the PNG file.
        title: of the sheet.
    """
    part = splits.train.subset(torch.as_tensor(indices))
    batches = loader(part, replace(splits, order="rgb"), 64)
    images = torch.cat([images for images, _ in batches])
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (splits.mean, splits.std))
    shown = (images * std + mean).clamp(0, 1).permute(0, 2, 3, 1)
    rows = -(-len(indices) // _COLUMNS)
    figure = blank(1.25 * _COLUMNS, 1.6 * rows + 0.4)
    figure.suptitle(title, fontsize=10)
    axes = figure.subplots(rows, _COLUMNS, squeeze=False).flatten()
    for axis in axes:
        axis.set_axis_off()
    for axis, image, caption in zip(axes, shown, captions, strict=False):
        picture = image[..., 0].tolist() if image.shape[-1] == 1 else image.tolist()
        axis.imshow(picture, cmap="gray" if image.shape[-1] == 1 else None)
        axis.set_title(caption, fontsize=6)
    return saved(figure, path, dpi=130)
