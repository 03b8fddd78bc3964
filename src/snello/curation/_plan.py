"""The samples of one epoch, and their share on each process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from snello.errors import check_state

from ._source import Offer, places_of


@dataclass(frozen=True, eq=False)
class Plan:
    """The samples that one epoch trains on, and their weights.

    Attributes:
        epoch: its number, from 0.
        keys: what all processes get, a multiple of their number: int64 `(M,)` or `(M, L)`.
        batch: number of the batch that each sample came in, int64 `(M,)`; None without batches.
        left: keys of the remainder, smaller than the number of processes; first in the next epoch.
        weights: factor of each sample's loss, float64 `(N,)`.
        offered: samples before any was left out.
        processes: among which the samples are dealt out.
    """

    epoch: int
    keys: Tensor
    batch: Tensor | None
    left: Tensor
    weights: Tensor
    offered: int
    processes: int = 1

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def places(self) -> Tensor:
        """Indices in the dataset, int64 `(M,)`."""
        return places_of(self.keys)

    def share(self, rank: int, size: int) -> Tensor:
        """Keys of one process: as many as any other's, and none of another's."""
        return self.keys[rank::size]

    def digest(self) -> str:
        """A short text that differs where plans differ."""
        flat = self.keys.flatten()
        # Sums of int64 wrap around; the factors make them depend on the order.
        factors = torch.arange(len(flat)) * 0x1F3D5B79 + 1
        return f"{len(flat)}-{int(((flat + 1) * factors).sum()) & 0xFFFFFFFF:08x}"

    def state_dict(self) -> dict[str, Any]:
        """As tensors and numbers."""
        return vars(self).copy()

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Plan:
        """The inverse of `state_dict`.

        Raises:
            ConfigError: for anything else.
        """
        kinds = {
            "epoch": int, "keys": Tensor, "batch": Tensor | None, "left": Tensor,
            "weights": Tensor, "offered": int, "processes": int,
        }  # fmt: skip
        check_state(state, kinds, "Plan")
        fields: dict[str, Any] = {
            k: v.cpu() if isinstance(v, Tensor) else v for k, v in state.items()
        }
        return cls(**fields)


def planned(
    epoch: int, offer: Offer, kept: Tensor, weights: Tensor, carried: Tensor, processes: int
) -> Plan:
    """The plan of an epoch.

    Args:
        epoch: its number.
        offer: the samples, in order.
        kept: which of them to train on, bool `(M,)`; all that are carried.
        weights: float64 `(N,)`.
        carried: keys that the last epoch had no room for; they come first.
        processes: among which the samples are dealt out.
    """
    keys, batch = offer.keys[kept], None if offer.batch is None else offer.batch[kept]
    if len(carried):
        first = torch.isin(places_of(keys), places_of(carried))
        absent = carried[~torch.isin(places_of(carried), places_of(keys))]
        keys = torch.cat([absent, keys[first], keys[~first]])
    whole = len(keys) // processes * processes
    return Plan(epoch, keys[:whole], batch, keys[whole:], weights, len(offer.keys), processes)
