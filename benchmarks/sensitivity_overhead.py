"""Cost that a sensitivity adds to a training step: with it over without it, in turns in one run.

    python benchmarks/sensitivity_overhead.py --threads 2 --out runs/bench/sensitivity_overhead.json

A step is forward, zero_grad, backward, SGD with momentum and weight decay, and the decay. A method
that looks at every n-th batch only is timed over n steps, its observation included, against n plain
steps: otherwise the median would be that of the steps without one. Plain and method blocks
alternate; the ratio is taken within each pair, and its median and 10th and 90th percentile over the
pairs are printed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from snello.files import write_text
from snello.sensitivity import Lobster, OutputSensitivity, Sensitivity, SeReNe
from snello.store import build
from snello.timing import cpu_seconds, now, spread_of, take_turns

MODELS = {"resnet-32": (3, 32, 32), "lenet-5": (1, 28, 28)}
BATCH = 128
DEFAULT_EVERY = 4
CLOCKS = {"wall": now, "cpu": cpu_seconds}

Builder = Callable[[nn.Module], Sensitivity]
METHODS: dict[str, tuple[int, Builder]] = {
    "LOBSTER": (1, Lobster),
    "SeReNe sampled (default)": (DEFAULT_EVERY, SeReNe),
    "SeReNe sampled, every step": (1, lambda m: SeReNe(m, every=1)),
    "SeReNe sampled, 32 examples": (DEFAULT_EVERY, lambda m: SeReNe(m, examples=32)),
    "SeReNe lower bound": (DEFAULT_EVERY, lambda m: SeReNe(m, estimate="lower-bound")),
    "SeReNe local": (DEFAULT_EVERY, lambda m: SeReNe(m, estimate="local")),
    "SeReNe full, every step": (1, lambda m: SeReNe(m, estimate="full", every=1)),
    "output sensitivity (default)": (DEFAULT_EVERY, OutputSensitivity),
    "output sensitivity, specific": (
        DEFAULT_EVERY,
        lambda m: OutputSensitivity(m, kind="specific"),
    ),
}


class Trainee:
    """One network with its optimizer and data; trains with a method or without."""

    def __init__(self, name: str, device: torch.device, channels_last: bool, clock: str) -> None:
        torch.manual_seed(0)
        self.clock = CLOCKS[clock]
        memory = torch.channels_last if channels_last else torch.contiguous_format
        self.model = build(name).to(device, memory_format=memory)
        self.x = torch.randn(BATCH, *MODELS[name], device=device).contiguous(memory_format=memory)
        self.y = torch.randint(10, (BATCH,), device=device)
        # A rate of zero: the weights stay as they are, whatever the number of steps timed.
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), 0.0, momentum=0.9, weight_decay=5e-4
        )

    def block(self, method: Sensitivity | None, steps: int) -> float:
        """Seconds for some steps."""
        started = self.clock(self.x.device)
        for _ in range(steps):
            outputs: Tensor = self.model(self.x)
            if method is not None:
                method.observe(outputs, self.y)
            self.optimizer.zero_grad()
            nn.functional.cross_entropy(outputs, self.y).backward()
            self.optimizer.step()
            if method is not None:
                method.step()
        return self.clock(self.x.device) - started


def ratios(
    trainee: Trainee, method: tuple[int, Builder], pairs: int
) -> tuple[list[float], list[float]]:
    """Ratio and plain milliseconds per step of each pair of blocks; the order within a pair
    alternates.
    """
    steps, builder = method

    def seconds(kind: str) -> float:
        # A plain block has no hooks: the method is built for its own blocks alone.
        sensitivity = builder(trainee.model) if kind == "method" else None
        elapsed = trainee.block(sensitivity, steps)
        if sensitivity is not None:
            sensitivity.remove()
        return elapsed

    times = take_turns(["plain", "method"], seconds, pairs, warmup=1)
    both = [*zip(times["method"], times["plain"], strict=True)]
    return [method / plain for method, plain in both], [plain / steps * 1e3 for _, plain in both]


def main(given: list[str] | None = None) -> None:
    """Print a table, write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--pairs", type=int, default=9, help="timed pairs of blocks per method")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="cpu: this process's time, where others compute too",
    )
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(given)
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    layout = "channels_last" if options.channels_last else "NCHW"
    rows = []
    for name in options.models:
        print(
            f"{name}, batch {BATCH}, {options.threads} thread(s), {device}, {layout}, {options.pairs} pairs"
        )
        for label in options.methods:
            trainee = Trainee(name, device, options.channels_last, options.clock)
            found, plain = ratios(trainee, METHODS[label], options.pairs)
            ratio, low, high = spread_of(found)
            row = {
                "model": name, "method": label, "ratio": ratio, "p10": low, "p90": high,
                "plain_ms": spread_of(plain).median, "steps_per_block": METHODS[label][0], "pairs": options.pairs,
                "batch": BATCH, "threads": options.threads, "device": str(device), "layout": layout,
                "clock": options.clock, "torch": torch.__version__,
            }  # fmt: skip
            rows.append(row)
            print(
                f"  {label:30} {row['ratio']:.3f}x ({low:.3f}-{high:.3f})  plain {row['plain_ms']:.1f} ms",
                flush=True,
            )
    if options.out:
        write_text(options.out, json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
