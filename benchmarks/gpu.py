"""Everything worth measuring on one GPU, in order, in steps of at most eight minutes.

    SNELLO_DATA=DATA python benchmarks/gpu.py --minutes=25 --weights=resnet32.th --out runs/gpu
    python benchmarks/gpu.py --out docs/results/gpu --page docs/results/gpu.md
    python benchmarks/gpu.py --device cpu --dry --out /tmp/dry

Every step writes its results at once and is not run again once they exist: a killed run goes on at
the next step, a training at its last checkpoint. A step that fails or takes too long is noted in
``steps.json`` and does not stop the others; the next run tries it again.

1.  Equality of all CUDA paths with those of the CPU (``gpu_equality.py``).
2.  Backward pass with frozen neurons: ResNet-18 and -50, Swin-T, DeepLabV3; bfloat16,
    channels_last (``neq_backward.py``).
3.  Steps with layers at rest, features in files and in the GPU's memory (``resting_steps.py``).
4.  Fine-tuning of the public weights, if they are given (``time_to_accuracy.py``).
5.  Overhead of the sensitivities (``sensitivity_overhead.py``).
6.  Latency of dense, masked, simplified and coupled networks (``latency.py``), and of simplified
    ones by share of dead neurons (``simplify_latency.py``).
7.  ResNet-32 on CIFAR-10, without NEq and with it: 60 epochs of the published schedule, scaled
    (``neq_training.py``).

``--page`` runs nothing: it writes the page of the results in ``--out``, with "Not measured" where
there are none. To publish, copy the JSON files of ``--out`` (a few, small) to docs/results/gpu. The
training's checkpoints stay in ``--out``/training.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import platform
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from gpu_page import write_page

from snello.files import write_text

LONGEST = 8 * 60.0
"""Seconds that one step may take."""
LEAST = 20.0
"""Seconds left below which no step is begun."""
TRAINING = "neq_training.json"


@dataclass(frozen=True)
class Step:
    """One command of another benchmark.

    Attributes:
        name: in steps.json and messages.
        module: benchmark with a ``main`` that takes a command line.
        arguments: its command line.
        result: file that it writes when it has finished.
        key: entry that the file must have, for a file that grows.
        resumable: whether a second attempt continues the first.
    """

    name: str
    module: str
    arguments: tuple[str, ...]
    result: Path
    key: str | None = None
    resumable: bool = False

    @property
    def done(self) -> bool:
        """True if its results exist."""
        if not self.result.is_file():
            return False
        return self.key is None or self.key in json.loads(self.result.read_text())


@dataclass(frozen=True)
class Attempt:
    """A step that was run.

    Attributes:
        step: its name.
        seconds: that it took.
        outcome: "done", "differs or failed", or "out of time".
        began: in UTC.
    """

    step: str
    seconds: float
    outcome: str
    began: str


BACKWARD = {"resnet18": "256", "resnet50": "128", "swin_t": "64", "deeplabv3_resnet50": "8"}
"""Network -> batch size."""


def steps(device: str, dry: bool, out: Path, weights: Path | None = None) -> list[Step]:
    """All steps, in order; with weights of a CIFAR ResNet-32 their fine-tuning as well."""
    to = ("--device", device)

    def step(name: str, module: str, *arguments: str) -> Step:
        result = out / f"{name}.json"
        return Step(name, module, (*arguments, *to, "--out", str(result)), result)

    def training(policy: str, *policies: str) -> Step:
        folder = out / "training"
        arguments = (*DRY_TRAINING, *policies) if dry else (*TRAINED, *policies)
        line = (*arguments, "--out", str(folder), f"--device={device}")
        return Step(
            f"training-{policy}", "neq_training", line, folder / TRAINING, policy, resumable=True
        )

    def resting(place: str, *arguments: str) -> Step:
        more = ("--in-memory",) if place == "memory" else ()
        return step(f"resting-{place}", "resting_steps", *arguments, *more)

    def finetuning(given: Path) -> Step:
        folder = out / "finetuning"
        line = (
            "--weights", str(given), *to, "--precision", "32", "--out", str(folder), "--rows", *FINETUNED,
        )  # fmt: skip
        result = folder / f"{FINETUNED[-1]}-seed-0.json"
        return Step("finetuning", "time_to_accuracy", line, result, resumable=True)

    quick = ("--repeats", "1")
    if dry:
        measured = [
            step("equality", "gpu_equality", "--quick"),
            step(
                "backward-lenet-5", "neq_backward", *BF16, *quick, "--models", "lenet-5", "--batch",
                "4", "--shares", "0.5",
            ),
            *(
                resting(place, "--models", "resnet-32", "--shares", "0.75", "--turns", "2", "--batch", "4")
                for place in ("files", "memory")
            ),
            step(
                "sensitivity", "sensitivity_overhead", "--pairs", "1", "--models", "lenet-5",
                "--methods", "LOBSTER", "--channels-last", "--threads", "1",
            ),
            step("latency-1", "latency", *quick, "--warmup", "0", "--models", "lenet-5", "--runtimes", "pytorch"),
            step("simplified-1", "simplify_latency", *quick, "--models", "lenet-5"),
        ]  # fmt: skip
    else:
        measured = [
            step("equality", "gpu_equality"),
            *(
                step(f"backward-{name}", "neq_backward", *BF16, "--models", name, "--batch", batch,
                     *(("--side", "480") if name.startswith("deeplab") else ()))
                for name, batch in BACKWARD.items()
            ),
            *(resting(place, "--bf16", "--batch", "128") for place in ("files", "memory")),
            *([] if weights is None else [finetuning(weights)]),
            step("sensitivity", "sensitivity_overhead", "--models", "resnet-32", "--channels-last"),
            *(
                step(f"latency-{batch}", "latency", "--batch", batch, "--models", *NETS)
                for batch in ("1", "128")
            ),
            step("simplified-128", "simplify_latency", "--batch", "128", "--models", "resnet-32"),
        ]  # fmt: skip
    return [
        *measured,
        training("baseline", "--policies", "baseline"),
        training("neq", "--policies", "baseline", "neq"),
    ]


BF16 = ("--bf16", "--layouts", "channels_last")
FINETUNED = (
    "plain", "epochs-4", "infobatch-0.5", "linear", "neq", "rest-2-2+anneal+stored",
    "settled-5e-3-0.7-stored",
)  # fmt: skip
NETS = ("resnet-32", "resnet18", "vgg-16-cifar")
# 250 epochs with the rate divided at 100 and 150, scaled to 60.
TRAINED = ("cifar10_resnet32", "--epochs=60", "--optimizer.milestones=[24,36]")
DRY_TRAINING = (
    "digits", "--quick", "--epochs=1", "--optimizer.milestones=[]", "--data.limit=100",
    "--lobster.finetune=0", "--serene.finetune=0",
)  # fmt: skip


def run(step: Step, seconds: float) -> Attempt:
    """Run a step in a process of its own, so that neither a crash nor a hang ends the others."""
    began, started = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic()
    with suppress(Exception):  # the process below fails alike and says why
        importlib.import_module(step.module)
    # Forked: the imports are shared. This process never touches the GPU, which forks cannot share.
    child = multiprocessing.get_context("fork").Process(target=_call, args=(step,))
    child.start()
    child.join(seconds)
    late = child.is_alive()
    if late:
        child.terminate()  # a training stops between two steps and writes its checkpoint
        child.join(20)
        child.kill()
        child.join()
    outcome = "done" if child.exitcode == 0 else "out of time" if late else "differs or failed"
    return Attempt(step.name, round(time.monotonic() - started, 1), outcome, began)


def _call(step: Step) -> None:
    main = importlib.import_module(step.module).main
    sys.exit(main(list(step.arguments)))


def note_environment(device: str, path: Path, dry: bool = False) -> None:
    """Write what the numbers are measured on.

    Raises:
        SystemExit: without a GPU where one is asked for; if the folder has numbers of another
            device or version, or of a dry run, which would be taken for those of this one.
    """
    import torch

    cuda = device.startswith("cuda")
    if cuda and not torch.cuda.is_available():
        sys.exit(f"--device {device}: torch finds no GPU here; --device cpu --dry tries the script")
    record = {
        "device": torch.cuda.get_device_name() if cuda else platform.machine(),
        "memory": torch.cuda.get_device_properties(0).total_memory if cuda else 0,
        "capability": list(torch.cuda.get_device_capability()) if cuda else [],
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "host": platform.machine(),
        "date": datetime.now(UTC).date().isoformat(),
        "dry": dry,
    }
    before = json.loads(path.read_text()) if path.is_file() else {}
    for name in set(record) & set(before) - {"date"}:
        if record[name] != before[name]:
            sys.exit(
                f"{path.parent} has results with {name}={before[name]!r}, here it is {record[name]!r}: choose "
                "another --out"
            )
    write_text(path, json.dumps(record, indent=1) + "\n")


def run_all(
    todo: list[Step], out: Path, seconds: float, attempt: Callable[[Step, float], Attempt] = run
) -> bool:
    """Run what is missing until the time is over; returns whether everything has finished well.

    A step whose comparison failed has its results, and is not run again.

    Args:
        todo: the steps, in order.
        out: folder of steps.json.
        seconds: for all of them together.
        attempt: runs one step within some seconds.
    """
    started, log = time.monotonic(), out / "steps.json"
    attempts = json.loads(log.read_text()) if log.is_file() else []
    for step in todo:
        while not step.done:
            left = seconds - (time.monotonic() - started)
            if left < LEAST:
                print(f"out of time before {step.name}: start again to go on")
                return False
            print(f"== {step.name}", flush=True)
            made = attempt(step, min(LONGEST, left))
            attempts.append(asdict(made))
            write_text(log, json.dumps(attempts, indent=1) + "\n")
            print(f"== {step.name}: {made.outcome}, {made.seconds:.0f} s", flush=True)
            if not (step.resumable and made.outcome == "out of time"):
                break
    last = {made["step"]: made["outcome"] for made in attempts}
    return all(step.done and last.get(step.name) != "differs or failed" for step in todo)


def main(given: list[str] | None = None) -> int:
    """Run what is missing, or write the page; returns 0 if everything has finished well."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=25.0)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dry", action="store_true", help="tiny sizes, to test this script")
    parser.add_argument(
        "--weights", type=Path, help="state_dict of a CIFAR ResNet-32, to fine-tune"
    )
    parser.add_argument("--only", nargs="+", help="names of steps")
    parser.add_argument("--page", type=Path, help="only write the page of the results in --out")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="folder of the results")
    options = parser.parse_args(given)
    if options.page is not None:
        write_page(options.out, options.page)
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    todo = steps(options.device, options.dry, options.out, options.weights)
    unknown = set(options.only or ()) - {step.name for step in todo}
    if unknown:
        parser.error(f"--only: no step {', '.join(sorted(unknown))}; {[s.name for s in todo]}")
    todo = [step for step in todo if not options.only or step.name in options.only]
    where = options.out / "environment.json"
    child = multiprocessing.get_context("fork").Process(
        target=note_environment, args=(options.device, where, options.dry)
    )
    child.start()
    child.join()
    if child.exitcode:
        return 1
    return 0 if run_all(todo, options.out, 60 * options.minutes) else 1


if __name__ == "__main__":
    sys.exit(main())
