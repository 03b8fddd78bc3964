"""NEq against its baselines in whole training runs: accuracy, FLOPs, and the masks to time afterwards.

    python benchmarks/neq_training.py train --network lenet5 --seeds 0 1 2 --out runs/neq
    python benchmarks/neq_training.py train --network resnet20 --seeds 0 --out runs/neq
    python benchmarks/neq_training.py replay --network resnet20 --out runs/neq --threads 1

``train`` runs the five policies of the paper's table: baseline (nothing is ever frozen), NEq, Stochastic(0.2),
Stochastic(0.5), and Stochastic* (p is the mean frozen share of the NEq run with the same seed, which therefore
runs first). The schedule is the paper's for ResNet-32, scaled down: 0.1, divided by ten after 40 % and 60 % of
the epochs, momentum 0.9, weight decay 5e-4, batches of 100, crop and flip on CIFAR-10, 50 probe images.
Accuracies are those of the last epoch's weights on the test set; nothing is selected. A finished run is not
run again, an interrupted one goes on from its last epoch; what a run froze in each epoch lies beside it as
``.masks.pt``.

``replay`` times optimisation steps (forward, backward, step) under those masks, the plain model and the one
with frozen neurons in turns on the same batches, so that the machine's other work meets both alike, and counts
the FLOPs that the backward executes. ``report`` prints the table of what is there.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from snello.datasets import DataSplits, load, loader
from snello.equilibrium import NEq, SelectiveUpdate, Stochastic, backward_flops
from snello.files import write_file
from snello.models import build

POLICIES = ("baseline", "neq", "stochastic-0.2", "stochastic-0.5", "stochastic-star")
PROBE = 50
BATCH = 100


@dataclass(frozen=True)
class Network:
    model: str
    data: str
    epochs: int
    bf16: bool
    augment: str


NETWORKS = {
    "lenet5": Network("lenet-5", "mnist", 10, False, "none"),
    "resnet20": Network("resnet-20", "cifar10", 20, True, "crop-flip"),
    "resnet32": Network("resnet-32", "cifar10", 20, True, "crop-flip"),
}


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    network = NETWORKS[options.network]
    options.out.mkdir(parents=True, exist_ok=True)
    if options.command in ("train", "replay"):
        splits = load(network.data, validation=0.02)
        for seed in options.seeds:
            for policy in options.policies:
                path = options.out / f"{options.network}_{policy}_{seed}.json"
                if options.command == "train" and not path.is_file():
                    train(network, splits, policy, seed, path)
                if options.command == "replay" and policy != "baseline":
                    replay(network, splits, path, options)
    report(options)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=["train", "replay", "report"])
    parser.add_argument("--network", choices=NETWORKS, default="lenet5")
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=list(POLICIES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--repeats", type=int, default=15, help="pairs of steps per epoch of masks, in replay"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    return parser.parse_args()


def train(network: Network, splits: DataSplits, policy: str, seed: int, path: Path) -> None:
    torch.manual_seed(seed)
    model = build(network.model).to(memory_format=torch.channels_last)
    optimizer = sgd(model)
    milestones = [round(0.4 * network.epochs), round(0.6 * network.epochs)]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones)
    batches = loader(splits.train, splits, BATCH, shuffle=True, seed=seed, augment=network.augment)  # type: ignore[arg-type]
    probe, _ = next(iter(loader(splits.train, splits, PROBE)))
    method = method_of(policy, model, optimizer, probe.to(memory_format=torch.channels_last), seed, path)
    epochs: list[dict[str, Any]] = []
    masks: list[dict[str, Tensor]] = []
    checkpoint = path.with_suffix(".ckpt")
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
    if method is not None:
        parts["method"] = method
    if checkpoint.is_file():
        saved = torch.load(checkpoint, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        epochs, masks = saved["epochs"], saved["masks"]
    for epoch in range(len(epochs), network.epochs):
        batches.sampler.set_epoch(epoch)  # type: ignore[union-attr]
        frozen = {} if method is None else method.frozen
        status = None if method is None else method.status()
        masks.append(frozen)
        started, total = time.perf_counter(), 0.0
        model.train()
        for x, y in batches:
            total += step(model, optimizer, x, y, network.bf16) * len(y)
        seconds = time.perf_counter() - started
        schedule.step()
        probed = time.perf_counter()
        if method is not None:
            method.step()
        probe_seconds = time.perf_counter() - probed
        row = {
            "epoch": epoch + 1,
            "train_loss": total / len(splits.train),
            "test_accuracy": accuracy(model, splits),
            "updated": 1.0 if status is None else status.total,
            "paper_flops": None if status is None else status.flops / status.dense_flops,
            "layers": None if status is None else status.updated,
            "seconds": seconds,
            "probe_seconds": probe_seconds,
        }
        epochs.append(row)
        print(
            f"{path.stem} {epoch + 1:3d}/{network.epochs} loss {row['train_loss']:.4f} test "
            f"{row['test_accuracy']:.2%} updated {row['updated']:.1%} {seconds:.0f} s + probe {probe_seconds:.2f} s",
            flush=True,
        )
        state = {name: part.state_dict() for name, part in parts.items()}
        state |= {"epochs": epochs, "masks": masks}
        write_file(checkpoint, lambda beside, state=state: torch.save(state, beside))
    torch.save(masks, path.with_suffix(".masks.pt"))
    record = json.dumps({"policy": policy, "seed": seed, "epochs": epochs}, indent=1) + "\n"
    write_file(path, lambda beside: beside.write_text(record))
    checkpoint.unlink()


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)


def method_of(
    policy: str, model: nn.Module, optimizer: torch.optim.Optimizer, probe: Tensor, seed: int, path: Path
) -> SelectiveUpdate | None:
    if policy == "baseline":
        return None
    if policy == "neq":
        return NEq(model, optimizer, probe, eps=1e-3, mu=0.5, warmup=1)
    if policy == "stochastic-star":
        finished = json.loads(path.with_name(path.name.replace(policy, "neq")).read_text())
        share = 1 - statistics.mean(row["updated"] for row in finished["epochs"])
    else:
        share = float(policy.rpartition("-")[2])
    return SelectiveUpdate(model, optimizer, probe, Stochastic(share, seed))


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, bf16: bool) -> float:
    optimizer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext():
        loss = nn.functional.cross_entropy(model(x.to(memory_format=torch.channels_last)), y)
    loss.backward()
    optimizer.step()
    return float(loss.detach())


@torch.no_grad()
def accuracy(model: nn.Module, splits: DataSplits) -> float:
    model.eval()
    right = sum(
        int((model(x.to(memory_format=torch.channels_last)).argmax(1) == y).sum())
        for x, y in loader(splits.test, splits, 500)
    )
    return right / len(splits.test)


def replay(network: Network, splits: DataSplits, path: Path, options: argparse.Namespace) -> None:
    """Time and count what the masks of each epoch save, and write it beside the run."""
    if not path.is_file():
        return
    torch.manual_seed(0)
    masks = torch.load(path.with_suffix(".masks.pt"), weights_only=True)
    plain, sparse = (build(network.model).to(memory_format=torch.channels_last) for _ in range(2))
    sparse.load_state_dict(plain.state_dict())
    optimizers = sgd(plain), sgd(sparse)
    method = SelectiveUpdate(sparse, optimizers[1], torch.zeros(2, *splits.input_shape), Stochastic(0.0))
    batches = list(itertools.islice(loader(splits.train, splits, BATCH), options.repeats + 1))
    x, y = batches[0]
    dense = backward_flops(plain, x).total
    rows = []
    for epoch, frozen in enumerate(masks, 1):
        method.apply(frozen)
        times: dict[bool, list[float]] = {False: [], True: []}
        for turn, (x, y) in enumerate(batches):
            for dense_turn in (True, False) if turn % 2 else (False, True):
                model, optimizer = (plain, optimizers[0]) if dense_turn else (sparse, optimizers[1])
                started = time.perf_counter()
                step(model, optimizer, x, y, network.bf16)
                if turn:  # the first warms up, and measures where slicing pays
                    times[dense_turn].append(time.perf_counter() - started)
        ratio = statistics.median(times[False]) / statistics.median(times[True])
        rows.append({"epoch": epoch, "step_time": ratio, "flops": backward_flops(sparse, x).total / dense})
        print(
            f"{path.stem} {epoch:3d} step time {ratio:.3f} backward FLOPs {rows[-1]['flops']:.3f}", flush=True
        )
    record = json.dumps({"threads": options.threads, "pairs": options.repeats, "epochs": rows}, indent=1)
    write_file(path.with_suffix(".replay.json"), lambda beside: beside.write_text(record + "\n"))


def report(options: argparse.Namespace) -> None:
    """Means over the seeds that are there, with the smallest and largest."""
    print(
        "| Policy | Seeds | Test accuracy | Updated | FLOPs, paper | Backward FLOPs, executed | Step time |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|")
    for policy in POLICIES:
        found = sorted(options.out.glob(f"{options.network}_{policy}_[0-9]*.json"))
        runs = [path for path in found if ".replay" not in path.name]
        if not runs:
            print(f"| {policy} | 0 | not run | | | | |")
            continue
        epochs = [json.loads(path.read_text())["epochs"] for path in runs]
        replays = [path.with_suffix(".replay.json") for path in runs]
        timed = [json.loads(path.read_text())["epochs"] for path in replays if path.is_file()]
        print(
            f"| {policy} | {len(runs)} "
            f"| {over_seeds([rows[-1]['test_accuracy'] for rows in epochs])} "
            f"| {over_seeds([mean(rows, 'updated') for rows in epochs])} "
            f"| {over_seeds([mean(rows, 'paper_flops') for rows in epochs])} "
            f"| {over_seeds([mean(rows, 'flops') for rows in timed])} "
            f"| {over_seeds([mean(rows, 'step_time') for rows in timed])} |"
        )


def mean(rows: list[dict[str, Any]], key: str) -> float:
    """Over the epochs; a baseline has no share and pays in full."""
    return statistics.mean(1.0 if row[key] is None else row[key] for row in rows)


def over_seeds(values: list[float]) -> str:
    if not values:
        return ""
    spread = f" ({min(values):.2%}-{max(values):.2%})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2%}{spread}"


if __name__ == "__main__":
    main()
