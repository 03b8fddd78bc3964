"""Cost of moving channels against that of computing them: the constants of simplify's
cost model.

    python benchmarks/index_operations.py --threads 1 --out runs/bench/index_operations.json

Nanoseconds per element (of the wider tensor, or of the operand that is added by index), and per
multiply-accumulate, for batch 1 in float32. Medians; all operations of a shape in turns in one run.
``snello.simplify(..., prefer="latency")`` keeps a dead neuron where moving costs more than
computing.

Grouped convolutions come in microseconds per call, for several widths of a group: a ragged
convolution is laid out in groups of the next width that is fast.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from snello.files import write_text
from snello.lab.reporting import Table, show
from snello.timing import spread_of, take_turns, timed

IMAGES = ((64, 56), (256, 56), (256, 14), (512, 7))
TOKENS = ((3136, 96), (196, 768))
GROUPED = ((26, 28), (26, 14), (55, 7))  # groups, size
WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8, 13, 16, 23, 24, 30, 32)


def images(channels: int, size: int) -> dict[str, tuple[Callable[[], Tensor], int]]:
    """Operations on (1, channels, size, size), each with the number that its time is divided by."""
    x, half = torch.randn(1, channels, size, size), torch.randn(1, channels // 2, size, size)
    some, order = torch.randperm(channels)[: channels // 2], torch.randperm(channels)
    pointwise, spatial = (
        torch.randn(channels, channels, 1, 1),
        torch.randn(channels, channels, 3, 3),
    )
    stats = torch.zeros(channels), torch.ones(channels)
    elements = x.numel()
    return {
        "index_add_": (lambda: x.index_add_(1, some, half), half.numel()),
        "index_select": (lambda: x.index_select(1, order), elements),
        "cat": (lambda: torch.cat([half, half], 1), elements),
        "BatchNorm": (lambda: F.batch_norm(x, *stats), elements),
        "ReLU": (lambda: F.relu(x), elements),
        "conv 1x1, MAC": (lambda: F.conv2d(x, pointwise), elements * channels),
        "conv 3x3, MAC": (lambda: F.conv2d(x, spatial, padding=1), elements * channels * 9),
    }


def tokens(length: int, channels: int) -> dict[str, tuple[Callable[[], Tensor], int]]:
    """The same on (1, length, channels)."""
    x, half, wide = (torch.randn(1, length, n) for n in (channels, channels // 2, 4 * channels))
    some = torch.randperm(channels)[: channels // 2]
    gather = torch.randint(0, channels // 2 + 1, (channels,))
    weight = torch.randn(channels, 4 * channels)
    return {
        "index_add_": (lambda: x.index_add_(2, some, half), half.numel()),
        "index_select": (lambda: F.pad(half, (0, 1)).index_select(2, gather), x.numel()),
        "cat": (lambda: torch.cat([half, half], 2), x.numel()),
        "linear, MAC": (lambda: F.linear(wide, weight), wide.numel() * channels),
    }


def grouped(groups: int, size: int) -> dict[str, tuple[Callable[[], Tensor], int]]:
    """3x3 convolutions of some groups, each as wide in as out; per call, in units of a
    microsecond.
    """

    def operation(width: int) -> Callable[[], Tensor]:
        x, weight = (
            torch.randn(1, groups * width, size, size),
            torch.randn(groups * width, width, 3, 3),
        )
        return lambda: F.conv2d(x, weight, padding=1, groups=groups)

    return {f"3x3 in groups of {width}, us per call": (operation(width), 1000) for width in WIDTHS}


def measure(
    operations: dict[str, tuple[Callable[[], Tensor], int]], repeats: int
) -> dict[str, float]:
    """Median nanoseconds per element or multiply-accumulate."""
    with torch.inference_mode():
        times = take_turns(
            [*operations], lambda name: timed(operations[name][0])[1], repeats, warmup=3
        )
    return {
        name: 1e9 * spread_of(times[name]).median / count for name, (_, count) in operations.items()
    }


def main() -> None:
    """Measure, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    result = {f"{c} x {s} x {s}": measure(images(c, s), options.repeats) for c, s in IMAGES}
    result |= {f"{n} tokens x {c}": measure(tokens(n, c), options.repeats) for n, c in TOKENS}
    result |= {
        f"{g} groups, {s} x {s}": measure(grouped(g, s), options.repeats) for g, s in GROUPED
    }
    rows = tuple(
        (shape, name, f"{value:.3f}")
        for shape, times in result.items()
        for name, value in times.items()
    )
    note = f"cpu, {options.threads} thread(s), batch 1, float32, {options.repeats} repeats, median"
    show(
        Table(
            "Nanoseconds per element, or per multiply-accumulate",
            ("shape", "operation", "ns"),
            rows,
            note,
        )
    )
    if options.out:
        text = json.dumps({"conditions": note, "nanoseconds": result}, indent=1)
        write_text(options.out, text)


if __name__ == "__main__":
    main()
