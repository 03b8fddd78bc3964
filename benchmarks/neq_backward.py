"""Time of the backward pass with part of the neurons frozen, against the plain backward, side by side.

    python benchmarks/neq_backward.py --threads 1 --batch 100 --repeats 20 --out neq_backward.json

The same share of every layer is frozen at random (the head never). Dense and sparse backward of the same
model on the same batch are interleaved; times are medians after one warm-up, with the 10th and 90th
percentile. Beside the time stand the FLOPs that the sparse backward executes, relative to the dense one, and
the ratio that the convention of the NEq paper would report.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from snello.equilibrium import SelectiveUpdate, Stochastic, backward_flops, time_backward
from snello.models import build

MODELS = {"lenet-5": (1, 28, 28), "resnet-32": (3, 32, 32)}
SHARES = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)
FORMATS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    rows = []
    print(f"{'model':<10} {'layout':<14} {'frozen':>6} {'dense ms':>22} {'sparse ms':>22}", end=" ")
    print(f"{'time':>6} {'FLOPs':>6} paper")
    for name in options.models:
        for layout in options.layouts:
            for share in SHARES:
                row = measure(name, layout, share, options)
                rows.append(row)
                print(line(row), flush=True)
    if options.out:
        record = {"environment": environment(options), "rows": rows}
        write(options.out, json.dumps(record, indent=2) + "\n")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--layouts", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="write the numbers here as JSON")
    return parser.parse_args()


def measure(name: str, layout: str, share: float, options: argparse.Namespace) -> dict[str, Any]:
    memory_format = FORMATS[layout]
    model = build(name).to(options.device, memory_format=memory_format)
    x = torch.randn(options.batch, *MODELS[name], device=options.device).to(memory_format=memory_format)
    y = torch.randint(10, (options.batch,), device=options.device)
    dense_flops = backward_flops(model, x)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = SelectiveUpdate(model, optimizer, x[:2], Stochastic(share))
    paper = method.step()
    timing = time_backward(method, x, y, nn.functional.cross_entropy, options.repeats)
    return {
        "model": name,
        "layout": layout,
        "frozen": share,
        "batch": options.batch,
        **vars(timing),
        "time_ratio": timing.ratio,
        "executed_flops_ratio": backward_flops(model, x).total / dense_flops.total,
        "paper_flops_ratio": paper.flops / paper.dense_flops,
    }


def line(row: dict[str, Any]) -> str:
    times = "".join(
        f" {row[f'{kind}_ms']:>8.2f} [{row[f'{kind}_p10']:.2f}-{row[f'{kind}_p90']:.2f}]".ljust(23)
        for kind in ("dense", "sparse")
    )
    ratios = f"{row['time_ratio']:>6.2f} {row['executed_flops_ratio']:>6.2f} {row['paper_flops_ratio']:>5.2f}"
    return f"{row['model']:<10} {row['layout']:<14} {row['frozen']:>6.0%}{times} {ratios}"


def environment(options: argparse.Namespace) -> dict[str, Any]:
    device = torch.cuda.get_device_name() if options.device.startswith("cuda") else platform.machine()
    return {"device": device, "threads": options.threads, "torch": torch.__version__, "warm_up": 1}


def write(path: Path, text: str) -> None:
    """Written beside and renamed, so that no half-written file is ever seen."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        file.write(text)
    os.replace(file.name, path)


if __name__ == "__main__":
    main()
