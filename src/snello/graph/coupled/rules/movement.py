"""Operations that move values: views, slices, concatenations, padding."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from snello.graph.coupled.labels import Axis
from snello.graph.coupled.run import Run, Shadow

from .base import (
    argument,
    others_kept,
    rule,
    together_except,
)


@rule("view", "_unsafe_view", "reshape", "_reshape_alias", "reshape_copy", "view_copy")
def view(run: Run, args: Any, kwargs: Any, out: Any) -> Shadow:
    if isinstance(args[1], torch.dtype):
        return run.of(args[0])
    return reshaped(run, args[0], out.shape)


def reshaped(run: Run, x: Tensor, shape: Sequence[int]) -> Shadow:
    """Labels after a view; attributes with the new sizes are noted, as the view may use them."""
    shadow = run.of(x)
    axes = tuple(run.labels.reshape(shadow.axes, x.shape, shape))
    if tuple(x.shape) != tuple(shape):
        for axis in axes:
            run.mirror(axis)
    return Shadow(axes, shadow.weight)


@rule("permute")
def permute(run: Run, args: Any, kwargs: Any, out: Any) -> Shadow:
    shadow = run.of(args[0])
    return Shadow(tuple(shadow.axes[i] for i in args[1]), shadow.weight)


@rule("transpose", "t", "swapaxes")
def transpose(run: Run, args: Any, kwargs: Any, out: Any) -> Shadow:
    shadow = run.of(args[0])
    axes = list(shadow.axes)
    if len(axes) > 1:
        i, j = args[1:3] if len(args) > 1 else (0, 1)
        axes[i], axes[j] = axes[j], axes[i]
    return Shadow(tuple(axes), shadow.weight)


@rule("expand", "broadcast_to")
def expand(run: Run, args: Any, kwargs: Any, out: Any) -> Shadow:
    shadow, x = run.of(args[0]), args[0]
    axes: list[Axis] = []
    for i in range(-out.dim(), 0):
        inside = x.dim() >= -i
        if inside and x.shape[i] == out.shape[i]:
            axes.append(shadow.axes[i])
        else:
            axes.append((-1,) * out.shape[i])
    return Shadow(tuple(axes), shadow.weight)


@rule("unsqueeze")
def unsqueeze(run: Run, args: Any, kwargs: Any, out: Any) -> Shadow:
    shadow = run.of(args[0])
    axes = list(shadow.axes)
    axes.insert(args[1] % out.dim(), None)
    return Shadow(tuple(axes), shadow.weight)


@rule("squeeze")
def squeeze(run: Run, args: Any, kwargs: Any, out: Any) -> Shadow:
    shadow, x = run.of(args[0]), args[0]
    dims = range(x.dim()) if len(args) == 1 else args[1]
    gone = {i % x.dim() for i in ([dims] if isinstance(dims, int) else dims)}
    kept = [i for i in range(x.dim()) if i not in gone or x.shape[i] != 1]
    return Shadow(tuple(shadow.axes[i] for i in kept), shadow.weight)


@rule("slice", "narrow")
def slice_(run: Run, args: Any, kwargs: Any, out: Any) -> Shadow:
    x = args[0]
    dim = argument(args, kwargs, 1, "dim", 0) % x.dim()
    start = argument(args, kwargs, 2, "start", None)
    end, step = argument(args, kwargs, 3, "end", None), argument(args, kwargs, 4, "step", 1)
    shadow = run.of(x)
    axis = shadow.axes[dim]
    part = axis and axis[start:end:step]
    if axis is not None and part != axis:
        run.mirror(part)
        if start:
            run.mirror(axis[:start])
    return Shadow((*shadow.axes[:dim], part, *shadow.axes[dim + 1 :]), shadow.weight)


@rule("select")
def select(run: Run, args: Any, kwargs: Any, out: Any) -> Shadow:
    shadow = run.of(args[0])
    dim = args[1] % len(shadow.axes)
    run.labels.pin(shadow.axes[dim], run.reason("one index is selected"))
    return Shadow(shadow.axes[:dim] + shadow.axes[dim + 1 :], shadow.weight)


@rule("unbind")
def unbind(run: Run, args: Any, kwargs: Any, out: Any) -> list[Shadow]:
    shadow = run.of(args[0])
    dim = argument(args, kwargs, 1, "dim", 0) % len(shadow.axes)
    run.labels.pin(shadow.axes[dim], run.reason("an axis is taken apart"))
    one = Shadow(shadow.axes[:dim] + shadow.axes[dim + 1 :], shadow.weight)
    return [one for _ in out]


@rule("split", "split_with_sizes", "chunk", "split_copy", "split_with_sizes_copy")
def split(run: Run, args: Any, kwargs: Any, out: Any) -> list[Shadow]:
    shadow = run.of(args[0])
    dim = argument(args, kwargs, 2, "dim", 0) % len(shadow.axes)
    axis, start, result = shadow.axes[dim], 0, []
    if len({x.shape[dim] for x in out}) == 1:
        run.labels.balance(axis, len(out), run.reason("a split into parts"))
    for part in out:
        stop = start + part.shape[dim]
        labels = axis and axis[start:stop]
        run.mirror(labels)
        axes = (*shadow.axes[:dim], labels, *shadow.axes[dim + 1 :])
        result.append(Shadow(axes, shadow.weight))
        start = stop
    return result


@rule("glu")
def glu(run: Run, args: Any, kwargs: Any, out: Any) -> Shadow:
    """The first half along an axis, times the sigmoid of the second."""
    shadow = run.of(args[0])
    dim = argument(args, kwargs, 1, "dim", -1) % out.dim()
    axis, width, why = shadow.axes[dim], out.shape[dim], run.reason("a gate")
    run.labels.balance(axis, 2, why)
    half = axis and run.labels.unify(axis[:width], axis[width:], why)
    return Shadow((*shadow.axes[:dim], half, *shadow.axes[dim + 1 :]), shadow.weight)


@rule("cat", "concatenate")
def cat(run: Run, args: Any, kwargs: Any, out: Any) -> Shadow:
    parts = [x for x in args[0] if x.dim() == out.dim()]
    dim = argument(args, kwargs, 1, "dim", 0) % out.dim()
    others = together_except(run, parts, dim)
    axes = [run.of(x).axes[dim] or (0,) * x.shape[dim] for x in parts]
    joined = tuple(label for axis in axes for label in axis)
    weight = all(run.of(x).weight for x in parts)
    return Shadow((*others[:dim], joined if any(joined) else None, *others[dim + 1 :]), weight)


@rule("stack")
def stack(run: Run, args: Any, kwargs: Any, out: Any) -> Shadow:
    dim = argument(args, kwargs, 1, "dim", 0) % out.dim()
    axes = together_except(run, args[0], -1)
    return Shadow((*axes[:dim], None, *axes[dim:]), all(run.of(x).weight for x in args[0]))


@rule("repeat")
def repeat(run: Run, args: Any, kwargs: Any, out: Any) -> Shadow:
    x, times = args[0], args[1]
    shadow = run.of(x)
    axes: list[Axis] = [*[None] * (len(times) - x.dim()), *shadow.axes]
    sizes = [1] * (len(times) - x.dim()) + list(x.shape)
    for i, (n, size) in enumerate(zip(times, sizes, strict=True)):
        axis = axes[i]
        if n > 1:
            axes[i] = (-1,) * n if size == 1 else axis and axis * n
    return Shadow(tuple(axes), shadow.weight)


@rule("flip")
def flip(run: Run, args: Any, kwargs: Any, out: Any) -> Shadow:
    shadow = run.of(args[0])
    axes = list(shadow.axes)
    for dim in args[1]:
        axis = axes[dim]
        axes[dim] = axis and axis[::-1]
    return Shadow(tuple(axes), shadow.weight)


@rule("roll")
def roll(run: Run, args: Any, kwargs: Any, out: Any) -> Shadow:
    dims = argument(args, kwargs, 2, "dims", [])
    return others_kept(run, args[0], dims or range(args[0].dim()), "roll")


@rule("constant_pad_nd", "reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "replication_pad1d",
      "replication_pad2d", "replication_pad3d", "_pad_circular")  # fmt: skip
def pad(run: Run, args: Any, kwargs: Any, out: Any) -> Shadow:
    x, widths = args[0], list(args[1])
    shadow = run.of(x)
    axes = list(shadow.axes)
    for i in range(len(widths) // 2):
        axis, left, right = axes[-1 - i], widths[2 * i], widths[2 * i + 1]
        if axis is not None and (left or right):
            inner = axis[max(0, -left) : len(axis) - max(0, -right)]
            axes[-1 - i] = (0,) * max(0, left) + inner + (0,) * max(0, right)
    return Shadow(tuple(axes), shadow.weight)


def circular_pad(run: Run, function: Any, args: Any, kwargs: Any) -> Tensor:
    """Run circular padding, and label its output."""
    x, widths = args[0], args[1] if len(args) > 1 else kwargs["pad"]
    out: Tensor = function(*args, **kwargs)
    dims = [x.dim() - 1 - i // 2 for i, width in enumerate(widths) if width]
    run.keep(out, others_kept(run, x, dims, "circular padding"))
    return out


@rule("unfold")
def unfold(run: Run, args: Any, kwargs: Any, out: Any) -> Shadow:
    kept = others_kept(run, args[0], [args[1]], "unfold")
    return Shadow((*kept.axes, None), kept.weight)


@rule("im2col")
def im2col(run: Run, args: Any, kwargs: Any, out: Any) -> Shadow:
    axes = run.of(args[0]).axes
    channels = axes[-3]
    spread = channels and tuple(label for label in channels for _ in range(prod(args[1])))
    run.labels.pin(axes[-1], run.reason("positions"))
    return Shadow((*axes[:-3], spread, None))


@rule("col2im")
def col2im(run: Run, args: Any, kwargs: Any, out: Any) -> Shadow:
    x = args[0]
    channels = run.of(x).axes[-2]
    rows = run.labels.split(channels, [out.shape[-3], prod(args[2])])
    run.labels.pin(rows[1], run.reason("positions"))
    return Shadow((*run.of(x).axes[:-2], rows[0], None, None))


@rule("pixel_shuffle")
def pixel_shuffle(run: Run, args: Any, kwargs: Any, out: Any) -> Shadow:
    return _shuffle(run, args[0], args[1], out, out.shape[-3])


@rule("pixel_unshuffle")
def pixel_unshuffle(run: Run, args: Any, kwargs: Any, out: Any) -> Shadow:
    axes = run.of(args[0]).axes
    channels = axes[-3]
    spread = channels and tuple(label for label in channels for _ in range(args[1] ** 2))
    return Shadow((*axes[:-3], spread, None, None))


def _shuffle(run: Run, x: Tensor, factor: int, out: Tensor, channels: int) -> Shadow:
    axes = run.of(x).axes
    rows, inner = run.labels.split(axes[-3], [channels, factor**2])
    run.labels.pin(inner, run.reason("channels become positions"))
    return Shadow((*axes[:-3], rows, None, None))


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(run: Run, args: Any, kwargs: Any, out: Any) -> Shadow:
    axes = run.of(args[0]).axes
    groups, size = args[1], args[0].shape[1]
    rows, columns = run.labels.split(axes[1], [groups, size // groups])
    run.labels.pin(rows, run.reason("channel_shuffle"))
    merged = run.labels.merge([columns, rows], [size // groups, groups])
    return Shadow((axes[0], merged, *axes[2:]))
