"""Heads, head dimensions, hidden units and the stream of a small ViT pruned on MNIST.

    python benchmarks/vit_channels.py --out vit.json

timm's VisionTransformer (28 pixels, patches of 4, 96 channels, 4 blocks of 4 heads), trained from
scratch by AdamW, cut to a share of its MACs and fine-tuned; "dense" is fine-tuned equally long.
Accuracy: 10 000 test images, last epoch. Latency: in turns in one run, batch 1, one thread.
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from snello.deploy import Subject, compare
from snello.files import write_text
from snello.lab.datasets import load_dataset, loader
from snello.lab.training import FineTuning, evaluate, finetune
from snello.pruning.channels import Keep, group_taylor, magnitude, measured_size
from snello.search import prune

X = torch.zeros(1, 1, 28, 28)
RUNTIMES = ("pytorch", "onnxruntime")


def network() -> nn.Module:
    """The dense network, at random."""
    torch.manual_seed(0)
    return VisionTransformer(
        img_size=28, patch_size=4, in_chans=1, num_classes=10, embed_dim=96, depth=4, num_heads=4
    )


def main() -> None:
    """Train, cut, fine-tune, time; print and write the rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--finetune", type=int, default=5)
    parser.add_argument("--limit", type=int, default=None, help="training images")
    parser.add_argument("--macs", type=float, nargs="+", default=[0.5, 0.33])
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    splits = load_dataset("mnist")
    test = loader(splits.test, splits, 500)
    batches = list(loader(splits.train, splits, 100, shuffle=True, seed=0, limit=2000))
    settings: dict[str, Any] = {
        "optimizer": "AdamW", "lr": options.lr, "augment": "none", "limit": options.limit,
        "weight_decay": 0.05, "warmup": 0.1,
    }  # fmt: skip
    dense = finetune(network(), splits, FineTuning(options.epochs, **settings))
    cuts = {"dense": lambda: copy.deepcopy(dense)}
    for macs in options.macs:
        for name, importance in (("taylor", group_taylor(batches)), ("magnitude", magnitude(2))):
            cuts[f"{name} {macs}"] = lambda macs=macs, importance=importance: (
                prune(dense, X, Keep(macs=macs), importance=importance).model
            )
    whole, rows, networks = measured_size(dense, X), [], {}
    for method, cut in cuts.items():
        for seed in options.seeds:
            model = cut()
            before, size = evaluate(model, test).accuracy, measured_size(model, X)
            finetune(model, splits, FineTuning(options.finetune, seed=seed, **settings))
            networks.setdefault(method, model)
            row = {
                "method": method, "seed": seed, "macs": size.macs / whole.macs,
                "parameters": size.parameters / whole.parameters, "cut": before,
                "accuracy": evaluate(model, test).accuracy,
            }  # fmt: skip
            rows.append(row)
            print(row, flush=True)
            write_text(options.out, json.dumps({"rows": rows}, indent=1))
    profiles = compare(
        [Subject(name, model, (X,)) for name, model in networks.items()], runtimes=RUNTIMES,
        repeats=100, warmup=20, threads=1,
    )  # fmt: skip
    times = {p.name: {r: t.median_ms for r, t in p.latencies.items()} for p in profiles}
    for name, own in times.items():
        print(name, {r: f"{ms:.3f} ms, {ms / times['dense'][r]:.2f}" for r, ms in own.items()})
    write_text(options.out, json.dumps({"rows": rows, "latency_ms": times}, indent=1))


if __name__ == "__main__":
    main()
