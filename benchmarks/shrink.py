"""The cheapest network within a bound: shrink against single levers and a uniform ratio.

    SNELLO_DATA=DATA python benchmarks/shrink.py lenet5 --minimise bytes --out lenet5_bytes.json
    SNELLO_DATA=DATA python benchmarks/shrink.py resnet32 --weights resnet32.th --minimise latency \
        --validation 4000 --finetune-images 10000 --out resnet32_latency.json

Protocol
    The bound is 0.005, on the upper limit at 95 % of the paired drop of accuracy, on validation
    images: cut from the training part, or, with ``--weights``, from the test part, since published
    weights have seen all training images. Sensitivities, statistics and ranges are taken from
    training images. Each variant that a search returns is measured once more on the (other) test
    images, which no search saw, and the same paired limit is reported. All variants get the same
    fine-tuning, if any; ``--epochs`` fine-tunes the dense network first.

    shrink          all levers that the cost depends on
    channels, ...   shrink with one lever
    uniform         the same share of every width, the smallest of a grid within the bound

    Latency: one image, ONNX Runtime, one thread, 10th percentile, all variants interleaved at the
    end. Predictions are judged on candidates that the fit of offset and slope did not use.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from snello.deploy import FileModel, export, export_int8, file_runner, footprint, latencies
from snello.deploy.operations import fit_latency, operations_of, this_device
from snello.files import write_file, write_text
from snello.graph import coupling, cut
from snello.graph.coupled import Coupling
from snello.lab.datasets import Splits, load_dataset, loader, normalised
from snello.lab.reporting.pages import shrink_data
from snello.lab.training import FineTuning, answers, finetune
from snello.pruning.channels import Keep, group_taylor, plan_channels
from snello.pruning.recovery import recalibrate
from snello.search.shrink import Judge, Shrunk, shrink
from snello.store import build, load_weights
from snello.timing import cpu_seconds

MAX_DROP = 0.005
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
FIT_SHARES = (0.75, 0.5, 0.25)
"""Shares of the widths of the networks that a prediction is fitted to, with the dense one."""

SHARES = "0.9,0.8,0.7,0.6,0.5,0.4,0.3,0.2"
"""Shares of the widths of the uniform baseline."""


class Work:
    """Model, data and the functions that all variants share."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        torch.manual_seed(0)
        if options.network == "lenet5":
            splits = load_dataset("mnist", validation=options.validation / 60000, seed=0)
            self.model = build("lenet-5", classes=10)
        else:
            splits = load_dataset("cifar10", validation=options.validation / 50000, seed=0)
            splits = normalised(splits, *IMAGENET)
            self.model = build("resnet-32", classes=10)
        if options.weights:
            order = torch.randperm(
                len(splits.test), generator=torch.Generator().manual_seed(0)
            ).split(options.validation)
            validation, test = order[0], torch.cat(order[1:])
            splits = replace(
                splits, validation=splits.test.subset(validation), test=splits.test.subset(test)
            )
        self.splits: Splits = splits
        if options.weights:
            load_weights(self.model, options.weights)
            if options.epochs:
                finetune(
                    self.model, splits, replace(self.settings, epochs=options.epochs, distil=0.0)
                )
        else:
            finetune(
                self.model, splits, FineTuning(epochs=options.epochs or 3, lr=0.05, augment="none")
            )
        self.model.eval()
        self.example = torch.zeros(1, *splits.input_shape)
        self.labelled = list(
            loader(splits.train, splits, 256, shuffle=True, seed=0, limit=options.calibration)
        )
        self.calibration = [images for images, _ in self.labelled]
        self.validation = list(loader(splits.validation, splits, 500))
        self.test = list(loader(splits.test, splits, 500))
        self.judge = Judge(lambda m: answers(m, self.test).right, self.model)

    def evaluate(self, model: nn.Module) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.options.bf16):
            return answers(model, self.validation).right

    @property
    def settings(self) -> FineTuning:
        o = self.options
        return FineTuning(
            epochs=o.finetune_epochs, lr=o.lr, limit=o.finetune_images or None, distil=o.distil,
            precision="bf16" if o.bf16 else "32", augment="crop-flip" if o.network == "resnet32" else "none",
        )  # fmt: skip

    @property
    def fit(self) -> Callable[[nn.Module], object] | None:
        if not self.options.finetune_images:
            return None
        settings = self.settings
        return lambda model: finetune(model, self.splits, settings, teacher=self.model)

    def shrink(self, name: str, allow: tuple[Any, ...]) -> Shrunk:
        folder = None if self.options.folder is None else Path(self.options.folder) / name
        return shrink(
            self.model, self.example, self.evaluate, fit=self.fit, max_drop=MAX_DROP,
            minimise=self.options.minimise, allow=allow, calibration=self.calibration,
            importance=group_taylor(self.labelled), trials=self.options.trials, folder=folder,
            round_to=self.options.round_to,
            on_candidate=lambda c: print(name, c.precision, c.cost, c.predicted, c.limit, c.why, flush=True),
        )  # fmt: skip

    def uniform(self) -> dict[str, nn.Module]:
        """The narrowest networks of one share of every width that are within the bound.

        One for float32 and, if it is allowed and a latency is minimised, one for int8.
        """
        judge, found = Judge(self.evaluate, self.model), {}
        left = ["float32"]
        blocks = 8 if self.options.minimise == "latency" else 1  # those that runtimes compute in
        if self.options.minimise == "latency" and "int8" in self.options.levers:
            left.append("int8")
        for share in map(float, self.options.shares.split(",")):
            plan = plan_channels(
                self.model, self.example, Keep(channels=share), importance=_ranks(self.labelled),
                normalise=None, round_to=self.options.round_to or blocks,
            )  # fmt: skip
            lean = plan.cut(self.model, self.example)
            self._trained(lean, f"uniform-{share}.pt")
            for precision in tuple(left):
                verdict = judge(self.deployed(lean, precision))
                print("uniform", precision, share, verdict, flush=True)
                if verdict.limit > MAX_DROP:
                    left.remove(precision)
                else:
                    found[precision] = lean
            if not left:
                break
        return found

    def _trained(self, lean: nn.Module, name: str) -> None:
        """Recover and fine-tune a network, or load it from the folder, where it is kept."""
        kept = None if self.options.folder is None else Path(self.options.folder) / name
        if kept is not None and kept.is_file():
            load_weights(lean, kept)
            return
        recalibrate(lean, self.calibration)
        if self.fit is not None:
            self.fit(lean)
        if kept is not None:
            write_file(kept, lambda path: torch.save(lean.state_dict(), path))

    def deployed(self, model: nn.Module, precision: str) -> nn.Module:
        """The network as it answers on the device."""
        if precision != "int8":
            return model
        path = Path(tempfile.mkdtemp()) / "int8.onnx"
        export_int8(model, (self.example,), path, self.calibration)
        return FileModel(path)


def _ranks(batches: list[tuple[Tensor, Tensor]]) -> Any:
    """Ranks within each dimension, so that every dimension keeps the same share."""
    measure = group_taylor(batches)

    def scores(model: nn.Module, groups: Coupling) -> dict[str, Tensor]:
        return {
            n: (s.argsort().argsort().double() + 1) / len(s)
            for n, s in measure(model, groups).items()
        }

    return scores


def row(work: Work, name: str, found: Shrunk, seconds: float) -> dict[str, Any]:
    """Cost of a variant, and its drop on the test images."""
    int8 = found.precision == "int8"
    model = work.deployed(found.model, "int8") if int8 else found.deployed()
    verdict = work.judge(model)
    return {
        "variant": name, "precision": found.precision, "bytes": found.chosen.bytes,
        "macs": found.chosen.macs, "cost": found.chosen.cost, "widths": dict(found.chosen.widths),
        "sparsity": found.chosen.sparsity, "validation_limit": found.chosen.limit,
        "test": asdict(verdict), "cpu_seconds": round(seconds, 1),
    }  # fmt: skip


def timed_together(work: Work, networks: dict[str, tuple[nn.Module, str]]) -> dict[str, float]:
    """Latencies of all variants in one interleaved run, 10th percentile in milliseconds."""
    folder, runners = Path(tempfile.mkdtemp()), {}
    for name, (model, precision) in networks.items():
        path = folder / f"{name}.onnx"
        if precision == "int8":
            export_int8(model, (work.example,), path, work.calibration)
        else:
            export(model, (work.example,), path)
        runners[name] = file_runner(path, work.example)
    found = latencies(runners, repeats=300)
    return {name: latency.p10_ms for name, latency in found.items()}


def predictions(network: str, count: int) -> dict[str, Any]:
    """Predicted and measured latency of networks of random widths, untrained."""
    torch.manual_seed(0)
    name, shape = ("lenet-5", (1, 28, 28)) if network == "lenet5" else ("resnet-32", (3, 32, 32))
    model, x = build(name, classes=10).eval(), torch.randn(1, *shape)
    groups = coupling(model, x)
    _, table = this_device()
    files = {"dense": export(model, x, Path(tempfile.mkdtemp()) / "dense.onnx")}
    sums = {"dense": table.measured(operations_of(model, x)).sum(operations_of(model, x))}
    for i in range(count):
        share = None if i >= len(FIT_SHARES) else FIT_SHARES[i]
        gone = {d.name: range(_kept(d.width, share), d.width) for d in groups.free}
        lean = cut(model, groups, gone)
        operations = operations_of(lean, x)
        sums[str(i)] = table.measured(operations).sum(operations)
        files[str(i)] = export(lean, x, files["dense"].with_name(f"{i}.onnx"), verify=False)
    found = latencies({n: file_runner(f, x) for n, f in files.items()}, repeats=100)
    times = {n: latency.p10_ms for n, latency in found.items()}
    used = ["dense", *(str(i) for i in range(len(FIT_SHARES)))]
    fit = fit_latency([(sums[n], times[n]) for n in used])
    rows = [
        {
            "table_ms": sums[n],
            "predicted_ms": fit(sums[n]),
            "measured_ms": times[n],
            "fit": n in used,
        }
        for n in files
    ]
    errors = [abs(r["predicted_ms"] / r["measured_ms"] - 1) for r in rows if not r["fit"]]
    within = sum(e <= 0.1 for e in errors)
    return {"network": network, "fit": asdict(fit), "rows": rows, "within_10_percent": [within, len(errors)],
            "worst": max(errors), "load": os.getloadavg()[0], "date": time.strftime("%Y-%m-%d")}  # fmt: skip


def _kept(width: int, share: float | None) -> int:
    step = 8 if width >= 16 else 1
    chosen = share if share is not None else float(torch.rand(()).clamp_min(0.1))
    return min(width, max(step, round(chosen * width / step) * step))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("network", choices=("lenet5", "resnet32"))
    parser.add_argument("--weights", help="state_dict; LeNet-5 is trained without it")
    parser.add_argument("--minimise", choices=("bytes", "latency"), default="bytes")
    parser.add_argument("--levers", default="channels,weights,int8,nnc")
    parser.add_argument("--singles", default="channels,int8,nnc", help="single levers; empty: none")
    parser.add_argument(
        "--shares", default=SHARES, help="of the widths of the uniform baseline; empty: none"
    )
    parser.add_argument("--validation", type=int, default=5000)
    parser.add_argument("--calibration", type=int, default=512)
    parser.add_argument("--trials", type=int, default=7)
    parser.add_argument(
        "--epochs", type=int, default=0,
        help="epochs of training LeNet-5 (0: 3), or of fine-tuning the dense network of --weights",
    )  # fmt: skip
    parser.add_argument("--finetune-images", type=int, default=0)
    parser.add_argument("--finetune-epochs", type=int, default=1)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--distil", type=float, default=0.5)
    parser.add_argument("--round-to", type=int)
    parser.add_argument(
        "--bf16",
        action="store_true",
        help="evaluate and fine-tune in bfloat16; test images in float32",
    )
    parser.add_argument("--folder")
    parser.add_argument("--out", required=True)
    parser.add_argument(
        "--predictions",
        type=int,
        help="only compare the latency of this many networks of random widths",
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.predictions:
        compared = predictions(options.network, options.predictions)
        write_text(options.out, json.dumps(compared, indent=1))
        print(json.dumps(compared, indent=1))
        return
    work = Work(options)
    dense = {"accuracy": work.judge.value, "bytes": footprint(work.model, work.example).bytes}
    print("dense", dense, len(coupling(work.model, work.example).free), flush=True)
    result: dict[str, Any] = {
        "network": options.network, "minimise": options.minimise, "bound": MAX_DROP, "dense": dense,
        "options": {k: v for k, v in vars(options).items() if k not in ("folder", "weights", "out")},
        "threads": 1, "date": time.strftime("%Y-%m-%d"), "load": os.getloadavg()[0],
        "rows": [], "torch": torch.__version__,
    }  # fmt: skip
    networks: dict[str, tuple[nn.Module, str]] = {"dense": (work.model, "float32")}
    variants = {"shrink": tuple(options.levers.split(","))}
    variants |= {name: (name,) for name in options.singles.split(",") if name}
    for name, allow in variants.items():
        begin = cpu_seconds()
        found = work.shrink(name, allow)
        result["rows"].append(row(work, name, found, cpu_seconds() - begin))
        if name == "shrink":
            result["search"] = shrink_data(found)
        networks[name] = (found.model, found.precision)
        write_text(options.out, json.dumps(result, indent=1))
    if options.shares:
        for precision, lean in work.uniform().items():
            size = footprint(lean, work.example)
            networks[f"uniform, {precision}"] = (lean, precision)
            result["rows"].append(
                {"variant": "uniform", "precision": precision, "bytes": size.bytes, "macs": size.macs,
                 "test": asdict(work.judge(work.deployed(lean, precision)))}
            )  # fmt: skip
    if options.minimise == "latency":
        result["latency_ms"] = timed_together(work, networks)
    write_text(options.out, json.dumps(result, indent=1))
    print(json.dumps(result["rows"], indent=1), result.get("latency_ms"))


if __name__ == "__main__":
    main()
