"""Requests of a recipe to the engine: methods and their combinations, schedules, accumulation,
averages, logs.
"""

from __future__ import annotations

import copy
import csv
import math
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

pytest.importorskip("lightning")
pytest.importorskip("sklearn")

import lightning as L

from seams.training import build_optimizer, flag_of, lr_factor, share_of
from snello import Lobster, SeReNe, load, simplify
from snello.equilibrium import SelectiveUpdate, Stochastic
from snello.errors import ConfigError, DataError, MissingExtraError, SnelloError
from snello.integrations.lightning import (
    SelectiveUpdateCallback,
    SensitivityPruning,
    WeightAverage,
)
from snello.lab.methods import label_of, method_of
from snello.lab.training import (
    METHODS,
    OptimizerConfig,
    Recipe,
    TrainingResult,
    evaluate_segmentation,
    load_recipe,
    train,
    validate,
)
from snello.pruning import LossBound, Plateau

pytestmark = pytest.mark.usefixtures("one_thread")


def _recipe(*options: str) -> Recipe:
    small = (
        "--epochs=3",
        "--lobster.finetune=1",
        "--serene.finetune=1",
        "--data.limit=200",
        "--device=cpu",
    )
    return load_recipe("digits", [*small, "--data.test_limit=60", "--neq.probe=10", *options])


# Names of methods


@pytest.mark.parametrize("name", METHODS)
def test_every_named_method_has_a_meaning(name: str) -> None:
    method = method_of(name)
    assert method.name == name
    assert (method.sensitivity is None and method.selection is None) == (name == "baseline")
    assert label_of(name)


@given(st.floats(0, 1), st.sampled_from(["lobster", "serene", "output"]))
def test_any_share_and_any_sensitivity_combine(share: float, pruning: str) -> None:
    both = method_of(f"{pruning}+stochastic-{share}")
    assert both.sensitivity is not None
    assert both.selection is not None
    found = (both.sensitivity.name, both.selection.name, both.share)
    assert found == (pruning, "stochastic", share)


@pytest.mark.parametrize(
    "name",
    [
        "magic",
        "",
        "baseline+neq",
        "stochastic",
        "neq-0.5",
        "neq+neq",
        "serene+lobster",
        "stochastic-2",
        "stochastic-x",
        "neq+",
    ],
)
def test_names_without_a_meaning_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"a method must be one of baseline, .*, not"):
        method_of(name)


# Schedules


def _torchs(scheduler: str, epochs: int, **options: Any) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = getattr(torch.optim.lr_scheduler, scheduler)(optimizer, **options)
    rates = []
    for _ in range(epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


@pytest.mark.parametrize(
    ("config", "reference"),
    [
        (OptimizerConfig(milestones=(3, 7)), ("MultiStepLR", {"milestones": [3, 7]})),
        (OptimizerConfig(schedule="step", step_size=4), ("StepLR", {"step_size": 4})),
        (OptimizerConfig(schedule="poly"), ("PolynomialLR", {"total_iters": 10, "power": 0.9})),
        (OptimizerConfig(schedule="cosine"), ("CosineAnnealingLR", {"T_max": 10})),
    ],
    ids=["multistep", "step", "poly", "cosine"],
)
def test_schedules_are_torchs(
    config: OptimizerConfig, reference: tuple[str, dict[str, Any]]
) -> None:
    name, options = reference
    gamma = {"gamma": 0.1} if name in ("MultiStepLR", "StepLR") else {}
    expected = _torchs(name, 10, **options, **gamma)
    assert [lr_factor(config, epoch, 10) for epoch in range(10)] == pytest.approx(
        expected, rel=1e-9
    )


@given(st.integers(1, 5), st.sampled_from(["poly", "cosine"]), st.integers(6, 40))
def test_warm_up_rises_in_a_line_and_meets_the_schedule(
    warmup: int, schedule: Any, epochs: int
) -> None:
    config = OptimizerConfig(schedule=schedule, warmup_epochs=warmup)
    rising = [lr_factor(config, warmup * i / 8, epochs) for i in range(9)]
    assert rising == pytest.approx([i / 8 for i in range(9)])
    assert lr_factor(config, epochs, epochs) == pytest.approx(0, abs=1e-12)
    falling = [lr_factor(config, warmup + (epochs - warmup) * i / 20, epochs) for i in range(21)]
    assert falling == sorted(falling, reverse=True)


@pytest.mark.parametrize("schedule", ["poly", "cosine"])
def test_a_training_may_be_all_warm_up(schedule: Any) -> None:
    """Of a user's own trainer, which asks for the rate behind the last step, too."""
    assert lr_factor(OptimizerConfig(schedule=schedule, warmup_epochs=3), 3, 3) == 1


def test_auxiliary_classifier_learns_faster() -> None:
    model = nn.Module()
    model.backbone, model.aux_classifier = nn.Linear(3, 3), nn.Linear(3, 2)
    optimizer = build_optimizer(OptimizerConfig(lr=0.02, aux_lr_factor=10), model)
    rates = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
    assert {rates[id(p)] for p in model.backbone.parameters()} == {0.02}
    assert {rates[id(p)] for p in model.aux_classifier.parameters()} == {0.2}
    assert len(build_optimizer(OptimizerConfig(), model).param_groups) == 1


# Accumulation, averages, decisions between epochs: in anybody's module


class Plain(L.LightningModule):
    """A network without batch statistics, in float64."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 2)).double()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return F.mse_loss(self.model(batch[0]), batch[1])

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("val_loss", F.mse_loss(self.model(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)


def _pairs() -> tuple[Tensor, Tensor]:
    inputs = torch.randn(40, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return inputs, torch.stack([inputs.sum(1), inputs[:, 0].abs()], 1)


def _fit(
    folder: Path, *callbacks: L.Callback, batch: int = 10, accumulate: int = 1, epochs: int = 4,
    module: Plain | None = None,
) -> Plain:  # fmt: skip
    module, data = module or Plain(), TensorDataset(*_pairs())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = L.Trainer(
            max_epochs=epochs, accelerator="cpu", devices=1, callbacks=list(callbacks), logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            num_sanity_val_steps=0, default_root_dir=folder, accumulate_grad_batches=accumulate,
        )  # fmt: skip
        trainer.fit(module, DataLoader(data, batch), DataLoader(data, 20))
    return module


@pytest.mark.parametrize(
    "sensitivity", [Lobster, lambda m, s: SeReNe(m, s, estimate="full", every=1)]
)
def test_accumulated_batches_are_one_batch(sensitivity: Any, tmp_path: Path) -> None:
    """Two batches of five, accumulated, decay and train as one batch of ten does."""

    def pruning() -> SensitivityPruning:
        data = _pairs()
        return SensitivityPruning(
            lambda m: sensitivity(m, 1e-2),
            lambda m: float(F.mse_loss(m(data[0]), data[1])),
            epochs=3,
            amount=LossBound(0.2),
        )

    whole = _fit(tmp_path, pruning()).model.state_dict()
    halves = _fit(tmp_path, pruning(), batch=5, accumulate=2).model.state_dict()
    for name, weight in whole.items():
        torch.testing.assert_close(halves[name], weight, rtol=0, atol=1e-12)


def test_average_is_the_formula(tmp_path: Path) -> None:
    """Also in a second fit, and one that goes on from the checkpoint of the first."""
    steps: list[Tensor] = []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
            steps.append(module.model[0].weight.detach().clone())

    def averaged(first: Tensor) -> Tensor:
        for weight in steps:
            first = 0.75 * first + 0.25 * weight
        return first

    average = WeightAverage(0.75)
    module = _fit(tmp_path, average, Watch())
    once = averaged(steps.pop(0))
    assert average.average is not None
    weight = average.average.module[0].weight
    torch.testing.assert_close(weight.detach(), once, rtol=0, atol=1e-12)
    assert not torch.equal(once, steps[-1])
    state = copy.deepcopy(average.state_dict())
    for _ in range(2):
        steps.clear()
        _fit(tmp_path, average, Watch(), module=module, epochs=1)
        torch.testing.assert_close(weight.detach(), averaged(once), rtol=0, atol=1e-12)
        average.load_state_dict(state)


@pytest.mark.parametrize("first", ["average", "pruning"])
def test_pruned_weights_are_zero_in_the_average(first: str, tmp_path: Path) -> None:
    """In either order of the callbacks, and although the average remembers what the weights
    were.
    """
    data = _pairs()
    average = WeightAverage(0.99)
    pruning = SensitivityPruning(
        lambda m: Lobster(m, 1e-3),
        lambda m: float(F.mse_loss(m(data[0]), data[1])),
        epochs=2,
        amount=LossBound(0.5),
    )
    _fit(tmp_path, *((average, pruning) if first == "average" else (pruning, average)))
    assert pruning.pruner is not None
    assert average.average is not None
    masks, averaged = pruning.pruner.masks, dict(average.average.module.named_parameters())
    assert sum(int((~mask).sum()) for mask in masks.values()) > 0
    for name, mask in masks.items():
        assert bool((averaged[name][~mask] == 0).all())
        assert bool((averaged[name][mask] != 0).any())


@pytest.mark.parametrize("decay", [0.0, 1.0, -1, math.nan])
def test_impossible_average_is_refused(decay: float) -> None:
    with pytest.raises(ConfigError, match="between 0 and 1"):
        WeightAverage(decay)


@pytest.mark.parametrize(("every", "decisions"), [(None, 4), (3, 5), (1, 16)])
def test_decisions_between_epochs(every: int | None, decisions: int, tmp_path: Path) -> None:
    """Four epochs of four steps; a batch that only accumulates gradients is no step."""

    class Counting(Stochastic):
        calls = 0

        def select(self, *arguments: Any) -> dict[str, Tensor]:
            self.calls += 1
            return super().select(*arguments)

    for batch, accumulate in ((10, 1), (5, 2)):
        selection = Counting(0.5)
        callback = SelectiveUpdateCallback(_pairs()[0][:4], selection, every=every)
        _fit(tmp_path, callback, batch=batch, accumulate=accumulate)
        assert selection.calls == decisions
        assert callback.last_step is not None
        assert callback.last_step.total == 0.5


def test_decisions_every_nought_steps_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1, not 0"):
        SelectiveUpdateCallback(_pairs()[0], Stochastic(0.5), every=0)


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize(
    "sensitivity", [Lobster, lambda m, s: SeReNe(m, s, every=1)], ids=["lobster", "serene"]
)
def test_decay_of_neurons_that_are_not_updated(
    sensitivity: Any, order: int, tmp_path: Path
) -> None:
    """LOBSTER knows nothing of a weight without a gradient and leaves it; SeReNe's sensitivity
    needs none.
    """
    weights: list[Tensor] = []

    class Watch(L.Callback):
        def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
            weights.append(module.model[0].weight.detach().clone())

    pruning = SensitivityPruning(
        lambda m: sensitivity(m, 1e-2), lambda m: 1.0, schedule=Plateau(99)
    )
    frozen = SelectiveUpdateCallback(_pairs()[0][:4], Stochastic(1.0))
    module = _fit(tmp_path, Watch(), *((pruning, frozen) if order else (frozen, pruning)), epochs=3)
    assert not torch.equal(weights[0], weights[1]), "the first epoch learns"
    still = torch.equal(weights[1], module.model[0].weight)
    assert still == (sensitivity is Lobster)


# Runs


def test_random_baselines_freeze_what_they_say(tmp_path: Path) -> None:
    run = train(_recipe(), "stochastic-0.25", tmp_path)
    assert [epoch.updated for epoch in run.epochs] == [1.0, 0.75, 0.75]
    last = run.epochs[-1]
    assert last.paper_flops < last.paper_dense_flops
    assert last.executed_flops < run.epochs[0].executed_flops


def test_matched_baseline_freezes_as_much_as_neq_did(tmp_path: Path) -> None:
    recipe = _recipe("--neq.eps=0.01")
    with pytest.raises(ConfigError, match=r"as many neurons as a finished NEq run did"):
        train(recipe, "stochastic-star", tmp_path / "star")
    neq = train(recipe, "neq", tmp_path / "elsewhere")
    star = train(
        recipe, "stochastic-star", tmp_path / "star", resume=True, matched=tmp_path / "elsewhere"
    )
    shares = [1 - sum(e.updated for e in run.epochs) / len(run.epochs) for run in (neq, star)]
    assert shares[0] > 0
    assert shares[1] == pytest.approx(
        shares[0], abs=2 / 100
    )  # whole neurons of layers of 100 and 300


def test_output_sensitivity_prunes_and_has_its_own_options(tmp_path: Path) -> None:
    own = ("--output.twt=0.1", "--output.finetune=1", "--output.lmbda=1e-3")
    run = train(_recipe(*own), "output", tmp_path)
    assert run.epochs[-1].pruned > 0
    again = _recipe(*own, "--lobster.lmbda=0.5")
    assert train(again, "output", tmp_path, resume=True) == run, "lobster's options do not matter"
    with pytest.raises(ConfigError, match=r"output\.lmbda is 0\.001 there, 0\.1 here"):
        train(_recipe(*own, "--output.lmbda=0.1"), "output", tmp_path, resume=True)
    with pytest.raises(ConfigError, match=r"output\.finetune \(5\) must be less than epochs"):
        train(_recipe(), "output", tmp_path / "short")


def test_coupled_channels_are_decayed_and_pruned(tmp_path: Path) -> None:
    recipe = _recipe(
        "--serene.granularity=channel", "--serene.twt=5", "--serene.pwe=1", "--epochs=4"
    )
    result = train(recipe, "serene", tmp_path)
    assert result.epochs[-1].pruned > 0
    model, record = load(tmp_path / "model.pt")
    lean = simplify(model, record.example_inputs(2), prefer="plain")
    assert sum(p.numel() for p in lean.parameters()) < sum(p.numel() for p in model.parameters())


def test_serene_and_neq_in_one_run(tmp_path: Path) -> None:
    # The papers' threshold: more would go at once, and whatever moved all neurons would learn again.
    small = ("--serene.twt=0.05", "--serene.finetune=2", "--serene.normalise=null")
    recipe = _recipe("--neq.eps=0.05", "--epochs=6", *small)
    run = train(recipe, "serene+neq", tmp_path)
    assert run.epochs[-1].pruned > 0
    assert run.epochs[-1].updated < 1
    assert run.epochs[-1].executed_flops < run.epochs[0].executed_flops


def test_average_is_what_is_shipped(tmp_path: Path) -> None:
    from snello.store import load

    plain = train(_recipe(), "baseline", tmp_path / "plain")
    averaged = train(_recipe("--ema=0.9"), "baseline", tmp_path / "averaged")
    assert [e.train_loss for e in plain.epochs] == [e.train_loss for e in averaged.epochs]
    models = [load(tmp_path / name / "model.pt")[0].state_dict() for name in ("plain", "averaged")]
    assert any(not torch.equal(models[0][name], models[1][name]) for name in models[0])
    assert plain.test_loss != averaged.test_loss


def test_logs_hold_the_figures_that_matter(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run = train(_recipe("--log=[csv,tensorboard]"), "serene+neq", tmp_path)
    with (tmp_path / "logs/csv/version_0/metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["pruned"]]
    assert [float(row["pruned"]) for row in rows] == pytest.approx([e.pruned for e in run.epochs])
    assert [float(row["updated"]) for row in rows] == pytest.approx([e.updated for e in run.epochs])
    assert {"train_loss", "val_loss", "val_accuracy"} <= rows[0].keys()
    assert list((tmp_path / "logs/tensorboard").rglob("events.out.tfevents.*"))


@pytest.mark.parametrize(
    ("method", "names"),
    [
        ("baseline", set()),
        ("lobster", {"sensitivity"}),
        ("serene+neq", {"sensitivity", "velocity"}),
    ],
)
def test_a_run_ends_with_its_distributions(method: str, names: set[str], tmp_path: Path) -> None:
    run = train(_recipe(), method, tmp_path)
    assert set(run.distributions) == names
    assert TrainingResult.read(tmp_path / "result.json").distributions == run.distributions
    for one in run.distributions.values():
        assert len(one.edges) == len(one.counts) + 1
        assert sum(one.counts) > 0


@pytest.mark.exhaustive  # the two packages are no part of the test environment
@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_services_get_the_figures_without_a_server(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = train(_recipe(f"--log=[{name}]"), "baseline", tmp_path)
    if name == "wandb":
        assert list((tmp_path / "logs/wandb").rglob("*.wandb"))
        return
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path / 'logs/mlflow.db'}")
    (experiment,) = (e for e in client.search_experiments() if e.name == "snello")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.data.params["method"] == "baseline"
    assert found.data.metrics["val_loss"] == pytest.approx(run.epochs[-1].val_loss)


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_logger_that_is_not_installed_is_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=rf"pip install 'snello\[{name}\]'"):
        train(_recipe(f"--log=[{name}]"), "baseline", tmp_path)


# What is found before the first step


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--precision=16-mixed"], "needs a GPU"),
        (["--sync_batchnorm=true"], "needs GPUs"),
        (["--model.arguments={in_features: 64, classes: 9}"], r"gives \(2, 9\)"),
        (["--data.name=mnisty"], "no dataset 'mnisty'"),
        (["--methods=[baseline,stochastic-1.5]"], "stochastic-1.5"),
        (["--weights=nowhere.pt"], "nowhere.pt"),
        (["--optimizer.warmup_epochs=3"], "warmup_epochs"),
    ],
)
def test_validation_finds_it(options: list[str], words: str) -> None:
    with pytest.raises(SnelloError, match=words):
        validate(_recipe(*options))


@pytest.mark.parametrize(("capability", "precision", "warned"), [
    ("AVX2", "bf16-mixed", True), ("AVX512", "bf16-mixed", False), ("AVX2", "32-true", False),
])  # fmt: skip
def test_bfloat16_in_software_is_warned_of(
    capability: str, precision: str, warned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight (ResNet-20) to ten times (LeNet-5) the time of float32 on an AMD EPYC with AVX2."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        validate(_recipe("--device=cpu", f"--precision={precision}"))
    assert any("no instructions for bfloat16" in str(w.message) for w in found) is warned


def test_validation_leaves_nothing_behind() -> None:
    recipe = _recipe("--methods=[baseline,lobster,serene,neq,serene+neq]")
    splits = validate(recipe)
    assert splits.name == "digits"


@given(st.integers(1, 512), st.integers(1, 16))
def test_batches_are_dealt_out_evenly_or_not_at_all(batch: int, processes: int) -> None:
    if batch % processes:
        with pytest.raises(
            ConfigError, match=f"data.batch_size={batch} .* multiple of {processes}"
        ):
            share_of(batch, processes)
    else:
        assert share_of(batch, processes) * processes == batch


# Segmentation


def test_segmentation_measures_equal_a_hand_computation() -> None:
    class Given(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"out": x, "aux": x}

    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(3, 4, 5, 6, generator=generator, dtype=torch.float64)
    scores[:, 3] = -9  # nobody predicts the last class
    labels = torch.randint(3, (3, 5, 6), generator=generator)
    labels[0, 0] = 255
    found = evaluate_segmentation(Given(), [(scores[:2], labels[:2]), (scores[2:], labels[2:])], 4)
    predicted, seen = scores.argmax(1), labels != 255
    ious = []
    for c in range(3):
        both = int(((predicted == c) & (labels == c) & seen).sum())
        ious.append(both / int((((predicted == c) | (labels == c)) & seen).sum()))
    assert found.accuracy == pytest.approx(sum(ious) / 3), (
        "the class that is nowhere does not count"
    )
    assert found.loss == pytest.approx(
        float(F.cross_entropy(scores.float(), labels, ignore_index=255)), rel=1e-5
    )
    assert found.images == 3
    with pytest.raises(DataError, match="every pixel is ignored"):
        evaluate_segmentation(Given(), [(scores, torch.full_like(labels, 255))], 4)


def test_a_network_that_guesses_is_not_pruned_and_marked(tmp_path: Path) -> None:
    recipe = _recipe(
        "--optimizer.lr=1e-12", "--serene.lmbda=0", "--serene.twt=100", "--serene.pwe=1"
    )
    run = train(recipe, "serene", tmp_path)
    assert run.flag == "at chance"
    assert len({epoch.pruned for epoch in run.epochs}) == 1
    assert TrainingResult.read(tmp_path / "result.json") == run


def test_marks_say_what_is_wrong_with_an_accuracy() -> None:
    bound = {"dense": 0.9, "max_drop": 0.05}
    assert flag_of(0.12, 10, 1000) == "at chance"
    assert flag_of(0.12, None, 1000) == ""  # a mean IoU
    assert flag_of(0.8, 10, 1000, pruned=0.84, **bound) == "beyond max_drop"
    assert flag_of(0.8, 10, 1000, pruned=0.85, **bound) == ""


def test_options_of_a_recipe_reach_neq(tmp_path: Path) -> None:
    found: list[SelectiveUpdate] = []

    class Watch(L.Callback):
        def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            own = [c for c in trainer.callbacks if isinstance(c, SelectiveUpdateCallback)]
            found.extend(callback.neq for callback in own)

    options = ("--neq.smoothing=0.5", "--neq.only_if_faster=true", "--neq.positions=3")
    train(_recipe(*options), "neq", tmp_path, callbacks=[Watch()])
    (neq,) = found
    assert (neq.selection.smoothing, neq.only_if_faster) == (0.5, True)
    assert neq.state_dict()["positions"] == 3
    with pytest.raises(ConfigError, match=r"neq.smoothing must be in \[0, 1\), not 1.0"):
        _recipe("--neq.smoothing=1.0")
