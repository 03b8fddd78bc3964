"""Latency of simplified networks over dense ones, all in turns in one run.

    python benchmarks/simplify_latency.py --threads 1 --out runs/bench/simplify_latency.json

A share of the neurons of every layer but the head is zeroed at random, with the BatchNorm that
follows. The bound printed beside each ratio is the share of MACs left: time cannot fall below it by
computing less alone.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from masked_zoo import zero
from torch import Tensor

from snello import simplify
from snello.deploy import footprint, latencies, pytorch_runner
from snello.files import write_text
from snello.neurons import head, neuron_count, weighted_layers
from snello.store import build

MODELS = {"lenet-5": (1, 28, 28), "resnet-32": (3, 32, 32)}


def dead_neurons(
    model: torch.nn.Module, share: float, generator: torch.Generator
) -> dict[str, Tensor]:
    """A random share of the neurons of each layer but the head, as masks."""
    return {
        name: torch.rand(neuron_count(layer), generator=generator) < share
        for name, layer in weighted_layers(model).items()
        if name != head(model)
    }


def main(given: list[str] | None = None) -> None:
    """Print a table, write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(given)
    generator = torch.Generator().manual_seed(options.seed)
    rows = []
    for name in options.models:
        x = torch.randn(options.batch, *MODELS[name], generator=generator)
        nets = {"dense": build(name).eval()}
        for share in (0.25, 0.5, 0.75, 0.9):
            masked = build(name).eval()
            zero(masked, dead_neurons(masked, share, generator), with_norms=True)
            nets[f"{share:.0%} dead"] = simplify(masked, x)
        x = x.to(options.device)
        nets = {key: net.to(options.device) for key, net in nets.items()}
        runners = {key: pytorch_runner(net, x) for key, net in nets.items()}
        times = latencies(
            runners, repeats=options.repeats, threads=options.threads, batch=options.batch
        )
        dense_ms, dense_macs = times["dense"].median_ms, footprint(nets["dense"], x).macs
        print(
            f"{name}, batch {options.batch}, {options.threads} thread(s), {options.device}, {options.repeats} repeats"
        )
        for key, time in times.items():
            macs = footprint(nets[key], x).macs / dense_macs
            row = {
                "model": name, "net": key, "ms": time.median_ms, "p10": time.p10_ms, "p90": time.p90_ms,
                "ratio": time.median_ms / dense_ms, "macs": macs, "threads": options.threads, "batch": options.batch,
                "device": options.device,
            }  # fmt: skip
            rows.append(row)
            print(
                f"  {key:10} {time.median_ms:7.3f} ms ({time.p10_ms:.3f}-{time.p90_ms:.3f})"
                f"  {row['ratio']:.2f}x  MACs {macs:.2f}x"
            )
    if options.out:
        write_text(options.out, json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
