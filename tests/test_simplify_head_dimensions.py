"""Dimensions inside heads of attention, in a model of its own class: gone where nothing needs them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from laws import assert_same_outputs, generator, randomise
from snello.simplification import SimplificationPlan, apply, plan_of, simplify

WIDTH, HEADS = 32, 4


class Attention(nn.Module):
    """Attention whose widths are attributes: one for queries and keys, and possibly another one."""

    def __init__(self, *, shared: bool = True, scale: float | None = 0.5, turned: bool = False):
        super().__init__()
        self.num_heads, self.head_dim = HEADS, WIDTH // HEADS
        if not shared:
            self.value_dim = 6
        values = HEADS * (self.head_dim if shared else 6)
        self.scale, self.turned = scale, turned
        self.norm = nn.Identity()
        self.q, self.k = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.v, self.out = nn.Linear(WIDTH, values), nn.Linear(values, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        shape = (*x.shape[:-1], self.num_heads, self.head_dim)
        q, k = (layer(x).view(shape).transpose(1, 2) for layer in (self.q, self.k))
        values = (*x.shape[:-1], self.num_heads, getattr(self, "value_dim", self.head_dim))
        v = self.v(x).view(values).transpose(1, 2)
        q, k = self.norm(q), self.norm(k)
        if self.turned:
            angle = torch.arange(x.shape[1], dtype=x.dtype)[:, None]
            q, k = rotated(q, angle), rotated(k, angle)
        scale = 1 / math.sqrt(self.head_dim) if self.scale is None else self.scale
        scores = torch.matmul(q, k.transpose(-1, -2)) * scale
        y = torch.matmul(scores.softmax(-1), v)
        return self.out(y.transpose(1, 2).flatten(2))


def rotated(x: Tensor, angle: Tensor) -> Tensor:
    """Rotary embedding: dimension i is turned together with dimension i + width / 2."""
    a, b = x.chunk(2, -1)
    return x * angle.cos() + torch.cat([-b, a], -1) * angle.sin()


class TwoWidths(Attention):
    """Both widths are in one tuple."""

    def __init__(self) -> None:
        super().__init__(shared=False)
        self.head_dims = self.head_dim, self.value_dim
        del self.head_dim, self.value_dim

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            layer(x).view(*x.shape[:-1], self.num_heads, width).transpose(1, 2)
            for layer, width in zip(
                (self.q, self.k, self.v), (self.head_dims[0], *self.head_dims), strict=True
            )
        )
        y = torch.matmul(torch.matmul(q, k.transpose(-1, -2)).softmax(-1), v)
        return self.out(y.transpose(1, 2).flatten(2))


def block(attention: nn.Module) -> nn.Module:
    model = nn.Sequential(nn.Linear(5, WIDTH), attention, nn.Linear(WIDTH, 3))
    return randomise(model, generator(1)).double().eval()


@torch.no_grad()
def kill(layer: nn.Linear, *dimensions: int) -> None:
    """These dimensions are zero in every head."""
    for parameter in (layer.weight, layer.bias):
        parameter.unflatten(0, (HEADS, -1))[:, list(dimensions)] = 0


def narrowed(model: nn.Module) -> Attention:
    """The attention of the lean model, after its outputs were compared at two sizes."""
    example = torch.randn(2, 6, 5, dtype=torch.float64, generator=generator(2))
    lean = simplify(model, example)
    assert type(lean) is type(model)
    for shape in ((2, 6, 5), (3, 9, 5)):
        x = torch.randn(shape, dtype=torch.float64, generator=generator(3))
        assert_same_outputs(model, lean, x, tolerance=1e-12)
    again = apply(SimplificationPlan.from_json(plan_of(lean).to_json()), model)
    assert {k: v.shape for k, v in again.state_dict().items()} == {
        k: v.shape for k, v in lean.state_dict().items()
    }
    return lean[1]


def rows(attention: Attention) -> tuple[int, ...]:
    return tuple(len(getattr(attention, name).weight) // HEADS for name in "qkv")


def test_one_width_of_queries_keys_and_values() -> None:
    model = block(Attention())
    for layer in (model[1].q, model[1].k, model[1].v):
        kill(layer, 1, 2, 6)
    kill(model[1].v, 0)  # queries and keys need this one, and all share a width
    lean = narrowed(model)
    assert rows(lean) == (5, 5, 5)
    assert (lean.num_heads, lean.head_dim, lean.out.in_features) == (HEADS, 5, 5 * HEADS)
    kept = [0, 3, 4, 5, 7]
    weight = model[1].q.weight.unflatten(0, (HEADS, -1))[:, kept].flatten(0, 1)
    assert torch.equal(lean.q.weight, weight)
    assert model[1].head_dim == 8, "the model itself stays as it is"


def test_each_width_by_itself() -> None:
    """Scores need a dimension only if both queries and keys have it."""
    model = block(Attention(shared=False))
    kill(model[1].q, 1, 2)
    kill(model[1].k, 5)
    kill(model[1].v, 0, 3, 4)
    lean = narrowed(model)
    assert rows(lean) == (5, 5, 3)
    assert (lean.head_dim, lean.value_dim, lean.out.in_features) == (5, 3, 3 * HEADS)


def test_both_widths_in_one_tuple() -> None:
    model = block(TwoWidths())
    for layer in (model[1].q, model[1].k):
        kill(layer, 1, 2)
    kill(model[1].v, 0, 3, 4)
    lean = narrowed(model)
    assert rows(lean) == (6, 6, 3)
    assert lean.head_dims == (6, 3)


def test_heads_and_their_dimensions() -> None:
    model = block(Attention())
    for layer in (model[1].q, model[1].k, model[1].v):
        kill(layer, 4, 5)
        with torch.no_grad():
            layer.weight[:16], layer.bias[:16] = 0, 0
    lean = narrowed(model)
    assert (lean.num_heads, lean.head_dim, lean.q.out_features) == (2, 6, 12)


@pytest.mark.parametrize(
    "attention",
    [
        lambda: Attention(scale=None),
        lambda: with_norm(Attention()),
        lambda: Attention(turned=True),
        lambda: Attention(shared=False),
    ],
    ids=[
        "the scale follows the width",
        "a norm over each head",
        "a rotary embedding",
        "dead in one head alone",
    ],
)
def test_what_is_left_alone(attention) -> None:
    model = block(attention())
    if hasattr(model[1], "value_dim"):
        with torch.no_grad():
            model[1].v.weight[2], model[1].v.bias[2] = 0, 0
    else:
        for layer in (model[1].q, model[1].k, model[1].v):
            kill(layer, 1, 2)
    lean = narrowed(model)
    assert rows(lean) == rows(model[1])
    assert lean.head_dim == model[1].head_dim


def with_norm(attention: Attention) -> Attention:
    attention.norm = nn.LayerNorm(attention.head_dim, elementwise_affine=False)
    return attention


def test_constants_other_than_zero_stay() -> None:
    model = block(Attention(shared=False))
    kill(model[1].v, 1)
    with torch.no_grad():
        model[1].v.bias[1] = 0.3
    assert rows(narrowed(model)) == (8, 8, 6)


def test_a_neuron_that_reads_constants_alone_is_not_zero() -> None:
    model = block(Attention(shared=False))
    kill(model[1].q, 1, 2)
    with torch.no_grad():
        model[0].weight[0], model[0].bias[0] = 0, 0.7
        model[1].q.weight[1, 0] = 2  # dimension 1 of the first head is a constant
    assert rows(narrowed(model)) == (7, 7, 6)


def test_single_heads_of_hugging_face() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.SegformerConfig(
        hidden_sizes=[16], depths=[1], num_encoder_blocks=1, num_attention_heads=[1], sr_ratios=[2],
        patch_sizes=[7], strides=[4], mlp_ratios=[4], decoder_hidden_size=16,
    )  # fmt: skip
    model = transformers.SegformerModel(config).double().eval()
    attention = next(m for m in model.modules() if type(m).__name__ == "SegformerAttention")
    with torch.no_grad():
        for layer in (attention.q_proj, attention.k_proj, attention.v_proj):
            layer.weight[:8], layer.bias[:8] = 0, 0
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64, generator=generator(5))
    lean = simplify(model, x)
    found = next(m for m in lean.modules() if type(m).__name__ == "SegformerAttention")
    assert found.q_proj.weight.shape == (8, 16)
    assert_same_outputs(
        nn.Sequential(model, Last()), nn.Sequential(lean, Last()), x, tolerance=1e-9
    )


class Last(nn.Module):
    def forward(self, output) -> Tensor:
        return output.last_hidden_state
