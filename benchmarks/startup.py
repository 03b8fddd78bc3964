"""Seconds and memory of commands that compute nothing, each in a process of its own.

    python benchmarks/startup.py --rounds 7 --out runs/bench/startup.json

Protocol
    Commands take turns, so that a noisy machine is noisy for all alike. CPU seconds (user and
    system of the child) are the measure: wall-clock time also counts what other processes take.
    "python" is the interpreter alone, "import torch" what every command paid before.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

SNELLO = [sys.executable, "-m", "snello"]
COMMANDS = {
    "python": [sys.executable, "-c", "pass"],
    "snello --version": [*SNELLO, "--version"],
    "snello --help": [*SNELLO, "--help"],
    "snello recipes ls": [*SNELLO, "recipes", "ls"],
    "snello prune --help": [*SNELLO, "prune", "--help"],
    "snello sweep --help": [*SNELLO, "sweep", "--help"],
    "snello simplfy (unknown)": [*SNELLO, "simplfy"],
    "completion of 'snello prune --importance='": SNELLO,
    "import snello": [sys.executable, "-c", "import snello"],
    "import torch": [sys.executable, "-c", "import torch"],
}
_LINE = "snello prune --importance="
COMPLETION = {
    "_ARGCOMPLETE": "1", "_ARGCOMPLETE_STDOUT_FILENAME": os.devnull, "_ARGCOMPLETE_IFS": " ",
    "COMP_LINE": _LINE, "COMP_POINT": str(len(_LINE)), "COMP_TYPE": "9",
}  # fmt: skip


def measure(name: str, words: list[str]) -> tuple[float, float, float]:
    """CPU seconds, seconds on the clock, and peak memory [MB] of one run."""
    environment = {**os.environ, **(COMPLETION if name.startswith("completion") else {})}
    start = time.perf_counter()
    child = subprocess.Popen(
        words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, _, usage = os.wait4(child.pid, 0)
    child.returncode = 0  # waited for
    wall = time.perf_counter() - start
    return usage.ru_utime + usage.ru_stime, wall, usage.ru_maxrss / 1024


def main() -> None:
    """Measure in turns, print medians, write all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    for name, words in COMMANDS.items():  # bytecode and file caches
        measure(name, words)
    runs = {name: [] for name in COMMANDS}
    for _ in range(arguments.rounds):
        for name, words in COMMANDS.items():
            runs[name].append(measure(name, words))
    print(f"{'':44} {'CPU s':>7} {'wall s':>7} {'MB':>6}   (medians of {arguments.rounds})")
    for name, found in runs.items():
        cpu, wall, memory = (statistics.median(column) for column in zip(*found, strict=True))
        print(f"{name:44} {cpu:7.3f} {wall:7.3f} {memory:6.0f}")
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps({"runs": runs, "cores": os.cpu_count()}, indent=1))


if __name__ == "__main__":
    main()
