"""Time of the backward pass with part of the neurons frozen, against the plain backward, side by
side.

    python benchmarks/neq_backward.py --threads 1 --out runs/bench/neq_backward.json \\
        --page runs/bench/neq_backward.md
    python benchmarks/neq_backward.py --models resnet-32 --layouts channels_last --shares 0.5 --repeats 5
    python benchmarks/neq_backward.py --device cuda --bf16 --layouts channels_last \\
        --page runs/bench/neq_gpu.md

- random: the same share of the neurons of every layer is frozen, at random; the head never is.
- prefix: the first layers are frozen whole, BatchNorm and LayerNorm included, until they hold that
  share of the neurons. Nothing is computed below the first layer that still learns.

At 0 % nothing is frozen but everything is installed. At 100 % all layers but the head are frozen.

Plain and sparse backward of the same model on the same batch run in turns, and who goes first
alternates; times are medians with the 10th and 90th percentile, after one warm-up of each, in which
the sparse one also measures where slicing pays. "bound" is the ratio of FLOPs if every frozen row
and nothing else were left out; "executed" is the ratio of the FLOPs that really run; "paper" is
what the convention of the NEq paper would report, which counts one of the two products of a
backward pass.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from latency import place
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from snello.equilibrium import SelectiveUpdate, Stochastic, backward_flops, time_backward
from snello.equilibrium._dispatch import Decision, Dispatch, Work
from snello.files import write_text
from snello.store import build

SHARES = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)
FORMATS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass(frozen=True)
class Case:
    batch: int
    shape: tuple[int, ...]
    classes: int
    arguments: dict[str, Any]


MODELS = {
    "lenet-5": Case(100, (1, 28, 28), 10, {}),
    "resnet-32": Case(128, (3, 32, 32), 10, {}),
    "resnet18": Case(16, (3, 224, 224), 1000, {"weights": None}),
    "resnet50": Case(8, (3, 224, 224), 1000, {"weights": None}),
    "swin_t": Case(4, (3, 224, 224), 1000, {"weights": None}),
    "deeplabv3_resnet50": Case(
        2,
        (3, 128, 128),
        21,
        {"weights": None, "weights_backbone": None, "aux_loss": True, "num_classes": 21},
    ),
}
DEFAULT = tuple(name for name in MODELS if name != "resnet50")  # minutes per row on one core


class Everything(Dispatch):
    """Slices wherever anything is frozen: for counting what could be left out, not for speed."""

    def decision(self, work: Work) -> Decision:
        return Decision(sliced=True)


def main(given: list[str] | None = None) -> None:
    options = arguments(given)
    torch.set_num_threads(options.threads)
    rows: list[dict[str, Any]] = []
    print(HEADER)
    for name in options.models:
        for layout in options.layouts:
            rows += measure(name, layout, options)
    if options.out:
        record = {"environment": environment(options), "rows": rows}
        write_text(options.out, json.dumps(record, indent=1) + "\n")
    if options.page:
        write_text(options.page, page(rows, options))


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(DEFAULT))
    parser.add_argument("--layouts", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--shares", nargs="+", type=float, default=SHARES)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, help="instead of each model's own")
    parser.add_argument("--side", type=int, help="of the image, instead of each model's own")
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true", help="under autocast to bfloat16")
    parser.add_argument("--out", type=Path, help="write the numbers here as JSON")
    parser.add_argument("--page", type=Path, help="write the table here as Markdown")
    return parser.parse_args(given)


def measure(name: str, layout: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    case = MODELS[name]
    model = build(name, **case.arguments).to(options.device, memory_format=FORMATS[layout])
    shape = case.shape if options.side is None else (case.shape[0], options.side, options.side)
    x = torch.randn(options.batch or case.batch, *shape, device=options.device)
    x = x.to(memory_format=FORMATS[layout])
    y = targets(model, x, case.classes)
    dense = backward_flops(model, x, lambda output: loss_fn(output, y))
    method = SelectiveUpdate(
        model, torch.optim.SGD(model.parameters(), lr=0.1), x[:2], Stochastic(0.0)
    )
    rows = []
    for kind in options.kinds:
        for share in options.shares:
            if kind != "random" and share in (0.0, 1.0):
                continue  # the same as random
            torch.manual_seed(1)
            method.apply(KINDS[kind](method, share))
            # The decisions depend on the dtype, so that FLOPs are counted under the same autocast.
            with torch.autocast(x.device.type, torch.bfloat16) if options.bf16 else nullcontext():
                timing = time_backward(method, x, y, loss_fn, options.repeats)
                ideal = flops_with(method, Everything(), x, y)
                executed = flops_with(method, method.freezer.dispatch, x, y)
            row = {
                "model": name,
                "layout": layout,
                "kind": kind,
                "frozen": share,
                "batch": len(x),
                "shape": list(x.shape[1:]),
                **vars(timing),
                "time": timing.ratio,
                "bound": ideal / dense.total,
                "executed": executed / dense.total,
                "paper": method.status().flops / method.status().dense_flops,
            }
            rows.append(row)
            print(line(row), flush=True)
    return rows


def flops_with(method: SelectiveUpdate, dispatch: Dispatch, x: Tensor, y: Tensor) -> int:
    """FLOPs of the backward when these decisions are taken."""
    before, method.freezer.dispatch = method.freezer.dispatch, dispatch
    masks = method.frozen
    method.apply(masks)
    try:
        return backward_flops(method.model, x, lambda output: loss_fn(output, y)).total
    finally:
        method.freezer.dispatch = before
        method.apply(masks)


def targets(model: nn.Module, x: Tensor, classes: int) -> Tensor:
    with torch.no_grad():
        output = model(x[:2])
    shape = output["out"].shape[2:] if isinstance(output, dict) else ()
    return torch.randint(classes, (len(x), *shape), device=x.device)


def loss_fn(output: Any, y: Tensor) -> Tensor:
    """Cross-entropy; of a segmentation network with half of its auxiliary head's, as in
    torchvision's reference.
    """
    if isinstance(output, dict):
        return cross_entropy(output["out"], y) + 0.5 * cross_entropy(output["aux"], y)
    return cross_entropy(output, y)


def at_random(method: SelectiveUpdate, share: float) -> dict[str, Tensor]:
    """The share of every layer, drawn anew."""
    masks = {}
    for name, mask in method.frozen.items():
        frozen = torch.zeros_like(mask)
        frozen[torch.randperm(len(mask))[: int(share * len(mask))]] = True
        masks[name] = frozen
    return masks


def from_below(method: SelectiveUpdate, share: float) -> dict[str, Tensor]:
    """Whole layers, from the first on, while they hold no more than the share of the neurons."""
    masks = method.frozen
    left = share * sum(map(len, masks.values()))
    whole = {}
    for name, mask in masks.items():
        left -= len(mask)
        if left < 0:
            break
        whole[name] = torch.ones_like(mask)
    return whole


KINDS: dict[str, Callable[[SelectiveUpdate, float], dict[str, Tensor]]] = {
    "random": at_random,
    "prefix": from_below,
}
HEADER = (
    f"{'model':<19} {'layout':<14} {'kind':<7} {'frozen':>6} {'dense ms':>26} {'sparse ms':>26} "
    f"{'time':>6} {'bound':>6} {'executed':>8} {'paper':>6}"
)


def line(row: dict[str, Any]) -> str:
    times = " ".join(
        f"{row[f'{k}_ms']:>8.1f} [{row[f'{k}_p10']:.1f}-{row[f'{k}_p90']:.1f}]".rjust(26)
        for k in ("dense", "sparse")
    )
    return (
        f"{row['model']:<19} {row['layout']:<14} {row['kind']:<7} {row['frozen']:>6.0%} {times} "
        f"{row['time']:>6.2f} {row['bound']:>6.2f} {row['executed']:>8.2f} {row['paper']:>6.2f}"
    )


def page(rows: list[dict[str, Any]], options: argparse.Namespace) -> str:
    """The table as Markdown."""
    where = environment(options)
    lines = [
        "| Network | Layout | Frozen | Share | Plain [ms] | Sparse [ms] | Time | Bound | Executed | Paper |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        plain, sparse = (
            f"{row[f'{k}_ms']:.1f} ({row[f'{k}_p10']:.1f}-{row[f'{k}_p90']:.1f})"
            for k in ("dense", "sparse")
        )
        lines.append(
            f"| {row['model']} | {row['layout']} | {row['kind']} | {row['frozen']:.0%} | {plain} | {sparse} | "
            f"{row['time']:.2f} | {row['bound']:.2f} | {row['executed']:.2f} | {row['paper']:.2f} |"
        )
    batches = ", ".join(f"{name} {options.batch or MODELS[name].batch}" for name in options.models)
    lines += [
        "",
        f"Median (p10-p90) of {options.repeats} backward passes of each, in turns; {where['device']}, "
        f"{where['threads']} thread(s), {where['precision']}, torch {where['torch']}; batch: {batches}.",
    ]
    return "\n".join(lines) + "\n"


def environment(options: argparse.Namespace) -> dict[str, Any]:
    precision = "bf16" if options.bf16 else "float32"
    return {
        "device": place(options.device),
        "threads": options.threads,
        "torch": torch.__version__,
        "precision": precision,
        "repeats": options.repeats,
    }


if __name__ == "__main__":
    main()
