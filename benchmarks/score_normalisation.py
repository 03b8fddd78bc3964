"""Accuracy after one-shot pruning of neurons, for every way of making scores comparable.

    SNELLO_DATA=DATA python benchmarks/score_normalisation.py --model resnet-32 --weights FILE

A trained network of CIFAR-10, its neurons pruned in one step without fine-tuning: to a share of all
neurons, and to a share of the MACs. Accuracy on validation images, so that the default is not chosen
on test images; Taylor scores from 1024 training images. ``None, no minimum`` is the threshold on
scores as they are, with one neuron left of every layer.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from snello.graph import evaluation
from snello.lab.datasets import load_dataset
from snello.pruning import Budget, LayerLimits, Pruner, Ratio, nonzero_macs, taylor
from snello.store import build, load_weights

WAYS: dict[str, dict[str, Any]] = {
    "None, no minimum": {"normalise": None, "limits": LayerLimits(keep_at_least=1)},
    **{str(how): {"normalise": how} for how in (None, "mean", "max", "standard", "rank")},
}


def main() -> None:
    """One line per importance, way and amount."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="resnet-32")
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--images", type=int, default=1000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    splits = load_dataset("cifar10", seed=0)
    images, labels = _drawn(splits, splits.validation, options.images)
    calibration = [part.split(128) for part in _drawn(splits, splits.train, 1024)]
    importances = {"l1": "l1", "l2": "l2", "taylor": taylor(list(zip(*calibration, strict=True)))}

    def accuracy(model: nn.Module) -> float:
        with evaluation(model):
            right = sum(
                int((model(x).argmax(1) == y).sum())
                for x, y in zip(images.split(250), labels.split(250), strict=True)
            )
        return right / len(labels)

    macs = nonzero_macs(images[:8])
    dense = macs(_network(options))
    print(f"dense {accuracy(_network(options)):.3f}", flush=True)
    amounts = {f"{share:.0%} of neurons": Ratio(share) for share in (0.2, 0.3, 0.4, 0.5)} | {
        f"{share:.0%} of MACs left": Budget(share * dense, macs) for share in (0.8, 0.7, 0.6, 0.5)
    }
    for name, importance in importances.items():
        for way, how in WAYS.items():
            for asked, amount in amounts.items():
                model = _network(options)
                Pruner(
                    model, None, granularity="neuron", importance=importance, amount=amount, **how
                ).prune()
                left = macs(model) / dense
                print(
                    f"{name} | {way} | {asked} | {accuracy(model):.3f} | MACs {left:.2f}",
                    flush=True,
                )


def _network(options: argparse.Namespace) -> nn.Module:
    model = build(options.model)
    load_weights(model, options.weights)
    return model.to(memory_format=torch.channels_last).eval()


def _drawn(splits: Any, part: Any, count: int) -> tuple[Tensor, Tensor]:
    """Normalised images of a part, drawn without replacement, and their labels."""
    chosen = torch.randperm(len(part.labels), generator=torch.Generator().manual_seed(0))[:count]
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (splits.mean, splits.std))
    return (part.pixels[chosen].float() / 255 - mean) / std, part.labels[chosen]


if __name__ == "__main__":
    main()
