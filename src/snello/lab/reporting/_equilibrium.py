"""Plots and table of selective updates: updated share, similarity and velocity, cost of a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from snello.equilibrium import EquilibriumStep
from snello.errors import ConfigError

from ._plots import blank, finished, saved, stacked
from ._tables import Table
from ._values import flops, megabytes

if TYPE_CHECKING:
    from torch import Tensor

    from snello.equilibrium import PhaseTiming, UpdateCost


def plot_updated(
    runs: Mapping[str, Sequence[float | EquilibriumStep]],
    path: Path,
    title: str = "",
    *,
    xlabel: str = "epochs trained",
) -> Path:
    """Plot the share of updated neurons over a training, one line per run.

    Args:
        runs: label -> updated share in each epoch, in [0, 1], or the
            [`EquilibriumStep`][snello.equilibrium.EquilibriumStep] returned by each step; a
            decision holds until the next one, and all neurons are updated before the first.
        path: PNG file to write.
        title: title of the plot.
        xlabel: unit of the horizontal axis.

    Raises:
        ConfigError: if there is no run, or a run is empty.
        OutputError: if the file cannot be written.
        MissingExtraError: without matplotlib (extra `report`).
    """
    if empty := [label for label, run in runs.items() if not run] or ([] if runs else ["runs"]):
        raise ConfigError(f"{empty[0]}: nothing to draw; pass the steps of at least one run")
    figure, axis = stacked(1)
    for label, run in runs.items():
        places, shares = zip(*_in_force(run), strict=True)
        axis.plot(places, shares, label=label, drawstyle="steps-post", marker="o", markersize=3)
    axis.set(xlabel=xlabel, ylabel="neurons updated [%]", ylim=(-2, 102), title=title)
    return finished(figure, (axis,), path)


def _in_force(run: Sequence[float | EquilibriumStep]) -> list[tuple[int, float]]:
    """Pairs (position, percentage of neurons updated from there on)."""
    steps = [step for step in run if isinstance(step, EquilibriumStep)]
    if not steps:
        shares = [100 * share for share in run if not isinstance(share, EquilibriumStep)]
        return [*enumerate(shares), (len(shares), shares[-1])]
    before = [(0, 100.0)] if steps[0].step == 1 else []
    return before + [(step.step, 100 * step.total) for step in steps]


def plot_equilibrium(
    phi: Mapping[str, Tensor],
    velocity: Mapping[str, Tensor],
    path: Path,
    title: str = "",
    *,
    eps: float | None = None,
) -> Path:
    """Plot histograms of similarity and velocity over all neurons, as
    [`Velocity`][snello.equilibrium.Velocity] has them.

    The counts have a logarithmic axis, because most neurons fall into one bin. The velocity has a
    symmetric logarithmic axis, linear within `eps` (within 1e-3 if `eps` is None).

    Args:
        phi: layer name -> similarities, shape `(neurons,)`.
        velocity: layer name -> velocities, shape `(neurons,)`.
        path: PNG file to write.
        title: title of the plot.
        eps: bound on the velocity below which neurons are frozen, drawn as a band.

    Raises:
        ConfigError: if there are no values, because no step has been taken yet.
        OutputError: if the file cannot be written.
        MissingExtraError: without matplotlib (extra `report`).
    """
    similarities, velocities = _values(phi), _values(velocity)
    if not similarities or not velocities:
        raise ConfigError(
            "phi, velocity: there are no values to draw; call step() at least once first"
        )
    figure = blank(8, 6)
    above, below = figure.subplots(2, 1)  # unshared: similarity and velocity differ in scale
    low = min(0.0, *similarities)
    above.hist(similarities, bins=60, range=(low, 1), color="tab:blue")
    above.set(xlabel="similarity φ", ylabel="neurons", yscale="log", title=title)
    linear = eps or 1e-3
    below.hist(velocities, bins=_symmetric_bins(linear, velocities), color="tab:green")
    if eps is not None:
        below.axvspan(-eps, eps, color="0.85", zorder=0, label=f"at equilibrium: |v| < {eps:g}")
    below.set(xlabel="velocity v", ylabel="neurons", yscale="log")
    below.set_xscale("symlog", linthresh=linear)
    return finished(figure, (above, below), path)


def _values(per_layer: Mapping[str, Tensor]) -> list[float]:
    return [value for values in per_layer.values() for value in values.tolist()]


def _symmetric_bins(linear: float, values: list[float]) -> list[float]:
    """Bin edges for a symlog axis: linear spacing near zero, geometric spacing outside."""
    peak = max(linear * 10, *(abs(value) for value in values)) * 1.01
    outside = [linear * (peak / linear) ** (i / 20) for i in range(21)]
    inside = [linear * i / 4 for i in range(-3, 4)]
    return [-edge for edge in reversed(outside)] + inside + outside


def plot_costs(costs: Mapping[str, UpdateCost], path: Path, title: str = "") -> Path:
    """Plot counted and measured costs relative to a dense step, one group of bars per run.

    Args:
        costs: label -> cost of a step with frozen neurons.
        path: PNG file to write.
        title: title of the plot.

    Raises:
        ConfigError: if `costs` is empty.
        OutputError: if the file cannot be written.
        MissingExtraError: without matplotlib (extra `report`).
    """
    if not costs:
        raise ConfigError("costs: there is nothing to draw; pass the cost of at least one run")
    figure, axis = stacked(1)
    ratios = {label: cost.ratios for label, cost in costs.items()}
    names = list(next(iter(ratios.values())))
    width = 0.8 / len(names)
    for i, name in enumerate(names):
        places = [group + (i - (len(names) - 1) / 2) * width for group in range(len(ratios))]
        # Measured times get colours and counted FLOPs get greys, to tell them apart.
        colour = f"C{i - 3}" if "time" in name else str(0.35 + 0.1 * i)
        bars = axis.bar(
            places,
            [found[name] for found in ratios.values()],
            width * 0.92,
            label=name,
            color=colour,
        )
        axis.bar_label(bars, fmt="%.2f", fontsize=7, padding=2)
    axis.axhline(1, color="0.5", linewidth=1)
    axis.set(ylabel="with frozen neurons / plain", xticks=range(len(ratios)), title=title)
    axis.set_xticklabels([f"{label}\n{_frozen(costs[label])}" for label in ratios])
    axis.set_ylim(0, 1.35 * max(1.0, *(max(found.values()) for found in ratios.values())))
    axis.grid(alpha=0.3, axis="y")
    axis.set_axisbelow(True)
    axis.legend(ncols=2, fontsize=8)
    return saved(figure, path)


def _frozen(cost: UpdateCost) -> str:
    return f"{100 * (1 - cost.status.total):.0f} % frozen"


def cost_table(costs: Mapping[str, UpdateCost], title: str = "What a step costs") -> Table:
    """Table of FLOPs, times and memory of a step, each with its ratio to the dense step.

    Args:
        costs: label -> cost of a step with frozen neurons.
        title: title of the table.

    Raises:
        ConfigError: if `costs` is empty.
    """
    if not costs:
        raise ConfigError("costs: there is nothing to show; pass the cost of at least one run")
    timing = next(iter(costs.values())).timing
    return Table(
        title=title,
        header=(
            "Run", "Frozen", "Bprop FLOPs\n(paper)", "Bprop FLOPs\n(executed)", "Backward\n[ms]", "Step\n[ms]",
            "Saved\n[MB]",
        ),
        rows=tuple(
            (
                label,
                _frozen(cost).removesuffix(" frozen"),
                _left(flops(cost.status.flops), cost.ratios["backward FLOPs, paper's convention"]),
                _left(flops(cost.flops.backward), cost.ratios["backward FLOPs executed"]),
                _timed(cost.timing.backward),
                _timed(cost.timing.step),
                _left(megabytes(cost.memory.saved_bytes), cost.ratios["saved activations"]),
            )
            for label, cost in costs.items()
        ),
        note=(
            "In brackets: ratio to the dense step. Paper: FLOPs per sample, counting one of the "
            "two matrix products of a backward pass; executed: torch's FLOP counter, for the "
            "batch. Times: medians, dense and sparse steps interleaved; "
            f"{timing.repeats} repeats, batch {timing.batch}, {timing.threads} thread(s), "
            f"{timing.device}. Saved: activations that autograd keeps for the backward pass."
        ),
    )  # fmt: skip


def _left(value: str, ratio: float) -> str:
    return f"{value} ({ratio:.2f})"


def _timed(phase: PhaseTiming) -> str:
    spread = f"{phase.sparse_p10:.2f}-{phase.sparse_p90:.2f}"
    return _left(f"{phase.sparse_ms:.2f}", phase.ratio) + f"\n{spread}"
