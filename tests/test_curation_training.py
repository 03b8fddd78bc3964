"""Curation in Lightning and in recipes: real steps, whole validations, probes that stay."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from snello.curation import InfoBatch, Kept, RandomSubset, keep_random
from snello.errors import ConfigError, DataError

pytest.importorskip("lightning")
pytest.importorskip("jsonargparse")
pytest.importorskip("sklearn")

import lightning as L

from seams.training import images_used
from snello import SeReNe
from snello.integrations.lightning import CurationCallback, SensitivityPruning
from snello.lab.datasets import load_dataset
from snello.lab.training import (
    Classification,
    OptimizerConfig,
    Segmentation,
    load_data,
    load_recipe,
    train,
)

EPOCHS = 4
BASE = ("--epochs=4", "--data.limit=200", "--data.batch_size=32", "--methods=[baseline]")


def _data() -> TensorDataset:
    random = torch.Generator().manual_seed(0)
    return TensorDataset(
        torch.randn(100, 6, generator=random), torch.randint(3, (100,), generator=random)
    )


class _Watch(L.Callback):
    def __init__(self) -> None:
        self.steps, self.validations, self.rates = [0] * EPOCHS, 0, []

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        self.steps[trainer.current_epoch] += 1
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_validation_epoch_end(self, *_: Any) -> None:
        self.validations += 1


def _fit(
    folder: Path, *callbacks: Any, drop_last: bool = False, workers: int = 0, keep: Any = None,
    ckpt_path: str | None = None, **options: Any,
) -> Any:  # fmt: skip
    torch.manual_seed(0)
    keep = keep or InfoBatch(_data(), 0.5)
    task = Classification(
        nn.Linear(6, 3), 3, OptimizerConfig(lr=0.1, schedule="cosine", warmup_epochs=1), keep=keep
    )
    watch = _Watch()
    trainer = L.Trainer(
        max_epochs=EPOCHS, callbacks=[CurationCallback(keep), watch, *callbacks], accelerator="cpu",
        default_root_dir=folder, logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=any(isinstance(c, L.pytorch.callbacks.ModelCheckpoint) for c in callbacks),
        **options,
    )  # fmt: skip
    loader = DataLoader(keep, 8, sampler=keep.sampler(), drop_last=drop_last, num_workers=workers)
    trainer.fit(task, loader, DataLoader(_data(), 50), ckpt_path=ckpt_path)
    return watch, keep


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("options", [{}, {"drop_last": True}, {"limit_train_batches": 6}], ids=str)
def test_epochs_of_different_length_are_trained_and_validated_whole(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    watch, keep = _fit(tmp_path, **options)
    assert watch.validations == EPOCHS + 1  # and the sanity check
    assert keep.moment == EPOCHS
    if "limit_train_batches" in options:
        assert watch.steps == [6] * EPOCHS
        return
    assert watch.steps[0] == (12 if "drop_last" in options else 13)
    assert all(7 < steps < 12 for steps in watch.steps[1:])
    # The rate rises in the first epoch, falls, and is zero after the last step.
    first = watch.steps[0]
    assert watch.rates[: first - 1] == sorted(watch.rates[: first - 1])
    assert watch.rates[first - 1 :] == sorted(watch.rates[first - 1 :], reverse=True)
    if not options:
        assert watch.rates[-1] == pytest.approx(0.0, abs=1e-12)


@pytest.mark.filterwarnings("ignore")
def test_workers_change_nothing_in_lightning(tmp_path: Path) -> None:
    """They begin an epoch before Lightning names it; it had been drawn and counted twice."""
    states = []
    for workers in (0, 1):
        _, keep = _fit(tmp_path, workers=workers, keep=RandomSubset(_data(), 0.7))
        states.append(keep.state_dict())
    first, second = states
    assert int(first["uses"].sum()) == EPOCHS * 30
    assert torch.equal(first["uses"], second["uses"])
    assert torch.equal(first["plan"]["keys"], second["plan"]["keys"])
    assert first["counts"] == second["counts"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("step", [5, 13, 18])
def test_lightning_goes_on_within_an_epoch(tmp_path: Path, step: int, workers: int) -> None:
    """The first epoch has 13 steps."""
    saving = L.pytorch.callbacks.ModelCheckpoint(
        tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1
    )
    watch, whole = _fit(tmp_path, saving)
    again, keep = _fit(tmp_path, workers=workers, ckpt_path=str(tmp_path / f"step={step}.ckpt"))
    assert sum(again.steps) == sum(watch.steps) - step
    assert again.rates == watch.rates[step:]
    assert torch.equal(keep.scores, whole.scores)


@pytest.mark.filterwarnings("ignore")
def test_a_specific_sensitivity_sees_the_targets_not_the_indices(tmp_path: Path) -> None:
    seen: list[Tensor] = []

    class Watched(SeReNe):
        def observe(self, outputs: Tensor, targets: Tensor | None = None) -> None:
            assert targets is not None
            seen.append(targets)
            super().observe(outputs, targets)

    _fit(
        tmp_path,
        SensitivityPruning(
            lambda model: Watched(model, 1e-4, exclude=()), lambda model: 0.0, epochs=1, exclude=(), quality=None
        ),
    )  # fmt: skip
    assert torch.cat(seen).max() <= 2


def test_a_recipe_leaves_out_images_but_no_probes(tmp_path: Path) -> None:
    recipe = load_recipe(
        "digits", [*BASE, "--methods=[neq]", "--neq.probe=16", "--curation={method: random, ratio: 0.75}"]
    )  # fmt: skip
    result = train(recipe, "neq", tmp_path / "run")
    assert [epoch.kept for epoch in result.epochs] == [0.25] * 4
    state = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    plan = next(v for k, v in state["callbacks"].items() if k.startswith("Curation"))["plan"]
    assert set(range(16)) <= set(plan["keys"].tolist())


def test_a_recipe_trains_on_the_images_of_an_index_file(tmp_path: Path) -> None:
    train_part = load_dataset("digits", validation=0.1).train
    path = keep_random(train_part.labels, 0.9).save(tmp_path / "kept.json")
    options = ["--epochs=1", "--data.batch_size=32", f"--data.kept={path}", "--methods=[baseline]"]
    recipe = load_recipe("digits", options)
    result = train(recipe, "baseline", tmp_path / "run")
    assert len(result.epochs) == 1
    counts = images_used(recipe, load_data(recipe))
    assert counts[0] == len(Kept.load(path).indices) < len(train_part)
    other = [*options, "--data.validation=0.2"]
    with pytest.raises(DataError, match="chosen from"):
        train(load_recipe("digits", other), "baseline", tmp_path / "other")


def test_a_run_of_before_there_was_curation_is_resumed(tmp_path: Path) -> None:
    recipe = load_recipe("digits", [*BASE, "--epochs=1"])
    result = train(recipe, "baseline", tmp_path)
    (note,) = tmp_path.glob("*recipe*.json")
    asked = json.loads(note.read_text())
    del asked["curation"], asked["data"]["kept"]
    note.write_text(json.dumps(asked))
    assert train(recipe, "baseline", tmp_path, resume=True) == result
    curated = load_recipe("digits", [*BASE, "--epochs=1", "--curation.method=random"])
    with pytest.raises(ConfigError, match="curation"):
        train(curated, "baseline", tmp_path, resume=True)


def test_an_annealed_run_is_not_made_longer(tmp_path: Path) -> None:
    def recipe(epochs: int) -> Any:
        return load_recipe(
            "digits", [*BASE, f"--epochs={epochs}", "--curation={method: infobatch, anneal: 0.5}"]
        )

    train(recipe(2), "baseline", tmp_path)
    with pytest.raises(ConfigError, match="curation was to end with epoch 1"):
        train(recipe(4), "baseline", tmp_path, resume=True)


@pytest.mark.parametrize(
    "option", ["ratio=1", "anneal=2", "window=0", "pool=0.1", "method=some", "share=1"]
)
def test_wrong_options_are_named(option: str) -> None:
    with pytest.raises(ConfigError, match="curation"):
        load_recipe("digits", [f"--curation.{option}"])


@pytest.mark.filterwarnings("ignore")
def test_a_segmentation_weighs_the_mean_losses_of_its_images() -> None:
    """With all pixels counted and nothing left out, that is its usual loss."""
    random = torch.Generator().manual_seed(0)
    images = torch.randn(6, 3, 4, 4, generator=random)
    labels = torch.randint(3, (6, 4, 4), generator=random)
    keep = RandomSubset(TensorDataset(images, labels), 0.0)
    model = nn.Conv2d(3, 3, 1)
    plain, curated = (
        Segmentation(model, 3, OptimizerConfig(), keep=given) for given in (None, keep)
    )
    (pair, index), *_ = DataLoader(keep, 6, sampler=keep.sampler())
    expected = plain.training_step(pair, 0)
    found = curated.training_step((pair, index), 0)
    assert torch.allclose(found, expected)
    assert keep.scores.isfinite().all()
    pair[1][0] = 255  # an image in which no pixel counts
    assert torch.isfinite(curated.training_step((pair, index), 0))
