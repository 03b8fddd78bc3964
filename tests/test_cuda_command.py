"""The command, Lightning and the Trainer of transformers on a GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import snello
from device_samples import CPU, Found, assert_zero, held_out, images, network
from snello.cli import main
from snello.curation import InfoBatch
from snello.equilibrium import NEq
from snello.pruning import LossBound, Plateau, Pruner
from snello.sensitivity import SeReNe

# The command


SMALL = ("--data.limit=300", "--epochs=4", "--lobster.finetune=1", "--serene.finetune=1")


@pytest.fixture(scope="module")
def trained(device: torch.device, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small training on the device."""
    for package in ("lightning", "sklearn", "jsonargparse", "rich", "matplotlib"):
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp("train") / "run"
    words = ("train", "digits", "--method=lobster", f"--device={device.type}")
    assert main([*words, f"--out={folder}", *SMALL]) == 0
    return folder


def assert_trained_on(device: torch.device, folder: Path) -> None:
    result = json.loads((folder / "result.json").read_text())
    assert result["device"].partition(":")[0] == device.type
    model, _ = snello.load(folder / "model.pt")
    assert {p.device for p in model.parameters()} == {CPU}


def test_training_on_the_device(device: torch.device, trained: Path) -> None:
    assert_trained_on(device, trained)


def test_the_journey_on_the_device(device: torch.device, trained: Path, tmp_path: Path) -> None:
    for package in ("nncodec", "onnxruntime", "onnxscript"):
        pytest.importorskip(package)
    options = ("--ship.repeats=3", "--ship.warmup=1", "--neq.probe=10")
    words = ("journey", "digits", f"--device={device.type}", f"--out={tmp_path / 'run'}")
    assert main([*words, *SMALL, *options]) == 0
    folders = [path.parent for path in tmp_path.glob("run/*/result.json")]
    assert len(folders) > 1
    for folder in folders:
        assert_trained_on(device, folder)


@pytest.mark.parametrize("where", ["auto", "cuda"])
@pytest.mark.parametrize(
    "words",
    [
        ("evaluate", "--data=digits"),
        ("measure", "--repeats=3", "--warmup=1"),
        ("simplify",),
        ("prune", "--data=digits", "--macs=0.7", "--finetune=1", "--calibration=50"),
        ("sweep", "--data=digits", "--calibration=50", "--ratios=0,0.5"),
    ],
    ids=lambda words: words[0],
)
def test_commands_on_the_device(
    device: torch.device, trained: Path, where: str, words: tuple[str, ...], tmp_path: Path
) -> None:
    model = trained / "model.pt"
    suffix = "pt" if words[0] in ("simplify", "prune") else "json"
    place = where if where == "auto" else device.type
    out = tmp_path / f"out.{suffix}"
    assert main([words[0], str(model), *words[1:], f"--device={place}", f"--out={out}"]) == 0
    assert out.is_file()


@pytest.mark.parametrize("where", ["device", "cpu", None])
def test_samples_are_recorded_where_the_user_says(
    device: torch.device, trained: Path, where: str | None, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Without a word, on a GPU if there is one, as recipes are trained."""
    from snello.lab import training

    seen: list[str] = []
    record = training.record_training

    def watched(model: nn.Module, *arguments: Any) -> Any:
        seen.append(next(model.parameters()).device.type)
        return record(model, *arguments)

    monkeypatch.setattr(training, "record_training", watched)
    given = [] if where is None else [f"--device={device.type if where == 'device' else where}"]
    out = tmp_path / "samples.json"
    words = ["curate", "digits", "--epochs=1", "--limit=100", f"--out={out}", *given]
    assert main(words) == 0
    assert seen == ["cpu" if where == "cpu" else device.type]


# Other trainers


def test_lightning_callbacks(device: torch.device, tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning")

    from snello.integrations.lightning import NEqCallback, SensitivityPruning

    class Task(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = network(CPU, torch.float32)

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)  # type: ignore[no-any-return]

        def training_step(self, batch: Any, _: int) -> Tensor:
            return F.cross_entropy(self(batch[0]), batch[1])

        def validation_step(self, batch: Any, _: int) -> None:
            self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), 0.01)

    x, y = images(32)
    data, task = TensorDataset(x.float(), y), Task()
    pruning = SensitivityPruning(
        lambda m: SeReNe(m, 1e-3), held_out, epochs=2, amount=LossBound(0.5)
    )
    half = "bf16-mixed" if device.type == "cuda" else "32-true"
    trainer = lightning.Trainer(
        max_epochs=3, accelerator="gpu" if device.type == "cuda" else "cpu", devices=1, logger=False,
        callbacks=[pruning, NEqCallback(x[:4].float(), eps=0.1)], enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path, precision=half,
    )  # fmt: skip
    trainer.fit(task, DataLoader(data, 8), DataLoader(data, 16))
    assert pruning.pruner is not None
    assert_zero(task, pruning.pruner.masks)
    assert trainer.strategy.root_device.type == device.type


def test_trainer_of_transformers(device: torch.device, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    from snello.integrations.huggingface import curated_trainer, huggingface_callback

    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(transformers.BertConfig(
        vocab_size=12, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=8, num_labels=3,
    ))  # fmt: skip
    words = torch.randint(12, (40, 6), generator=torch.Generator().manual_seed(1))
    rows = [{"input_ids": ids, "labels": ids[0] % 3} for ids in words]

    def loss(model: nn.Module) -> float:
        at = next(model.parameters()).device
        return float(model(input_ids=words.to(at), labels=(words[:, 0] % 3).to(at)).loss)

    masks: list[Found] = []
    callback = huggingface_callback(
        sensitivity=lambda m: SeReNe(m, 1e-3, every=1, examples=4),
        pruner=lambda m, o: Pruner(m, o, loss, amount=LossBound(0.2), schedule=Plateau(1, 0.9)),
        updates=lambda m, o: NEq(m, o, {"input_ids": words[:8].to(device)}, eps=0.05),
    )

    class Watch(transformers.TrainerCallback):  # type: ignore[misc, name-defined]
        def on_train_end(self, *_: Any, **__: Any) -> None:
            masks.append(dict(callback.parts["pruner"].masks))

    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), use_cpu=device.type == "cpu", report_to=[], disable_tqdm=True, bf16=True,
        num_train_epochs=3, per_device_train_batch_size=10, eval_strategy="epoch", save_strategy="epoch",
        learning_rate=0.01, logging_strategy="no",
    )  # fmt: skip
    keep = InfoBatch(rows, ratio=0.5, epochs=3, seed=3)
    trainer = curated_trainer()(
        model, arguments, keep=keep, eval_dataset=rows, callbacks=[Watch(), callback]
    )
    trainer.train()
    assert next(model.parameters()).device.type == device.type
    assert_zero(trainer.model, masks[0])
    assert keep.kept < 1
