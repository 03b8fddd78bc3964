"""Channels pruned from public ResNet weights on JPEG CIFAR-10, Torch-Pruning beside them.

    python benchmarks/channel_pruning.py --weights resnet32.th --macs 0.5 --seeds 0 1 2 --out DIR
    python benchmarks/channel_pruning.py --weights resnet32.th --macs 0.5 --out DIR --latency

Every row starts from the same dense network, fine-tuned to the JPEG domain first, with the shortcut
of option A written as a 1×1 convolution (Torch-Pruning's graph breaks on the padded one), and is
fine-tuned alike: same images, augmentation, schedule, seed. The importance is measured on the same
batches. Three kinds of rows differ: "serene, grown" spends half of the epochs on the dense network,
with the decay of SeReNe on groups; "taylor, 3 steps" spends two between its cuts; half of the loss
of "distilled" rows is the distance to the scores of the dense network before the cut, or of the
finished row "dense" of the same seed. Accuracy: test images, last epoch. Widths are rounded only in
the rows that say so. Statistics of BatchNorm are estimated again on the same 1000 images before the
accuracy after the cut is measured, for all.

Rows and networks are written as they are finished; a run that was interrupted goes on. With
``--latency`` nothing is trained: the networks of the first seed are timed in turns in PyTorch and
ONNX Runtime, float32 and int8, and coded.

Torch-Pruning: Fang et al., "DepGraph: towards any structural pruning", CVPR 2023,
https://github.com/VainF/Torch-Pruning; group importances with its defaults, global ranking, one
step.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from snello.codec import CodecSettings, compress
from snello.deploy import Subject, compare
from snello.files import write_text
from snello.graph.coupled import coupling
from snello.lab.datasets import Splits, load_dataset, loader
from snello.lab.models import CifarResNet
from snello.lab.training import FineTuning, batches_and_optimizer, evaluate, finetune
from snello.pruning.channels import (
    Keep,
    group_fisher,
    group_taylor,
    magnitude,
    measured_size,
    neuron_scores,
)
from snello.pruning.recovery import recalibrate
from snello.search import prune
from snello.sensitivity import GroupDecay, SeReNe, serene_scores
from snello.store import load_weights
from snello.timing import cpu_seconds

X = torch.zeros(1, 3, 32, 32)
RUNTIMES = ("pytorch", "onnxruntime", "onnxruntime int8")
Cut = Callable[[nn.Module], nn.Module]
GROWN = "serene, grown"
"""The row whose network trains with SeReNe's decay for half of the epochs before the cut."""
GRADUAL = "taylor, 3 steps"
"""The row that is cut in three steps, with an epoch of the budget after the first and the second."""
DISTILLED = ", distilled"
"""End of the names of rows whose loss is half the distillation from the dense network before the cut."""
TAUGHT = ", distilled from the dense row"
"""The same with the dense network that was fine-tuned as long as the row itself as teacher."""
LAMBDA = 1e-3


@dataclass(frozen=True)
class Row:
    """One run.

    Attributes:
        method: name.
        seed: of the fine-tuning.
        macs, parameters: share of the dense network's.
        cut: test accuracy before fine-tuning, with statistics of BatchNorm estimated again.
        accuracy: after it.
        validation: the same on validation images, by which settings are chosen.
        seconds: CPU time of all of it.
    """

    method: str
    seed: int
    macs: float
    parameters: float
    cut: float
    accuracy: float
    seconds: float
    validation: float | None = None


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


def ours(example: torch.Tensor, macs: float, importance: Any, **options: Any) -> Cut:
    """Cut by snello."""
    return lambda dense: (
        prune(dense, example, Keep(macs=macs), importance=importance, **options).model
    )


def decayed(dense: nn.Module, splits: Splits, settings: FineTuning) -> nn.Module:
    """A copy of the dense network, trained on while SeReNe's decay shrinks whole channels."""
    model = copy.deepcopy(dense)
    batches, optimizer = batches_and_optimizer(model, splits, settings)
    decay = GroupDecay(SeReNe(model, lmbda=LAMBDA), model, coupling(model, X))
    torch.manual_seed(settings.seed)
    for epoch in range(settings.epochs):
        batches.sampler.set_epoch(epoch)
        model.train()
        for x, labels in batches:
            with torch.autocast("cpu", torch.bfloat16, enabled=settings.precision == "bf16"):
                outputs = model(x.contiguous(memory_format=torch.channels_last))
            decay.observe(outputs, labels)
            optimizer.zero_grad()
            F.cross_entropy(outputs.float(), labels).backward()
            optimizer.step()
            decay.step()
    decay.remove()
    return model.eval()


def torch_pruned(
    macs: float, batches: Any, images: Any, importance: str, round_to: int | None = None
) -> Cut:
    """Cut by Torch-Pruning, to the largest network within the bound, by bisection of its ratio."""
    import torch_pruning

    kinds = {
        "magnitude": torch_pruning.importance.GroupMagnitudeImportance,
        "taylor": torch_pruning.importance.GroupTaylorImportance,
    }

    def at(dense: nn.Module, ratio: float) -> nn.Module:
        model = copy.deepcopy(dense)
        if importance == "taylor":
            model.zero_grad()
            for x, labels in batches:
                F.cross_entropy(model(x), labels).backward()
        pruner = torch_pruning.pruner.BasePruner(
            model, X, importance=kinds[importance](), pruning_ratio=ratio, global_pruning=True,
            ignored_layers=[model.linear], max_pruning_ratio=0.9,
            round_to=round_to,
        )  # fmt: skip
        pruner.step()
        model.zero_grad(set_to_none=True)
        return model

    def cut(dense: nn.Module) -> nn.Module:
        whole = measured_size(dense, X).macs
        low, high = 0.0, 0.9
        for _ in range(12):
            middle = (low + high) / 2
            fits = measured_size(at(dense, middle), X).macs <= macs * whole
            low, high = (low, middle) if fits else (middle, high)
        found = at(dense, high)
        recalibrate(found, images)
        return found.eval()

    return cut


def cuts_of(macs: float, splits: Splits, settings: FineTuning) -> dict[str, Cut]:
    """Name of a row -> its cut."""
    batches = list(loader(splits.train, splits, 100, shuffle=True, seed=0, limit=2000))
    images = [x for x, _ in batches[:10]]
    single = [(x[i : i + 1], y[i : i + 1]) for x, y in batches[:5] for i in range(len(x))]
    score = {
        "magnitude": magnitude(2),
        "taylor": group_taylor(batches),
        "fisher": group_fisher(single),
        "serene": lambda model, groups: neuron_scores(serene_scores(batches[:5])(model, "neuron"))(
            model, groups
        ),
    }
    found: dict[str, Cut] = {
        "dense": copy.deepcopy,
        "magnitude, as cut": ours(X, macs, magnitude(2)),
    }
    for name, importance in score.items():
        found[name] = ours(X, macs, importance, calibration=images)
        found[f"{name}, reconstructed"] = ours(
            X, macs, importance, calibration=images, reconstruction=True
        )
    found["taylor, 5 steps, reconstructed"] = ours(
        X, macs, score["taylor"], calibration=images, reconstruction=True, steps=5
    )
    half = replace(settings, epochs=settings.epochs // 2)

    def gradual(dense: nn.Module) -> nn.Module:
        epochs = iter((1, 1, 0))

        def fit(model: nn.Module) -> None:
            finetune(model, splits, replace(settings, epochs=next(epochs)))

        return ours(X, macs, score["taylor"], calibration=images, steps=3, fit=fit)(dense)

    found[GRADUAL] = gradual
    grown = ours(X, macs, score["taylor"], calibration=images)
    found[GROWN] = lambda dense: grown(decayed(dense, splits, half))
    for name in ("magnitude", "taylor"):
        found[f"Torch-Pruning {name}"] = torch_pruned(macs, batches, images, name)
    # Multiples of the blocks in which ONNX Runtime stores channels on this machine.
    found["taylor, widths of 16"] = ours(X, macs, score["taylor"], calibration=images, round_to=16)
    for name, width in (("measured", 1), ("measured, widths of 16", 16)):
        found[name] = ours(
            X,
            macs,
            score["taylor"],
            calibration=images,
            round_to=width,
            measured=True,
            branches=True,
        )
    for name in ("taylor", "measured, widths of 16", "Torch-Pruning taylor"):
        found[name + DISTILLED] = found[name]
    found["taylor" + TAUGHT] = found["taylor"]
    found["Torch-Pruning taylor, widths of 16"] = torch_pruned(macs, batches, images, "taylor", 16)
    return found


def dense_network(options: argparse.Namespace, splits: Splits) -> nn.Module:
    """The public network, fine-tuned to the JPEG domain once."""
    kept = options.out / f"dense-{options.depth}.pt"
    if kept.exists():
        model = with_convolutions(CifarResNet(options.depth, 10))
        model.load_state_dict(torch.load(kept, weights_only=True))
        return model.eval()
    model = with_convolutions(load_weights(CifarResNet(options.depth, 10), options.weights))
    settings = FineTuning(lr=0.01, precision=options.precision, epochs=options.dense_epochs)
    finetune(model, splits, settings)
    torch.save(model.state_dict(), kept)
    return model.eval()


def teacher_of(method: str, dense: nn.Module, finished: Path) -> nn.Module | None:
    """The network whose scores a row learns from, if any; ``finished`` is the dense row's."""
    if method.endswith(DISTILLED):
        return dense
    if not method.endswith(TAUGHT):
        return None
    if not finished.exists():
        raise SystemExit(f"{method!r} learns from {finished}: run the method 'dense' first")
    loaded: nn.Module = torch.load(finished, weights_only=False)  # written by this script
    return loaded.eval()


def train_rows(options: argparse.Namespace, rows_file: Path, networks: Path) -> None:
    """Cut and fine-tune every row that is not there yet."""
    splits = load_dataset("cifar10")
    dense = dense_network(options, splits)
    test, validation = (loader(part, splits, 500) for part in (splits.test, splits.validation))
    settings = FineTuning(
        lr=options.lr, precision=options.precision, epochs=options.epochs, limit=options.limit,
    )  # fmt: skip
    cuts = cuts_of(options.macs, splits, settings)
    whole = measured_size(dense, X)
    rows = [Row(**row) for row in json.loads(rows_file.read_text())] if rows_file.exists() else []
    done = {(row.method, row.seed) for row in rows}
    for seed in options.seeds:
        for method in options.methods or cuts:
            if (method, seed) in done:
                continue
            started = cpu_seconds()
            model = cuts[method](dense)
            size, before = measured_size(model, X), evaluate(model, test).accuracy
            left = settings.epochs - {GROWN: settings.epochs // 2, GRADUAL: 2}.get(method, 0)
            teacher = teacher_of(method, dense, networks / f"dense-{seed}.pt")
            distil = 0.0 if teacher is None else 0.5
            own = replace(settings, seed=seed, epochs=left, distil=distil)
            finetune(model, splits, own, teacher=teacher)
            row = Row(
                method, seed, size.macs / whole.macs, size.parameters / whole.parameters, before,
                evaluate(model, test).accuracy, cpu_seconds() - started,
                evaluate(model, validation).accuracy,
            )  # fmt: skip
            rows.append(row)
            print(row, flush=True)
            networks.mkdir(exist_ok=True)
            torch.save(model, networks / f"{method}-{seed}.pt")
            write_text(rows_file, json.dumps([asdict(row) for row in rows], indent=1))


def measure_latency(options: argparse.Namespace, networks: Path) -> list[dict[str, Any]]:
    """Time and code the networks of the first seed, all in turns in one run."""
    seed, found = options.seeds[0], {}
    for path in sorted(networks.glob(f"*-{seed}.pt")):
        name = path.stem.rpartition("-")[0]
        # Networks that this script has written: their classes are Torch-Pruning's or snello's.
        found[name] = torch.load(path, weights_only=False).eval()
    x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    profiles = compare(
        [Subject(name, model, (x,)) for name, model in found.items()], runtimes=RUNTIMES,
        repeats=options.repeats, warmup=20, threads=1,
    )  # fmt: skip
    base = next(p for p in profiles if p.name == "dense")
    return [
        {
            "method": p.name,
            "seed": seed,
            "bitstream": len(compress(found[p.name].state_dict(), CodecSettings())),
            **{
                runtime: {
                    "median_ms": time.median_ms,
                    "p10_ms": time.p10_ms,
                    "p90_ms": time.p90_ms,
                    "to_dense": time.median_ms / base.latencies[runtime].median_ms,
                }
                for runtime, time in p.latencies.items()
            },
        }
        for p in profiles
    ]


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
    parser.add_argument(
        "--precision",
        choices=("32", "bf16"),
        default="bf16",
        help="of the training; bf16 is slow without AMX",
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--latency", action="store_true", help="time what has been trained")
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    name = f"resnet{options.depth}-{options.macs}-{options.epochs}-{options.limit or 'all'}"
    networks = options.out / name
    if not options.latency:
        train_rows(options, options.out / f"{name}.json", networks)
        return
    found = measure_latency(options, networks)
    write_text(options.out / f"{name}-latency.json", json.dumps(found, indent=1))
    for row in found:
        ratios = ", ".join(f"{r} {row[r]['to_dense']:.2f}" for r in RUNTIMES)
        print(f"{row['method']}: {ratios}; {row['bitstream']} bytes")


if __name__ == "__main__":
    main()
