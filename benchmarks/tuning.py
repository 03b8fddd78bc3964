"""Tuning against the recipe's own values and random search, with the same budget of epochs.

    OMP_NUM_THREADS=1 python benchmarks/tuning.py            # about ten minutes of one core

For each seed, `snello tune` (TPE with ASHA) searches LOBSTER's settings and the learning rate on
the digits. Random search then gets as many epochs as that search has trained, as whole trials. The
winners, the recipe's own values and the dense network are trained with three other seeds each, and
compared on test images that no search saw. Writes docs/results/tuning.json after each search, and
tuning.md beside it; ``--page`` writes the page of existing numbers again.
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
from typing import Any

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
    parser.add_argument("--page", action="store_true", help="only write the page")
    parser.add_argument("--folder", type=Path, help="of the studies, to go on after a stop")
    given = parser.parse_args()
    if given.page:
        given.out.with_suffix(".md").write_text(_page(json.loads(given.out.read_text())))
        return
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
            given.out.with_suffix(".md").write_text(_page(result))
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
    return {
        name: {
            **_spread(found),
            "ahead of the recipe": sum(a.value < b.value for a, b in zip(found, own, strict=True)),
            "as the recipe": sum(a.value == b.value for a, b in zip(found, own, strict=True)),
        }
        for name, found in rows.items()
    }


def _spread(rows: list[FinalRow]) -> dict[str, object]:
    found: dict[str, object] = {"trainings": len(rows)}
    for name in ("test_accuracy", "cost", "value"):
        values = [getattr(row, name) for row in rows]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        found[name] = [statistics.mean(values), spread]
    return found


LABELS = {
    "dense": "dense network", "recipe": "the recipe's own values", "tpe": "`snello tune`: TPE, ASHA",
    "random": "random search",
}  # fmt: skip


def _page(result: dict[str, Any]) -> str:
    """The results page, from the numbers alone."""
    searches = result["searches"]
    finals = "\n".join(
        f"| {label} | {row['trainings']} | {_pair(row['cost'])} | {_pair(row['test_accuracy'], 100)} % | "
        f"{_pair(row['value'])} | {'' if name in ('dense', 'recipe') else row['ahead of the recipe']} |"
        for name, label in LABELS.items()
        for row in [result["summary"][name]]
    )
    rows = "\n".join(
        f"| {search['seed']} | {LABELS[kind]} | {found['trials']} | {found['epochs']} | {found['seconds']:.0f} | "
        f"{found['winner']['cost']:.3f} | {found['winner']['drop'] * 100:+.2f} | "
        f"{statistics.mean(r['cost'] for r in found['finals'] if r['name'] == 'tuned'):.3f} | {_winner(found)} |"
        for search in searches
        for kind, found in search.items()
        if kind in LABELS
    )
    return f"""# Tuning against random search

{_answer(result["summary"])}

| values | trainings | parameters left | test accuracy | penalised cost | better than the recipe |
|---|---|---|---|---|---|
{finals}

| seed | search | trials | epochs | seconds | winner's cost | its drop, points | cost, other seeds | winner |
|---|---|---|---|---|---|---|---|---|
{rows}

The winner's cost and drop are those of its trial, on {VALIDATION_IMAGES} validation images, where an
image is 0.7 points: a search picks settings that were lucky with its seed. The column beside them has
the cost with other seeds. All numbers: [tuning.json](tuning.json).

## Conditions

    OMP_NUM_THREADS=1 python benchmarks/tuning.py

LOBSTER on the digits (`{result["recipe"]}`, {result["epochs"]} epochs), LeNet-300-100. Cost: share of the
parameters left; largest drop one point, penalty 10. One search for each of {len(searches)} seed(s).
`snello tune` has {result["trials"]} trials with TPE and ASHA; random search trains whole trials, for as
many epochs, rounded up. Both begin with the recipe's own values, and all trials of a search have its
seed. The winners are then trained with three other seeds, beside the recipe's own values and the dense
network of the same seeds, and compared on the {TEST_IMAGES} test images. Mean and standard deviation.
One thread, {result["cpu"]}, beside other work (load {result["load"]:.1f}):
{result["cpu_seconds"] / 60:.1f} minutes of CPU time in all.
"""


TEST_IMAGES, VALIDATION_IMAGES = 359, 143


def _answer(summary: dict[str, Any]) -> str:
    """A comparison is called clear if all trainings agree."""
    own, tuned, random = (summary[name] for name in ("recipe", "tpe", "random"))
    count, ahead = tuned["trainings"], tuned["ahead of the recipe"]
    if ahead == count:
        verdict = "The tuned values beat the recipe's own with every seed"
    elif ahead == 0:
        verdict = "The tuned values do not beat the recipe's own"
    else:
        equal = f", equal in {tuned['as the recipe']}" if tuned["as the recipe"] else ""
        verdict = f"The tuned values do not clearly beat the recipe's own: better in {ahead} of {count}{equal}"
    better = "lower" if tuned["value"][0] < random["value"][0] else "higher"
    return (
        f"**{verdict}**; mean penalised cost {tuned['value'][0]:.3f} against {own['value'][0]:.3f}. "
        f"It is {better} than that of random search with the same budget ({random['value'][0]:.3f}), "
        f"which is better than the recipe in {random['ahead of the recipe']} of {random['trainings']}."
    )


def _pair(pair: list[float], factor: float = 1) -> str:
    digits = 2 if factor > 1 else 3
    return f"{pair[0] * factor:.{digits}f} ± {pair[1] * factor:.{digits}f}"


def _winner(found: dict[str, Any]) -> str:
    return ", ".join(
        f"{name.partition('.')[2]} {value:.3g}" for name, value in found["winner"]["values"].items()
    )


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next(
        (line.partition(": ")[2] for line in lines if "model name" in line), platform.machine()
    )


if __name__ == "__main__":
    main()
