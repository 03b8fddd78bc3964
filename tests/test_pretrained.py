"""Lean models of Hugging Face in their own library: save, load, train, export."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from seams.store import loading_argument
from snello import CodecSettings, Record, load, plan_of, save, simplify
from snello.errors import ModelError
from snello.graph import Inputs
from snello.simplification import plan_of as plan
from snello.store import ModelSpec
from test_any_model import CASES, image, tensors

transformers = pytest.importorskip("transformers")


def _same(first: nn.Module, second: nn.Module, example: Any) -> None:
    inputs = Inputs.of(example)
    with torch.no_grad():
        pairs = zip(tensors(inputs.call(first)), tensors(inputs.call(second)), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", ["BERT", "ViT", "Llama, grouped queries", "T5"])
def test_a_saved_folder_comes_back_lean_and_plain_loading_refuses_it(
    name: str, tmp_path: Path
) -> None:
    case = CASES[name]
    lean = simplify(case.model(), case.inputs())
    lean.save_pretrained(tmp_path)
    again, record = load(tmp_path)
    assert type(again) is type(lean)
    assert plan_of(again) == plan_of(lean)
    assert record.model.name == f"transformers:{case.kind}"
    _same(lean, again, case.inputs())
    assert again.config.snello_plan == lean.config.snello_plan
    again.save_pretrained(tmp_path / "twice")
    _same(lean, load(tmp_path / "twice")[0], case.inputs())
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        type(lean).from_pretrained(tmp_path)


def test_numbers_in_a_configuration_name_no_file(tmp_path: Path) -> None:
    """GPT-2's `scale_attn_weights`, Swin's window sizes and a class with the name "url"."""
    small = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 20, "n_positions": 8}
    text = transformers.GPT2LMHeadModel(transformers.GPT2Config(**small)).eval()
    text.save_pretrained(tmp_path)
    _same(text, load(tmp_path)[0], torch.arange(8)[None])

    small = {"image_size": 16, "embed_dim": 8, "depths": [1], "num_heads": [2], "window_size": 2}
    config = transformers.Swinv2Config(**small, id2label={0: "file", 1: "url"})
    swin = transformers.Swinv2ForImageClassification(config).eval()
    spec = ModelSpec("transformers:Swinv2ForImageClassification", {"config": config.to_dict()})
    again, _ = load(save(tmp_path / "swin.pt", swin, Record(spec, (3, 16, 16))))
    _same(swin, again, torch.randn(1, 3, 16, 16))


@pytest.mark.parametrize("key", [
    "pretrained", "use_pretrained_backbone", "use_pretrained_weights", "trust_remote_code", "load_from_hf_hub",
])  # fmt: skip
@pytest.mark.parametrize("value", [True, 1, [1], (True,), "yes"])
def test_switches_of_downloads_are_refused_in_any_form(key: str, value: object) -> None:
    assert loading_argument("transformers", {"config": {key: value}}) is not None
    assert loading_argument("transformers", {key: value}) is not None


@pytest.mark.exhaustive
def test_no_configuration_of_transformers_is_taken_for_a_download() -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    refused = {}
    for name in CONFIG_MAPPING:
        try:
            values = CONFIG_MAPPING[name]().to_dict()
        except Exception:  # needs arguments, or another library
            continue
        if (key := loading_argument("transformers", values)) is not None:
            refused[name] = key
    assert not {name: key for name, key in refused.items() if "backbone" not in key.lower()}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("suffix", ["pt", "snello"])
@pytest.mark.parametrize("name", ["ViT", "Llama, grouped queries"])
def test_a_lean_model_round_trips_through_files_of_ours(
    name: str, suffix: str, tmp_path: Path
) -> None:
    if suffix == "snello":
        pytest.importorskip("nncodec")
    case = CASES[name]
    lean = simplify(case.model(), case.inputs())
    inputs = case.inputs()
    spec = ModelSpec(f"transformers:{case.kind}", {"config": dict(case.options)})
    record = Record(spec, tuple(inputs.shape[1:]), inputs.dtype)
    fine = CodecSettings(qp=-60) if suffix == "snello" else None
    again, read = load(save(tmp_path / f"lean.{suffix}", lean, record, settings=fine))
    assert (type(again), plan(again), read.dtype) == (type(lean), plan(lean), inputs.dtype)
    assert read.example_inputs().dtype == inputs.dtype
    with torch.no_grad():
        first, second = (tensors(model(inputs))[0] for model in (lean, again))
        again(read.example_inputs())
    tolerance = 0 if suffix == "pt" else 0.05 * float(first.abs().max())
    torch.testing.assert_close(second, first, rtol=0, atol=tolerance)


def test_a_dense_folder_is_loaded_too_and_keeps_its_dtype(tmp_path: Path) -> None:
    model = CASES["ViT"].model().to(torch.bfloat16)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    again, record = load(tmp_path)
    assert plan(again) is None
    assert (next(again.parameters()).dtype, record.dtype) == (torch.bfloat16, torch.bfloat16)
    _same(model, again, image().bfloat16())


def test_damaged_and_foreign_folders_say_what_is_wrong(tmp_path: Path) -> None:
    model = CASES["ViT"].model()
    lean = simplify(model, image())
    lean.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())

    def refuse(text: str, **changes: Any) -> None:
        (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
        with pytest.raises(ModelError, match=text):
            load(tmp_path)

    refuse("names no class", architectures=None)
    refuse("neither a network of snello nor a registered model", architectures=["os.system"])
    refuse("weights cannot be loaded", intermediate_size=40, snello_plan=None)
    for damaged in ("{", "[]", "[" * 100_000):
        (tmp_path / "config.json").write_text(damaged)
        with pytest.raises(ModelError, match=r"config\.json is "):
            load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ModelError, match="weights cannot be loaded"):
        load(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ModelError):
        load(tmp_path)


def test_an_index_reads_nothing_outside_its_folder(tmp_path: Path) -> None:
    model = CASES["ViT"].model()
    (inside := tmp_path / "inside").mkdir()
    model.save_pretrained(tmp_path)
    model.save_pretrained(inside)
    (inside / "model.safetensors").unlink()
    index = {"weight_map": {"x": "../model.safetensors"}}
    (inside / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="inside: its weights cannot be loaded"):
        load(inside)


def test_a_lean_vit_goes_through_the_trainer(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    lean = simplify(CASES["ViT"].model(), image())
    rows = [{"pixel_values": x, "labels": i % 2} for i, x in enumerate(torch.randn(12, 3, 32, 32))]
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, report_to=[], disable_tqdm=True, max_steps=4,
        per_device_train_batch_size=4, learning_rate=1e-2, seed=0, save_strategy="no",
    )  # fmt: skip
    before = copy.deepcopy(lean.state_dict())
    trainer = transformers.Trainer(model=lean, args=arguments, train_dataset=rows)
    assert trainer.train().global_step == 4
    moved = [n for n, value in lean.state_dict().items() if not torch.equal(value, before[n])]
    assert len(moved) == len(before)
    trainer.save_model(str(tmp_path / "trained"))
    _same(lean.eval(), load(tmp_path / "trained")[0], image())


@pytest.mark.parametrize("name", ["ViT", "BERT"])
def test_a_lean_model_exports_to_onnx(name: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    case = CASES[name]
    lean = simplify(case.model(), case.inputs())
    inputs: Tensor = case.inputs()
    torch.onnx.export(lean, (inputs,), str(tmp_path / "net.onnx"), dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"))
    found = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})[0]
    with torch.no_grad():
        expected = tensors(lean(inputs))[0]
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-5)
