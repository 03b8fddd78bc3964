"""Narrow a trained network step by step and draw what each step costs.

    python examples/narrower_and_narrower.py --out narrower.png

A small CNN learns scikit-learn's digits (1797 images of 8x8 pixels, a quarter of them held out). Its
channels are then removed in four steps, down to a twentieth of the multiply-accumulates, by two
importances: group Taylor scores, and random scores as the baseline. Each step fine-tunes. The
picture shows the accuracy on the held-out images against the share of the work that is left. Takes
about a minute on one core; needs the extras ``train`` and ``report``.
"""

import argparse

import matplotlib
import torch
from sklearn.datasets import load_digits
from torch import nn

import snello
from snello.pruning.channels import group_taylor

matplotlib.use("Agg")
from matplotlib import pyplot

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--out", default="narrower.png", help="picture to write")
parser.add_argument("--epochs", type=int, default=20, help="epochs before the first step")
parser.add_argument("--finetune", type=int, default=4, help="epochs after each step")
options = parser.parse_args()

torch.manual_seed(0)
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
labels = torch.tensor(digits.target)
order = torch.randperm(len(images))
train, test = order[449:], order[:449]


def block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


model = nn.Sequential(
    block(1, 32), block(32, 32), nn.MaxPool2d(2), block(32, 64), block(64, 64),
    nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
)  # fmt: skip


def fit(network: nn.Module, epochs: int = options.finetune, lr: float = 0.02) -> None:
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for batch in train[torch.randperm(len(train))].split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(images[batch]), labels[batch]).backward()
            optimizer.step()
        schedule.step()


def accuracy(network: nn.Module) -> float:
    return (network(images[test]).argmax(1) == labels[test]).float().mean().item()


fit(model, options.epochs, 0.1)
calibration = train[:256]
importances = {
    "group Taylor": group_taylor([(images[calibration], labels[calibration])]),
    "random": "random",
}
figure, axes = pyplot.subplots(figsize=(6, 3.5), layout="constrained")
for name, importance in importances.items():
    found = snello.prune(
        model, images[:1], snello.Keep(macs=0.05), importance=importance, fit=fit,
        evaluate=accuracy, steps=4, calibration=[images[calibration]],
    )  # fmt: skip
    for step in found.steps:
        print(f"{name:12}  {step.macs:6.1%} of the MACs  accuracy {step.quality:.1%}")
    axes.plot(
        [step.macs for step in found.steps],
        [step.quality for step in found.steps],
        "o-",
        label=name,
    )
axes.set(
    xscale="log", xlabel="share of the multiply-accumulates", ylabel="accuracy on held-out digits",
)  # fmt: skip
axes.set_xticks([0.05, 0.1, 0.2, 0.5, 1.0], ["5 %", "10 %", "20 %", "50 %", "100 %"])
axes.minorticks_off()
axes.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0))
axes.legend(frameon=False)
figure.savefig(options.out, dpi=150)
