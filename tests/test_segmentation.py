"""The Lightning module for segmentation: its loss, its metrics, its schedule, with real networks
and data.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from snello.errors import DivergenceError

L = pytest.importorskip("lightning", reason="training needs the extra 'train'")

from seams.training import ship  # noqa: E402
from snello.integrations.lightning import SensitivityPruning  # noqa: E402
from snello.lab.datasets import StreamedSplits, load_dataset, loader  # noqa: E402
from snello.lab.training import (  # noqa: E402
    OptimizerConfig,
    Recipe,
    Segmentation,
    TrainingResult,
    evaluate_segmentation,
)
from snello.pruning import LossBound, Plateau  # noqa: E402
from snello.sensitivity import Lobster, SeReNe  # noqa: E402
from snello.store import ModelSpec, Record, build, save  # noqa: E402

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class Tiny(nn.Module):
    """A fully convolutional network with torchvision's outputs."""

    def __init__(self, classes: int = 3, aux: bool = True) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.classifier = nn.Conv2d(8, classes, 1)
        self.aux_classifier = nn.Conv2d(8, classes, 1) if aux else None

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.backbone(x)
        outputs = {"out": self.classifier(features)}
        if self.aux_classifier is not None:
            outputs["aux"] = self.aux_classifier(features)
        return outputs


def trainer(epochs: int, *callbacks: Any, **options: Any) -> Any:
    return L.Trainer(
        max_epochs=epochs, accelerator="cpu", callbacks=list(callbacks), logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0, **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> StreamedSplits:
    """Images of red, green and blue blocks; the class of a pixel is its colour, and every border is
    ignored.
    """
    image = pytest.importorskip("PIL.Image", reason="needs the extra 'train'")
    folder = tmp_path_factory.mktemp("colours")
    for part, count in (("train", 20), ("test", 7)):
        for kind in ("images", "masks"):
            (folder / part / kind).mkdir(parents=True)
        for i in range(count):
            random = np.random.default_rng(i)
            shape = (3, 3 + i % 3)  # images of three sizes
            labels = np.kron(random.integers(0, 3, shape), np.ones((12, 12), int)).astype(np.uint8)
            pixels = (np.eye(3)[labels] * 200 + random.integers(0, 50, (*labels.shape, 3))).astype(
                np.uint8
            )
            labels[:, 0] = 255
            image.fromarray(pixels).save(folder / part / "images" / f"{i}.png")
            image.fromarray(labels).save(folder / part / "masks" / f"{i}.png")
    (folder / "classes.txt").write_text("red\ngreen\nblue\n")
    splits = load_dataset("maskfolder", path=folder, image_size=33, validation=0.2)
    assert isinstance(splits, StreamedSplits)
    return splits


# The loss --------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.integers(2, 6), st.floats(0, 2), st.floats(0, 0.9))
def test_the_loss_is_main_plus_weighted_auxiliary_over_counted_pixels(
    seed: int, classes: int, weight: float, ignored: float
) -> None:
    torch.manual_seed(seed)
    task = Segmentation(Tiny(classes), classes, OptimizerConfig(), aux_weight=weight)
    out, aux = (torch.randn(2, classes, 5, 7, dtype=torch.float64) for _ in range(2))
    labels = torch.randint(0, classes, (2, 5, 7))
    labels[torch.rand(2, 5, 7) < ignored] = 255
    counted = labels != 255
    if not counted.any():
        return

    def mean_loss(scores: Tensor) -> Tensor:
        picked = scores.permute(0, 2, 3, 1)[counted].log_softmax(1)
        return -picked.gather(1, labels[counted][:, None]).mean()

    both = task.loss({"out": out, "aux": aux}, labels)
    torch.testing.assert_close(
        both, mean_loss(out) + weight * mean_loss(aux), rtol=1e-12, atol=1e-12
    )
    torch.testing.assert_close(task.loss(out, labels), mean_loss(out), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        task.loss({"out": out}, labels), mean_loss(out), rtol=1e-12, atol=1e-12
    )


def test_the_auxiliary_loss_counts_half_by_default() -> None:
    outputs = {"out": torch.randn(1, 3, 4, 4), "aux": torch.randn(1, 3, 4, 4)}
    labels = torch.randint(0, 3, (1, 4, 4))
    losses = [F.cross_entropy(outputs[name], labels) for name in ("out", "aux")]
    found = Segmentation(Tiny(), 3, OptimizerConfig()).loss(outputs, labels)
    torch.testing.assert_close(found, losses[0] + 0.5 * losses[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scores_of_half_precision_are_compared_in_single(dtype: torch.dtype) -> None:
    task = Segmentation(Tiny(), 3, OptimizerConfig())
    scores, labels = torch.randn(2, 3, 5, 7).to(dtype), torch.randint(0, 3, (2, 5, 7))
    found = task.loss(scores, labels)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, task.loss(scores.float(), labels), rtol=0, atol=0)


def test_a_batch_without_a_class_teaches_nothing() -> None:
    task = Segmentation(Tiny(), 3, OptimizerConfig())
    loss = task.loss(task.model(torch.rand(2, 3, 8, 8)), torch.full((2, 8, 8), 255))
    loss.backward()
    assert float(loss.detach()) == 0
    assert all(p.grad is None or not p.grad.any() for p in task.parameters())


def test_a_diverging_run_is_stopped() -> None:
    task = Segmentation(Tiny(), 3, OptimizerConfig())
    batch = (torch.full((1, 3, 8, 8), float("nan")), torch.zeros(1, 8, 8, dtype=torch.int64))
    with pytest.raises(DivergenceError, match="training loss is nan at epoch 1, step 4"):
        task.training_step(batch, 3)


# A whole training
# ------------------------------------------------------------------------------------------


def test_it_learns_and_logs_what_an_independent_evaluation_finds(colours: StreamedSplits) -> None:
    torch.manual_seed(0)
    config = OptimizerConfig(lr=0.1, momentum=0.9, schedule="poly", aux_lr_factor=10)
    task = Segmentation(Tiny(), 3, config)
    train = loader(colours.train, colours, 4, shuffle=True, augment="crop-flip")
    # The parts have images of different size: their losses weigh as many pixels as they have.
    run = trainer(8)
    run.fit(task, train, loader(colours.validation, colours, 1))
    metrics = run.callback_metrics
    assert set(metrics) == {"train_loss", "val_loss", "val_miou", "val_pixel_accuracy"}
    assert metrics["val_miou"] > 0.8
    found = evaluate_segmentation(task.model, loader(colours.validation, colours, 1), 3)
    assert float(metrics["val_loss"]) == pytest.approx(found.loss, rel=1e-5)
    assert float(metrics["val_miou"]) == pytest.approx(found.accuracy, rel=1e-5)
    tested = run.test(task, loader(colours.test, colours, 2), verbose=False)[0]
    whole = evaluate_segmentation(task.model, loader(colours.test, colours, 2), 3)
    assert set(tested) == {"test_loss", "test_miou", "test_pixel_accuracy"}
    assert tested["test_loss"] == pytest.approx(whole.loss, rel=1e-5)
    assert tested["test_miou"] == pytest.approx(whole.accuracy, rel=1e-5)


def test_a_finished_run_is_shipped_by_its_mean_iou(colours: StreamedSplits, tmp_path: Path) -> None:
    """Simplified, coded within a drop of the mean IoU, exported: images differ in size."""
    for extra in ("jsonargparse", "nncodec", "onnxruntime", "onnxscript"):
        pytest.importorskip(extra, reason=f"needs {extra}")
    spec = ModelSpec(f"{__name__}:Tiny")
    plain = Recipe(spec)
    options = replace(plain.ship, max_drop=0.1, validation_images=6, repeats=1, warmup=0)
    recipe = replace(plain, data=replace(plain.data, batch_size=4), ship=options)
    torch.manual_seed(0)
    model, run = Tiny().eval(), tmp_path / "baseline"
    with torch.no_grad():
        model.backbone[0].weight[2:4] = 0
    save(run / "model.pt", model, Record(spec, colours.input_shape), trust=spec.name)
    result = TrainingResult("baseline", "model.pt", 0.0, 0.0, (), 0.0, "cpu", 1, "32-true")
    (run / "result.json").write_text(json.dumps(asdict(result)))
    (row,) = ship(recipe, tmp_path, ["baseline"], colours)
    expected = evaluate_segmentation(model, loader(colours.test, colours, 1), 3)
    assert row.test_accuracy == pytest.approx(expected.accuracy, abs=1e-3)
    assert abs(row.decoded_accuracy - row.test_accuracy) < 0.2
    assert row.parameters < sum(p.numel() for p in model.parameters())


def test_miou_against_sets_of_pixels() -> None:
    """Class 2 is neither there nor predicted: it does not count. Ignored pixels do not either."""
    task = Segmentation(Tiny(4), 4, OptimizerConfig())
    labels = torch.tensor([[[0, 0, 0, 1, 1, 255]]])
    predicted = torch.tensor([[[0, 0, 1, 1, 3, 2]]])
    task.val_metrics.update(predicted, labels)
    found = task.val_metrics.compute()
    # 0: 2 of {0, 1, 2}; 1: 1 of {2, 3, 4}; 3: 0 of {4}
    assert float(found["val_miou"]) == pytest.approx((2 / 3 + 1 / 3 + 0) / 3)
    assert float(found["val_pixel_accuracy"]) == pytest.approx(3 / 5)


class _Rates(L.Callback):  # type: ignore[name-defined, misc]
    def __init__(self) -> None:
        self.seen: list[list[float]] = []

    def on_train_batch_start(self, run: Any, *_: Any) -> None:
        self.seen.append([group["lr"] for group in run.optimizers[0].param_groups])


def test_polynomial_schedule_and_the_auxiliary_classifiers_own_rate(
    colours: StreamedSplits,
) -> None:
    rates, config = _Rates(), OptimizerConfig(lr=0.02, schedule="poly", aux_lr_factor=10)
    task = Segmentation(Tiny(), 3, config)
    trainer(2, rates).fit(task, loader(colours.train, colours, 4, augment="crop-flip"))
    steps = len(rates.seen)
    assert steps == 2 * 4
    for k, (main, aux) in enumerate(rates.seen):
        assert main == pytest.approx(0.02 * (1 - k / steps) ** 0.9)
        assert aux == pytest.approx(10 * main)
    (optimizer,) = [task.configure_optimizers()["optimizer"]]
    auxiliary = {id(p) for p in task.model.aux_classifier.parameters()}  # type: ignore[union-attr, operator]
    assert {id(p) for p in optimizer.param_groups[1]["params"]} == auxiliary


# Networks of torchvision
# -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("lraspp_mobilenet_v3_large", {}), ("deeplabv3_mobilenet_v3_large", {"aux_loss": True})],
)
@pytest.mark.parametrize("channels_last", [False, True])
def test_networks_of_torchvision_train(
    name: str, arguments: dict[str, Any], channels_last: bool
) -> None:
    torch.manual_seed(0)
    model = build(name, num_classes=3, **arguments)
    task = Segmentation(model, 3, OptimizerConfig(), channels_last=channels_last)
    images, labels = torch.rand(2, 3, 64, 48), torch.randint(0, 3, (2, 64, 48))
    assert task(images).shape == (2, 3, 64, 48)
    task.loss(task.model(images), labels).backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None]
    assert silent == []
    assert ("aux" in model(images)) == bool(arguments)


def test_a_pretrained_backbone_stays_as_it_was_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As torchvision downloads it: a file of that name in torch's folder of checkpoints."""
    models = pytest.importorskip("torchvision.models")
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    backbone = build("mobilenet_v3_large")
    url = models.MobileNet_V3_Large_Weights.IMAGENET1K_V1.url
    torch.save(backbone.state_dict(), folder / url.rpartition("/")[2])
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    model = build("lraspp_mobilenet_v3_large", num_classes=3, weights_backbone="IMAGENET1K_V1")
    task = Segmentation(model, 3, OptimizerConfig())
    found = task.model.backbone.state_dict()  # type: ignore[union-attr, operator]
    loaded = {
        f"features.{key}" if not key.startswith("features") else key: v for key, v in found.items()
    }
    expected = backbone.state_dict()
    assert loaded
    assert all(torch.equal(value, expected[key]) for key, value in loaded.items())


# Sensitivities
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Lobster, SeReNe])
def test_sensitivities_see_the_scores(colours: StreamedSplits, kind: Any) -> None:
    torch.manual_seed(0)
    task = Segmentation(Tiny(), 3, OptimizerConfig(lr=0.05))
    validation = loader(colours.validation, colours, 1)
    pruning = SensitivityPruning(
        lambda model: kind(model, 1e-3),
        lambda model: evaluate_segmentation(model, validation, 3).loss,
        epochs=2, amount=LossBound(0.5), schedule=Plateau(1),
    )  # fmt: skip
    before = task.model.backbone[0].weight.detach().clone()  # type: ignore[index, union-attr, operator]
    trainer(2, pruning).fit(
        task, loader(colours.train, colours, 4, augment="crop-flip"), validation
    )
    weights = torch.cat([p.detach().flatten() for p in task.model.parameters()])
    assert int((weights == 0).sum()) > 8  # Biases and shifts start as zeros, but do not stay so.
    assert not torch.equal(before, task.model.backbone[0].weight)  # type: ignore[index, union-attr, operator]
