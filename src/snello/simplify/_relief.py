"""What a pointwise convolution need not read, although it is no constant."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor, fx

from ._draft import Draft
from ._signal import Layout

if TYPE_CHECKING:
    from ._analysis import Analysis


class Relief:
    """Why a pointwise convolution need not read some channels: what they add reaches it another way."""

    @property
    def choices(self) -> Sequence[Relief]:
        """What could be done, best first."""
        return (self,)

    def saves_bytes(self, neurons: int, channels: int) -> bool:
        """Whether it takes fewer numbers than what it replaces.

        Args:
            neurons: of the reader, that are computed.
            channels: how many channels of those that they read they need not.
        """
        raise NotImplementedError

    def takes(self, read: Tensor) -> Tensor:
        """Which of the channels that the reader would read it need not: boolean, shape (C,), as ``read``."""
        raise NotImplementedError

    def settle(self, analysis: Analysis, taken: Tensor) -> None:
        """Note what else changes now that some channels are not read. By default nothing."""

    def received(self, layout: Layout) -> Layout:
        """What the reader receives, given what its operand carries."""
        return layout

    def emit(self, draft: Draft, layouts: Mapping[fx.Node, Layout]) -> None:
        """Write into the plan how what they add reaches the reader. By default another relief says it."""


Worth = Callable[[Relief, int, int], bool]
"""Whether to make use of a relief, for how many neurons and channels; as :meth:`Relief.saves_bytes`."""
