"""Results of a pruning: one entry per step, and the table of them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class PruningStep:
    """Result of one pruning step.

    Attributes:
        step: number of the step, from 1; 0 is the dense network.
        macs, parameters: remaining share of the dense network's, in (0, 1].
        channels: number of channels removed by this step.
        branches: residual branches removed whole by this step, by the layer that wrote them.
        cut: quality after removal and recovery, before fine-tuning; None without `evaluate`.
        quality: quality after fine-tuning; None without `evaluate`.
    """

    step: int
    macs: float
    parameters: float
    channels: int
    cut: float | None
    quality: float | None
    branches: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pruned:
    """Result of [`prune`][snello.search.prune.prune].

    Attributes:
        model: the smaller network, in the mode of the original and of its class, or a
            `torch.fx.GraphModule` once a branch was removed.
        steps: an entry for the dense network, then one per step.
        stopped: reason why the last step was undone; None if all steps were taken.
    """

    model: nn.Module
    steps: tuple[PruningStep, ...]
    stopped: str | None = None

    def __str__(self) -> str:
        lines = [
            f"{'step':>4} {'MACs':>6} {'parameters':>10} {'after the cut':>13} {'fine-tuned':>10}"
        ]
        for s in self.steps:
            cut, quality = (("-" if q is None else f"{q:.4f}") for q in (s.cut, s.quality))
            lines.append(
                f"{s.step:>4} {s.macs:>6.3f} {s.parameters:>10.3f} {cut:>13} {quality:>10}"
            )
            if s.branches:
                lines.append(f"     without the branches of {', '.join(s.branches)}")
        return "\n".join(lines if self.stopped is None else [*lines, self.stopped])
