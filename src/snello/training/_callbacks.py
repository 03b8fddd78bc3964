"""Lightning callbacks over the public API: they work in any Lightning project.

Each builds its object when training starts, when the optimizer exists, and saves its state in Lightning's
checkpoints, so that a resumed run goes on as if it had never stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from snello.equilibrium import EquilibriumStep
from snello.equilibrium import NEq as _NEq
from snello.errors import ConfigError
from snello.pruning import Pruner, PrunerStep
from snello.sensitivity import Sensitivity


def _model(module: L.LightningModule) -> nn.Module:
    """The network inside a Lightning module: its ``model`` attribute, or the module itself."""
    inner = getattr(module, "model", None)
    return inner if isinstance(inner, nn.Module) else module


def _optimizer(trainer: L.Trainer) -> torch.optim.Optimizer:
    if len(trainer.optimizers) != 1:
        raise ConfigError(f"snello's callbacks work with one optimizer, not {len(trainer.optimizers)}")
    return trainer.optimizers[0]


def monitored(trainer: L.Trainer, name: str) -> float:
    """A logged metric of the epoch that just ended.

    Raises:
        ConfigError: if nothing logs it, with the names that are logged.
    """
    metrics = trainer.callback_metrics
    if name not in metrics:
        known = ", ".join(sorted(metrics)) or "none"
        raise ConfigError(f"no metric {name!r} is logged by the end of the epoch; logged are: {known}")
    return float(metrics[name])


class SensitivityPruning(L.Callback):
    """Train with a sensitivity, prune on plateaus.

    Args:
        sensitivity: builds the sensitivity from the model, as ``lambda m: Lobster(m, 1e-4)``.
        evaluate: returns the validation loss of a model; used while thresholds are searched.
        epochs: decay and prune during this many epochs; the last of them ends with a pruning step, and the
            epochs after it fine-tune what is left. None: all epochs.
        monitor: name of the logged validation loss.
        options: arguments of :class:`snello.pruning.Pruner` (granularity, twt, pwe, ...).
    """

    def __init__(
        self,
        sensitivity: Callable[[nn.Module], Sensitivity],
        evaluate: Callable[[nn.Module], float],
        *,
        epochs: int | None = None,
        monitor: str = "val_loss",
        **options: Any,
    ) -> None:
        self._build, self._evaluate, self._options = sensitivity, evaluate, options
        self._epochs, self._monitor = epochs, monitor
        self._restored: Mapping[str, Any] | None = None
        self._outputs: Tensor | None = None
        self._targets: Tensor | None = None
        self._steps = 0
        self.sensitivity: Sensitivity | None = None
        self.pruner: Pruner | None = None
        self.last_step: PrunerStep | None = None

    def _active(self, trainer: L.Trainer) -> bool:
        return self._epochs is None or trainer.current_epoch < self._epochs

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Build sensitivity and pruner, and restore them if the run is resumed."""
        model = _model(pl_module)
        self.sensitivity = self._build(model)
        self.pruner = Pruner(model, _optimizer(trainer), self._evaluate, **self._options)
        self._hook = model.register_forward_hook(self._keep_outputs)
        self._steps = trainer.global_step
        if self._restored is not None:
            self.sensitivity.load_state_dict(self._restored["sensitivity"])
            self.pruner.load_state_dict(self._restored["pruner"])

    def _keep_outputs(self, model: nn.Module, inputs: Any, outputs: Tensor) -> None:
        self._outputs = outputs if model.training else None

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keep the targets, if a batch is a pair: a specific sensitivity asks for them."""
        pair = isinstance(batch, (tuple, list)) and len(batch) == 2
        self._targets = batch[1] if pair and isinstance(batch[1], Tensor) else None

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        """Let the sensitivity look at the outputs while their graph exists."""
        if self.sensitivity is not None and self._outputs is not None and self._active(trainer):
            self.sensitivity.observe(self._outputs, self._targets)
        self._outputs = None

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """The decay, after the optimizer's step: not after batches that only accumulate gradients."""
        stepped, self._steps = trainer.global_step > self._steps, trainer.global_step
        if self.sensitivity is not None and stepped and self._active(trainer):
            self.sensitivity.step()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Prune on a plateau, and once more when the pruning epochs end."""
        assert self.pruner is not None
        if not self._active(trainer):
            return
        self.last_step = self.pruner.step(monitored(trainer, self._monitor))
        if (
            self._epochs is not None
            and trainer.current_epoch == self._epochs - 1
            and not self.last_step.search
        ):
            self.pruner.prune()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take every hook out."""
        assert self.sensitivity is not None
        assert self.pruner is not None
        self.sensitivity.remove()
        self.pruner.remove()
        self._hook.remove()

    def state_dict(self) -> dict[str, Any]:
        """For Lightning's checkpoint."""
        if self.pruner is None or self.sensitivity is None:
            return {}
        return {"sensitivity": self.sensitivity.state_dict(), "pruner": self.pruner.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From Lightning's checkpoint; taken in when training starts."""
        self._restored = state_dict or None


class NEq(L.Callback):
    """Skip the backward pass of neurons at equilibrium.

    Args:
        probe: the fixed inputs on which outputs are compared, shape (B, ...).
        options: arguments of :class:`snello.equilibrium.NEq` (eps, mu, warmup, exclude).
    """

    def __init__(self, probe: Tensor, **options: Any) -> None:
        self._probe, self._options = probe, options
        self._restored: Mapping[str, Any] | None = None
        self.neq: _NEq | None = None
        self.last_step: EquilibriumStep | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the first reference, and restore the masks if the run is resumed."""
        probe = self._probe.to(pl_module.device)
        self.neq = _NEq(_model(pl_module), _optimizer(trainer), probe, **self._options)
        if self._restored is not None:
            self.neq.load_state_dict(self._restored)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look at the probe, decide which neurons learn in the next epoch."""
        assert self.neq is not None
        self.last_step = self.neq.step()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put every layer back as it was."""
        assert self.neq is not None
        self.neq.remove()

    def state_dict(self) -> dict[str, Any]:
        """For Lightning's checkpoint."""
        return dict(self.neq.state_dict()) if self.neq is not None else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From Lightning's checkpoint; taken in when training starts."""
        self._restored = state_dict or None
