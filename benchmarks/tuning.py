"""Tuning against the recipe's own values and random search, with the same budget of epochs.

    OMP_NUM_THREADS=1 python benchmarks/tuning.py            # about ten minutes of one core

For each seed, `snello tune` (TPE with ASHA) searches LOBSTER's settings and the learning rate on
the digits. Random search then gets as many epochs as that search has trained, as whole trials. The
winners, the recipe's own values and the dense network are trained with three other seeds each, and
compared on test images that no search saw. Writes docs/results/tuning.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch

from snello.lab.recipes import epoch_overrides, load_recipe
from snello.lab.training.tuning import FinalRow, Tuned, TuneSettings, tune
from snello.search.tune import Choices, Goal

RECIPE = "digits"
OUT = Path(__file__).parents[1] / "docs" / "results" / "tuning.json"


def main() -> None:
    """Run all searches and write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--trials", type=int, default=18)
    parser.add_argument("--seeds", type=int, default=3, help="searches, each with its seed")
    parser.add_argument("--finals", type=int, default=3, help="final trainings of each winner")
    parser.add_argument("--method", default="lobster")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--folder", type=Path, help="of the studies, to go on after a stop")
    given = parser.parse_args()
    torch.set_num_threads(1)
    started, cpu = time.perf_counter(), time.process_time()
    searches: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as temporary:
        for seed in range(given.seeds):
            searches.append(_compared(given, 10 * seed, given.folder or Path(temporary)))
            facts = {
                "recipe": RECIPE, "method": given.method, "epochs": given.epochs, "trials": given.trials,
                "goal": asdict(Goal()), "threads": 1, "torch": torch.__version__, "cpu": _processor(),
                "load": os.getloadavg()[0], "wall_seconds": time.perf_counter() - started,
                "cpu_seconds": time.process_time() - cpu,
            }  # fmt: skip
            result = {**facts, "summary": _summary(searches), "searches": searches}
            given.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["summary"], indent=1))


def _compared(given: argparse.Namespace, seed: int, folder: Path) -> dict[str, object]:
    overrides = [f"--epochs={given.epochs}", f"--seed={seed}"]
    recipe = load_recipe(RECIPE, [*epoch_overrides(RECIPE, overrides), *overrides])
    settings = TuneSettings(method=given.method, trials=given.trials, seeds=given.finals)
    tuned = tune(recipe, folder / f"{seed}-tpe", settings, progress=print)
    # Random search trains every trial to its end: as many as the epochs allow, rounded up.
    count = -(-tuned.epochs // given.epochs)
    same = replace(settings, trials=count, choices=Choices("random", "none"))
    other = folder / f"{seed}-random"
    for place in (folder / f"{seed}-tpe" / "final").glob("[dr]e*-seed*/"):
        shutil.copytree(place, other / "final" / place.name, dirs_exist_ok=True)
    plain = tune(recipe, other, same, progress=print)
    return {"seed": seed, "tpe": _facts(tuned), "random": _facts(plain)}


def _facts(found: Tuned) -> dict[str, object]:
    winner = next(row for row in found.trials if row.number == found.winner)
    return {
        "trials": len(found.trials), "epochs": found.epochs, "seconds": found.seconds,
        "states": {s: sum(row.state == s for row in found.trials) for s in ("complete", "pruned", "diverged")},
        "winner": asdict(winner), "holds": found.holds, "reference": found.reference,
        "importances": found.importances, "verdict": found.verdict(),
        "finals": [asdict(row) for row in found.finals],
        "all": [[row.state, row.cost, row.drop, row.value, row.epochs] for row in found.trials],
    }  # fmt: skip


def _summary(searches: list[dict[str, object]]) -> dict[str, dict[str, object]]:
    """Mean and standard deviation over all final trainings, and the seeds where a winner is ahead."""
    rows: dict[str, list[FinalRow]] = {"dense": [], "recipe": [], "tpe": [], "random": []}
    for search in searches:
        for kind in ("tpe", "random"):
            finals = [FinalRow(**row) for row in search[kind]["finals"]]  # type: ignore[index]
            rows[kind] += [row for row in finals if row.name == "tuned"]
            if kind == "tpe":
                for name in ("dense", "recipe"):
                    rows[name] += [row for row in finals if row.name == name]
    own = rows["recipe"]
    return {name: {**_spread(found), "ahead of the recipe": sum(
        row.value < base.value for row, base in zip(found, own, strict=True)
    )} for name, found in rows.items()}  # fmt: skip


def _spread(rows: list[FinalRow]) -> dict[str, object]:
    found: dict[str, object] = {"trainings": len(rows)}
    for name in ("test_accuracy", "cost", "value"):
        values = [getattr(row, name) for row in rows]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        found[name] = [statistics.mean(values), spread]
    return found


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next(
        (line.partition(": ")[2] for line in lines if "model name" in line), platform.machine()
    )


if __name__ == "__main__":
    main()
