"""NEq against its baselines in whole training runs, over seeds: accuracy, FLOPs both ways, measured
time.

    python benchmarks/neq_training.py mnist_lenet5 --seeds 0 1 2 --adam --out runs/neq-lenet5
    python benchmarks/neq_training.py cifar10_resnet32 --out runs/neq-resnet32 --epochs=20 \\
        --data.limit=12500 "--optimizer.milestones=[8,12]" --lobster.finetune=12 --serene.finetune=12

Runs the five policies of the paper's table with a recipe: baseline (nothing is ever frozen), NEq,
Stochastic(0.2), Stochastic(0.5), and Stochastic* (as many neurons as the NEq run of the same seed
froze, on average). Options of recipes are passed on (``--device=cuda`` is one). Accuracies are
those of the last epoch's weights on the test images; nothing is selected. What is finished in the
folder (one per seed, with one per method) is not run again, what was interrupted goes on.

Writes ``neq_training.md`` and ``.json``: means over the seeds, with the smallest and largest value.
"paper" counts backward FLOPs in the paper's convention, "executed" is torch's count of a real step,
"backward time" is the shortened over the full backward pass of the same batch, taken in turns at
the end of every epoch with its masks and summed over the epochs. "Epoch" is the median over the
epochs of their wall-clock seconds, over the baseline's.

With ``--adam`` NEq is also run with AdamW, and ``updated.png`` shows the share of updated neurons
of SGD beside it.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from snello.files import write_text
from snello.lab.reporting import (
    Table,
    as_json,
    markdown,
    percent,
    plot_equilibrium,
    plot_updated,
    show,
)
from snello.lab.training import TrainingResult, load_recipe, train

METHODS = ("baseline", "neq", "stochastic-0.2", "stochastic-0.5", "stochastic-star")
LABELS = ("Baseline", "NEq", "Stochastic(0.2)", "Stochastic(0.5)", "Stochastic*")
ADAM = ("--optimizer.name=AdamW", "--optimizer.lr=0.001", "--optimizer.momentum=0")


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("recipe", help="name or file")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--policies", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--adam", action="store_true", help="NEq with AdamW too, first seed")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="the recipe's own small values")
    parser.add_argument("--out", type=Path, required=True, help="folder of runs and results")
    options, overrides = parser.parse_known_args(given)
    torch.set_num_threads(options.threads)

    def run(method: str, folder: Path, *more: str) -> TrainingResult:
        recipe = load_recipe(options.recipe, [*overrides, *more], quick=options.quick)
        return train(
            recipe,
            method,
            folder / method,
            resume=True,
            progress=lambda line: print(line, flush=True),
        )

    runs = {
        method: [run(method, options.out / f"seed-{s}", f"--seed={s}") for s in options.seeds]
        for method in options.policies
    }
    shown = table(runs, options, overrides)
    show(shown)
    write_text(options.out / "neq_training.md", markdown(shown))
    write_text(options.out / "neq_training.json", as_json(runs))
    seed = options.seeds[0]
    if "neq" in runs:
        draw_velocities(
            options.out / f"seed-{seed}" / "neq" / "last.ckpt", options.out / "equilibrium.png"
        )
    if options.adam:
        adam = run("neq", options.out / f"adam-seed-{seed}", f"--seed={seed}", *ADAM)
        both = {"SGD": runs["neq"][0], "AdamW": adam}
        lines = {label: [epoch.updated for epoch in one.epochs] for label, one in both.items()}
        plot_updated(lines, options.out / "updated.png", f"NEq, {options.recipe}")


def table(
    runs: dict[str, list[TrainingResult]], options: argparse.Namespace, overrides: list[str]
) -> Table:
    dense = [run.epochs[0].executed_flops for run in runs.get("baseline", [])]
    seconds = [epoch_seconds(run) for run in runs.get("baseline", [])]
    rows = []
    for method, found in runs.items():
        label = LABELS[METHODS.index(method)]
        executed = [mean(e.executed_flops for e in run.epochs) for run in found]
        rows.append(
            (
                label,
                str(len(found)),
                spread([run.test_accuracy for run in found], percent),
                spread([mean(e.updated for e in run.epochs) for run in found], percent),
                spread([paper(run) for run in found], ratio),
                spread([a / b for a, b in zip(executed, dense, strict=False)], ratio),
                spread([backward_time(run) for run in found], ratio),
                spread(
                    [epoch_seconds(run) / b for run, b in zip(found, seconds, strict=False)], ratio
                ),
                spread([epoch_seconds(run) for run in found], lambda value: f"{value:.1f}"),
            )
        )
    one = next(iter(runs.values()))[0]
    return Table(
        f"NEq and its baselines, {options.recipe}",
        ("Policy", "Seeds", "Test accuracy", "Updated", "FLOPs, paper", "FLOPs, executed", "Backward time",
         "Epoch", "Epoch [s]"),
        tuple(rows),
        f"{' '.join(overrides) or 'the recipe as it is'}; {len(one.epochs)} epochs, last epoch, test images. "
        f"{one.device}, {one.threads} thread(s), {one.precision}, torch {torch.__version__}.",
    )  # fmt: skip


def draw_velocities(checkpoint: Path, path: Path) -> None:
    """Histograms of what NEq's last decision saw."""
    callbacks = torch.load(checkpoint, weights_only=True)["callbacks"]
    state = next(s for s in callbacks.values() if isinstance(s, dict) and "selection" in s)[
        "selection"
    ]
    plot_equilibrium(state["phi"], state["velocity"], path, "the last decision", eps=1e-3)


def paper(run: TrainingResult) -> float:
    """Backward FLOPs in the paper's convention, over those with nothing frozen; 1 for a plain
    run.
    """
    return mean(
        e.paper_flops / e.paper_dense_flops if e.paper_dense_flops else 1.0 for e in run.epochs
    )


def backward_time(run: TrainingResult) -> float:
    dense = sum(e.dense_ms for e in run.epochs)
    return sum(e.sparse_ms for e in run.epochs) / dense if dense else 1.0


def epoch_seconds(run: TrainingResult) -> float:
    return statistics.median(e.seconds for e in run.epochs)


def mean(values: Iterable[float]) -> float:
    return statistics.mean(values)


def ratio(value: float) -> str:
    return f"{value:.3f}"


def spread(values: list[float], text: Callable[[float], str]) -> str:
    """Mean, and the smallest and largest where there are several."""
    if not values:
        return "-"
    several = f"\n({text(min(values))}-{text(max(values))})" if len(values) > 1 else ""
    return text(statistics.mean(values)) + several


if __name__ == "__main__":
    main()
