"""Hugging Face's Trainer on a dynamic subset: it trains as a loop written by hand does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

import transformers

import snello
from snello.curation import DynamicSubset, InfoBatch, OrderDP, RandomSubset
from snello.errors import ConfigError
from snello.integrations.huggingface import curated_trainer
from trainer_samples import Net

EPOCHS = 4

pytestmark = pytest.mark.usefixtures("one_thread")


def rows(count: int = 44) -> list[dict[str, Tensor]]:
    inputs = torch.randn(count, 6, generator=torch.Generator().manual_seed(1))
    return [{"x": x, "labels": x[:3].argmax(), "unused": x} for x in inputs]


def bert() -> nn.Module:
    """Not a ViT: the Trainer of transformers 5.24 does not load the ViT that it has saved (#48805)."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=12, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=8, num_labels=3, hidden_dropout_prob=0, attention_probs_dropout_prob=0,
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config)


def texts(count: int = 44) -> list[dict[str, Tensor]]:
    words = torch.randint(12, (count, 6), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": ids, "labels": ids[0] % 3} for ids in words]


SUBSETS = {
    "infobatch": lambda data: InfoBatch(data, ratio=0.5, epochs=EPOCHS, seed=3),
    "orderdp": lambda data: OrderDP(data, ratio=0.3, seed=3),
    "random": lambda data: RandomSubset(data, ratio=0.4, seed=3),
}


def trainer(folder: Path, keep: DynamicSubset, **options: Any) -> Any:
    own = {name: options.pop(name) for name in ("losses", "eval_dataset") if name in options}
    model = options.pop("model", None) or Net()
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), use_cpu=True, report_to=[], disable_tqdm=True, max_grad_norm=0,
        **{
            "num_train_epochs": EPOCHS, "per_device_train_batch_size": 10, "save_strategy": "epoch",
            "learning_rate": 0.5, "optim": "sgd", "weight_decay": 0.0, "lr_scheduler_type": "linear", **options,
        },
    )  # fmt: skip
    return curated_trainer()(model, arguments, keep=keep, **own)


def by_hand(
    keep: DynamicSubset, accumulate: int = 1, model: nn.Module | None = None, key: str = "x"
) -> tuple[nn.Module, int]:
    model, steps = model or Net(), 0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    loader = DataLoader(keep, batch_size=10, sampler=keep.sampler())
    for _ in range(EPOCHS):
        batches = list(loader)
        for start in range(0, len(batches), accumulate):
            together = batches[start : start + accumulate]
            for batch, index in together:
                losses = F.cross_entropy(
                    model(batch[key])["logits"], batch["labels"], reduction="none"
                )
                (keep.weigh(losses, index) / len(together)).backward()
            optimizer.step()
            optimizer.zero_grad()
            steps += 1
            optimizer.param_groups[0]["lr"] = 0.5 * (1 - keep.moment / EPOCHS)
        keep.finish()
    return model, steps


def assert_equal(a: nn.Module, b: nn.Module) -> None:
    for (name, x), y in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("method", SUBSETS)
def test_it_trains_as_a_loop_by_hand(tmp_path: Path, method: str, accumulate: int) -> None:
    make = SUBSETS[method]
    mine, keep = make(rows()), make(rows())
    model, steps = by_hand(mine, accumulate)
    found = trainer(tmp_path, keep, gradient_accumulation_steps=accumulate)
    found.train()
    assert found.state.global_step == steps
    assert keep.kept == mine.kept < 1
    assert keep.moment == EPOCHS
    assert found.lr_scheduler.get_last_lr()[0] == pytest.approx(0, abs=1e-12)
    assert_equal(found.model, model)


def test_a_model_of_transformers_trains_as_a_loop_by_hand_and_goes_on(tmp_path: Path) -> None:
    mine = SUBSETS["infobatch"](texts())
    model, steps = by_hand(mine, model=bert(), key="input_ids")
    whole = trainer(tmp_path / "whole", SUBSETS["infobatch"](texts()), model=bert())
    whole.train()
    assert whole.state.global_step == steps
    assert whole.keep.kept == mine.kept < 1
    assert_equal(whole.model, model)
    again = trainer(tmp_path / "again", SUBSETS["infobatch"](texts()), model=bert())
    again.train(resume_from_checkpoint=str(min((tmp_path / "whole").glob("checkpoint-*"))))
    assert again.state.global_step == steps
    assert_equal(again.model, whole.model)


@pytest.mark.parametrize("epochs", [1, 3])
def test_a_run_goes_on_from_a_checkpoint(tmp_path: Path, epochs: int) -> None:
    whole = trainer(tmp_path / "whole", SUBSETS["infobatch"](rows()))
    whole.train()
    steps = sorted(int(p.name.partition("-")[2]) for p in (tmp_path / "whole").glob("checkpoint-*"))
    assert len(steps) == EPOCHS
    assert len({b - a for a, b in zip([0, *steps], steps, strict=False)}) > 1, "epochs differ"
    again = trainer(tmp_path / "again", SUBSETS["infobatch"](rows()))
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{steps[epochs - 1]}"))
    assert again.state.global_step == whole.state.global_step
    assert_equal(again.model, whole.model)


def test_a_run_goes_on_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    whole = trainer(
        tmp_path / "whole", SUBSETS["infobatch"](rows()), save_strategy="steps", save_steps=1
    )
    whole.train()
    again = trainer(tmp_path / "again", SUBSETS["infobatch"](rows()))
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-7"))
    assert again.state.global_step == whole.state.global_step
    assert_equal(again.model, whole.model)


def test_a_run_goes_on_behind_the_last_whole_batch_of_an_epoch(tmp_path: Path) -> None:
    """The rest of the epoch is less than a batch: a Trainer that gets none ends the training."""
    dropping = {"dataloader_drop_last": True, "save_strategy": "steps", "save_steps": 1}
    whole = trainer(tmp_path / "whole", SUBSETS["infobatch"](rows()), **dropping)
    whole.train()
    again = trainer(tmp_path / "again", SUBSETS["infobatch"](rows()), **dropping)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    assert again.state.global_step == whole.state.global_step > 4
    assert_equal(again.model, whole.model)


def test_own_losses_and_mean_losses(tmp_path: Path) -> None:
    """A function of the outputs; without one, a model without labels per sample has mean losses."""
    own, default = (SUBSETS["infobatch"](rows()) for _ in range(2))

    def losses(outputs: Mapping[str, Tensor], inputs: Mapping[str, Tensor]) -> Tensor:
        return F.cross_entropy(outputs["logits"], inputs["labels"], reduction="none")

    first, second = trainer(tmp_path / "a", own, losses=losses), trainer(tmp_path / "b", default)
    first.train()
    second.train()
    assert_equal(first.model, second.model)

    class Regression(Net):
        def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
            logits = self.last(self.first(x).relu())
            return {"loss": (logits - x[:, :3]).square().mean(), "logits": logits}

    keep = InfoBatch(
        [{"x": r["x"], "labels": r["x"][:3]} for r in rows()], ratio=0.5, epochs=EPOCHS
    )
    found = trainer(tmp_path / "c", keep)
    mean = curated_trainer()(Regression(), found.args, keep=keep)
    mean.train()
    assert keep.kept < 1
    assert bool(keep.scores.isfinite().all())


@pytest.mark.parametrize("how", ["compute_loss", "function", "model"])
def test_a_loss_of_ones_own_is_the_one_that_is_trained(tmp_path: Path, how: str) -> None:
    """As its mean over the batch; it had been replaced by the cross-entropy."""

    def focal(logits: Tensor, labels: Tensor) -> Tensor:
        losses = F.cross_entropy(logits, labels, reduction="none")
        return ((1 - (-losses).exp()).square() * losses).mean()

    class Own(transformers.Trainer):
        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any
        ) -> Any:
            outputs = model(inputs["x"])
            loss = focal(outputs["logits"], inputs["labels"])
            return (loss, outputs) if return_outputs else loss

    class Focal(Net):
        def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
            found = super().forward(x)
            return found if labels is None else {"loss": focal(found["logits"], labels), **found}

    keep = RandomSubset(rows(), ratio=0.4, seed=3)
    arguments = trainer(tmp_path, keep).args
    given = {"compute_loss_func": lambda outputs, labels, **_: focal(outputs["logits"], labels)}
    found = curated_trainer(Own if how == "compute_loss" else None)(
        Focal() if how == "model" else Net(), arguments, keep=keep,
        **(given if how == "function" else {}),
    )  # fmt: skip
    found.train()
    expected, mine = Net(), RandomSubset(rows(), ratio=0.4, seed=3)
    optimizer = torch.optim.SGD(expected.parameters(), lr=0.5)
    for _ in range(EPOCHS):
        for batch, index in DataLoader(mine, batch_size=10, sampler=mine.sampler()):
            optimizer.zero_grad()
            loss = focal(expected(batch["x"])["logits"], batch["labels"])
            mine.weigh(loss, index).backward()
            optimizer.step()
            optimizer.param_groups[0]["lr"] = 0.5 * (1 - mine.moment / EPOCHS)
    assert_equal(found.model, expected)


def test_evaluations_are_those_of_the_trainer(tmp_path: Path) -> None:
    found = trainer(
        tmp_path, SUBSETS["infobatch"](rows()), eval_dataset=rows(20), per_device_eval_batch_size=20
    )
    found.train()
    batch = {k: torch.stack([r[k] for r in rows(20)]) for k in ("x", "labels")}
    assert found.evaluate()["eval_loss"] == pytest.approx(float(found.model(**batch)["loss"]))


def test_mistakes(tmp_path: Path) -> None:
    keep = SUBSETS["infobatch"](rows())
    with pytest.raises(ConfigError, match="keep="):
        curated_trainer()(Net(), None)
    with pytest.raises(ConfigError, match="4 epochs and the Trainer on 2"):
        trainer(tmp_path, keep, num_train_epochs=2)
    with pytest.raises(ConfigError, match="max_steps"):
        trainer(tmp_path, keep, max_steps=3)
    with pytest.raises(ConfigError, match="no subclass"):
        curated_trainer(Net)
    plain = transformers.Trainer(Net(), trainer(tmp_path, keep).args, train_dataset=rows())
    plain.train()
    last = tmp_path / f"checkpoint-{plain.state.global_step}"
    used = SUBSETS["random"](rows())
    by_hand(used)
    with pytest.raises(ConfigError, match="keep has been trained on for 4 epochs"):
        trainer(tmp_path, used).train()
    with pytest.raises(ConfigError, match=r"no curation\.pt"):
        trainer(tmp_path, keep).train(resume_from_checkpoint=str(last))


def _in_two_processes(folder: Path) -> None:
    """One of two processes under torchrun; it writes what it trained on, and its weights."""
    torch.set_num_threads(1)
    keep, seen = SUBSETS["infobatch"](rows()), []
    weigh = keep.weigh

    def noted(losses: Tensor, index: Tensor) -> Tensor:
        seen.append(index.tolist())
        return weigh(losses, index)

    keep.weigh = noted  # type: ignore[method-assign]
    found = trainer(folder / "run", keep, per_device_train_batch_size=5)
    found.train()
    rank = torch.distributed.get_rank()
    torch.save({"seen": seen, "state": found.model.state_dict()}, folder / f"{rank}.pt")


@pytest.mark.exhaustive
def test_two_processes_train_on_different_samples_and_agree(tmp_path: Path) -> None:
    command = [
        sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
        str(Path(__file__)), str(tmp_path),
    ]  # fmt: skip
    path = os.pathsep.join(
        [str(Path(snello.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    )
    found = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr[-3000:]
    a, b = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    for name, value in a["state"].items():
        assert torch.equal(value, b["state"][name]), name
    assert [len(batch) for batch in a["seen"]] == [len(batch) for batch in b["seen"]]
    for x, y in zip(a["seen"], b["seen"], strict=True):
        assert not set(x) & set(y)


if __name__ == "__main__":
    _in_two_processes(Path(sys.argv[1]))
