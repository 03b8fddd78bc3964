"""Models that nobody here wrote: captured as they run, narrowed exactly, given back in their own
class.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from laws import assert_same_outputs, generator, randomise
from snello.graph import Inputs, capture
from snello.simplification import SimplificationPlan, apply, plan_of, simplify

transformers = pytest.importorskip("transformers")

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}


def tokens(length: int = 7) -> Tensor:
    return torch.randint(0, 100, (2, length), generator=generator(length))


def image(side: int = 32) -> Tensor:
    return torch.randn(2, 3, side, side, generator=generator(side))


@dataclass(frozen=True)
class Case:
    """A model of Hugging Face.

    Attributes:
        kind, config: names of its class and of that of its configuration.
        options: of the configuration.
        inputs: example inputs.
        values: end of the name of the layers that compute values of attention.
        hidden: end of the name of the layers in front of an activation.
        share: of the parameters that must stay with half of both dead, at most.
    """

    kind: str
    config: str
    options: dict[str, Any]
    inputs: Callable[[], Any]
    values: str
    hidden: str
    share: float

    def model(self) -> nn.Module:
        torch.manual_seed(0)
        config = getattr(transformers, self.config)(**self.options)
        model: nn.Module = getattr(transformers, self.kind)(config).eval()
        with torch.no_grad():
            for name, layer in model.named_modules():
                if name.endswith((self.values, self.hidden)) and isinstance(layer, nn.Linear):
                    half = len(layer.weight) // 2
                    layer.weight[:half] = 0
                    if layer.bias is not None:
                        layer.bias[:half] = 0
        return model


VIT = {"image_size": 32, "patch_size": 8, **SMALL}
CASES = {
    "BERT": Case(
        "BertModel", "BertConfig", {"vocab_size": 100, **SMALL}, tokens, "self.value", "intermediate.dense",
        0.85,
    ),
    "ViT": Case("ViTForImageClassification", "ViTConfig", VIT, image, "v_proj", "fc1", 0.9),
    "CLIP": Case("CLIPVisionModel", "CLIPVisionConfig", VIT, image, "v_proj", "fc1", 0.7),
    "Llama": Case(
        "LlamaForCausalLM", "LlamaConfig", {"vocab_size": 100, **SMALL}, tokens, "v_proj", "gate_proj", 0.85
    ),
    "Llama, grouped queries": Case(
        "LlamaForCausalLM", "LlamaConfig", {"vocab_size": 100, "num_key_value_heads": 2, **SMALL}, tokens,
        "v_proj", "gate_proj", 0.85,
    ),
    "T5": Case(
        "T5Model", "T5Config",
        {"vocab_size": 100, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4},
        lambda: {"input_ids": tokens(), "decoder_input_ids": tokens(5)}, "none", "wi", 0.9,
    ),
    "ResNet": Case(
        "ResNetForImageClassification", "ResNetConfig",
        {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1], "layer_type": "basic"}, image,
        "none", "none", 1.0,
    ),
}  # fmt: skip


def size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def tensors(output: Any) -> list[Tensor]:
    found = output.to_tuple() if hasattr(output, "to_tuple") else output
    return [value for value in found if isinstance(value, Tensor)]


QUICK = ("BERT", "ViT", "Llama, grouped queries", "ResNet")


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.exhaustive) for n in CASES]
)
def test_a_model_of_hugging_face_is_narrowed_in_its_own_class(name: str) -> None:
    case = CASES[name]
    model, inputs = case.model(), Inputs.of(case.inputs())
    lean = simplify(model, case.inputs())
    plan = plan_of(lean)
    assert type(lean) is type(model)
    assert plan is not None
    assert plan.representation == "module"
    assert size(lean) <= case.share * size(model)
    with torch.no_grad():
        for expected, found in zip(
            tensors(inputs.call(model)), tensors(inputs.call(lean)), strict=True
        ):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    fresh = apply(SimplificationPlan.from_json(plan.to_json()), case.model())
    fresh.load_state_dict(lean.state_dict())
    twin = copy.deepcopy(lean)
    with torch.no_grad():
        for other in (fresh, twin):
            for expected, found in zip(
                tensors(inputs.call(lean)), tensors(inputs.call(other)), strict=True
            ):
                assert torch.equal(expected, found)
    assert plan_of(twin) == plan_of(fresh) == plan
    assert lean.state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize("name", ["Llama", "Llama, grouped queries"])
def test_a_lean_language_model_generates_the_same_tokens(name: str) -> None:
    model = CASES[name].model()
    lean = simplify(model, tokens())
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(model.generate(tokens(5), **options), lean.generate(tokens(5), **options))


def test_a_lean_model_of_hugging_face_trains_with_dropout_alive() -> None:
    model = CASES["BERT"].model().train()
    lean = simplify(model, tokens())
    assert lean.training
    first, second = (lean(tokens())[0] for _ in range(2))
    assert not torch.equal(first, second)
    first.sum().backward()
    assert all(p.grad is not None for n, p in lean.named_parameters() if "pooler" not in n)


def test_tied_parameters_stay_tied() -> None:
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=100, n_embd=32, n_layer=1, n_head=4)
    model = transformers.GPT2LMHeadModel(config).eval()
    lean = simplify(model, tokens())
    assert lean.lm_head.weight is lean.transformer.wte.weight
    assert size(lean) == size(model)


def test_linear_layers_with_their_inputs_first_are_narrowed() -> None:
    """GPT-2 has those of its first implementation."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=100, n_embd=32, n_layer=2, n_head=4)
    model = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for block in model.transformer.h:
            block.mlp.c_fc.weight[:, :70] = block.mlp.c_fc.bias[:70] = 0
    lean = simplify(model, tokens())
    assert type(lean) is type(model)
    layer = lean.transformer.h[1].mlp.c_fc
    assert (layer.nx, layer.nf, *layer.weight.shape) == (32, 58, 32, 58)
    assert lean.transformer.h[1].mlp.c_proj.weight.shape == (58, 32)
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(model.generate(tokens(5), **options), lean.generate(tokens(5), **options))
    optimizer = torch.optim.AdamW(model.parameters())
    model(tokens(), labels=tokens()).loss.backward()
    optimizer.step()
    simplify(model, tokens(), optimizer=optimizer)
    assert all(
        p.shape == optimizer.state[p]["exp_avg"].shape for p in optimizer.param_groups[0]["params"]
    )


HEADS = (
    "query",
    "key",
    "value",
    "q",
    "k",
    "v",
    "q_proj",
    "k_proj",
    "v_proj",
    "query_proj",
    "key_proj",
    "value_proj",
)
COUPLED = {
    "GPT-2": ("GPT2LMHeadModel", "GPT2Config", {"vocab_size": 100, "n_embd": 32, "n_layer": 1, "n_head": 4}, tokens),
    "T5": ("T5Model", "T5Config", CASES["T5"].options, CASES["T5"].inputs),
    "ALBERT": ("AlbertModel", "AlbertConfig", {"vocab_size": 100, "embedding_size": 16, **SMALL}, tokens),
    "DeBERTa": ("DebertaV2Model", "DebertaV2Config", {"vocab_size": 100, **SMALL}, tokens),
    "Swin": (
        "SwinModel", "SwinConfig",
        {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [2], "num_heads": [4], "window_size": 4},
        image,
    ),
    "Qwen3": (
        "Qwen3ForCausalLM", "Qwen3Config", {"vocab_size": 100, "num_key_value_heads": 2, "head_dim": 8, **SMALL},
        tokens,
    ),
}  # fmt: skip
"""Models whose heads go: classes of model and configuration, options, inputs."""


def rows(layer: nn.Module) -> Tensor:
    """The weight with its neurons first."""
    return layer.weight.T if type(layer).__name__ == "Conv1D" else layer.weight


@torch.no_grad()
def kill_halves(layer: nn.Module, parts: int) -> None:
    """The first half of the neurons of each part of a layer dies."""
    for tensor in (rows(layer), *([] if layer.bias is None else [layer.bias])):
        for part in tensor.chunk(parts):
            part[: len(part) // 2] = 0


@pytest.mark.parametrize("name", COUPLED)
def test_heads_of_a_model_of_hugging_face_go(name: str) -> None:
    kind, config, options, inputs = COUPLED[name]
    torch.manual_seed(0)
    model = getattr(transformers, kind)(getattr(transformers, config)(**options)).double().eval()
    projections = []
    for at, layer in model.named_modules():
        last = at.rpartition(".")[2]
        if last in (*HEADS, "c_attn"):
            projections += [at]
            kill_halves(layer, parts=3 if last == "c_attn" else 1)
    example = Inputs.of(inputs()).map(lambda x: x.double() if x.is_floating_point() else x)
    lean = simplify(model, example)
    assert type(lean) is type(model)
    assert projections
    for at in projections:
        before, after = (rows(m.get_submodule(at)) for m in (model, lean))
        assert 2 * len(after) == len(before), at
    with torch.no_grad():
        for expected, found in zip(
            tensors(example.call(model)), tensors(example.call(lean)), strict=True
        ):
            scale = float(expected.abs().max())
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-9 * scale)


class FusedAttention(nn.Module):
    """Attention with a fused projection, whose number of heads and width are attributes."""

    def __init__(self, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.attn_dim = heads, width // heads, width
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        qkv = self.qkv(x).reshape(n, t, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(n, t, self.attn_dim))


@pytest.mark.parametrize("dead", ["values", "all"])
def test_heads_of_a_fused_projection_go_and_attributes_follow(dead: str) -> None:
    model = randomise(
        nn.Sequential(nn.Linear(8, 32), FusedAttention(), nn.Linear(32, 4)).double(), generator(3)
    )
    with torch.no_grad():
        weight, bias = model[1].qkv.weight.view(3, 4, 8, 32), model[1].qkv.bias.view(3, 4, 8)
        parts = slice(2, 3) if dead == "values" else slice(0, 3)
        weight[parts, 1:3], bias[parts, 1:3] = 0, 0
    x = torch.randn(2, 6, 8, dtype=torch.float64, generator=generator(4))
    lean = simplify(model.eval(), x)
    assert type(lean[1]) is FusedAttention
    assert (lean[1].num_heads, lean[1].head_dim, lean[1].attn_dim) == (2, 8, 16)
    assert lean[1].qkv.weight.shape == (48, 32)
    assert model[1].num_heads == 4, "the model itself stays as it is"
    for length in (6, 3):
        y = torch.randn(3, length, 8, dtype=torch.float64, generator=generator(length))
        assert_same_outputs(model, lean, y, tolerance=1e-9)
    fresh = apply(SimplificationPlan.from_json(plan_of(lean).to_json()), nn.Sequential(
        nn.Linear(8, 32), FusedAttention(), nn.Linear(32, 4)
    ).double().eval())  # fmt: skip
    fresh.load_state_dict(lean.state_dict())
    assert_same_outputs(lean, fresh, x, tolerance=0.0)


class OwnNorm(nn.BatchNorm2d):
    """A BatchNorm that calls the functional form, and an activation."""

    def forward(self, x: Tensor) -> Tensor:
        statistics = self.running_mean, self.running_var
        return F.silu(
            F.batch_norm(x, *statistics, self.weight, self.bias, self.training, 0.1, self.eps)
        )


class Mixing(nn.BatchNorm2d):
    """A BatchNorm after which channels meet."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y - y.mean(1, keepdim=True)


class Blurring(nn.BatchNorm2d):
    """A BatchNorm after which positions meet."""

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(super().forward(x), 3, 1, 1)


@pytest.mark.parametrize("kind", [OwnNorm, Mixing, Blurring])
def test_a_norm_of_ones_own_is_narrowed_where_its_channels_stay_apart(
    kind: type[nn.BatchNorm2d],
) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), kind(8), nn.Conv2d(8, 4, 1)).double()
    model = randomise(model, generator(5)).eval()
    with torch.no_grad():
        model[0].weight[:4] = 0  # constants
        model[1].weight[6] = 0  # a scale of zero: whatever comes in is not read
    x = torch.randn(2, 3, 7, 8, dtype=torch.float64, generator=generator(6))
    lean = simplify(model, x)
    assert_same_outputs(model, lean, x, tolerance=1e-9)
    kept = lean.get_submodule("1").num_features
    assert kept == (3 if kind is OwnNorm else 8)
    batch = lean.train()(x)
    assert not torch.equal(batch, lean.eval()(x)), "the norm follows the mode"


class Nested(nn.Module):
    """A batch as a dictionary, and a list of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, batch: dict[str, Any], scale: float = 1.0) -> dict[str, Tensor]:
        both = self.a(batch["image"]) + self.b(batch["rest"][0])
        return {"logits": self.head(both.relu()) * scale}


def test_inputs_of_any_nesting() -> None:
    model = randomise(Nested().double(), generator(7)).eval()
    with torch.no_grad():
        for layer in (model.a, model.b):
            layer.weight[:6] = layer.bias[:6] = 0
    x = torch.randn(4, 8, dtype=torch.float64, generator=generator(8))
    batch = {"image": x, "rest": [x + 1]}
    for example in ((batch,), {"batch": batch}, Inputs((batch,), {"scale": 1.0})):
        lean = simplify(model, example)
        assert size(lean) < size(model)
        torch.testing.assert_close(
            lean(batch)["logits"], model(batch)["logits"], rtol=1e-9, atol=1e-9
        )


class WrongPath(nn.Module):
    """Tracing takes the other branch: a proxy is no Tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).relu()
        return self.second(y) if isinstance(y, Tensor) else self.second(-y)


def test_a_graph_that_computes_something_else_is_found() -> None:
    model = randomise(WrongPath().double(), generator(9)).eval()
    x = torch.randn(3, 4, dtype=torch.float64, generator=generator(10))
    assert not capture(model, x).runnable
    with torch.no_grad():
        model.first.weight[:5] = model.first.bias[:5] = 0
    lean = simplify(model, x)
    assert type(lean) is WrongPath
    assert lean.first.out_features == 3
    assert_same_outputs(model, lean, x, tolerance=1e-9)


class Residual(nn.Module):
    """Two convolutions around which a stream passes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two, self.head = (
            nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.two(self.one(x).relu()))


@pytest.mark.parametrize("keep", [False, True])
def test_the_class_is_kept_on_demand(keep: bool) -> None:
    model = randomise(Residual().double(), generator(11)).eval()
    with torch.no_grad():
        for layer, dead in ((model.stem, 3), (model.one, 4), (model.two, 5)):
            layer.weight[:dead] = layer.bias[:dead] = 0
    x = torch.randn(2, 3, 6, 7, dtype=torch.float64, generator=generator(12))
    lean = simplify(model, x, keep_class=keep)
    assert (type(lean) is Residual) == keep
    assert plan_of(lean).representation == ("module" if keep else "graph")
    assert lean.get_submodule("one").out_channels == 4
    assert_same_outputs(model, lean, x, tolerance=1e-9)
