"""Progress of a process in an epoch."""

from __future__ import annotations

from dataclasses import dataclass

from ._plan import Plan


@dataclass
class Progress:
    """Progress of this process in an epoch.

    Attributes:
        plan: the samples of the epoch.
        done: number of samples of this process whose losses were recorded.
        begun: whether a sampler has begun it. If not, it was drawn for its length alone.
        exhausted: whether a sampler has come to its end.
        finished: whether nothing more is trained on in it.
        restored: whether it comes from a saved state and was not trained on since: the next sampler
            goes on behind the samples that are done.
    """

    plan: Plan
    done: int = 0
    begun: bool = False
    exhausted: bool = False
    finished: bool = False
    restored: bool = False

    @property
    def over(self) -> bool:
        """Return True if a sampler begins the next epoch, unless an epoch is named."""
        return self.finished or (not self.restored and (self.exhausted or self.done > 0))

    def begin(self) -> int:
        """Note that a sampler begins it.

        Returns:
            The number of samples of this process before the first that it yields.
        """
        # `restored` stays: Lightning lets the workers of a loader begin an epoch more than once.
        self.begun, self.exhausted = True, False
        self.done = self.done if self.restored else 0
        return self.done
