"""Tables of a tuning, of a bisection and of a ramp."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

from ._tables import Table
from ._values import percent

if TYPE_CHECKING:
    from snello.lab.training.tuning import Epsilon, FinalRow, RampResult, Tuned

FINAL_NAMES = {"dense": "dense network", "recipe": "the recipe's own values", "tuned": "tuned"}


def trials_table(result: Tuned, title: str) -> Table:
    """The trials of a tuning, best first, those that are not complete at the end."""
    names = list(dict.fromkeys(name for trial in result.trials for name in trial.values))
    order = sorted(
        result.trials, key=lambda t: (t.number != result.winner, t.state != "complete", t.value or 0, t.number)
    )  # fmt: skip
    rows = tuple(
        (
            str(t.number), t.state, str(t.epochs), "" if t.cost is None else f"{t.cost:.4f}",
            "" if t.accuracy is None else percent(t.accuracy), *(setting(t.values.get(n)) for n in names),
        )
        for t in order
    )  # fmt: skip
    header = ("Trial", "State", "Epochs", result.cost, "Accuracy", *names)
    return Table(title, header, rows, _note(result))


def _note(result: Tuned) -> str:
    if result.reference is None:
        return "Cost: one minus the validation accuracy of the last epoch."
    held = "" if result.holds else " No trial holds the bound: the first has the lowest penalty."
    return (
        f"Cost: share of the {'parameters' if result.cost == 'parameters' else 'backward FLOPs'} left. "
        f"Validation accuracy of the last epoch; dense {percent(result.reference)}, largest drop "
        f"{percent(result.goal.max_drop)}.{held}"
    )


def finals_table(result: Tuned, title: str) -> Table:
    """The final trainings of a tuning: mean and standard deviation over the seeds."""
    rows = []
    for name, label in FINAL_NAMES.items():
        found = [row for row in result.finals if row.name == name]
        if found:
            rows.append(
                (label, str(len(found)), _spread(found, "cost"), _spread(found, "test_accuracy"),
                 _spread(found, "value"))
            )  # fmt: skip
    header = ("Values", "Seeds", result.cost, "Test accuracy", "Penalised cost")
    return Table(title, header, tuple(rows), result.verdict())


def epsilon_table(result: Epsilon, title: str) -> Table:
    """The trainings of a bisection, by epsilon."""
    pairs = zip(result.found.tried, result.accuracies, strict=True)
    rows = tuple(
        (setting(eps), percent(share), percent(accuracy))
        for (eps, share), accuracy in sorted(pairs)
    )
    reached = "" if result.found.reached else "; no epsilon in the range gives that share"
    note = (
        f"Wished share {percent(result.wished)}: eps {setting(result.found.setting)} updates "
        f"{percent(result.found.effect)} of the neurons, mean over the epochs{reached}."
    )
    return Table(title, ("eps", "Neurons updated", "Validation accuracy"), rows, note)


def ramp_table(result: RampResult, title: str) -> Table:
    """The epochs of a ramp."""
    rows = tuple(
        (str(p.epoch), setting(p.lmbda), percent(p.pruned), percent(p.accuracy))
        for p in result.points
    )
    note = (
        "One training whose lambda rises from epoch to epoch, pruned on the way, without fine-tuning: a guide to the "
        "range of lambda, not a result."
    )
    return Table(
        title, ("Epoch", "lambda", "Parameters at zero", "Validation accuracy"), rows, note
    )


def setting(value: Any) -> str:
    """A value of a setting, with four significant digits if it is a float."""
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _spread(rows: list[FinalRow], name: str) -> str:
    values = [getattr(row, name) for row in rows]
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    if name == "test_accuracy":
        return f"{statistics.mean(values) * 100:.2f} ± {spread * 100:.2f} %"
    return f"{statistics.mean(values):.4f} ± {spread:.4f}"
