"""Sensitivities that are measured from the outputs, at every n-th call of `observe`."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Self

from torch import Tensor

from snello.errors import ConfigError, check_count, check_state
from snello.processes import Group
from snello.wrappers import allow_second_backward

from ._decay import Sensitivity


class Observed(Sensitivity):
    """A sensitivity that needs observations, and uses the latest one in between.

    Args:
        lmbda: as for [`Sensitivity`][snello.sensitivity.Sensitivity].
        every: observe only every n-th call.
        seed: seed of the drawn classes, together with the number of the call.
        group: the processes that share a batch.
    """

    _uncopied = frozenset({"_group"})
    """Attributes that a copy does not share and cannot copy; a group of processes has no copy."""

    def __init__(self, lmbda: float, every: int, seed: int, group: Group) -> None:
        super().__init__(lmbda)
        check_count("every", every)
        self.every, self.seed, self._group = every, seed, group
        self._calls = 0
        self._latest: dict[str, Tensor] = {}
        allow_second_backward()  # that of the loss follows

    @property
    def _due(self) -> bool:
        return self._calls % self.every == 0

    @abstractmethod
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the sensitivities of this model."""

    def _finish(self) -> dict[str, Tensor]:
        """The sensitivities for this step; the next observation begins a new mean.

        Raises:
            ConfigError: if there has been no observation.
        """
        self._latest = self.sensitivity()
        self._clear()
        if not self._latest and self._calls == 0 and self._shapes():
            method = type(self).__name__
            raise ConfigError(
                f"{method}.step: nothing has been observed yet: call {method.lower()}.observe(outputs) between "
                "the forward pass and loss.backward(), as in docs/own-loop.md"
            )
        return self._latest

    @abstractmethod
    def _clear(self) -> None:
        """Forget the observations since the last step."""

    def state_dict(self) -> dict[str, Any]:
        return {"calls": self._calls, "latest": dict(self._latest)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        check_state(state, {"calls": int, "latest": dict[str, Tensor]}, type(self).__name__)
        method, shapes = f"{type(self).__name__}.load_state_dict", self._shapes()
        found = {name: tuple(value.shape) for name, value in state["latest"].items()}
        odd = next((name for name, shape in found.items() if shapes.get(name) != shape), None)
        if odd is not None:
            raise ConfigError(
                f"{method}: this is the state of another model, or of other layers: {odd!r} has the shape "
                f"{found[odd]} there and {shapes.get(odd, 'none')} here"
            )
        self._calls, self._latest = state["calls"], dict(state["latest"])
        self._clear()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """The method on a copy of the model; copy both in one `deepcopy`."""
        twin = object.__new__(type(self))
        memo[id(self)] = twin
        for name, value in vars(self).items():
            if name not in self._uncopied:
                setattr(twin, name, copy.deepcopy(value, memo))
        twin._group = self._group
        return twin


def check_reached(gradients: Sequence[Tensor | None], method: str) -> None:
    """Raise a ConfigError if the outputs depend on nothing that is measured.

    All sensitivities would be zero, and all weights decay.
    """
    if gradients and all(gradient is None for gradient in gradients):
        raise ConfigError(
            f"{method}.observe: the outputs do not depend on the layers of the model in its latest forward "
            "pass: observe the outputs of each forward pass before the next one, and checkpoint layers with "
            "use_reentrant=False"
        )
