"""Callbacks in projects of any make, the classification task, the history of a run, and early
complaints.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

pytest.importorskip("lightning")
pytest.importorskip("sklearn")

import lightning as L

from snello import Lobster, SeReNe
from snello.equilibrium import Stochastic
from snello.errors import ConfigError, DataError, DivergenceError, ModelError
from snello.integrations.lightning import (
    NEqCallback,
    SelectiveUpdateCallback,
    SensitivityPruning,
)
from snello.lab.training import (
    Classification,
    OptimizerConfig,
    Recipe,
    evaluate,
    journey,
    load_data,
    load_recipe,
    train,
)
from snello.neurons import dead_neurons
from snello.pruning import LossBound, Plateau, Ratio

EPOCHS = 4


pytestmark = pytest.mark.usefixtures("one_thread")


class Foreign(L.LightningModule):
    """Somebody else's module: it is the network itself, regresses, and knows nothing of snello."""

    def __init__(self, log: str = "val_loss") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU())
        self.decoder = nn.Linear(12, 2)
        self.log_as = log
        self.weights: list[dict[str, Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))  # type: ignore[no-any-return]

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return F.mse_loss(self(batch[0]), batch[1])

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log(self.log_as, F.mse_loss(self(batch[0]), batch[1]))

    def on_train_epoch_start(self) -> None:
        self.weights.append({name: p.detach().clone() for name, p in self.named_parameters()})

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)


def _pairs() -> tuple[Tensor, Tensor]:
    inputs = torch.randn(40, 6, generator=torch.Generator().manual_seed(1))
    return inputs, torch.stack([inputs.sum(1), inputs[:, 0].abs()], 1)


def _regression_loss(model: nn.Module) -> float:
    inputs, targets = _pairs()
    return float(F.mse_loss(model(inputs), targets))


def _fit(
    module: Any, callback: Any, folder: Path, epochs: int = EPOCHS, resume: Path | None = None,
    **options: Any,
) -> Any:  # fmt: skip
    data = TensorDataset(*_pairs())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = L.Trainer(
            max_epochs=epochs, accelerator="cpu", devices=1, callbacks=callback, logger=False,
            enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
            default_root_dir=folder, **{"enable_checkpointing": False, **options},
        )  # fmt: skip
        trainer.fit(module, DataLoader(data, 10), DataLoader(data, 20), ckpt_path=resume)
    return trainer


# Callbacks


@pytest.mark.parametrize(
    "sensitivity",
    [lambda m: Lobster(m, 1e-3), lambda m: SeReNe(m, 1e-3), lambda m: SeReNe(m, 1e-3, every=2)],
    ids=["lobster", "serene", "serene-every-2"],
)
@pytest.mark.parametrize("granularity", ["weight", "neuron"])
def test_pruning_in_a_foreign_module(
    sensitivity: Callable[[nn.Module], Any], granularity: str, tmp_path: Path
) -> None:
    module = Foreign()
    callback = SensitivityPruning(
        sensitivity, _regression_loss, epochs=2, granularity=granularity, amount=LossBound(0.5)
    )
    _fit(module, callback, tmp_path)
    assert callback.pruner is not None
    masks = callback.pruner.masks
    assert masks
    parameters = dict(module.named_parameters())
    assert sum(int((~mask).sum()) for mask in masks.values()) > 0
    for name, mask in masks.items():
        assert bool((parameters[name][~mask] == 0).all()), (
            f"{name} revived through momentum or weight decay"
        )
    if granularity == "neuron":
        assert bool(dead_neurons(module.encoder[0]).any())
        assert "decoder.weight" not in masks, "the head's neurons are the outputs"
    assert not module._forward_hooks, "nothing of the callback is left on the model"


def test_pruning_ends_with_its_epochs(tmp_path: Path) -> None:
    """With epochs=2 the last pruning step closes the second epoch, and the masks stay as they are
    after it.
    """
    module, masks = Foreign(), []

    class Watch(SensitivityPruning):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            super().on_train_epoch_end(trainer, pl_module)
            assert self.pruner is not None
            masks.append({name: mask.clone() for name, mask in self.pruner.masks.items()})

    _fit(
        module,
        Watch(
            lambda m: Lobster(m, 1e-3),
            _regression_loss,
            epochs=2,
            amount=LossBound(0.5),
            schedule=Plateau(50),
        ),
        tmp_path,
    )
    assert len(masks) == EPOCHS
    assert masks[0] == {}, "no plateau yet, and not the last pruning epoch"
    assert any(not bool(mask.all()) for mask in masks[1].values())
    for later in masks[2:]:
        assert later.keys() == masks[1].keys()
        assert all(torch.equal(later[name], mask) for name, mask in masks[1].items())


def test_decay_ends_with_its_epochs(tmp_path: Path) -> None:
    """After them a run is plain training: the sensitivity's step is not called any more."""
    calls: list[int] = []

    class Counting(Lobster):
        def step(self) -> None:
            calls.append(1)
            super().step()

    _fit(
        Foreign(),
        SensitivityPruning(lambda m: Counting(m, 1e-3), _regression_loss, epochs=3),
        tmp_path,
    )
    assert len(calls) == 3 * 4, "three of four epochs, four batches each"


def test_neq_in_a_foreign_module(tmp_path: Path) -> None:
    module = Foreign()
    callback = NEqCallback(
        _pairs()[0][:8], eps=math.inf
    )  # everything is at equilibrium after the warm-up
    _fit(module, callback, tmp_path)
    assert callback.last_step is not None
    assert callback.last_step.total == 0
    assert callback.last_step.flops < callback.last_step.dense_flops
    before, after = module.weights[1], dict(module.named_parameters())
    assert not torch.equal(module.weights[0]["encoder.0.weight"], before["encoder.0.weight"]), (
        "the warm-up learns"
    )
    assert torch.equal(before["encoder.0.weight"], after["encoder.0.weight"]), "frozen, bit for bit"
    assert torch.equal(before["encoder.1.weight"], after["encoder.1.weight"])
    assert not torch.equal(before["decoder.weight"], after["decoder.weight"]), (
        "the head always learns"
    )


def test_missing_metric_names_those_there_are(tmp_path: Path) -> None:
    callback = SensitivityPruning(lambda m: Lobster(m, 1e-3), _regression_loss)
    with pytest.raises(
        ConfigError, match=r"no metric 'val_loss' is logged.*the logged metrics are: other"
    ):
        _fit(Foreign(log="other"), callback, tmp_path)


class TwoOptimizers(Foreign):
    """Encoder and decoder have an optimizer each, stepped by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        loss = F.mse_loss(self(batch[0]), batch[1])
        self.zero_grad()
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return [torch.optim.Adam(part.parameters(), 0.05) for part in (self.encoder, self.decoder)]


def test_two_optimizers(tmp_path: Path) -> None:
    module = TwoOptimizers()
    callback = SensitivityPruning(
        lambda m: Lobster(m, 1e-3), _regression_loss, exclude=(), epochs=2, amount=LossBound(0.5)
    )
    _fit(module, callback, tmp_path)
    assert callback.pruner is not None
    _assert_pruned(module, callback.pruner.masks)
    _fit(module := TwoOptimizers(), NEqCallback(_pairs()[0][:8], eps=math.inf), tmp_path)
    assert torch.equal(module.weights[1]["encoder.0.weight"], module.encoder[0].weight), (
        "frozen, bit for bit"
    )


def test_decisions_between_the_steps_of_two_optimizers(tmp_path: Path) -> None:
    class Counting(Stochastic):
        calls = 0

        def select(self, *arguments: Any) -> dict[str, Tensor]:
            self.calls += 1
            return super().select(*arguments)

    selection = Counting(0.5)
    callback = SelectiveUpdateCallback(_pairs()[0][:8], selection, every=3)
    _fit(TwoOptimizers(), callback, tmp_path)
    assert selection.calls == EPOCHS * 4 * 2 // 3, "four batches of two steps each"


@pytest.mark.parametrize("interval", [1.0, 0.5])
def test_the_end_of_an_epoch_whose_last_step_was_saved_is_made_up(
    interval: float, tmp_path: Path
) -> None:
    """Lightning goes on with the next epoch: a decision, and the last pruning step, were lost."""

    def fit(*more: Any, **options: Any) -> tuple[nn.Module, SensitivityPruning]:
        pruning = SensitivityPruning(
            lambda m: SeReNe(m, 1e-3), _regression_loss, epochs=2, amount=Ratio(0.5),
            schedule=Plateau(9),
        )  # fmt: skip
        update = NEqCallback(_pairs()[0][:8], eps=0.02, dispatch="fixed")
        module = Foreign()
        callbacks = [pruning, update, *more]
        _fit(module, callbacks, tmp_path, val_check_interval=interval, **options)
        return module, pruning

    saving = L.pytorch.callbacks.ModelCheckpoint(
        tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1
    )
    module, _ = fit(saving, enable_checkpointing=True)
    again, pruning = fit(resume=tmp_path / "step=8.ckpt")  # epochs of four steps
    assert pruning.pruner is not None
    _assert_pruned(again, pruning.pruner.masks)
    for name, value in module.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def _assert_pruned(module: nn.Module, masks: dict[str, Tensor]) -> None:
    assert sum(int((~mask).sum()) for mask in masks.values()) > 0
    for name, mask in masks.items():
        assert bool((module.get_parameter(name)[~mask] == 0).all()), name


# A second fit


@pytest.mark.parametrize("second", ["same", "new", "none"])
def test_pruned_weights_stay_pruned_in_a_second_fit(second: str, tmp_path: Path) -> None:
    module = Foreign()

    def pruning() -> SensitivityPruning:
        return SensitivityPruning(
            lambda m: Lobster(m, 1e-3), _regression_loss, epochs=2, amount=LossBound(0.5)
        )

    first = pruning()
    _fit(module, first, tmp_path)
    assert first.pruner is not None
    masks = {name: mask.clone() for name, mask in first.pruner.masks.items()}
    callback = {"same": first, "new": pruning(), "none": L.Callback()}[second]
    _fit(module, callback, tmp_path, epochs=1)
    _assert_pruned(module, masks)
    if isinstance(callback, SensitivityPruning):
        assert callback.pruner is not None
        for name, mask in masks.items():
            assert not bool((callback.pruner.masks[name] & ~mask).any())


def test_the_same_callback_begins_anew_with_another_model(tmp_path: Path) -> None:
    callback = SensitivityPruning(
        lambda m: Lobster(m, 1e-3), _regression_loss, epochs=2, amount=LossBound(0.5)
    )
    _fit(Foreign(), callback, tmp_path)
    _fit(module := Foreign(), callback, tmp_path, epochs=1)
    assert callback.pruner is not None
    assert callback.pruner.model is module
    assert callback.pruner.masks == {}


def test_neq_goes_on_in_a_second_fit(tmp_path: Path) -> None:
    module, callback = Foreign(), NEqCallback(_pairs()[0][:8], eps=math.inf)
    _fit(module, callback, tmp_path)
    frozen = module.encoder[0].weight.detach().clone()
    _fit(module, callback, tmp_path, epochs=2)
    assert torch.equal(module.encoder[0].weight, frozen), "no second warm-up"
    _fit(other := Foreign(), callback, tmp_path, epochs=1)
    assert not torch.equal(other.encoder[0].weight, other.weights[0]["encoder.0.weight"]), (
        "its own warm-up"
    )


def test_an_interrupted_fit_leaves_nothing_behind(tmp_path: Path) -> None:
    class Stops(L.Callback):
        def on_train_epoch_end(self, *_: Any) -> None:
            raise RuntimeError("pulled")

    module, callback = Foreign(), NEqCallback(_pairs()[0][:8], eps=math.inf)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="pulled"):
            _fit(module, [callback, Stops()], tmp_path)
        assert type(module.encoder[0]) is nn.Linear
        # A checkpoint is written after that, as Lightning's save_on_exception does.
        assert all(bool(mask.all()) for mask in callback.state_dict()["frozen"].values())


@pytest.mark.parametrize("kind", ["EMAWeightAveraging", "StochasticWeightAveraging"])
def test_averages_of_lightning_are_masked(kind: str, tmp_path: Path) -> None:
    from lightning.pytorch import callbacks

    make = getattr(callbacks, kind, None)
    if make is None:
        pytest.skip(f"this Lightning has no {kind}")
    average = make(swa_lrs=0.01, swa_epoch_start=1) if kind.startswith("Stoch") else make()
    pruning = SensitivityPruning(
        lambda m: Lobster(m, 1e-3), _regression_loss, epochs=2, amount=LossBound(0.5)
    )
    module = Foreign()
    _fit(module, [average, pruning], tmp_path)
    assert pruning.pruner is not None
    _assert_pruned(module, pruning.pruner.masks)


# Classification and evaluation


def _classes() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(23, 1, 2, 3, generator=generator), torch.randint(
        3, (23,), generator=generator
    )


def _net() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(6, 5),
        nn.BatchNorm1d(5),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(5, 3),
    )


def test_evaluate_equals_a_hand_computation() -> None:
    model, (images, labels) = _net().train().double(), _classes()
    images = images.double()
    found = evaluate(
        model, DataLoader(TensorDataset(images, labels), 7)
    )  # the last batch is smaller
    assert model.training, "the mode is put back"
    assert all(m.training for m in model.modules())
    model.eval()
    with torch.no_grad():
        log_probabilities = model(images).log_softmax(1)
    loss = (
        -sum(float(row[label]) for row, label in zip(log_probabilities, labels, strict=True)) / 23
    )
    right = sum(
        int(row.argmax()) == int(label)
        for row, label in zip(log_probabilities, labels, strict=True)
    )
    assert found.loss == pytest.approx(loss, rel=1e-6)  # the loss is taken in float32
    assert found.accuracy == right / 23
    assert found.images == 23


def test_evaluate_nothing_is_an_error() -> None:
    with pytest.raises(DataError, match="no images"):
        evaluate(_net(), [])


def test_classification_logs_what_evaluate_measures(tmp_path: Path) -> None:
    task = Classification(_net(), 3, OptimizerConfig(lr=0.05, milestones=(1,)))
    data = DataLoader(
        TensorDataset(*_classes()), 10
    )  # batches of 10, 10 and 3: the mean is over images
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = L.Trainer(
            max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, num_sanity_val_steps=0,
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
        )  # fmt: skip
        trainer.fit(task, data, data)
        logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
        tested = trainer.test(task, data, verbose=False)[0]
    assert {"train_loss", "val_loss", "val_accuracy"} <= logged.keys()
    expected = evaluate(task.model, data)
    assert logged["val_loss"] == pytest.approx(expected.loss, rel=1e-5)
    assert logged["val_accuracy"] == pytest.approx(expected.accuracy)
    assert tested["test_loss"] == pytest.approx(expected.loss, rel=1e-5)
    assert tested["test_accuracy"] == pytest.approx(expected.accuracy)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.005), (
        "one scheduler step per epoch"
    )


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_bad_value_in_the_data_is_divergence(value: float) -> None:
    task = Classification(_net(), 3, OptimizerConfig())
    images, labels = _classes()
    images[4, 0, 0, 0] = value
    with pytest.raises(DivergenceError, match=r"epoch 1, step 8: lower optimizer.lr"):
        task.training_step((images, labels), 7)


# Runs


def _recipe(*options: str) -> Recipe:
    small = (
        "--epochs=3",
        "--lobster.finetune=1",
        "--serene.finetune=1",
        "--data.limit=200",
        "--device=cpu",
    )
    return load_recipe("digits", [*small, "--neq.probe=10", *options])


@pytest.mark.parametrize("method", ["baseline", "neq"])
def test_history_of_a_run(method: Any, tmp_path: Path) -> None:
    lines: list[str] = []
    run = train(_recipe(), method, tmp_path, progress=lines.append)
    assert [epoch.epoch for epoch in run.epochs] == [1, 2, 3]
    assert len(lines) == 3
    for epoch in run.epochs:
        assert epoch.executed_flops > 0
        assert epoch.seconds > 0
        assert epoch.backward_ms > 0
        assert 0 <= epoch.val_accuracy <= 1
        assert epoch.paper_flops <= epoch.paper_dense_flops
    first, last = run.epochs[0], run.epochs[-1]
    assert first.updated == 1
    if method == "baseline":
        assert (first.paper_flops, first.dense_ms, last.updated) == (0, 0, 1)
        assert last.executed_flops == first.executed_flops
        # LeNet-300-100 on 64 inputs: both products of every layer but the first, whose input needs
        # none.
        macs = 64 * 300 + 300 * 100 + 100 * 10
        assert first.executed_flops == 2 * (2 * macs - 64 * 300)
    else:
        assert first.paper_flops == first.paper_dense_flops > 0
        assert last.updated < 1
        assert last.paper_flops < last.paper_dense_flops
        assert last.executed_flops < first.executed_flops


def test_baseline_is_the_run_that_neq_and_pruning_start_from(tmp_path: Path) -> None:
    """Same seed, same batches: the first epoch of NEq, its warm-up, is the baseline's to the last
    bit.
    """
    recipe = _recipe()
    baseline, neq = (train(recipe, m, tmp_path / m) for m in ("baseline", "neq"))
    assert baseline.epochs[0].train_loss == neq.epochs[0].train_loss
    assert baseline.epochs[0].val_loss == neq.epochs[0].val_loss
    assert baseline.epochs[1].train_loss != neq.epochs[1].train_loss


def test_nan_loss_is_divergence(tmp_path: Path) -> None:
    with pytest.raises(DivergenceError, match=r"the training loss is (nan|inf) at epoch 1"):
        train(_recipe("--optimizer.lr=1e30"), "baseline", tmp_path)
    assert not (tmp_path / "model.pt").exists()
    assert not (tmp_path / "result.json").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("{in_features: 64, classes: 9}", r"gives \(2, 9\).*10 classes"),
        ("{in_features: 63}", "does not run on images"),
    ],
)
def test_model_that_does_not_fit_is_found_before_training(
    arguments: str, words: str, tmp_path: Path
) -> None:
    lines: list[str] = []
    with pytest.raises(ModelError, match=words):
        journey(_recipe(f"--model.arguments={arguments}"), tmp_path, progress=lines.append)
    assert not lines
    assert not list(tmp_path.iterdir())


def test_a_qp_out_of_range_is_found_before_training(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="qp=1000: choose an integer"):
        journey(_recipe("--ship.qp=1000"), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("methods", ["baseline,stochastic-star", "stochastic-star,neq"])
def test_what_a_method_imitates_is_named_before_it(methods: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="name neq before it"):
        journey(_recipe(f"--methods=[{methods}]"), tmp_path)
    assert not list(tmp_path.iterdir())


def test_unknown_method(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"baseline, lobster, serene, output, neq, .*, not 'magic'"
    ):
        train(_recipe(), "magic", tmp_path)


def test_parts_of_the_data_do_not_depend_on_the_method() -> None:
    recipe = _recipe()
    first, second = load_data(recipe), load_data(recipe)
    assert torch.equal(first.validation.pixels, second.validation.pixels)
    assert first.input_shape == (1, 8, 8)
