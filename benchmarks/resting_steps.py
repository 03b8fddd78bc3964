"""Time of a training step with the first layers at rest, and with their features stored.

    python benchmarks/resting_steps.py --out steps.json

Random weights and inputs; AdamW. For each share of the layers: the plain step, the step with the
layers at rest, and with their features stored (each sample has been seen once). The three take turns;
CPU seconds on one thread, medians and quartiles.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from snello.equilibrium import FeatureCache, Prefix, SelectiveUpdate
from snello.files import write_text
from snello.graph import tensors_of
from snello.lab.models import CifarResNet
from snello.timing import cpu_seconds, take_turns

SAMPLES = 64
Built = tuple[nn.Module, tuple[Tensor, ...]]


def resnet() -> Built:
    return CifarResNet(32), (torch.randn(SAMPLES, 3, 32, 32),)


def vit() -> Built:
    config = transformers.ViTConfig(
        hidden_size=192, num_hidden_layers=12, num_attention_heads=3, intermediate_size=768, num_labels=10
    )  # fmt: skip
    return transformers.ViTForImageClassification(config), (torch.randn(SAMPLES, 3, 224, 224),)


def bert() -> Built:
    config = transformers.BertConfig(
        hidden_size=256, num_hidden_layers=8, num_attention_heads=4, intermediate_size=1024, vocab_size=5000
    )  # fmt: skip
    words = torch.randint(5000, (SAMPLES, 128))
    return transformers.BertForSequenceClassification(config), (words, torch.ones_like(words))


MODELS: dict[str, tuple[str, int, Callable[[], Built]]] = {
    "resnet-32": ("ResNet-32, 32 pixels", 32, resnet),
    "vit": ("ViT-Tiny of transformers, 224 pixels", 8, vit),
    "bert": ("BERT of transformers, 8 layers of 256, 128 tokens", 8, bert),
}


def steps(build: Callable[[], Built], share: float, batch: int) -> dict[str, Any]:
    """The three steps by name, each with the next batch, and the cache."""
    found: dict[str, Any] = {}
    for row in ("plain", "at rest", "stored"):
        torch.manual_seed(0)
        model, inputs = build()
        model.train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        forward: Callable[..., object] = lambda x, _where, model=model: model(*x)  # noqa: E731
        if row != "plain":
            update = SelectiveUpdate(model, optimizer, tuple(x[:4] for x in inputs), Prefix(share))
            update.step()
        if row == "stored":
            forward = found["cache"] = FeatureCache(update, SAMPLES, measured=False)

        batches = cycle(torch.arange(SAMPLES).split(batch))

        def step(
            forward: Any = forward, inputs: Any = inputs, optimizer: Any = optimizer, batches: Any = batches
        ) -> float:  # fmt: skip
            where = next(batches)
            chosen = tuple(x[where] for x in inputs)
            began = cpu_seconds()
            optimizer.zero_grad()
            tensors_of(forward(chosen, where))[0].square().mean().backward()
            optimizer.step()
            return cpu_seconds() - began

        found[row] = step
    return found


def measured(name: str, share: float, turns: int) -> dict[str, Any]:
    label, batch, build = MODELS[name]
    found = steps(build, share, batch)
    cache = found.pop("cache")
    # Every feature is stored after the first rounds.
    times = take_turns(tuple(found), lambda row: found[row](), turns, warmup=SAMPLES // batch)
    status = cache.status
    cache.close()
    medians = {row: statistics.median(values) for row, values in times.items()}
    return {
        "model": label, "share": share, "batch": batch, "plain_ms": 1e3 * medians["plain"],
        "ratios": {row: value / medians["plain"] for row, value in medians.items() if row != "plain"},
        "quartiles_ms": {r: [1e3 * q for q in statistics.quantiles(v, n=4)[::2]] for r, v in times.items()},
        "last": status.layers[-1:], "bytes_per_sample": status.bytes_per_sample,
    }  # fmt: skip


def line(row: dict[str, Any]) -> str:
    """A row of the page's table."""
    ratios, kib = row["ratios"], row["bytes_per_sample"] / 2**10
    return (
        f"| {row['model']} | {row['share']:.0%} | {row['plain_ms']:.0f} | {ratios['at rest']:.2f} | "
        f"{ratios['stored']:.2f} | {kib:.0f} |"
    )


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--models", nargs="+", choices=tuple(MODELS), default=list(MODELS))
    parser.add_argument("--shares", nargs="+", type=float, default=[0.25, 0.5, 0.75])
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(given)
    torch.set_num_threads(1)
    rows = []
    for name in options.models:
        for share in options.shares:
            rows.append(measured(name, share, options.turns))
            print(line(rows[-1]), flush=True)
    result = {
        "rows": rows, "turns": options.turns, "threads": 1, "torch": torch.__version__,
        "transformers": transformers.__version__, "load": os.getloadavg()[0], "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip
    write_text(options.out, json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
