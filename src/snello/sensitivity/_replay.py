"""A second forward of the first few examples of a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from snello.errors import ConfigError
from snello.graph import Inputs, evaluation_mode, scores_of
from snello.wrappers import OwnHook, eagerly


class Replay:
    """A second forward of a batch's first examples, in evaluation mode and with gradients.

    A hook keeps the inputs of the model's own forward until `run` is called. The second
    forward neither updates BatchNorm statistics nor uses torch's random generators.

    Args:
        model: the model whose inputs are kept.
        examples: number of examples of a batch to run again.
        wanted: called before each forward; returns true if its inputs are to be kept.
    """

    def __init__(self, model: nn.Module, examples: int, wanted: Callable[[], bool]) -> None:
        self._model, self._examples, self._wanted = model, examples, wanted
        self._inputs: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        self._autocast: dict[str, Any] = {}
        self.running = False
        self._handle = model.register_forward_pre_hook(OwnHook(self._keep), with_kwargs=True)

    def _keep(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # An evaluation between the forward pass and the observation is not observed.
        if self.running or not torch.is_grad_enabled() or not self._wanted():
            return
        self._inputs = (args, kwargs)
        given = Inputs(args, kwargs).tensors()
        kind = next((x.device.type for x in given), "cpu")
        # The second forward has to run with the autocast state of the first.
        self._autocast = {
            "device_type": kind,
            "dtype": torch.get_autocast_dtype(kind),
            "enabled": torch.is_autocast_enabled(kind),
        }

    def run(self, batch: int) -> Tensor:
        """The scores of the first examples of a batch of that size.

        Raises:
            ConfigError: if no inputs were kept since the last call.
        """

        def first(value: Any) -> Any:
            # Arguments without one entry per example, such as flags, are passed on whole.
            per_example = isinstance(value, Tensor) and value.dim() > 0 and len(value) == batch
            return value[: self._examples] if per_example else value

        if self._inputs is None:
            raise ConfigError(
                "SeReNe.observe: there was no forward pass of the model since the last observation. If only its "
                "last layers ran, behind a FeatureCache, leave out examples="
            )
        (args, kwargs), self._inputs = self._inputs, None
        self.running = True
        try:
            with (
                evaluation_mode(self._model),
                eagerly(),
                torch.enable_grad(),
                torch.autocast(**self._autocast),
            ):
                outputs = self._model(
                    *map(first, args), **{key: first(value) for key, value in kwargs.items()}
                )
        finally:
            self.running = False
        return scores_of(outputs)

    def remove(self) -> None:
        """Remove the hook from the model."""
        self._handle.remove()
        self._inputs = None
