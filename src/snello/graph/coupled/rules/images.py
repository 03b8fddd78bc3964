"""Pooling, resampling and regions of images."""

from __future__ import annotations

from typing import Any

from snello.graph.coupled.run import Run, Shadow

from .base import (
    RULES,
    Rule,
    rule,
    tensors_in,
)


def _spatial(count: int) -> Rule:
    def spatial(run: Run, args: Any, kwargs: Any, out: Any) -> list[Shadow]:
        axes = run.of(args[0]).axes
        for axis in axes[-count:]:
            run.labels.pin(axis, run.reason("positions of an image"))
        return [Shadow((*axes[:-count], *[None] * count)) for _ in tensors_in(out)]

    return spatial


for _n in (1, 2, 3):
    for _name in (
        f"max_pool{_n}d_with_indices", f"max_pool{_n}d", f"avg_pool{_n}d", f"_adaptive_avg_pool{_n}d",
        f"adaptive_avg_pool{_n}d", f"adaptive_max_pool{_n}d", f"upsample_nearest{_n}d",
        f"_upsample_nearest_exact{_n}d", "mkldnn_max_pool2d",
    ):  # fmt: skip
        RULES[_name] = _spatial(_n)
for _name in (
    "upsample_bilinear2d",
    "upsample_bicubic2d",
    "_upsample_bilinear2d_aa",
    "_upsample_bicubic2d_aa",
):
    RULES[_name] = _spatial(2)
RULES["upsample_linear1d"], RULES["upsample_trilinear3d"] = _spatial(1), _spatial(3)


@rule("grid_sampler_2d", "grid_sampler", "grid_sampler_3d")
def grid_sampler(run: Run, args: Any, kwargs: Any, out: Any) -> Shadow:
    axes = run.of(args[0]).axes
    return Shadow((*axes[:2], *[None] * (out.dim() - 2)))


@rule("roi_align", "roi_pool")
def roi_align(run: Run, args: Any, kwargs: Any, out: Any) -> list[Shadow]:
    channels = run.of(args[0]).axes[1]
    return [Shadow((None, channels, None, None)) for _ in tensors_in(out)]
