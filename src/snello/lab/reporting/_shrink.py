"""The table of a search for the cheapest network."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._tables import Table
from ._values import number, percent

if TYPE_CHECKING:
    from snello.deploy.operations import LatencyFit
    from snello.search.shrink import Candidate, Shrunk


def shrink_table(title: str, found: Shrunk, remark: str = "") -> Table:
    """Candidates by falling cost, with their predicted and measured cost.

    Args:
        title: one line above the table.
        found: the search.
        remark: further remark, such as the accuracy on test images.
    """
    unit = f" [{found.unit}]" if found.unit else ""
    header = (
        "Candidate", "Precision", "Channels", "Zeros", f"Predicted{unit}", f"Cost{unit}", "Quality",
        "Drop", "At most",
    )  # fmt: skip
    ordered = sorted(found.candidates, key=lambda c: -(c.cost or 0.0))
    rows = tuple(_row(found, c) for c in ordered)
    samples = (
        f"The drop is the mean over {found.samples} samples, each compared with the dense network; its limit "
        "is that at 95 % confidence. "
        if found.samples > 1
        else ""
    )
    device = f"Latency on {found.device}: 10th percentile of a call. " if found.device else ""
    fits = "".join(f"{name}: {_fit(fit)}. " for name, fit in found.fits.items())
    return Table(title, header, rows, f"{samples}{device}{fits}{remark}".strip())


def _fit(fit: LatencyFit) -> str:
    text = f"{fit.offset:.4g} ms + {fit.slope:.3f} x table"
    if fit.runs == 1:  # one run is always met
        return f"{text}, from 1 network"
    return f"{text}, within {percent(fit.residual, 1)} on {fit.runs} networks"


def state_of(found: Shrunk, candidate: Candidate) -> str:
    """Dense, chosen, within the bound, beyond it, or failed."""
    if candidate.key == found.chosen.key:
        return "chosen"
    if candidate.key == found.dense.key:
        return "dense"
    if candidate.why:
        return "failed"
    return "within the bound" if candidate.passed else "beyond the bound"


def channels_left(found: Shrunk, candidate: Candidate) -> float:
    """Share of all channels that is kept."""
    kept = sum(candidate.widths.get(name, width) for name, width in found.widths.items())
    return kept / max(sum(found.widths.values()), 1)


def _row(found: Shrunk, c: Candidate) -> tuple[str, ...]:
    predicted, cost = map(number, (c.predicted, c.cost))
    value, drop, limit = ("-" if v is None else f"{v:.4f}" for v in (c.value, c.drop, c.limit))
    left, zeros = percent(channels_left(found, c), 1), percent(c.sparsity, 0)
    return (state_of(found, c), c.precision, left, zeros, predicted, cost, value, drop, limit)
