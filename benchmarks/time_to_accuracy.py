"""Accuracy against CPU seconds of fine-tunings that save work, beside fine-tunings of fewer epochs.

    python benchmarks/time_to_accuracy.py --weights resnet32.th --rows plain epochs-5 --seeds 0 1 2 \
        --out runs/time

Fine-tunes public ResNet-32 weights on JPEG CIFAR-10, or trains from scratch without `--weights`:

    python benchmarks/time_to_accuracy.py --depth 20 --epochs 30 --images 22500 --views 10 --lr 0.1 \
        --rows plain epochs-18 rest-15-22+anneal+info0.5 --out runs/scratch

or a small ViT, from MNIST's digits 0 to 4 (trained first, and kept in the folder) to 5 to 9:

    python benchmarks/time_to_accuracy.py --task vit --images 5000 --lr 1e-3 --precision 32 --rows plain \
        epochs-4 rest-2-2+anneal+stored --out runs/vit

Every row has the same images, views of them,
order of a seed, batches, optimizer and kind of schedule; a schedule always ends with the training.
Augmentation is deterministic for all rows, as cached features need it: each epoch takes one of
``--views`` views of every image in turn. The first is the image; the others are shifted by up to 4
pixels, by another amount for every image, and every second view is mirrored.

Seconds are CPU seconds of the training loop on one thread, with everything that a method needs in
them: probe, hooks, masks, re-estimated statistics, storing and reading features, drawing samples.
With ``--device=cuda`` they are seconds of the wall clock, read once the device has finished, and all
images lie in its memory; ``--shared`` says that other processes use it too, so that the accuracy of a
row counts and its time does not.
Before and after each epoch a fixed reference step is timed, outside of these seconds: on a machine
with other work the speed of a core changes from minute to minute, and it is divided out.
Static subsets by scores (`dual-R`, `ccs-R`) record a training of a quarter of the epochs first, once
for a seed; its seconds count in each of their rows.
Accuracy: all test images, last epoch. Rows are written as they are finished, and what is there is
not run again; a folder is of one setting. ``--rows list`` names the rows.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import torch.nn.functional as F
from time_to_accuracy_tasks import TASKS, Images, Task
from torch import Tensor, nn

from snello.curation import (
    DynamicSubset,
    InfoBatch,
    OrderDP,
    RandomSubset,
    Recorder,
    Recording,
    keep_covering,
    keep_dual,
    keep_random,
)
from snello.equilibrium import (
    FeatureCache,
    Prefix,
    Selection,
    SelectiveUpdate,
    Settled,
    Stochastic,
    Velocity,
)
from snello.files import write_file, write_text
from snello.pruning.recovery import recalibrate

ADAPTED = 2000  # images on which statistics are estimated again
WINDOW = 3
"""Epochs of DUAL's windows: 10 of 30 in its paper, fewer of the few that are recorded here."""


@dataclass(frozen=True)
class Row:
    """A way to train.

    Attributes:
        epochs: number of epochs.
        rests: epoch at which the first, the first two … parts stop learning; empty for never.
        annealed: whether the learning rate of a part ends when it stops, not with the training.
        adapt: whether statistics of BatchNorm are estimated on the images before the training.
        cache: "stored", "computed" (evaluation mode, without autograd) or "" (the model itself).
        select: rule of the selective update; None for none, or that of `rests`.
        every: calls of the rule in an epoch.
        curate: makes the dynamic subset.
        static: share of the images that is left out for good.
        method: of `static`: "random" (by class), "dual" or "ccs".
        baseline: "freezeout", "linear" or "".
    """

    epochs: int = 8
    rests: tuple[float, ...] = ()
    annealed: bool = False
    adapt: bool = False
    cache: str = ""
    select: Callable[[], Selection] | None = None
    every: int = 1
    curate: Callable[[Any, int, int], DynamicSubset] | None = None
    static: float = 0.0
    method: str = "random"
    baseline: str = ""


def _info(ratio: float) -> Callable[[Any, int, int], DynamicSubset]:
    return lambda data, epochs, seed: InfoBatch(data, ratio, epochs=epochs, seed=seed)


def _random(ratio: float) -> Callable[[Any, int, int], DynamicSubset]:
    return lambda data, epochs, seed: RandomSubset(data, ratio, seed=seed)


def _order(ratio: float) -> Callable[[Any, int, int], DynamicSubset]:
    return lambda data, epochs, seed: OrderDP(data, ratio, seed=seed)


def _settled(eps: float, share: float) -> Callable[[], Selection]:
    return lambda: Settled(Velocity(eps), share, scattered=False)


ROWS: dict[str, Row] = {
    "plain": Row(),
    **{f"epochs-{n}": Row(epochs=n) for n in range(1, 31)},
    "neq": Row(select=lambda: Velocity(1e-3)),
    "stochastic-0.5": Row(select=lambda: Stochastic(0.5)),
    "freezeout": Row(baseline="freezeout"),
    "linear": Row(baseline="linear"),
    "settled-1e-3-0.8": Row(select=_settled(1e-3, 0.8), every=4, cache="computed"),
    "settled-5e-3-0.7": Row(select=_settled(5e-3, 0.7), every=4, cache="computed"),
    "settled-5e-3-0.7-stored": Row(select=_settled(5e-3, 0.7), every=4, cache="stored"),
    "infobatch-0.5": Row(curate=_info(0.5)),
    "infobatch-0.7": Row(curate=_info(0.7)),
    **{f"orderdp-{r}": Row(curate=_order(r)) for r in (0.3, 0.5, 0.7)},
    **{f"rs2-{r}": Row(curate=_random(r)) for r in (0.3, 0.5, 0.7)},
    **{f"static-{r}": Row(static=r) for r in (0.3, 0.5, 0.7)},
    **{f"{m}-{r}": Row(static=r, method=m) for m in ("dual", "ccs") for r in (0.3, 0.5, 0.7)},
}


def parsed(name: str, epochs: int = 8) -> Row:
    """A row by its name and options: `rest-2-3+anneal+stored+info0.5`, `orderdp-0.5+e4`.

    In `rest-A-B` the first part of the network stops after A epochs, the second after B. Options:
    anneal, adapt, computed, stored, info0.5, eN (N epochs).
    """
    head, *options = name.split("+")
    row = ROWS[head] if head in ROWS else _resting(head)
    if not head.startswith("epochs-"):
        row = replace(row, epochs=epochs)
    for option in options:
        if option in ("stored", "computed"):
            row = replace(row, cache=option)
        elif option.startswith("info"):
            row = replace(row, curate=_info(float(option[4:])))
        elif option.startswith("e") and option[1:].isdigit():
            row = replace(row, epochs=int(option[1:]))
        else:
            row = replace(row, **{{"anneal": "annealed", "adapt": "adapt"}[option]: True})
    return row


def _resting(name: str) -> Row:
    kind, *moments = name.split("-")
    if kind != "rest" or not moments:
        raise SystemExit(f"no row {name!r}; there are: {', '.join(ROWS)}, rest-A-B+options")
    rests = tuple(map(float, moments))
    every = 1 if all(moment.is_integer() for moment in rests) else 4
    return Row(rests=rests, cache="computed", every=every)


class Speed:
    """Seconds of a fixed step of a task's network, the measure of the core's present speed."""

    def __init__(self, task: Task) -> None:
        torch.manual_seed(0)
        self._task, self._model, self._x = task, task.network(), task.images.train[:100]
        self._seconds()

    def note(self, run: Run) -> None:
        """Add the present speed to a run, if its time counts."""
        if not self._task.shared:
            run.reference.append(self._seconds())

    def _seconds(self) -> float:
        began = self._task.seconds()
        with self._task.autocast():
            loss = self._model(self._x).float().square().mean()
        loss.backward()
        return self._task.seconds() - began


@dataclass
class Run:
    """Results of a training.

    Attributes:
        seconds: seconds of each epoch; what is prepared before, scores of images among it, is
            part of the first.
        reference: seconds of the reference step before each epoch and after the last; empty if the
            time does not count.
        wall: seconds of all, with the reference steps.
        kept: share of the samples.
        steps: number of steps.
        resting: number of watched layers at rest at the end of each epoch.
        accuracy: test accuracy after the last epoch.
    """

    seconds: list[float] = field(default_factory=list)
    reference: list[float] = field(default_factory=list)
    wall: float = 0.0
    kept: float = 1.0
    steps: int = 0
    resting: list[int] = field(default_factory=list)
    accuracy: float = 0.0


class FreezeOut:
    """FreezeOut, cubic and scaled: every module's own cosine, which ends when the module stops.

    Source: Brock et al., "FreezeOut", 2017, and its code, https://github.com/ajbrock/FreezeOut.
    """

    def __init__(self, model: nn.Module, t0: float = 0.8) -> None:
        found = (*model.layer1, *model.layer2, *model.layer3)  # type: ignore[misc]
        self.modules = (nn.ModuleList([model.conv1, model.bn1]), *found, model.linear)  # type: ignore[list-item]
        last = len(self.modules) - 1
        self.ends = [(t0 + (1 - t0) * i / last) ** 3 for i in range(last + 1)]

    def groups(self) -> list[dict[str, Any]]:
        return [
            {"params": list(m.parameters()), "end": end, "scale": 1 / end}
            for m, end in zip(self.modules, self.ends, strict=True)
        ]

    def stop(self, moment: float) -> None:
        for module, end in zip(self.modules, self.ends, strict=True):
            if moment >= end:
                module.requires_grad_(False).eval()


def linear_freezing(model: nn.Module, moment: float, start: float = 0.5) -> None:
    """Composer's layer freezing: a share of the modules that grows linearly; BatchNorm goes on."""
    leaves = [m for m in model.modules() if not list(m.children()) and list(m.parameters())]
    share = max(0.0, (moment - start) / (1 - start))
    for module in leaves[: int(share * len(leaves))]:
        module.requires_grad_(False)


def train(
    row: Row, model: Any, task: Task, seed: int, lr: float, batch: int,
    recorder: Recorder | None = None, recording: Recording | None = None,
) -> Run:  # fmt: skip
    """Train by the method of a row, and record what the network answers.

    Args:
        recorder: takes the outputs of all batches.
        recording: of another training, for rows that score the images.
    """
    images = task.images
    speed, run, wall = Speed(task), Run(), time.perf_counter()
    speed.note(run)
    began = task.seconds()
    keep, where = subset(row, images, seed, recording)
    model.train()
    freezeout = FreezeOut(model) if row.baseline == "freezeout" else None
    groups = freezeout.groups() if freezeout else grouped(model, task, row)
    optimizer = task.optimizer(groups, lr)
    if row.adapt:
        with task.autocast():
            recalibrate(model, images.train[where[:ADAPTED]].split(batch))
    update, cache = selective(row, model, optimizer, task, where)
    sampler, forward = keep.sampler(), cache or (lambda x, _index: model(x))
    size = len(images)
    for epoch in range(row.epochs):
        view = epoch % images.views
        for number, chosen in enumerate(batches(sampler, batch)):
            if update and due(row, update, number, run.steps, size // batch):
                update.step()
            index = where[chosen].to(task.device)
            x = images.train[index + view * size]
            with task.autocast():
                out = forward(x, index + view * size)
            losses = F.cross_entropy(out.float(), images.labels[index], reduction="none")
            if recorder:
                recorder.record(out, images.labels[index], index)
            loss = keep.weigh(losses, chosen)
            optimizer.zero_grad()
            loss.backward()
            moment = keep.moment / row.epochs
            optimizer.step()
            for group in optimizer.param_groups:
                at = min(1.0, moment / group["end"])
                group["lr"] = lr * group["scale"] * 0.5 * (1 + math.cos(math.pi * at))
            run.steps += 1
            if freezeout:
                freezeout.stop(moment)
        if recorder:
            recorder.step()
        if row.baseline == "linear":
            linear_freezing(model, (epoch + 1) / row.epochs)
        run.seconds.append(task.seconds() - began)
        speed.note(run)
        began = task.seconds()
        run.resting.append(len(update.freezer.resting) if update else 0)
    run.wall = time.perf_counter() - wall
    run.kept = keep.kept * len(where) / size
    if cache:
        cache.close()
    if update:
        update.remove()
    return run


def due(row: Row, update: SelectiveUpdate, number: int, steps: int, length: int) -> bool:
    """Return True if the rule is asked before a batch of an epoch."""
    # Nothing has moved before the first step: a rule that observes would freeze all.
    ready = steps > 0 or not update.selection.observes
    return ready and number % max(1, length // row.every) == 0


def batches(sampler: Any, size: int) -> Iterator[Tensor]:
    keys = torch.tensor(list(sampler))
    yield from keys.split(size)


def subset(
    row: Row, images: Images, seed: int, recording: Recording | None
) -> tuple[DynamicSubset, Tensor]:
    """The dynamic subset (of all, if the row has none), and the indices of its samples."""
    where = torch.arange(len(images))
    if row.static and row.method == "random":
        where = keep_random(images.labels.cpu(), row.static, seed=seed).indices
    elif row.static and row.method == "dual":
        where = keep_dual(recording, row.static, window=WINDOW, seed=seed).indices
    elif row.static:
        hard = 0.1 if row.static >= 0.7 else 0.0  # as published, per rate
        where = keep_covering(recording, row.static, hard=hard, seed=seed).indices
    make = row.curate or _random(0.0)
    return make(range(len(where)), row.epochs, seed), where


def recorded(
    task: Task, seed: int, epochs: int, options: argparse.Namespace
) -> tuple[Recording, float]:
    """Record a short training on all images; return it with its seconds in reference steps.

    Raises:
        SystemExit: for one that was recorded when its time did not count.
    """
    file = options.out / f"recorded-{epochs}-seed-{seed}.pt"
    if not file.exists():
        recorder = Recorder(len(task.images))
        torch.manual_seed(seed)
        run = train(
            Row(epochs=epochs), task.network(), task, seed, options.lr, options.batch, recorder
        )
        cost = None if task.shared else sum(run.seconds) / mean(run.reference)
        kept = {"recording": vars(recorder.recording()), "cost": cost}
        write_file(file, lambda path: torch.save(kept, path))
    found = torch.load(file, weights_only=True)
    if found["cost"] is None and not task.shared:
        raise SystemExit(f"{file} was recorded with --shared, without its time: remove it")
    return Recording(**found["recording"]), found["cost"] or 0.0


def grouped(model: nn.Module, task: Task, row: Row) -> list[dict[str, Any]]:
    """Parameter groups of the parts, with the end of their cosine as a share of the training."""
    ends = [1.0] * len(task.parts)
    if row.annealed:
        for i, moment in enumerate(row.rests):
            ends[i] = max(moment, 1e-9) / row.epochs
    return [
        {"params": [p for name, p in model.named_parameters() if task.part(name) == number],
         "end": end, "scale": 1.0}
        for number, end in enumerate(ends)
    ]  # fmt: skip


def selective(
    row: Row, model: nn.Module, optimizer: Any, task: Task, where: Tensor
) -> tuple[SelectiveUpdate | None, FeatureCache | None]:
    images, ends = task.images, [0]
    if row.rests:
        calls = [moment * row.every for moment in row.rests]

        def share(step: int) -> float:
            return ends[sum(step > call for call in calls)] / ends[-1]

        rule: Selection = Prefix(share)
    elif row.select:
        rule = row.select()
    else:
        return None, None
    update = SelectiveUpdate(model, optimizer, images.train[where[:50]], rule)
    ends += [
        sum(task.part(name) <= last for name in update.frozen) for last in range(len(task.parts))
    ]
    if not row.cache:
        return update, None
    limit = 2**33 if row.cache == "stored" else 0
    return update, FeatureCache(update, len(images) * images.views, limit=limit)


def accuracy(model: nn.Module, task: Task) -> float:
    images = task.images
    model.eval()
    with torch.no_grad(), task.autocast():
        hits = sum(
            int((model(x).argmax(1) == y).sum())
            for x, y in zip(images.test.split(250), images.truth.split(250), strict=True)
        )
    return hits / len(images.truth)


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--task", choices=tuple(TASKS), default="cifar10")
    parser.add_argument("--weights", type=Path, help="state_dict of a CIFAR ResNet")
    parser.add_argument("--depth", type=int, default=32)
    parser.add_argument("--precision", choices=("bf16", "32"), default="bf16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--shared", action="store_true", help="with other work: time does not count"
    )
    parser.add_argument("--rows", nargs="+", required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--images", type=int, default=15_000)
    parser.add_argument("--views", type=int, default=1)
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--out", type=Path, required=True, help="folder of the rows")
    options = parser.parse_args(given)
    torch.set_num_threads(1)
    if options.rows == ["list"]:
        print(*ROWS, sep="\n")
        return
    check_folder(options)
    task = TASKS[options.task](options)
    for seed in options.seeds:
        for name in options.rows:
            file = options.out / f"{name}-seed-{seed}.json"
            if not file.exists():
                write_text(
                    file, json.dumps(one(parsed(name, options.epochs), name, task, seed, options))
                )
                print(file.read_text(), flush=True)


def check_folder(options: argparse.Namespace) -> None:
    """Note the setting of a folder's rows, or refuse another one.

    Raises:
        SystemExit: if the folder was begun with another setting.
    """
    given = {
        k: str(v) for k, v in vars(options).items() if k not in ("rows", "seeds", "out", "shared")
    }
    file = options.out / "setting.json"
    options.out.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        write_text(file, json.dumps(given))
    found = {"device": "cpu"} | json.loads(file.read_text())  # the only one at first
    other = [k for k in given if given[k] != found.get(k)]
    if other:
        raise SystemExit(
            f"{options.out} has rows with other values of {', '.join(other)}: choose another --out"
        )


def one(row: Row, name: str, task: Task, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train and test a row once."""
    if row.baseline and options.task != "cifar10":
        raise SystemExit(
            f"{name}: written for a CIFAR ResNet; leave it out with --task={options.task}"
        )
    recording, cost = None, 0.0
    if row.method != "random":
        recording, cost = recorded(task, seed, max(WINDOW, row.epochs // 4), options)
    torch.manual_seed(seed)
    model = task.network()
    run = train(row, model, task, seed, options.lr, options.batch, recording=recording)
    if not task.shared:
        run.seconds[0] += cost * mean(run.reference)
    run.accuracy = accuracy(model, task)
    setting = {"row": name, "seed": seed, "epochs": row.epochs, "images": options.images,
               "views": options.views, "lr": options.lr, "batch": options.batch,
               "depth": options.depth, "from_scratch": task.from_scratch,
               "precision": options.precision, "device": options.device}  # fmt: skip
    return {**setting, **asdict(run)}


if __name__ == "__main__":
    main()
