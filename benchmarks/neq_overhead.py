"""Cost of NEq in a training in which nothing can be won, everything included.

    SNELLO_DATA=DATA python benchmarks/neq_overhead.py lenet5 --out overhead.json

Trains one small network again and again, plain and with a selective update in turns, each pair with
a seed of its own: CPU seconds of the whole loop with the construction of the update, its probe,
hooks, masks and decisions. With ``only_if_faster`` no mask is applied that a measured step does not
gain from. Ratio: median over the pairs, with the interval that holds the median of all such
trainings at 96 % (second smallest to second largest of nine).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from snello.equilibrium import Selection, SelectiveUpdate, Stochastic, Velocity
from snello.files import write_text
from snello.lab.datasets import load_dataset
from snello.store import build
from snello.timing import cpu_seconds, take_turns

NETWORKS = {"lenet300": ("lenet-300-100", 64), "lenet5": ("lenet-5", 100)}
SELECTIONS: dict[str, Callable[[], Selection]] = {
    "NEq": lambda: Velocity(1e-3),
    "NEq, ε 0.05": lambda: Velocity(0.05),
    "Stochastic(0.5)": lambda: Stochastic(0.5),
}


def train(
    network: str, pixels: Tensor, labels: Tensor, epochs: int, seed: int, rule: Selection | None
) -> tuple[float, str]:
    """CPU seconds of a training, and what the update says at its end."""
    torch.manual_seed(seed)
    name, batch = NETWORKS[network]
    model = build(name, classes=10)
    began = cpu_seconds()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    update = None
    if rule is not None:
        update = SelectiveUpdate(model, optimizer, pixels[:50], rule, only_if_faster=True)
    for _ in range(epochs):
        for index in torch.randperm(len(pixels)).split(batch):
            optimizer.zero_grad()
            F.cross_entropy(model(pixels[index]), labels[index]).backward()
            optimizer.step()
        if update is not None:
            update.step()
    seconds = cpu_seconds() - began
    status = "" if update is None else str(update.status())
    if update is not None:
        update.remove()
    return seconds, status


def line(row: dict[str, Any]) -> str:
    """A row of the page's table."""
    (low, high), plain = row["interval"], statistics.median(plain for plain, _ in row["pairs"])
    return f"| {row['rule']} | {plain:.1f} | {row['ratio']:.3f} | {low:.3f} to {high:.3f} |"


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("network", choices=tuple(NETWORKS))
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--rules", nargs="+", choices=tuple(SELECTIONS), default=list(SELECTIONS))
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(given)
    torch.set_num_threads(1)
    images = load_dataset("mnist", validation=0.1, seed=0).train.subset(range(options.images))
    pixels, labels = images.pixels.float() / 255, images.labels
    data = options.network, pixels, labels, options.epochs
    train(options.network, pixels[:500], labels[:500], 1, 0, SELECTIONS["NEq"]())  # first calls
    rows: list[dict[str, Any]] = []
    for name in options.rules:
        seeds = {"plain": count(), "update": count()}

        def measure(kind: str, name: str = name, seeds: Any = seeds) -> tuple[float, str]:
            rule = SELECTIONS[name]() if kind == "update" else None
            found = train(*data, next(seeds[kind]), rule)
            print(name, kind, f"{found[0]:.2f}", flush=True)
            return found

        found = take_turns(tuple(seeds), measure, options.pairs)
        pairs = [(p, w) for (p, _), (w, _) in zip(found["plain"], found["update"], strict=True)]
        status = found["update"][-1][1]
        ratios = sorted(w / p for p, w in pairs)
        rows.append({"rule": name, "pairs": pairs, "ratio": statistics.median(ratios),
                     "interval": [ratios[1], ratios[-2]], "status": status})  # fmt: skip
    result = {
        "network": options.network, "epochs": options.epochs, "images": options.images, "rows": rows,
        "threads": 1, "torch": torch.__version__, "load": os.getloadavg()[0],
        "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip
    write_text(options.out, json.dumps(result, indent=1))
    print(*map(line, rows), sep="\n")


if __name__ == "__main__":
    main()
