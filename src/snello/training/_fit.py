"""One training run: a recipe, a method, a folder. Killed, it resumes from its last finished epoch."""

from __future__ import annotations

import json
import logging
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from snello.datasets import DataSplits, load, loader
from snello.errors import ConfigError, ModelError, OutputError
from snello.modelfile import Record, save, write_file
from snello.models import build
from snello.sensitivity import Lobster, SeReNe

from ._callbacks import NEq, SensitivityPruning
from ._evaluate import evaluate
from ._history import BackwardTimer, EpochRecord, EpochSeed, History
from ._recipe import METHODS, Method, PruningConfig, Recipe
from ._task import Classification

Progress = Callable[[str], None]


@dataclass(frozen=True)
class TrainingResult:
    """A finished run.

    Attributes:
        method: what it was trained with.
        model: the model file, in the run's folder.
        test_accuracy, test_loss: of the last epoch's weights, in float32.
        epochs: one record each.
        seconds: wall-clock time of training, over all its attempts if it was resumed.
        device, threads, precision: where and how it ran.
    """

    method: str
    model: str
    test_accuracy: float
    test_loss: float
    epochs: tuple[EpochRecord, ...]
    seconds: float
    device: str
    threads: int
    precision: str

    @staticmethod
    def read(path: Path) -> TrainingResult:
        """From the JSON file of a finished run.

        Raises:
            ModelError: if the file is damaged.
        """
        try:
            data = json.loads(path.read_text())
            return TrainingResult(**{**data, "epochs": tuple(EpochRecord(**e) for e in data["epochs"])})
        except (ValueError, TypeError, KeyError) as error:
            raise ModelError(f"{path} is damaged: remove it to train the last epochs again") from error


def load_data(recipe: Recipe) -> DataSplits:
    """The images of a recipe. Errors as :func:`snello.datasets.load`."""
    data = recipe.data
    return load(
        data.name,
        data.root,
        validation=data.validation,
        seed=recipe.seed,
        image_size=data.image_size,
        download=data.download,
        path=data.path,
    )


def initial_model(recipe: Recipe, splits: DataSplits) -> nn.Module:
    """The recipe's network with its initial weights, checked against the data before anything is trained.

    Raises:
        ModelError: if it does not run on the images, or has another number of outputs than there are classes.
    """
    torch.manual_seed(recipe.seed)
    model = build(recipe.model)
    images = torch.zeros(2, *splits.input_shape)
    try:
        with torch.no_grad():
            outputs = model.eval()(images)
    except Exception as error:  # the model may be the user's own: it may raise anything
        reason = str(error).partition("\n")[0]
        raise ModelError(
            f"model {recipe.model.name!r} does not run on images of shape {splits.input_shape}: {reason}"
        ) from error
    expected = (2, len(splits.classes))
    if not isinstance(outputs, Tensor) or tuple(outputs.shape) != expected:
        shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ModelError(
            f"model {recipe.model.name!r} gives {shape} for two images of {splits.name}, "
            f"which has {expected[1]} classes: expected {expected}"
        )
    return model.train()


def train(
    recipe: Recipe,
    method: Method,
    folder: str | Path,
    *,
    splits: DataSplits | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> TrainingResult:
    """Train a recipe's network with one method.

    Args:
        recipe: what to do.
        method: "baseline", "lobster", "serene" or "neq".
        folder: where checkpoint, model file and ``result.json`` go.
        splits: the data, if it is loaded already.
        resume: go on from the folder's checkpoint, or return its result if it is finished. The weights at
            the end are those of a run that was never interrupted, bit for bit on the CPU.
        progress: called with a line of text after each epoch.

    Raises:
        ConfigError: for an unknown method, or a folder that holds a run already and ``resume`` is false.
        SnelloError: whatever the data, the model or the training have to complain about.
    """
    if method not in METHODS:
        raise ConfigError(f"method must be one of {', '.join(METHODS)}, not {method!r}")
    folder = Path(folder)
    result_file, checkpoint = folder / "result.json", folder / "last.ckpt"
    _check_folder(folder, recipe, resume)
    if resume and result_file.is_file():
        return TrainingResult.read(result_file)
    splits = splits or load_data(recipe)
    resumed = _sound(checkpoint) if resume and checkpoint.is_file() else None
    run = _Run(recipe, method, splits, progress)
    trainer = run.trainer(folder)
    started = time.perf_counter()
    trainer.fit(
        run.task, run.train_batches, run.val_batches,
        ckpt_path=resumed, weights_only=True,
    )  # fmt: skip
    seconds = time.perf_counter() - started
    return run.finish(folder, trainer, seconds)


def _sound(checkpoint: Path) -> Path:
    """The checkpoint, if it can be read at all.

    Raises:
        ModelError: if it is damaged.
    """
    try:
        torch.load(checkpoint, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds on a damaged file
        raise ModelError(f"{checkpoint} is damaged: remove it to start this run anew") from error
    return checkpoint


def _check_folder(folder: Path, recipe: Recipe, resume: bool) -> None:
    """Create the folder, or check that what lies there may be gone on with."""
    note = folder / "recipe.json"
    text = json.dumps(asdict(recipe), indent=1)
    if note.is_file():
        if not resume:
            raise ConfigError(
                f"{folder} holds a run already: add --resume to go on with it, or choose another --out"
            )
        if note.read_text() != text:
            raise ConfigError(
                f"{folder} holds a run of another recipe: choose another --out, or resume with its own"
            )
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot create the run folder {folder}: {error.strerror or error}") from error
    write_file(note, lambda beside: beside.write_text(text))


class _Run:
    """Everything that one training run puts together."""

    def __init__(self, recipe: Recipe, method: Method, splits: DataSplits, progress: Progress | None) -> None:
        self.recipe, self.method, self.splits = recipe, method, splits
        data = recipe.data
        self.train_batches = loader(
            splits.train, splits, data.batch_size,
            shuffle=True, seed=recipe.seed, augment=data.augment, limit=data.limit,
        )  # fmt: skip
        self.val_batches = loader(splits.validation, splits, max(data.batch_size, 500))
        self.test_batches = loader(splits.test, splits, max(data.batch_size, 500))
        model = initial_model(recipe, splits)
        self.task = Classification(
            model, len(splits.classes), recipe.optimizer, channels_last=recipe.channels_last
        )
        self.timer = BackwardTimer()
        self.method_callback = self._method_callback()
        neq = self.method_callback if isinstance(self.method_callback, NEq) else None
        sample = next(iter(loader(splits.train, splits, data.batch_size)))
        self.history = History(self.timer, sample, neq, _reporter(recipe, method, progress))

    def _method_callback(self) -> L.Callback | None:
        recipe, seed = self.recipe, self.recipe.seed
        if self.method == "lobster":
            return self._pruning(recipe.lobster, lambda model: Lobster(model, recipe.lobster.lmbda))
        if self.method == "serene":
            return self._pruning(
                recipe.serene, lambda model: SeReNe(model, recipe.serene.lmbda, every=1, seed=seed)
            )
        if self.method == "neq":
            probe, _ = next(iter(loader(self.splits.train, self.splits, recipe.neq.probe)))
            return NEq(
                probe.to(memory_format=self.task.memory_format),
                eps=recipe.neq.eps, mu=recipe.neq.mu, warmup=recipe.neq.warmup,
            )  # fmt: skip
        return None

    def _pruning(self, config: PruningConfig, sensitivity: Callable[[nn.Module], Any]) -> SensitivityPruning:
        return SensitivityPruning(
            sensitivity,
            self.validation_loss,
            epochs=self.recipe.epochs - config.finetune,
            granularity=config.granularity,
            # Of single weights the head's may go too, as in the papers; its neurons are the classes.
            exclude=() if config.granularity == "weight" else None,
            twt=config.twt,
            pwe=config.pwe,
        )

    def validation_loss(self, model: nn.Module) -> float:
        """Mean loss on the validation part, in the precision of the training."""
        autocast = self.recipe.precision == "bf16-mixed"
        return evaluate(
            model, self.val_batches, autocast=autocast, channels_last=self.recipe.channels_last
        ).loss

    def trainer(self, folder: Path) -> L.Trainer:
        """A Lightning trainer: one device, a checkpoint after every epoch."""
        checkpoint = ModelCheckpoint(
            folder, filename="last", save_top_k=1, monitor=None, save_on_train_epoch_end=True,
            enable_version_counter=False,
        )  # fmt: skip
        callbacks = [EpochSeed(self.recipe.seed), self.history, self.method_callback, self.timer, checkpoint]
        device = self.recipe.device
        if device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("device is 'cuda', but torch sees no GPU: use --device=cpu or --device=auto")
        with _quiet():
            return L.Trainer(
                max_epochs=self.recipe.epochs,
                accelerator={"auto": "cuda" if torch.cuda.is_available() else "cpu"}.get(device, device),
                devices=1,
                precision=self.recipe.precision,
                callbacks=[callback for callback in callbacks if callback is not None],
                logger=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                num_sanity_val_steps=0,
            )

    def finish(self, folder: Path, trainer: L.Trainer, seconds: float) -> TrainingResult:
        """Test the last epoch's weights, write the model file and then the result."""
        model = self.task.model.cpu().eval()
        test = evaluate(model, self.test_batches, channels_last=self.recipe.channels_last)
        path = save(folder / "model.pt", model, Record(self.recipe.model, self.splits.input_shape))
        result = TrainingResult(
            method=self.method,
            model=path.name,
            test_accuracy=test.accuracy,
            test_loss=test.loss,
            epochs=tuple(self.history.records),
            seconds=max(seconds, sum(record.seconds for record in self.history.records)),
            device=str(trainer.strategy.root_device),
            threads=torch.get_num_threads(),
            precision=self.recipe.precision,
        )
        write_file(folder / "result.json", lambda p: p.write_text(json.dumps(asdict(result), indent=1)))
        return result


def _reporter(recipe: Recipe, method: str, progress: Progress | None) -> Callable[[EpochRecord], None] | None:
    if progress is None:
        return None

    def report(record: EpochRecord) -> None:
        line = (
            f"{method:9} epoch {record.epoch:3}/{recipe.epochs}  loss {record.train_loss:.4f}  "
            f"val loss {record.val_loss:.4f}  val accuracy {record.val_accuracy:7.2%}  "
        )
        extra = f"updated {record.updated:6.1%}" if method == "neq" else f"pruned {record.pruned:6.1%}"
        progress(f"{line}{extra}  {record.seconds:.1f} s")

    return report


class _quiet:  # noqa: N801 - reads as a verb in a with statement
    """Lightning's hints about hardware and loader workers are not about this run."""

    def __enter__(self) -> None:
        for name in ("lightning.pytorch", "lightning.fabric"):
            logging.getLogger(name).setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        warnings.filterwarnings("ignore", ".*log_every_n_steps.*")
        warnings.filterwarnings("ignore", ".*isinstance\\(treespec, LeafSpec\\).*")
        warnings.filterwarnings("ignore", ".*Checkpoint directory.*exists and is not empty.*")

    def __exit__(self, *_: object) -> None:
        pass
