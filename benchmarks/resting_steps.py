"""Time of a training step with the first layers at rest, and with their features stored.

    python benchmarks/resting_steps.py --out steps.json
    python benchmarks/resting_steps.py --device cuda --bf16 --batch 128 --out steps.json

Random weights and inputs; AdamW. For each share of the layers: the plain step, the step with the
layers at rest, and with their features stored (each sample has been seen once). The three take turns;
CPU seconds on one thread, or those of the wall clock of a GPU; medians and quartiles.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from latency import place
from torch import Tensor, nn

from snello.equilibrium import FeatureCache, Prefix, SelectiveUpdate
from snello.files import write_text
from snello.graph import tensors_of
from snello.lab.models import CifarResNet
from snello.timing import take_turns, work_seconds

Built = tuple[nn.Module, tuple[Tensor, ...]]


def resnet(samples: int) -> Built:
    return CifarResNet(32), (torch.randn(samples, 3, 32, 32),)


def vit(samples: int) -> Built:
    import transformers

    config = transformers.ViTConfig(
        hidden_size=192, num_hidden_layers=12, num_attention_heads=3, intermediate_size=768, num_labels=10
    )  # fmt: skip
    return transformers.ViTForImageClassification(config), (torch.randn(samples, 3, 224, 224),)


def bert(samples: int) -> Built:
    import transformers

    config = transformers.BertConfig(
        hidden_size=256, num_hidden_layers=8, num_attention_heads=4, intermediate_size=1024, vocab_size=5000
    )  # fmt: skip
    words = torch.randint(5000, (samples, 128))
    return transformers.BertForSequenceClassification(config), (words, torch.ones_like(words))


MODELS: dict[str, tuple[str, int, Callable[[int], Built]]] = {
    "resnet-32": ("ResNet-32, 32 pixels", 32, resnet),
    "vit": ("ViT-Tiny of transformers, 224 pixels", 8, vit),
    "bert": ("BERT of transformers, 8 layers of 256, 128 tokens", 8, bert),
}


def steps(
    build: Callable[[int], Built],
    share: float,
    samples: int,
    batch: int,
    device: torch.device,
    bf16: bool,
    in_memory: bool,
) -> dict[str, Any]:
    """The three steps by name, each with the next batch, and the cache."""
    found: dict[str, Any] = {}
    for row in ("plain", "at rest", "stored"):
        torch.manual_seed(0)
        model, inputs = build(samples)
        model.to(device).train()
        inputs = tuple(x.to(device) for x in inputs)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        forward: Callable[..., object] = lambda x, _where, model=model: model(*x)  # noqa: E731
        if row != "plain":
            update = SelectiveUpdate(model, optimizer, tuple(x[:4] for x in inputs), Prefix(share))
            update.step()
        if row == "stored":
            forward = found["cache"] = FeatureCache(
                update, samples, measured=False, in_memory=in_memory
            )

        batches = cycle(torch.arange(samples, device=device).split(batch))

        def step(
            forward: Any = forward, inputs: Any = inputs, optimizer: Any = optimizer, batches: Any = batches
        ) -> float:  # fmt: skip
            where = next(batches)
            chosen = tuple(x[where] for x in inputs)
            began = work_seconds(device)
            optimizer.zero_grad()
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                loss = tensors_of(forward(chosen, where))[0].float().square().mean()
            loss.backward()
            optimizer.step()
            return work_seconds(device) - began

        found[row] = step
    return found


def measured(name: str, share: float, options: argparse.Namespace) -> dict[str, Any]:
    label, usual, build = MODELS[name]
    batch = options.batch or usual
    rounds = max(64 // batch, 2)
    found = steps(
        build,
        share,
        rounds * batch,
        batch,
        torch.device(options.device),
        options.bf16,
        options.in_memory,
    )
    cache = found.pop("cache")
    # Every feature is stored after the first rounds.
    times = take_turns(tuple(found), lambda row: found[row](), options.turns, warmup=rounds)
    status = cache.status
    cache.close()
    medians = {row: statistics.median(values) for row, values in times.items()}
    return {
        "model": label, "share": share, "batch": batch, "plain_ms": 1e3 * medians["plain"],
        "ratios": {row: value / medians["plain"] for row, value in medians.items() if row != "plain"},
        "quartiles_ms": {r: [1e3 * q for q in statistics.quantiles(v, n=4)[::2]] for r, v in times.items()},
        "last": status.layers[-1:], "bytes_per_sample": status.bytes_per_sample,
    }  # fmt: skip


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """Cells of a row of a table."""
    ratios, kib = row["ratios"], row["bytes_per_sample"] / 2**10
    return (
        row["model"], f"{row['share']:.0%}", f"{row['plain_ms']:.3g}", f"{ratios['at rest']:.2f}",
        f"{ratios['stored']:.2f}", f"{kib:.0f}",
    )  # fmt: skip


def line(row: dict[str, Any]) -> str:
    """A row of the page's table."""
    return f"| {' | '.join(cells(row))} |"


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--models", nargs="+", choices=tuple(MODELS), default=list(MODELS))
    parser.add_argument("--shares", nargs="+", type=float, default=[0.25, 0.5, 0.75])
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--batch", type=int, help="default: 32 images of 32 pixels, else 8")
    parser.add_argument("--bf16", action="store_true", help="autocast")
    parser.add_argument(
        "--in-memory", action="store_true", help="features on the device, not in files"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(given)
    torch.set_num_threads(1)
    rows = []
    for name in options.models:
        for share in options.shares:
            rows.append(measured(name, share, options))
            print(line(rows[-1]), flush=True)
    result = {
        "rows": rows, "turns": options.turns, "threads": 1, "bf16": options.bf16, "in_memory": options.in_memory,
        "device": place(options.device), "torch": torch.__version__,
        "transformers": version("transformers"), "load": os.getloadavg()[0], "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip
    write_text(options.out, json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
