"""Channels pruned from public ResNet weights on JPEG CIFAR-10, Torch-Pruning beside them.

    python benchmarks/channel_pruning.py --weights resnet32.th --macs 0.5 --seeds 0 1 2 --out DIR

Every row starts from the same dense network, fine-tuned to the JPEG domain first, with the shortcut
of option A written as a 1×1 convolution (Torch-Pruning's graph breaks on the padded one), and is
fine-tuned alike: same images, augmentation, schedule, seed. The importance is measured on the same
batches. Accuracy: test images, last epoch. Widths are not rounded.

Torch-Pruning: Fang et al., "DepGraph: towards any structural pruning", CVPR 2023,
https://github.com/VainF/Torch-Pruning; group importances with its defaults, global ranking, one
step.
"""

from __future__ import annotations

import argparse
import copy
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from snello.files import write_text
from snello.lab.datasets import load_dataset, loader
from snello.lab.models import CifarResNet
from snello.lab.training import FineTuning, evaluate, finetune
from snello.pruning.channels import Keep, group_fisher, group_taylor, magnitude, measured_size
from snello.search import prune
from snello.store import load_weights
from snello.timing import cpu_seconds

X = torch.zeros(1, 3, 32, 32)


@dataclass(frozen=True)
class Row:
    """One run.

    Attributes:
        method: name.
        seed: of the fine-tuning.
        macs, parameters: share of the dense network's.
        cut: test accuracy before fine-tuning.
        accuracy: after it.
        seconds: CPU time of all of it.
    """

    method: str
    seed: int
    macs: float
    parameters: float
    cut: float
    accuracy: float
    seconds: float


def projection(inputs: int, outputs: int, stride: int, padding: int) -> nn.Conv2d:
    """The shortcut of option A as a 1×1 convolution with the same outputs."""
    made = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
    with torch.no_grad():
        made.weight.zero_()
        made.weight[padding : padding + inputs, :, 0, 0] = torch.eye(inputs)
    return made


def with_convolutions(model: CifarResNet) -> nn.Module:
    """The same network with 1×1 convolutions in the place of padded shortcuts."""
    for stage in (model.layer2, model.layer3):
        block: Any = stage[0]
        inputs, outputs = block.conv1.in_channels, block.conv1.out_channels
        block.project = projection(inputs, outputs, block.stride, block.padding)
        block.shortcut = block.project.__call__  # in the method's place, also in copies
    return model


def example(model: nn.Module) -> torch.Tensor:
    """Example inputs on the device of a model."""
    return X.to(next(model.parameters()).device)


def ours(dense: nn.Module, batches: Any, macs: float, importance: Any, **options: Any) -> nn.Module:
    """Cut by snello."""
    return prune(dense, example(dense), Keep(macs=macs), importance=importance, **options).model


def torch_pruned(dense: nn.Module, batches: Any, macs: float, importance: str) -> nn.Module:
    """Cut by Torch-Pruning, to the largest network within the bound, by bisection of its ratio."""
    import torch_pruning

    def at(ratio: float) -> nn.Module:
        model = copy.deepcopy(dense)
        kinds = {
            "magnitude": torch_pruning.importance.GroupMagnitudeImportance,
            "taylor": torch_pruning.importance.GroupTaylorImportance,
        }
        if importance == "taylor":
            model.zero_grad()
            for images, labels in batches:
                F.cross_entropy(model(images), labels).backward()
        pruner = torch_pruning.pruner.BasePruner(
            model, example(model), importance=kinds[importance](), pruning_ratio=ratio, global_pruning=True,
            ignored_layers=[model.linear], max_pruning_ratio=0.9,
        )  # fmt: skip
        pruner.step()
        model.zero_grad(set_to_none=True)
        return model

    whole = measured_size(dense, example(dense)).macs
    low, high = 0.0, 0.9
    for _ in range(12):
        middle = (low + high) / 2
        fits = measured_size(at(middle), example(dense)).macs <= macs * whole
        low, high = (low, middle) if fits else (middle, high)
    return at(high)


def main() -> None:
    """Run the rows that the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--weights", type=Path, required=True, help="public weights of a CIFAR ResNet"
    )
    parser.add_argument("--depth", type=int, default=32)
    parser.add_argument("--macs", type=float, default=0.5)
    parser.add_argument(
        "--dense-epochs", type=int, default=2, help="fine-tuning to the JPEG domain"
    )
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--limit", type=int, default=None, help="training images")
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--methods", nargs="+", default=None)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    splits = load_dataset("cifar10")
    start = with_convolutions(load_weights(CifarResNet(options.depth, 10), options.weights))
    start = start.to(options.device)
    settings = FineTuning(
        lr=options.lr, precision="bf16", epochs=options.epochs, limit=options.limit
    )
    kept = options.out / f"dense-{options.depth}.pt"
    if kept.exists():
        start.load_state_dict(torch.load(kept, weights_only=True))
    else:
        finetune(start, splits, replace(settings, epochs=options.dense_epochs, limit=None, lr=0.01))
        torch.save(start.state_dict(), kept)
    dense = start.eval()
    test = loader(splits.test, splits, 500)
    taken = loader(splits.train, splits, 100, shuffle=True, seed=0, limit=2000)
    batches = [(x.to(options.device), y.to(options.device)) for x, y in taken]
    images = [x for x, _ in batches]
    score = {
        "magnitude": magnitude(2),
        "taylor": group_taylor(batches),
        "fisher": group_fisher(batches),
    }
    cuts: dict[str, Any] = {
        "dense": lambda: copy.deepcopy(dense),
        "magnitude": lambda: ours(dense, batches, options.macs, score["magnitude"]),
        "taylor": lambda: ours(dense, batches, options.macs, score["taylor"], calibration=images),
        "fisher": lambda: ours(dense, batches, options.macs, score["fisher"], calibration=images),
        "taylor, reconstructed": lambda: ours(
            dense, batches, options.macs, score["taylor"], calibration=images[:10], reconstruction=True
        ),
        "magnitude, reconstructed": lambda: ours(
            dense, batches, options.macs, score["magnitude"], calibration=images[:10],
            reconstruction=True,
        ),
        "Torch-Pruning magnitude": lambda: torch_pruned(dense, batches, options.macs, "magnitude"),
        "Torch-Pruning taylor": lambda: torch_pruned(dense, batches, options.macs, "taylor"),
    }  # fmt: skip
    cuts["taylor, reconstructed, distilled"] = cuts["taylor, reconstructed"]
    whole = measured_size(dense, example(dense))
    rows: list[Row] = []
    for seed in options.seeds:
        for method in options.methods or cuts:
            started = cpu_seconds()
            model = cuts[method]()
            size = measured_size(model, example(model))
            before = evaluate(model, test).accuracy
            own = replace(settings, seed=seed, distil=0.5 if "distilled" in method else 0.0)
            finetune(model, splits, own, teacher=dense)
            rows.append(
                Row(
                    method,
                    seed,
                    size.macs / whole.macs,
                    size.parameters / whole.parameters,
                    before,
                    evaluate(model, test).accuracy,
                    cpu_seconds() - started,
                )
            )
            print(rows[-1], flush=True)
            name = f"resnet{options.depth}-{options.macs}-{options.epochs}.json"
            write_text(options.out / name, json.dumps([asdict(row) for row in rows], indent=1))


if __name__ == "__main__":
    main()
