"""Accuracy against pruned share: sensitivities beside their baselines, on full data, several seeds.

    SNELLO_DATA=DATA python benchmarks/pruning_potential.py --out runs/bench/pruning_potential.json
    SNELLO_DATA=DATA python benchmarks/pruning_potential.py --model resnet32 --weights resnet32.th \\
        --out runs/bench/pruning_potential_resnet32.json

A run is one method with one seed; finished runs are kept in the JSON file and not run again.
Interrupted, the script goes on where it was. ``--report`` prints the table and draws the plot from
the file, and runs nothing.

Protocol
    All methods of a seed start from the same dense network, trained first (LeNets: DENSE epochs
    from scratch; ResNet-32: fine-tuned from a checkpoint). Then, for every sparsity of a fixed
    ladder: train REGULARISE epochs at the full learning rate, with the method's decay if it has
    one; prune the weights of smallest score, over all layers, to that sparsity; train SETTLE epochs
    without a decay; measure on the test images with the weights as they are. There is no choice of
    a best epoch, and none that looks at the test images (the JSON has the accuracy on the
    validation images beside, for choosing lambda). Settling, and the dense training, lowers the
    learning rate linearly to a twentieth. A decay is not multiplied by the rate: at a twentieth of
    it, it would win. A fixed ladder in the place of PWE and TWT gives all methods the same number
    of steps and the same sparsities to be compared at.

    lobster, serene, output   decay while they regularise
    magnitude                 the same without a decay: what a decay is worth is the difference to this row
    oneshot                   from the dense network to each sparsity in one step, then SETTLE epochs of fine-tuning;
                              fewer steps than the others have behind them at the same sparsity

    All score a weight by |w| / std of its layer, that is Han et al.'s threshold quality * std with
    one quality for all layers. ``--importance l1`` scores by |w| itself, one threshold for all
    layers, as the papers of LOBSTER and SeReNe do; without TWT to stop it, that can empty a layer.

    LeNet-300-100: DENSE 10, REGULARISE 2, SETTLE 3 epochs; LeNet-5: 4, 2, 2, in bfloat16;
    ResNet-32: 2, 2, 1, in bfloat16. On one x86 core a plain training epoch takes about 1.5 s, 9 s
    and 110 s: the 15 + 15 runs of the LeNets take about 70 minutes, the 3 of ResNet-32 about 40.

    LeNets: SGD without momentum and weight decay, as published. Sparsity is the share of prunable
    weights (Linear and convolution, the head included); the JSON also has the share of all
    parameters and of dead neurons.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from snello.files import write_text
from snello.lab.datasets import DataSplits, load_dataset
from snello.lab.datasets._batches import PADDING, crop_flip
from snello.pruning import LayerLimits, Pruner, Ratio, potential_point
from snello.sensitivity import Lobster, OutputSensitivity, Sensitivity, SeReNe
from snello.store import build, load_weights


@dataclass(frozen=True)
class Protocol:
    """Settings of the training and pruning of one network.

    Attributes:
        network: name for :func:`snello.store.build`.
        data: name for :func:`snello.lab.datasets.load_dataset`.
        ladder: sparsities visited, in order.
        dense, regularise, settle: epochs at the beginning, and before and after each pruning step.
        lr, batch: of SGD.
        momentum, weight_decay: of SGD.
        lmbda: of the decay, by method.
        bf16: compute in bfloat16 where autocast does.
        augment: random crops and mirrors.
    """

    network: str
    data: str
    ladder: tuple[float, ...]
    dense: int
    regularise: int
    settle: int
    lr: float
    batch: int
    momentum: float
    weight_decay: float
    lmbda: dict[str, float]
    bf16: bool
    augment: bool


LADDER = (0.8, 0.9, 0.95, 0.97, 0.98, 0.99, 0.995)
LMBDA = {"lobster": 2e-4, "serene": 2e-4, "output": 2e-4}
PROTOCOLS = {
    "lenet300": Protocol(
        "lenet-300-100", "mnist", LADDER, 10, 2, 3, 0.1, 100, 0.0, 0.0, LMBDA, False, False
    ),
    "lenet5": Protocol(
        "lenet-5", "mnist", (0.9, 0.95, 0.98, 0.99), 4, 2, 2, 0.1, 100, 0.0, 0.0, LMBDA, True, False
    ),
    "resnet32": Protocol(
        "resnet-32", "cifar10", (0.8, 0.9), 2, 2, 1, 0.05, 128, 0.9, 5e-4, LMBDA, True, True
    ),
}
METHODS = {
    "lenet300": ("lobster", "serene", "output", "magnitude", "oneshot"),
    "lenet5": ("lobster", "serene", "output", "magnitude", "oneshot"),
    "resnet32": ("serene", "lobster", "magnitude"),
}
SENSITIVITIES: dict[str, Callable[[nn.Module, float, int], Sensitivity]] = {
    "lobster": lambda model, lmbda, seed: Lobster(model, lmbda),
    "serene": lambda model, lmbda, seed: SeReNe(model, lmbda, seed=seed),
    "output": lambda model, lmbda, seed: OutputSensitivity(model, lmbda, seed=seed),
}


class Data:
    """A dataset as tensors on the device: batches by indexing, without a loader."""

    def __init__(self, splits: DataSplits, protocol: Protocol, device: torch.device) -> None:
        self.device, self.protocol = device, protocol
        self.scale = torch.tensor([1 / (255 * s) for s in splits.std], device=device).view(-1, 1, 1)
        self.shift = torch.tensor(
            [-m / s for m, s in zip(splits.mean, splits.std, strict=True)], device=device
        )
        self.shift = self.shift.view(-1, 1, 1)
        self.train, self.validation, self.test = (
            (part.pixels.to(device), part.labels.to(device))
            for part in (splits.train, splits.validation, splits.test)
        )

    def ready(self, pixels: Tensor) -> Tensor:
        """Normalised images, channels last."""
        images = pixels.float().mul_(self.scale).add_(self.shift)
        return images.contiguous(memory_format=torch.channels_last)

    def epoch(self, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Shuffled training batches of equal size; the remainder is left out."""
        pixels, labels = self.train
        order, size = torch.randperm(len(labels), generator=generator), self.protocol.batch
        for start in range(0, len(order) - size + 1, size):
            chosen = order[start : start + size].to(self.device)
            picked = pixels[chosen]
            if self.protocol.augment:
                corners = torch.randint(0, 2 * PADDING + 1, (size, 2), generator=generator)
                mirrored = torch.randint(0, 2, (size,), generator=generator, dtype=torch.bool)
                picked = crop_flip(picked.cpu(), corners, mirrored).to(self.device)
            yield self.ready(picked), labels[chosen]

    def accuracy(self, model: nn.Module, part: tuple[Tensor, Tensor]) -> float:
        """Share of images classified rightly, in evaluation mode."""
        pixels, labels = part
        with self.autocast():
            right = sum(
                int((model(self.ready(pixels[i : i + 500])).argmax(1) == labels[i : i + 500]).sum())
                for i in range(0, len(labels), 500)
            )
        return right / len(labels)

    def autocast(self) -> Any:
        """bfloat16, if the protocol says so."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.protocol.bf16)


def train(
    model: nn.Module,
    data: Data,
    epochs: int,
    generator: torch.Generator,
    sensitivity: Sensitivity | None = None,
    pruner: Pruner | None = None,
    limit: int | None = None,
    settling: bool = True,
) -> None:
    """Some epochs; settling, the learning rate falls linearly to a twentieth."""
    p = data.protocol
    optimizer = torch.optim.SGD(
        model.parameters(), p.lr, momentum=p.momentum, weight_decay=p.weight_decay
    )
    if pruner is not None:
        pruner.attach(optimizer)
    steps = min(limit or 10**9, epochs * (len(data.train[1]) // p.batch))
    schedule = torch.optim.lr_scheduler.LinearLR(
        optimizer, 1.0, 0.05 if settling else 1.0, total_iters=max(steps - 1, 1)
    )
    model.train()
    done = 0
    for _ in range(epochs):
        for x, y in data.epoch(generator):
            if done == steps:
                break
            with data.autocast():
                outputs = model(x)
            outputs = outputs.float()
            if sensitivity is not None:
                sensitivity.observe(outputs, y)
            optimizer.zero_grad()
            nn.functional.cross_entropy(outputs, y).backward()
            optimizer.step()
            if sensitivity is not None:
                sensitivity.step()
            schedule.step()
            done += 1


def new_model(
    protocol: Protocol, weights: Path | None, seed: int, device: torch.device
) -> nn.Module:
    """The network before anything, by its seed or from a checkpoint."""
    torch.manual_seed(seed)
    model = build(protocol.network)
    if weights is not None:
        load_weights(model, weights)
    return model.to(device, memory_format=torch.channels_last)


def protocol_of(name: str, options: argparse.Namespace) -> Protocol:
    """The settings of a network, with the lambda of the command line."""
    if options.lmbda is None:
        return PROTOCOLS[name]
    return replace(PROTOCOLS[name], lmbda=dict.fromkeys(LMBDA, options.lmbda))


def finished(
    rows: list[dict[str, Any]], name: str, method: str, seed: int, options: argparse.Namespace
) -> bool:
    """Return true if a run is among the rows.

    Raises:
        SystemExit: if it is, with other settings: one table would mix them.
    """
    settings = {
        "protocol": json.loads(json.dumps(asdict(protocol_of(name, options)))),
        "importance": options.importance, "limit": options.limit,
    }  # fmt: skip
    for row in rows:
        if (row["network"], row["method"], row["seed"]) == (name, method, seed):
            if off := [key for key, value in settings.items() if row[key] != value]:
                raise SystemExit(
                    f"{options.out}: {name} {method} seed {seed} was run with another {', '.join(off)}: "
                    "choose another --out"
                )
            return True
    return False


class Experiment:
    """All runs of one network; the results file is the state."""

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        self.name, self.protocol, self.options = name, protocol_of(name, options), options
        self.device = torch.device(options.device)
        self.data = Data(load_dataset(self.protocol.data, seed=0), self.protocol, self.device)
        self.dense: dict[int, dict[str, Tensor]] = {}

    def dense_state(self, seed: int) -> dict[str, Tensor]:
        """The dense network of a seed: trained once, the same for all methods."""
        if seed not in self.dense:
            model = new_model(self.protocol, self.options.weights, seed, self.device)
            train(
                model, self.data, self.protocol.dense, torch.Generator().manual_seed(1000 + seed),
                limit=self.options.limit,
            )  # fmt: skip
            self.dense[seed] = {key: value.clone() for key, value in model.state_dict().items()}
        return self.dense[seed]

    def run(self, method: str, seed: int) -> dict[str, Any]:
        """One row of the file: a curve."""
        self.dense_state(seed)  # its time belongs to no method
        started = time.perf_counter()
        points = list(self._points(method, seed))
        return {
            "network": self.name, "method": method, "seed": seed, "seconds": time.perf_counter() - started,
            "points": points, "protocol": asdict(self.protocol), "threads": torch.get_num_threads(),
            "importance": self.options.importance,
            "device": str(self.device), "limit": self.options.limit, "torch": torch.__version__,
        }  # fmt: skip

    def _points(self, method: str, seed: int) -> Iterator[dict[str, Any]]:
        p, generator = self.protocol, torch.Generator().manual_seed(seed)
        model = new_model(p, None, seed, self.device)
        model.load_state_dict(self.dense_state(seed))
        yield self._point(model, method, 0.0)
        pruner, limit = self._pruner(model), self.options.limit
        for stage, sparsity in enumerate(p.ladder):
            if method == "oneshot":
                pruner.remove()
                model.load_state_dict(self.dense_state(seed))
                pruner = self._pruner(model)
            else:
                decay = SENSITIVITIES.get(method)
                # Made anew for every stage: its hooks cost nothing while the network settles.
                sensitivity = decay(model, p.lmbda[method], 100 * seed + stage) if decay else None
                train(
                    model,
                    self.data,
                    p.regularise,
                    generator,
                    sensitivity,
                    pruner,
                    limit,
                    settling=False,
                )
                if sensitivity is not None:
                    sensitivity.remove()
            pruner.amount = Ratio(sparsity)
            pruner.prune()
            train(model, self.data, p.settle, generator, None, pruner, limit)
            yield self._point(model, method, sparsity)

    def _pruner(self, model: nn.Module) -> Pruner:
        return Pruner(
            model, None, importance=self.options.importance, amount=Ratio(0.0), exclude=(), normalise=None,
            limits=LayerLimits(keep_at_least=1),
        )  # fmt: skip

    def _point(self, model: nn.Module, method: str, sparsity: float) -> dict[str, Any]:
        test = potential_point(
            model, method, sparsity, lambda m: self.data.accuracy(m, self.data.test)
        )
        seen = potential_point(
            model, method, sparsity, lambda m: self.data.accuracy(m, self.data.validation)
        )
        return {**asdict(test), "validation": seen.value}


def read(path: Path) -> list[dict[str, Any]]:
    """The finished runs."""
    return json.loads(path.read_text()) if path.is_file() else []


def report(rows: list[dict[str, Any]], path: Path, page: Path | None) -> None:
    """A table of medians and ranges over seeds, and the plot beside the file; the tables as
    Markdown too.
    """
    from snello.lab.reporting import Table, markdown, plot_potential, show

    tables = []

    for network in dict.fromkeys(row["network"] for row in rows):
        curves: dict[str, dict[float, list[float]]] = {}
        for row in rows:
            if row["network"] == network:
                for point in row["points"]:
                    curves.setdefault(row["method"], {}).setdefault(point["ratio"], []).append(
                        point["value"]
                    )
        ratios = sorted({ratio for curve in curves.values() for ratio in curve})
        table = Table(
            f"{network}: test accuracy [%], median over seeds (lowest-highest)",
            ("Method", *(f"{ratio:.1%}" for ratio in ratios)),
            tuple(
                (m, *(_cell(curve.get(ratio, [])) for ratio in ratios))
                for m, curve in curves.items()
            ),
            "Columns: share of the prunable weights at zero. Last epoch, no choice on test images.",
        )
        show(table)
        tables.append(markdown(table))
        print(
            "written:",
            plot_potential(curves, path.with_name(f"{path.stem}-{network}.png"), network),
        )
    if page is not None:
        write_text(page, "\n".join(tables))


def _cell(values: list[float]) -> str:
    if not values:
        return ""
    ranked = sorted(100 * v for v in values)
    return f"{statistics.median(ranked):.2f}\n{ranked[0]:.1f}-{ranked[-1]:.1f}"


def main(given: list[str] | None = None) -> None:
    """Run what is missing, then report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", nargs="+", choices=PROTOCOLS, default=["lenet300", "lenet5"])
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS["lenet300"], help="default: all of the network"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--weights", type=Path, help="a state_dict to start from, for resnet32")
    parser.add_argument(
        "--importance", default="han", help="how weights are scored, for all methods"
    )
    parser.add_argument("--lmbda", type=float, help="the same for all sensitivities")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--limit", type=int, help="steps per stage, for a quick try")
    parser.add_argument("--report", action="store_true", help="only report what the file holds")
    parser.add_argument("--page", type=Path, help="write the tables as Markdown too")
    parser.add_argument("--out", type=Path, default=Path("runs/bench/pruning_potential.json"))
    options = parser.parse_args(given)
    torch.set_num_threads(options.threads)
    if "resnet32" in options.model and options.weights is None and not options.report:
        parser.error("--model resnet32 starts from a checkpoint: --weights FILE")
    for name in [] if options.report else options.model:
        experiment = None
        for seed in options.seeds:
            for method in options.methods or METHODS[name]:
                rows = read(options.out)
                if finished(rows, name, method, seed, options):
                    continue
                experiment = experiment or Experiment(name, options)
                row = experiment.run(method, seed)
                rows = [*rows, row]
                write_text(options.out, json.dumps(rows, indent=1))
                curve = "  ".join(
                    f"{point['ratio']:.1%} {point['value']:.2%}" for point in row["points"]
                )
                print(f"{name} {method} seed {seed}, {row['seconds']:.0f} s: {curve}", flush=True)
    report(read(options.out), options.out, options.page)


if __name__ == "__main__":
    main()
