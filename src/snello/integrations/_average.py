"""A running average of the weights in training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from weakref import ref

import lightning as L
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from snello.errors import ConfigError


class WeightAverage(L.Callback):
    r"""Keep an exponential moving average of the weights: :math:`\bar w \leftarrow d\,\bar w + (1 -
    d)\,w`.

    Training and validation use the weights themselves; :attr:`average` is for whoever ships the
    network. Buffers are averaged too, so that the average has its own BatchNorm statistics. A
    :class:`SensitivityPruning` in the same trainer has its masks applied to the average as well:
    what is pruned is zero in both.

    Args:
        decay: share of the past, d, in (0, 1).

    Raises:
        ConfigError: for another decay.
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
        """The average, built when it is first asked for; a resumed run goes on with its own.

        A second ``fit`` of the same model goes on averaging; another model starts a new average.
        """
        if self._source is not None and self._source() is not model:
            self.average = None
        if self.average is None:
            self._source = ref(model)
            self._steps = steps
            update = get_ema_multi_avg_fn(self._decay)  # type: ignore[no-untyped-call]
            self.average = AveragedModel(model, multi_avg_fn=update, use_buffers=True)
            if self._restored is not None:
                self.average.load_state_dict(self._restored)
                self._restored = None
        return self.average

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Copy the model as it is."""
        self.start(inner_model(pl_module), trainer.global_step)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """After a step of the optimizer: not after batches that only accumulate gradients."""
        assert self.average is not None
        if trainer.global_step > self._steps:
            self.average.update_parameters(inner_model(pl_module))
        self._steps = trainer.global_step

    def state_dict(self) -> dict[str, Any]:
        """For Lightning's checkpoint."""
        return {} if self.average is None else dict(self.average.state_dict())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From Lightning's checkpoint; taken in when training starts."""
        self._restored = state_dict or None


def inner_model(module: L.LightningModule) -> nn.Module:
    """The network inside a Lightning module: its ``model`` attribute, or the module itself."""
    inner = getattr(module, "model", None)
    return inner if isinstance(inner, nn.Module) else module
