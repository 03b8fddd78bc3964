"""The pages of a tuning, of a bisection and of a ramp."""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING, Any

from snello.lab.reporting._tables import Table
from snello.lab.reporting._tuning import FINAL_NAMES, setting
from snello.lab.reporting._values import percent

from .charts import bars, front, lines
from .page import Chart, Figure, Page

if TYPE_CHECKING:
    from snello.lab.training.tuning import Epsilon, RampResult, Tuned


def tuning_page(title: str, result: Tuned, tables: tuple[Table, ...]) -> Page:
    """The page of a tuning: its front, its progress and its final trainings.

    Args:
        title: heading.
        result: of the tuning.
        tables: its trials and its final trainings.
    """
    summary = f"{len(result.trials)} trials, {result.epochs} epochs in all. {result.verdict()}"
    charts = [*_front(result), *_progress(result)]
    if result.importances:
        rows = [
            {"setting": n, "share of the variation": v, "of": "importance"}
            for n, v in result.importances.items()
        ]
        charts.append(
            bars("Importance of the settings", rows, "setting", "share of the variation", by="of",
                 note="PED-ANOVA of the complete trials, by Optuna")
        )  # fmt: skip
    return Page(title, summary, _figures(result), tuple(charts), tables, result)


def epsilon_page(title: str, result: Epsilon, table: Table) -> Page:
    """The page of a bisection of NEq's epsilon."""
    rows = [
        {"log10 of eps": math.log10(eps), "neurons updated": share, "training": "measured"}
        for eps, share in sorted(result.found.tried)
    ]
    chart = lines(
        "Neurons updated", rows, "log10 of eps", "neurons updated", by="training", form=".0%"
    )
    figures = (
        Figure("eps", "", setting(result.found.setting)),
        Figure("Neurons updated", "", percent(result.found.effect), f"wished {percent(result.wished)}"),
    )  # fmt: skip
    return Page(title, table.note, figures, (chart,), (table,), result)


def ramp_page(title: str, result: RampResult, table: Table) -> Page:
    """The page of a ramp of lambda: the curve of accuracy against sparsity."""
    rows = [
        {"parameters at zero": p.pruned, "validation accuracy": p.accuracy, "method": result.method,
         "lambda": p.lmbda}
        for p in result.points
    ]  # fmt: skip
    chart = lines(
        "Accuracy against sparsity", rows, "parameters at zero", "validation accuracy",
        by="method", form=".0%",
    )  # fmt: skip
    last = result.points[-1]
    figures = (
        Figure("Parameters at zero", "", percent(last.pruned)),
        Figure("Test accuracy, last epoch", "", percent(result.test_accuracy)),
        Figure("Seconds", "", f"{result.seconds:.0f}"),
    )
    return Page(title, table.note, figures, (chart,), (table,), result)


def _figures(result: Tuned) -> tuple[Figure, ...]:
    means: dict[str, dict[str, float]] = {
        name: {
            key: statistics.mean(getattr(row, key) for row in rows)
            for key in ("cost", "test_accuracy")
        }
        for name in FINAL_NAMES
        if (rows := [row for row in result.finals if row.name == name])
    }
    found = [Figure("Epochs trained", "", str(result.epochs), f"{len(result.trials)} trials")]
    if {"recipe", "tuned"} <= set(means):
        own, tuned = means["recipe"], means["tuned"]
        note = f"mean of {sum(row.name == 'tuned' for row in result.finals)} seeds"
        found = [
            Figure(result.cost, f"{own['cost']:.4f}", f"{tuned['cost']:.4f}", note),
            Figure("Test accuracy", percent(own["test_accuracy"]), percent(tuned["test_accuracy"]), note),
            *found,
        ]  # fmt: skip
    return tuple(found)


def _front(result: Tuned) -> list[Chart]:
    """Cost against accuracy; only trials on the front and the recipe's own values are named."""
    named = {*result.front, result.winner, 0}
    rows = [
        {
            result.cost: t.cost, "validation accuracy": t.accuracy,
            "trial": f"trial {t.number}" if t.number in named else "",
            **{name.replace("'", "").replace('"', ""): value for name, value in t.values.items()},
        }
        for t in result.trials
        if t.cost is not None and t.accuracy is not None
    ]  # fmt: skip
    if not rows or result.reference is None:
        return []
    note = (
        f"complete trials; the dense network has {percent(result.reference)}, the bound is "
        f"{percent(result.reference - result.goal.max_drop)}; trial 0 has the recipe's own values"
    )
    return [
        front("Accuracy against cost", rows, result.cost, "validation accuracy", label="trial", note=note)
    ]  # fmt: skip


def _progress(result: Tuned) -> list[Chart]:
    """The lowest penalised cost after each trial."""
    lowest, rows = float("inf"), []
    for trial in result.trials:
        if trial.state == "complete" and trial.value is not None:
            lowest = min(lowest, trial.value)
        if lowest < float("inf"):
            row: dict[str, Any] = {
                "trial": trial.number,
                "penalised cost": lowest,
                "of": "best so far",
            }
            rows.append(row)
    return [lines("Progress", rows, "trial", "penalised cost", by="of")] if len(rows) > 1 else []
