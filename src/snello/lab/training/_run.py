"""Construction of the task, callbacks and trainer of one training run."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from torch import nn

from snello.curation import DynamicSubset
from snello.equilibrium import Selection, SelectiveUpdate, Stochastic
from snello.files import write_text
from snello.graph.coupled import coupling
from snello.integrations.lightning import (
    CurationCallback,
    SelectiveUpdateCallback,
    SensitivityPruning,
    WeightAverage,
)
from snello.lab.datasets import Splits
from snello.lab.methods import MethodSpec, PruningConfig, Setting, method_of
from snello.lab.recipes import Recipe
from snello.pruning import LossBound, Plateau, Pruner, QualityBound
from snello.sensitivity import GroupDecay, Sensitivity
from snello.store import Record, save

from ._checkpoints import SealedCheckpoints
from ._classification import Classification
from ._data import Batches, guessed_among, image_input, images_used, initial_model
from ._device import AUTOCAST, check_device, device_of
from ._distributed import World, world
from ._distributions import LastDistributions
from ._evaluate import Evaluation, evaluate_on
from ._flags import flag_of
from ._history import BackwardTimer, EpochRecord, EpochSeed, History
from ._loggers import check_loggers, loggers
from ._result import CHECKPOINT, MODEL, RESULT, TrainingResult
from ._schedule import build_optimizer
from ._segmentation import Segmentation
from ._stop import StopBetweenSteps, StopSignals
from ._task import Task

Progress = Callable[[str], None]


class Run:
    """One training run: the task, callbacks and trainer for a recipe, a method and data.

    Args:
        recipe: the recipe.
        method: name of the method.
        splits: the data.
        matched: the finished NEq run that `stochastic-star` imitates.
        progress: called with a line of text after each epoch.

    Raises:
        SnelloError: for errors of the model, the data and the options.
    """

    def __init__(
        self,
        recipe: Recipe,
        method: str,
        splits: Splits,
        *,
        matched: TrainingResult | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.recipe, self.method = recipe, method_of(method)
        self.splits, self.world = splits, world()
        self._matched, self._progress = matched, progress
        check_device(recipe)
        probed = recipe.neq.probe if self.method.selection is not None else 0
        self.batches = Batches(recipe, splits, self.world, always=probed)
        self.model = initial_model(recipe, splits)
        self.task = _task(recipe, splits, self.model, self.batches.keep)

    def check(self) -> None:
        """Build the objects of a method and remove them again, to find errors before training.

        Raises:
            SnelloError: for errors of optimizer, sensitivity, pruner and selection.
        """
        optimizer = build_optimizer(self.recipe.optimizer, self.model)
        check_loggers(self.recipe.log)
        if self.method.sensitivity is not None:
            sensitivity = self._sensitivity(self.model)
            config = self.recipe.pruning(self.method)
            pruner = Pruner(
                self.model, optimizer, self.validation_loss, **self._pruner_options(config)
            )
            sensitivity.remove()
            pruner.remove()
        if self.method.selection is not None:
            self._watched(optimizer).remove()

    def dense_flops(self) -> float:
        """Backward FLOPs per sample in the NEq paper's convention, with no neuron frozen."""
        watched = self._watched(build_optimizer(self.recipe.optimizer, self.model))
        watched.remove()
        return watched.status().dense_flops

    def _watched(self, optimizer: torch.optim.Optimizer) -> SelectiveUpdate:
        """Attach the selection to the model with a probe of two images, enough for a check."""
        probe, _ = self.batches.sample(min(self.recipe.neq.probe, 2))
        return SelectiveUpdate(
            self.model, optimizer, self._on_model(probe), Stochastic(0.0), **self._update_options
        )

    @property
    def _metric(self) -> str:
        return "miou" if self.splits.task == "segmentation" else "accuracy"

    def _setting(self, spec: MethodSpec, model: nn.Module | None = None) -> Setting:
        """The inputs from which this run constructs a method."""
        epochs = None if self._matched is None else self._matched.epochs
        return Setting(
            options=getattr(self.recipe, spec.uses),
            seed=self.recipe.seed,
            model=model,
            share=self.method.share,
            imitated=None if epochs is None else [1 - epoch.updated for epoch in epochs],
        )

    def _sensitivity(self, model: nn.Module) -> Sensitivity:
        assert self.method.sensitivity is not None
        built: Sensitivity = self.method.sensitivity.build(
            self._setting(self.method.sensitivity, model)
        )
        if self.recipe.pruning(self.method).granularity == "channel":
            return GroupDecay(built, model, coupling(model, self._example))
        return built

    @property
    def _example(self) -> torch.Tensor:
        """Two images, on which the channels that go together are found."""
        images, _ = self.batches.sample(2)
        return self._on_model(images)

    def _pruner_options(self, config: PruningConfig) -> dict[str, Any]:
        # The papers prune weights of the head too; its neurons are the classes and must stay.
        exclude = () if config.granularity == "weight" else None
        return {
            "granularity": config.granularity,
            "exclude": exclude,
            "amount": LossBound(config.twt),
            "schedule": Plateau(config.pwe),
            "normalise": config.normalise,
            "quality": self._quality_bound(config),
            "example_inputs": self._example if config.granularity != "weight" else None,
        }

    def _quality_bound(self, config: PruningConfig) -> QualityBound | None:
        """Bound on the drop of quality, and chance level."""
        classes = guessed_among(self.splits)
        if classes is None and config.max_drop is None:
            return None
        return QualityBound(
            self.validation_quality,
            max_drop=config.max_drop,
            chance=None if classes is None else 1 / classes,
            samples=images_used(self.recipe, self.splits)[1],
        )

    def _pruning_callback(self) -> SensitivityPruning | None:
        if self.method.sensitivity is None:
            return None
        config = self.recipe.pruning(self.method)
        return SensitivityPruning(
            self._sensitivity,
            self.validation_loss,
            epochs=self.recipe.epochs - config.finetune,
            **self._pruner_options(config),
        )

    def _selection(self) -> Selection:
        assert self.method.selection is not None
        built: Selection = self.method.selection.build(self._setting(self.method.selection))
        return built

    @property
    def _update_options(self) -> dict[str, Any]:
        neq = self.recipe.neq
        names = ("warmup", "dispatch", "positions", "only_if_faster")
        return {name: getattr(neq, name) for name in names}

    def _update_callback(self) -> SelectiveUpdateCallback | None:
        if self.method.selection is None:
            return None
        probe, _ = self.batches.sample(self.recipe.neq.probe)
        return SelectiveUpdateCallback(
            self._on_model(probe),
            self._selection(),
            every=self.recipe.neq.every,
            **self._update_options,
        )

    def _on_model(self, images: torch.Tensor) -> torch.Tensor:
        return images.to(memory_format=self.task.memory_format)

    def validation_loss(self, model: nn.Module) -> float:
        """Mean validation loss on this process's share, in the precision of the training."""
        return self._validated(model).loss

    def validation_quality(self, model: nn.Module) -> float:
        """Validation accuracy (mean IoU for segmentation) on the images of the validation loss."""
        return self._validated(model).accuracy

    def _validated(self, model: nn.Module) -> Evaluation:
        return evaluate_on(
            self.splits, model, self.batches.validation,
            autocast=AUTOCAST.get(self.recipe.precision, False),
            channels_last=self.recipe.channels_last,
        )  # fmt: skip

    def trainer(self, folder: Path, signals: StopSignals, more: list[L.Callback]) -> L.Trainer:
        """Build the Lightning trainer: a checkpoint after every epoch, one device per process."""
        recipe = self.recipe
        self.timer = BackwardTimer()
        update = self._update_callback()
        report = self._report if self._progress is not None and self.world.is_first else None
        self.history = History(
            self.timer, self.batches.sample(), update, report, metric=f"val_{self._metric}",
            keep=self.batches.keep,
        )  # fmt: skip
        curation = None if self.batches.keep is None else CurationCallback(self.batches.keep)
        self.average = WeightAverage(recipe.ema) if recipe.ema is not None else None
        self.pruning = self._pruning_callback()
        self.last = LastDistributions(self.pruning, update)
        checkpoint = ModelCheckpoint(
            folder, filename=Path(CHECKPOINT).stem, save_top_k=1, monitor=None, save_on_train_epoch_end=True,
            enable_version_counter=False,
        )  # fmt: skip
        # The order matters: an epoch is recorded before pruning and probing change its masks, and
        # the weight average must exist before masks are applied to it.
        callbacks = [
            EpochSeed(recipe.seed), self.last, self.history, curation, self.average, self.pruning, update,
            self.timer,
            StopBetweenSteps(signals), checkpoint, *more,
        ]  # fmt: skip
        _silence()
        return L.Trainer(
            max_epochs=recipe.epochs,
            accumulate_grad_batches=recipe.accumulate,
            gradient_clip_val=recipe.optimizer.clip,
            accelerator=device_of(recipe),
            devices=self.world.local_size,
            num_nodes=self.world.nodes,
            strategy=_strategy(self.world, device_of(recipe), self.method.selection is not None),
            sync_batchnorm=recipe.sync_batchnorm,
            use_distributed_sampler=False,  # the loaders already split images across processes
            precision=recipe.precision,
            plugins=SealedCheckpoints(),
            callbacks=[callback for callback in callbacks if callback is not None],
            logger=loggers(recipe, self.method.name, folder),
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )

    def _report(self, record: EpochRecord) -> None:
        line = (
            f"{self.method.name:9} epoch {record.epoch:3}/{self.recipe.epochs}  loss {record.train_loss:.4f}  "
            f"val loss {record.val_loss:.4f}  val {self._metric} {record.val_accuracy:7.2%}  "
        )
        assert self._progress is not None
        figures = (
            f"pruned {record.pruned:6.1%}  updated {record.updated:6.1%}  {record.seconds:.1f} s"
        )
        self._progress(line + figures)

    def finish(self, folder: Path, trainer: L.Trainer, seconds: float) -> None:
        """Test the last epoch's weights, then write model file and result (rank 0 only)."""
        if self.pruning is not None and self.pruning.pruner is None:
            # A run stopped after its last epoch trains no step when resumed, so that no training
            # hook has created average and pruner: create them from the checkpoint's state.
            self.pruning.on_train_start(trainer, self.task)
            self.pruning.on_train_end(trainer, self.task)
        model: nn.Module = self.task.model
        if self.average is not None:
            model = self.average.start(model, trainer.global_step).module
        model.eval()
        last = self.recipe.channels_last
        test = evaluate_on(self.splits, model, self.batches.test, channels_last=last)
        record = Record(self.recipe.model, self.splits.input_shape, images=image_input(self.splits))
        path = save(folder / MODEL, model.cpu(), record, trust=self.recipe.model.name)
        result = TrainingResult(
            method=self.method.name,
            model=path.name,
            test_accuracy=test.accuracy,
            test_loss=test.loss,
            epochs=tuple(self.history.records),
            seconds=max(seconds, sum(record.seconds for record in self.history.records)),
            device=str(trainer.strategy.root_device),
            threads=torch.get_num_threads(),
            precision=self.recipe.precision,
            processes=self.world.size,
            flag=self._flag(test),
            distributions=self.last.found,
        )
        write_text(folder / RESULT, json.dumps(asdict(result), indent=1))

    def _flag(self, test: Evaluation) -> str:
        pruner = None if self.pruning is None else self.pruning.pruner
        bound = None if pruner is None else pruner.quality
        return flag_of(
            test.accuracy,
            guessed_among(self.splits),
            images_used(self.recipe, self.splits)[2],
            dense=None if pruner is None else pruner.dense_quality,
            pruned=self.history.records[-1].val_accuracy,
            max_drop=None if bound is None else bound.max_drop,
        )


def _strategy(world: World, device: str, partly: bool) -> Any:
    if world.size == 1:
        return "auto"
    backend = "gloo" if device == "cpu" else "nccl"
    # A fully frozen layer gets no gradient: without this option DDP would wait for it.
    return DDPStrategy(process_group_backend=backend, find_unused_parameters=partly)


def _task(recipe: Recipe, splits: Splits, model: nn.Module, keep: DynamicSubset | None) -> Task:
    kind = Segmentation if splits.task == "segmentation" else Classification
    return kind(
        model, len(splits.classes), recipe.optimizer, channels_last=recipe.channels_last, keep=keep
    )


def _silence() -> None:
    """Suppress Lightning's hints about hardware and loader workers, which do not apply here.

    They come during the training, so that nothing is restored.
    """
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in (
        ".*does not have many workers.*",
        ".*log_every_n_steps.*",
        ".*isinstance\\(treespec, LeafSpec\\).*",
        ".*Checkpoint directory.*exists and is not empty.*",
        # A run folder may be moved or copied before it is resumed.
        ".*The dirpath has changed from.*",
        # Values that are equal on all processes need no synchronisation.
        ".*It is recommended to use `self.log.*sync_dist.*",
    ):
        warnings.filterwarnings("ignore", message)
