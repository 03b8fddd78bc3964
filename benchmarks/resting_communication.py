"""Bytes that two processes average in a training step with layers at rest, and time of the step.

    python benchmarks/resting_communication.py --out resting_communication.json

ResNet-32 on random images of CIFAR's size in two gloo processes of one thread, wrapped in
DistributedDataParallel. Rows: all layers trained; stem and first two stages at rest (the wrapper
still averages their zeros); the same behind a FeatureCache, whose layers behind the cut are wrapped
on their own, with the front computed and with its features stored. The rows take turns; bytes are
those of the profiler's all-reduce events, times are medians over the turns.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import ProfilerActivity, profile

from snello.equilibrium import FeatureCache, Prefix, SelectiveUpdate
from snello.files import write_text
from snello.lab.models import CifarResNet

LAYERS = 42 / 62
"""Share of the watched layers in the stem and the first two stages."""


def training(rest: bool, limit: int | None) -> Callable[[Tensor, Tensor, Tensor], None]:
    """One step of a training, as a function of images, labels and indices."""
    torch.manual_seed(0)
    model = CifarResNet(32)
    wrapped = DistributedDataParallel(model, find_unused_parameters=rest)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    forward: Callable[[Tensor, Tensor], Tensor] = lambda x, _: wrapped(x)  # noqa: E731
    if rest:
        update = SelectiveUpdate(
            wrapped, optimizer, torch.randn(8, 3, 32, 32), Prefix(lambda _: LAYERS)
        )
        update.step()
        if limit is not None:
            forward = FeatureCache(update, 64, limit=limit, measured=False)

    def step(x: Tensor, y: Tensor, index: Tensor) -> None:
        optimizer.zero_grad()
        cross_entropy(forward(x, index), y).backward()
        optimizer.step()

    return step


ROWS: dict[str, tuple[bool, int | None]] = {
    "all layers trained": (False, None),
    "two stages at rest": (True, None),
    "two stages at rest, cut": (True, 0),
    "two stages at rest, features stored": (True, 2**32),
}


def sent(step: Callable[..., None], *batch: Tensor) -> int:
    """Bytes averaged in a step."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as found:
        step(*batch)
    shapes = [e.input_shapes[0] for e in found.events() if e.name == "gloo:all_reduce"]
    return 4 * sum(math.prod(s[0] if isinstance(s[0], list) else s) for s in shapes)


def process(rank: int, options: argparse.Namespace, store: str) -> None:
    """One of the two."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{store}", rank=rank, world_size=2)
    steps = {name: training(*row) for name, row in ROWS.items()}
    x, y = torch.randn(64, 3, 32, 32), torch.randint(10, (64,))
    index = torch.arange(options.batch)
    batch = x[: options.batch], y[: options.batch], index
    for step in steps.values():  # the first step makes buckets and features
        step(*batch)
        step(*batch)
    bytes_of = {name: sent(step, *batch) for name, step in steps.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(options.turns):
        for name, step in steps.items():
            distributed.barrier()
            began = time.perf_counter()
            step(*batch)
            times[name].append(time.perf_counter() - began)
    if rank == 0:
        rows: list[dict[str, Any]] = [
            {"row": n, "bytes": bytes_of[n], "ms": 1e3 * statistics.median(t),
             "quartiles": [1e3 * q for q in statistics.quantiles(t, n=4)[::2]]}
            for n, t in times.items()
        ]  # fmt: skip
        result = {
            "batch": options.batch,
            "turns": options.turns,
            "torch": torch.__version__,
            "rows": rows,
        }
        write_text(options.out, json.dumps(result, indent=1))
        print(json.dumps(result, indent=1))
    distributed.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=32, help="images of one process")
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--out", type=Path, required=True)
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(process, (parser.parse_args(), f"{folder}/store"), nprocs=2)


if __name__ == "__main__":
    main()
