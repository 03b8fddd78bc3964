"""The callback for Hugging Face's Trainer: the same laws as in Lightning, in somebody else's
loop.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytest.importorskip("lightning")

import transformers

from snello import Lobster, NEq, Pruner, SeReNe, simplify
from snello.errors import ConfigError, ModelError
from snello.integrations.huggingface import huggingface_callback
from snello.pruning import LossBound, OneShot, Plateau, Ratio
from trainer_samples import Net

EPOCHS, STEPS = 4, 4


pytestmark = pytest.mark.usefixtures("one_thread")


def _data() -> list[dict[str, Tensor]]:
    inputs = torch.randn(40, 6, generator=torch.Generator().manual_seed(1))
    return [{"x": x, "labels": x[:3].argmax()} for x in inputs]


def _loss(model: nn.Module) -> float:
    inputs = torch.stack([row["x"] for row in _data()])
    labels = torch.stack([row["labels"] for row in _data()])
    return float(model(inputs, labels)["loss"])


def _trainer(folder: Path, callbacks: list[Any], epochs: int = EPOCHS, **options: Any) -> Any:
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), use_cpu=True, report_to=[], disable_tqdm=True, num_train_epochs=epochs,
        per_device_train_batch_size=10, eval_strategy="epoch", learning_rate=0.02, lr_scheduler_type="constant",
        weight_decay=0.1, seed=0, logging_strategy="no", **{"save_strategy": "epoch", **options},
    )  # fmt: skip
    return transformers.Trainer(
        model=Net(),
        args=arguments,
        train_dataset=_data(),
        eval_dataset=_data(),
        callbacks=callbacks,
    )


def _everything(**options: Any) -> Any:
    probe = torch.stack([row["x"] for row in _data()[:8]])
    return huggingface_callback(
        sensitivity=lambda m: SeReNe(m, 1e-3, every=1),
        pruner=lambda m, o: Pruner(m, o, _loss, amount=LossBound(0.2), schedule=Plateau(1, 0.9)),
        updates=lambda m, o: NEq(m, o, probe, eps=0.05),
        **options,
    )


def test_it_decays_prunes_and_freezes(tmp_path: Path) -> None:
    callback = _everything()
    pruned: list[dict[str, Tensor]] = []

    class Watch(transformers.TrainerCallback):  # type: ignore[misc, name-defined]
        def on_train_end(self, *_: Any, **kwargs: Any) -> None:
            pruned.append(
                {name: mask.clone() for name, mask in callback.parts["pruner"].masks.items()}
            )

    trainer = _trainer(tmp_path, [Watch(), callback])
    trainer.train()
    masks, parameters = pruned[0], dict(trainer.model.named_parameters())
    assert sum(int((~mask).sum()) for mask in masks.values()) > 0
    for name, mask in masks.items():
        assert bool((parameters[name][~mask] == 0).all()), (
            f"{name} revived through Adam or weight decay"
        )
    assert not trainer.model._forward_hooks, "nothing is left on the model"


def test_lobster_sees_the_gradient_of_every_step(tmp_path: Path) -> None:
    """The decay of every step, also with accumulation, is lambda w max(0, 1 - |dL/dw|)."""
    seen: list[float] = []

    class Checked(Lobster):
        def step(self) -> None:
            before = {n: p.detach().clone() for n, p in self._parameters.items()}
            super().step()
            for name, parameter in self._parameters.items():
                assert parameter.grad is not None
                expected = before[name] * (1 - 0.01 * (1 - parameter.grad.abs()).clamp(min=0))
                torch.testing.assert_close(parameter.detach(), expected)
                seen.append(float(parameter.grad.abs().max()))

    _trainer(
        tmp_path, [huggingface_callback(sensitivity=lambda m: Checked(m, 0.01))], epochs=2,
        gradient_accumulation_steps=2,
    ).train()  # fmt: skip
    assert len(seen) == 2 * (STEPS // 2) * 4, "two epochs of two steps, four parameters"
    assert min(seen) > 0


def test_frozen_rows_stand_still(tmp_path: Path) -> None:
    weights: list[Tensor] = []

    class Watch(transformers.TrainerCallback):  # type: ignore[misc, name-defined]
        def on_epoch_begin(self, *_: Any, **kwargs: Any) -> None:
            weights.append(kwargs["model"].first.weight.detach().clone())

    probe = torch.stack([row["x"] for row in _data()[:8]])
    frozen = huggingface_callback(updates=lambda m, o: NEq(m, o, probe, eps=float("inf")))
    trainer = _trainer(tmp_path, [Watch(), frozen], epochs=3)
    trainer.train()
    assert not torch.equal(weights[0], weights[1]), "the warm-up learns"
    assert torch.equal(weights[1], weights[2])
    assert torch.equal(weights[2], trainer.model.first.weight)


@pytest.mark.parametrize(("every", "decisions"), [(None, 3), (2, 6), (5, 2)])
def test_decisions_between_epochs(every: int | None, decisions: int, tmp_path: Path) -> None:
    """Three epochs of four steps."""
    steps: list[int] = []

    class Counted(NEq):
        def step(self) -> Any:
            steps.append(1)
            return super().step()

    probe = torch.stack([row["x"] for row in _data()[:8]])
    callback = huggingface_callback(updates=lambda m, o: Counted(m, o, probe), every=every)
    _trainer(tmp_path, [callback], epochs=3).train()
    assert len(steps) == decisions
    with pytest.raises(
        ConfigError,
        match="every: must be a whole number, at least 1, not 0; it is a number of optimizer steps",
    ):
        huggingface_callback(updates=lambda m, o: NEq(m, o, probe), every=0)


def test_resumed_run_equals_one_that_was_not_interrupted(tmp_path: Path) -> None:
    straight = _trainer(tmp_path / "straight", [_everything()])
    straight.train()
    _trainer(tmp_path / "cut", [_everything()], epochs=2).train()
    resumed = _trainer(tmp_path / "cut", [_everything()])
    with warnings.catch_warnings():  # the zeros are those of the masks in the checkpoint
        warnings.filterwarnings("error", ".*no mask holds them")
        resumed.train(resume_from_checkpoint=str(tmp_path / "cut" / f"checkpoint-{2 * STEPS}"))
    for name, weight in straight.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name


def test_the_end_of_an_epoch_whose_last_step_was_saved_is_made_up(tmp_path: Path) -> None:
    """The Trainer goes on with the next epoch, without a decision and an evaluation."""
    straight = _trainer(tmp_path / "a", [_everything()], save_strategy="steps", save_steps=STEPS)
    straight.train()
    checkpoint = tmp_path / "a" / f"checkpoint-{2 * STEPS}"
    resumed = _trainer(tmp_path / "b", [_everything(resume_from=checkpoint)])
    resumed.train(resume_from_checkpoint=str(checkpoint))
    for name, weight in straight.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name


def test_an_interrupted_training_leaves_nothing_to_the_next(tmp_path: Path) -> None:
    """Its hooks had observed every batch once more, and its frozen neurons been refused."""

    class Stops(transformers.TrainerCallback):  # type: ignore[misc, name-defined]
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 2 * STEPS + 1:
                raise RuntimeError("pulled")

    straight = _trainer(tmp_path / "straight", [_everything()])
    straight.train()
    trainer = _trainer(tmp_path / "cut", [_everything(), Stops()])
    with pytest.raises(RuntimeError, match="pulled"):
        trainer.train()
    trainer.remove_callback(Stops)
    trainer.train(resume_from_checkpoint=str(tmp_path / "cut" / f"checkpoint-{2 * STEPS}"))
    for name, weight in straight.model.state_dict().items():
        assert torch.equal(weight, trainer.model.state_dict()[name]), name
    assert not trainer.model._forward_hooks


def test_an_evaluation_after_the_training_prunes_nothing(tmp_path: Path) -> None:
    callback = huggingface_callback(
        pruner=lambda m, o: Pruner(m, o, _loss, amount=LossBound(0.02), schedule=Plateau(2))
    )
    trainer = _trainer(tmp_path, [callback], epochs=1)
    trainer.train()
    before = callback.parts["pruner"].state_dict()
    for _ in range(4):  # more than the patience of the plateau
        trainer.evaluate()
    assert callback.parts["pruner"].state_dict()["schedule"] == before["schedule"]
    assert all(bool((p != 0).all()) for p in trainer.model.parameters())


def test_a_checkpoint_elsewhere_needs_its_folder(tmp_path: Path) -> None:
    """Without the masks, training on would revive pruned weights."""
    _trainer(tmp_path / "cut", [_everything()], epochs=2).train()
    checkpoint = str((tmp_path / "cut" / f"checkpoint-{2 * STEPS}").rename(tmp_path / "moved"))
    straight = _trainer(tmp_path / "straight", [_everything()])
    straight.train()
    with pytest.raises(ConfigError, match=r"pruned weights would be revived.*resume_from="):
        _trainer(tmp_path / "new", [_everything()]).train(resume_from_checkpoint=checkpoint)
    resumed = _trainer(tmp_path / "new", [_everything(resume_from=checkpoint)])
    resumed.train(resume_from_checkpoint=checkpoint)
    for name, weight in straight.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name

    _trainer(tmp_path / "plain", [], epochs=2).train()
    plain = str(tmp_path / "plain" / f"checkpoint-{2 * STEPS}")
    _trainer(tmp_path / "plain", [_everything(resume_from=False)]).train(
        resume_from_checkpoint=plain
    )
    decayed = huggingface_callback(sensitivity=lambda m: SeReNe(m, 1e-3, every=1))
    _trainer(tmp_path / "decayed", [decayed], epochs=2).train()
    other = str(tmp_path / "decayed" / f"checkpoint-{2 * STEPS}")
    with pytest.raises(ConfigError, match="has no state of pruner, only of: sensitivity"):
        _trainer(tmp_path / "decayed", [_everything()]).train(resume_from_checkpoint=other)


def test_missing_metric_names_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no metric 'eval_lost'.*eval_loss"):
        _trainer(tmp_path, [_everything(monitor="eval_lost")]).train()


def test_nothing_asked_for_is_refused() -> None:
    with pytest.raises(ConfigError, match="a sensitivity, a pruner or updates"):
        huggingface_callback()


def test_experts_are_simplified_once_they_run_in_double_precision() -> None:
    config = transformers.MixtralConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=24, num_local_experts=3, num_experts_per_tok=2, use_cache=False,
    )  # fmt: skip
    torch.manual_seed(0)
    model, ids = transformers.MixtralForCausalLM(config).eval(), torch.randint(0, 20, (2, 5))
    if model.config._experts_implementation == "grouped_mm":
        with pytest.raises(ModelError, match=r"set_experts_implementation\('batched_mm'\)"):
            simplify(model, {"input_ids": ids})
    model.set_experts_implementation("batched_mm")
    pruner = Pruner(
        model, None, granularity="channel", amount=Ratio(0.5), schedule=OneShot(), example_inputs={"input_ids": ids},
    )  # fmt: skip
    pruner.prune()
    lean = simplify(model, {"input_ids": ids})
    torch.testing.assert_close(lean(ids).logits, model(ids).logits)
    experts = lean.model.layers[0].mlp.experts
    assert experts.down_proj.shape[2] < config.intermediate_size


def test_a_model_whose_layers_are_none_of_torchs_has_none_to_prune() -> None:
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=2)
    )
    with pytest.raises(ConfigError, match="its only Linear layer or convolution is the head"):
        Pruner(model, None, amount=Ratio(0.5))
