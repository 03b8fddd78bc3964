"""Exponential moving average of the weights during training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from weakref import ref

import lightning as L
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from snello.errors import ConfigError


class WeightAverage(L.Callback):
    r"""Keep an exponential moving average of the weights: $\bar w \leftarrow d\,\bar w + (1 -
    d)\,w$.

    Training and validation use the current weights; `average` holds the averaged network, for
    testing and export. Buffers are averaged too, so that the average has its own BatchNorm
    statistics. A [`SensitivityPruning`][snello.integrations.lightning.SensitivityPruning] in the
    same trainer applies its masks to the average as well, so that pruned weights are zero in both.

    Args:
        decay: weight d of the previous average, in (0, 1).

    Raises:
        ConfigError: if the decay is not in (0, 1).
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 < decay < 1:
            raise ConfigError(
                f"the decay of a running average must lie between 0 and 1, not at {decay}"
            )
        self._decay, self._steps = decay, 0
        self._restored: Mapping[str, Any] | None = None
        self._source: ref[nn.Module] | None = None
        self.average: AveragedModel | None = None

    def start(self, model: nn.Module, steps: int) -> AveragedModel:
        """Create the average on the first call, and load the checkpoint's state if a run is resumed.

        A second `fit` of the same model continues the average; another model starts a new one.

        Args:
            model: the network in training.
            steps: number of optimizer steps taken so far.
        """
        if self._source is not None and self._source() is not model:
            self.average = None
        if self.average is None:
            self._source = ref(model)
            update = get_ema_multi_avg_fn(self._decay)  # type: ignore[no-untyped-call]
            self.average = AveragedModel(model, multi_avg_fn=update, use_buffers=True)
        if self._restored is not None:
            self.average.load_state_dict(self._restored)
            self._restored = None
        self._steps = steps
        return self.average

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Create the average from the current weights."""
        self.start(inner_model(pl_module), trainer.global_step)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Update the average after an optimizer step, not after merely accumulated gradients."""
        assert self.average is not None
        if trainer.global_step > self._steps:
            self.average.update_parameters(inner_model(pl_module))
        self._steps = trainer.global_step

    def state_dict(self) -> dict[str, Any]:
        """The state of the average, for Lightning's checkpoint."""
        return {} if self.average is None else dict(self.average.state_dict())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state from Lightning's checkpoint until training starts."""
        self._restored = state_dict or None


def inner_model(module: L.LightningModule) -> nn.Module:
    """The network inside a Lightning module: its `model` attribute, or the module itself."""
    inner = getattr(module, "model", None)
    return inner if isinstance(inner, nn.Module) else module
