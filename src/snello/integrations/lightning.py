"""Lightning callbacks for any Lightning project, built on snello's public API.

>>> trainer = L.Trainer(callbacks=[SensitivityPruning(  # doctest: +SKIP
...     lambda model: SeReNe(model, 1e-4), evaluate=validation_loss, granularity="neuron"
... )])

Each callback builds its object at the start of training, when the optimizer exists, and saves its
state in Lightning's checkpoints, so that a resumed run is equivalent to an uninterrupted one. A
second `fit` of the same model with the same callback continues as well; with a new callback,
pruned weights stay pruned.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from weakref import ref

import lightning as L
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.hooks import RemovableHandle

from snello.curation import DynamicSubset
from snello.equilibrium import EquilibriumStep, Selection, SelectiveUpdate, Velocity
from snello.errors import ConfigError, check_count
from snello.graph import scores_of
from snello.pruning import Pruner, PrunerStep
from snello.sensitivity import Sensitivity
from snello.wrappers import OwnHook, unwrapped

from ._agree import agree_on_pruning, zeros_expected
from ._average import WeightAverage as WeightAverage
from ._average import inner_model as _model


def _averages(trainer: L.Trainer, pl_module: L.LightningModule) -> Iterator[nn.Module]:
    """Averaged copies of the model that other callbacks keep."""
    expected = [(name, p.shape) for name, p in _model(pl_module).named_parameters()]
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        for value in vars(callback).values():
            if not isinstance(value, nn.Module) or value is pl_module:
                continue
            inner = value.module if isinstance(value, AveragedModel) else value
            copied = _model(inner) if isinstance(inner, L.LightningModule) else inner
            if copied is not _model(pl_module) and expected == [
                (n, p.shape) for n, p in copied.named_parameters()
            ]:
                yield copied


def monitored(trainer: L.Trainer, name: str) -> float:
    """The value of a logged metric at the end of an epoch.

    Raises:
        ConfigError: if the metric is not logged; the message lists the logged names.
    """
    metrics = trainer.callback_metrics
    if name not in metrics:
        known = ", ".join(sorted(metrics)) or "none"
        raise ConfigError(
            f"no metric {name!r} is logged by the end of the epoch; the logged metrics are: {known}"
        )
    return float(metrics[name])


class _Attached(L.Callback):
    """Base class of callbacks that decide at the end of every epoch, and detach from the model when
    training ends or fails.
    """

    _restored: Mapping[str, Any] | None = None
    _first_epoch = _epochs_ended = 0

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Decide what changes before the next epoch."""
        self._end_epoch(trainer, trainer.current_epoch)
        self._epochs_ended = trainer.current_epoch + 1

    def _make_up(self, trainer: L.Trainer, state: Mapping[str, Any] | None) -> None:
        """Make up for the end of an epoch that Lightning leaves out.

        From a checkpoint that was written at the last batch of an epoch, or at a validation behind it,
        it goes on with the next epoch.
        """
        now = self._first_epoch = trainer.current_epoch
        # States of earlier versions do not tell.
        if state is not None and state.get("epochs_ended", now) < now:
            self._end_epoch(trainer, now - 1)
        self._epochs_ended = now

    def _end_epoch(self, trainer: L.Trainer, epoch: int) -> None:
        raise NotImplementedError

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Detach from the model."""
        self._take_down()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Detach from the model, so that an interrupted training leaves no hooks on it."""
        self._take_down()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state of a checkpoint until training starts."""
        self._restored = state_dict or None

    def _take_down(self) -> None:
        raise NotImplementedError


class SensitivityPruning(_Attached):
    """Train with a sensitivity and prune on plateaus of the validation loss.

    With several processes (DDP), sensitivities and losses are averaged over the processes, and
    masks and weights of rank 0 are broadcast after a pruning step. The averages of a
    `WeightAverage` and of Lightning's own averaging callbacks in the same trainer are masked
    too.

    After training the masks stay in force, also in a `fit` without this callback, until
    `callback.pruner.remove()`.

    Args:
        sensitivity: function that builds the sensitivity from the model, such as
            `lambda m: Lobster(m, 1e-4)`.
        evaluate: function that returns the validation loss of a model, for the threshold search.
        epochs: number of epochs with decay and pruning; the last of them ends with a pruning step,
            and further epochs only fine-tune. None: all epochs.
        monitor: name of the logged validation loss.
        options: arguments of [`snello.pruning.Pruner`][] (granularity, amount, schedule, ...).
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
        self._outputs: Any = None
        self._targets: Tensor | None = None
        self._steps = 0
        self._hook: RemovableHandle | None = None
        self.sensitivity: Sensitivity | None = None
        self.pruner: Pruner | None = None
        self.last_step: PrunerStep | None = None

    def _active(self, epoch: int) -> bool:
        return self._epochs is None or epoch < self._epochs

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Build sensitivity and pruner; restore their state in a resumed run or second `fit`."""
        model = _model(pl_module)
        state = self._state_for(model)
        self._take_down()
        if self.pruner is not None:
            self.pruner.remove()
        self.sensitivity = self._build(model)
        with zeros_expected(state is not None):
            self.pruner = Pruner(model, trainer.optimizers or None, self._evaluate, **self._options)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, WeightAverage):
                self.pruner.follow(callback.start(model, trainer.global_step))
        for average in _averages(trainer, pl_module):
            self.pruner.follow(average)
        self._hook = model.register_forward_hook(OwnHook(self._keep_outputs))
        self._steps = trainer.global_step
        if state is not None:
            self.sensitivity.load_state_dict(state["sensitivity"])
            self.pruner.load_state_dict(state["pruner"])
        self._make_up(trainer, state)

    def _state_for(self, model: nn.Module) -> Mapping[str, Any] | None:
        """The state to continue from: a loaded checkpoint, else the last `fit` of this model."""
        restored, self._restored = self._restored, None
        if (
            restored is None
            and self.pruner is not None
            and self.pruner.model is unwrapped(model, "Pruner")
        ):
            return self.state_dict()
        return restored

    def _keep_outputs(self, model: nn.Module, inputs: Any, outputs: Any) -> None:
        self._outputs = outputs if model.training else None

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keep the targets of a batch (inputs, targets), which a specific sensitivity needs."""
        if curated(trainer):
            batch, _ = batch  # the indices of the samples
        pair = isinstance(batch, (tuple, list)) and len(batch) == 2
        self._targets = batch[1] if pair and isinstance(batch[1], Tensor) else None

    def on_before_backward(
        self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor
    ) -> None:
        """Pass the outputs to the sensitivity while their autograd graph exists."""
        sensitivity, outputs, self._outputs = self.sensitivity, self._outputs, None
        looks = sensitivity is not None and type(sensitivity).observe is not Sensitivity.observe
        if looks and outputs is not None and self._active(trainer.current_epoch):
            sensitivity.observe(scores_of(outputs), self._targets)  # type: ignore[union-attr]

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Decay after an optimizer step, not after merely accumulated gradients."""
        stepped, self._steps = trainer.global_step > self._steps, trainer.global_step
        if self.sensitivity is not None and stepped and self._active(trainer.current_epoch):
            self.sensitivity.step()

    def _end_epoch(self, trainer: L.Trainer, epoch: int) -> None:
        """Prune on a plateau, and at the end of the pruning epochs."""
        assert self.pruner is not None
        if not self._active(epoch):
            return
        self.last_step = self.pruner.step(self._loss(trainer, epoch))
        pruned = self.last_step.search is not None
        if self._epochs is not None and epoch == self._epochs - 1 and not pruned:
            self.pruner.prune()
            pruned = True
        if pruned:
            agree_on_pruning(self.pruner, self.pruner.model)

    def _loss(self, trainer: L.Trainer, epoch: int) -> float | None:
        """The logged validation loss; None to measure it.

        From a checkpoint within an epoch Lightning goes on without the validations before it.
        """
        resumed = trainer.ckpt_path is not None and epoch <= self._first_epoch
        if resumed and self._monitor not in trainer.callback_metrics:
            return None
        return monitored(trainer, self._monitor)

    def _take_down(self) -> None:
        """Remove every hook; the masks stay in force."""
        if self.sensitivity is not None:
            self.sensitivity.remove()
        if self._hook is not None:
            self._hook.remove()

    def state_dict(self) -> dict[str, Any]:
        """For Lightning's checkpoint."""
        if self.pruner is None or self.sensitivity is None:
            return {}
        return {
            "sensitivity": self.sensitivity.state_dict(),
            "pruner": self.pruner.state_dict(),
            "epochs_ended": self._epochs_ended,
        }


class CurationCallback(L.Callback):
    """Keep the epochs of a dynamic subset in step with a trainer, and its state in checkpoints.

    The training loader is of `keep`, with `sampler=keep.sampler()`; its batches are
    `(batch, index)`, and `training_step` returns `keep.weigh(losses, index)`. With several
    processes nothing else is needed: Lightning leaves the sampler as it is.

    Lightning asks for the number of batches once; this callback lets it ask before every epoch,
    since epochs differ in length.

    Args:
        keep: of [`snello.curation`][].
    """

    def __init__(self, keep: DynamicSubset) -> None:
        self.keep = keep

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Let the trainer ask for the number of batches before every epoch."""
        if stage == "fit":
            # Otherwise it validates after as many batches as the first epoch had.
            trainer.reload_dataloaders_every_n_epochs = 1  # type: ignore[attr-defined]

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """End the epoch, also where batches were limited or dropped."""
        self.keep.finish()

    def state_dict(self) -> dict[str, Any]:
        """For Lightning's checkpoint."""
        return self.keep.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From Lightning's checkpoint."""
        self.keep.load_state_dict(state_dict)


def curated(trainer: L.Trainer) -> bool:
    """Return True if the training batches are pairs of a batch and the indices of its samples."""
    loader = trainer.train_dataloader
    return isinstance(getattr(loader, "dataset", None), DynamicSubset)


class SelectiveUpdateCallback(_Attached):
    """Skip the weight gradients of the neurons that a selection freezes.

    Args:
        probe: fixed inputs on which a neuron's outputs are compared, shape (B, ...).
        selection: rule of [`snello.equilibrium`][] that chooses the frozen neurons.
        every: number of optimizer steps between decisions; None: at the end of every epoch.
        options: arguments of [`snello.equilibrium.SelectiveUpdate`][] (warmup, exclude, ...).

    Raises:
        ConfigError: for `every` below 1.
    """

    def __init__(
        self, probe: Tensor, selection: Selection, *, every: int | None = None, **options: Any
    ) -> None:
        if every is not None:
            check_count("every", every, "; it is a number of optimizer steps")
        self._probe, self._selection, self._every, self._options = probe, selection, every, options
        self._begin = copy.deepcopy(selection.state_dict())
        self._last: tuple[ref[nn.Module], Mapping[str, Any]] | None = None
        self._spent: list[EquilibriumStep] = []
        self._steps, self._attached = 0, False
        self.neq: SelectiveUpdate | None = None
        self.last_step: EquilibriumStep | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Build the object; restore its masks in a resumed run or a second `fit`."""
        probe, model = self._probe.to(pl_module.device), _model(pl_module)
        self._take_down()
        state = self._state_for(model)
        if state is None:  # the selection may hold the state of another model
            self._selection.load_state_dict(copy.deepcopy(self._begin))
        self.neq = SelectiveUpdate(
            model, trainer.optimizers or None, probe, self._selection, **self._options
        )
        self._attached = True
        if state is not None:
            self.neq.load_state_dict(state)
        self._steps, self._spent = trainer.global_step, []
        self.last_step = self.neq.status()
        self._make_up(trainer, state)

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Record the cost of the step; decide again after `every` steps."""
        assert self.neq is not None
        assert self.last_step is not None
        if trainer.global_step == self._steps:  # gradients were only accumulated
            return
        before, self._steps = self._steps, trainer.global_step
        self._spent.append(self.last_step)
        # Several optimizers take several steps in one batch.
        if self._every is not None and self._steps // self._every > before // self._every:
            self.last_step = self.neq.step()

    def _end_epoch(self, trainer: L.Trainer, epoch: int) -> None:
        """Evaluate the probe and decide which neurons are updated in the next epoch."""
        assert self.neq is not None
        self._spent = []
        if self._every is None:
            self.last_step = self.neq.step()

    def spent(self) -> tuple[float, float, float]:
        """Means over the steps of the current epoch.

        Returns:
            The share of updated neurons in [0, 1], the backward FLOPs and the dense backward FLOPs,
            both per sample in the NEq paper's convention.
        """
        assert self.last_step is not None
        steps = self._spent or [self.last_step]
        shares, counts, dense = zip(
            *((s.total, s.flops, s.dense_flops) for s in steps), strict=True
        )
        return sum(shares) / len(steps), sum(counts) / len(steps), sum(dense) / len(steps)

    def _take_down(self) -> None:
        """Unfreeze every layer; the state is kept for another `fit`."""
        if self.neq is not None and self._attached:
            self._last = ref(self.neq.model), self.state_dict()
            self.neq.remove()
        self._attached = False

    def _state_for(self, model: nn.Module) -> Mapping[str, Any] | None:
        """The state to continue from: a loaded checkpoint, else the last `fit` of this model."""
        restored, self._restored = self._restored, None
        if (
            restored is None
            and self._last is not None
            and self._last[0]() is unwrapped(model, "NEq")
        ):
            return self._last[1]
        return restored

    def state_dict(self) -> dict[str, Any]:
        """For Lightning's checkpoint; after the training, as at its end or interruption."""
        if self._attached and self.neq is not None:
            return self.neq.state_dict() | {"epochs_ended": self._epochs_ended}
        return {} if self._last is None else dict(self._last[1])


class NEqCallback(SelectiveUpdateCallback):
    """Skip the weight gradients of neurons at equilibrium, by the velocity rule of NEq.

    Args:
        probe: fixed inputs on which a neuron's outputs are compared, shape (B, ...).
        eps: velocity below which a neuron counts as being at equilibrium.
        mu: weight of the previous velocity (momentum coefficient).
        smoothing: weight of the past in a moving average of the similarities, for `every`.
        every: number of optimizer steps between decisions; None: at the end of every epoch, as
            published.
        options: arguments of [`snello.equilibrium.SelectiveUpdate`][] (warmup, exclude, ...).
    """

    def __init__(
        self,
        probe: Tensor,
        *,
        eps: float = 1e-3,
        mu: float = 0.5,
        smoothing: float = 0.0,
        every: int | None = None,
        **options: Any,
    ) -> None:
        rule = Velocity(eps, mu, smoothing=smoothing)
        super().__init__(probe, rule, every=every, **options)
