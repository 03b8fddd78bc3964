"""Laws of simplification inside attention: queries, keys, values, heads, position biases,
windows.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from laws import difference, generator, parameter_count
from snello.graph import capture
from snello.neurons import weighted_layers
from snello.simplification import SimplificationPlan, apply, plan_of, simplify

swin = pytest.importorskip("torchvision.models.swin_transformer")

WIDTH, HEADS = 12, 3
Build = Callable[[], nn.Module]


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """In float64, evaluation mode, with random parameters: several of torchvision's start at
    zero.
    """
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator(seed)))
            seed += 1
    return model.double().eval()


class MultiheadBlock(nn.Module):
    """LayerNorm, self-attention, residual."""

    def __init__(
        self, *, batch_first: bool = True, bias: bool = True, need_weights: bool = False
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, bias=bias, batch_first=batch_first)
        self.need_weights, self.head = need_weights, nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        y, _ = self.attention(y, y, y, need_weights=self.need_weights)
        return self.head(x + y)


class MultiheadAlone(nn.Module):
    """Between two layers: the input is narrowed, constants other than zero included, and so is the
    output.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, WIDTH), nn.Linear(WIDTH, 4)
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.last(self.attention(query=y, key=y, value=y, need_weights=False)[0])


class WindowBlock(nn.Module):
    """LayerNorm, window attention, residual."""

    def __init__(self, kind: type[nn.Module], shift: int = 2, bias: bool = True) -> None:
        super().__init__()
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 4)
        self.attention = kind(WIDTH, [4, 4], [shift, shift], HEADS, qkv_bias=bias, proj_bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + self.attention(self.norm(x)))


class WindowAlone(nn.Module):
    """Between two layers: constant inputs are not constant at the tokens that pad the last
    window.
    """

    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, WIDTH), nn.Linear(WIDTH, 4)
        self.attention = kind(WIDTH, [4, 3], [2, 1], HEADS)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.attention(self.first(x)))


V1, V2 = swin.ShiftedWindowAttention, swin.ShiftedWindowAttentionV2
BLOCKS: dict[str, tuple[Build, Sequence[tuple[int, ...]]]] = {
    "multihead": (MultiheadBlock, ((2, 7, WIDTH), (3, 5, WIDTH))),
    "multihead, batch second": (lambda: MultiheadBlock(batch_first=False), ((7, 2, WIDTH), (5, 3, WIDTH))),
    "multihead, no bias": (lambda: MultiheadBlock(bias=False), ((2, 7, WIDTH), (3, 5, WIDTH))),
    "multihead, weights not read": (lambda: MultiheadBlock(need_weights=True), ((2, 7, WIDTH), (3, 5, WIDTH))),
    "multihead, alone": (MultiheadAlone, ((2, 7, 5), (3, 6, 5))),
    "windows": (lambda: WindowBlock(V1, shift=0), ((2, 8, 8, WIDTH), (1, 5, 9, WIDTH), (1, 3, 4, WIDTH))),
    "windows, shifted": (lambda: WindowBlock(V1), ((2, 8, 8, WIDTH), (1, 7, 10, WIDTH), (2, 4, 9, WIDTH))),
    "windows, no bias": (lambda: WindowBlock(V1, bias=False), ((2, 8, 8, WIDTH), (1, 7, 10, WIDTH))),
    "windows, alone": (lambda: WindowAlone(V1), ((2, 8, 6, 5), (1, 7, 10, 5), (2, 4, 3, 5))),
    "cosine": (lambda: WindowBlock(V2, shift=0), ((2, 8, 8, WIDTH), (1, 5, 9, WIDTH), (1, 3, 4, WIDTH))),
    "cosine, shifted": (lambda: WindowBlock(V2), ((2, 8, 8, WIDTH), (1, 7, 10, WIDTH), (2, 4, 9, WIDTH))),
    "cosine, no bias": (lambda: WindowBlock(V2, bias=False), ((2, 8, 8, WIDTH), (1, 7, 10, WIDTH))),
    "cosine, alone": (lambda: WindowAlone(V2), ((2, 8, 6, 5), (1, 7, 10, 5), (2, 4, 3, 5))),
}  # fmt: skip


def packed(attention: Any) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
    """Weight and bias of the packed projection and of the output projection."""
    if isinstance(attention, nn.MultiheadAttention):
        own = attention.in_proj_weight, attention.in_proj_bias
        return *own, attention.out_proj.weight, attention.out_proj.bias
    return attention.qkv.weight, attention.qkv.bias, attention.proj.weight, attention.proj.bias


@torch.no_grad()
def kill_rows(
    attention: nn.Module, rows: Sequence[int], biases: bool, outputs: Sequence[int] = ()
) -> None:
    """Zero rows of the packed projection and of the output projection, and their biases."""
    weight, bias, out_weight, out_bias = packed(attention)
    for tensor, vector, dead in ((weight, bias, rows), (out_weight, out_bias, outputs)):
        tensor[list(dead)] = 0
        if biases and vector is not None:
            vector[list(dead)] = 0


@torch.no_grad()
def kill_at_random(model: nn.Module, share: float, biases: bool, seed: int) -> None:
    """Rows of every layer but the head; with a chance, also whole heads, columns, and the whole
    module.
    """
    g = generator(seed)
    for name, layer in weighted_layers(model).items():
        if name not in ("head", "last"):
            dead = torch.rand(len(layer.weight), generator=g) < share
            layer.weight[dead] = 0
            if biases and layer.bias is not None:
                layer.bias[dead] = 0
    for module in model.modules():
        if isinstance(module, (nn.MultiheadAttention, V1)):
            weight, _, out_weight, _ = packed(module)
            part = torch.rand(len(weight), generator=g) < share
            width = len(weight) // (3 * module.num_heads)
            head = (torch.rand(3 * module.num_heads, generator=g) < 0.5 * share).repeat_interleave(
                width
            )
            kill_rows(module, (part | head).nonzero().flatten().tolist(), biases)
            out_weight[:, torch.rand(len(out_weight), generator=g) < 0.3 * share] = 0


def assert_same(model: nn.Module, lean: nn.Module, shapes: Sequence[tuple[int, ...]]) -> None:
    for shape in shapes:
        x = torch.randn(shape, dtype=torch.float64, generator=generator(1))
        with torch.no_grad():
            assert difference(model(x), lean(x)) < 1e-9, shape


def lean_of(model: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    return simplify(model, torch.randn(shape, dtype=torch.float64, generator=generator(2)))


@pytest.mark.sampled(5)
@pytest.mark.parametrize("name", BLOCKS)
@settings(max_examples=12, deadline=None)
@given(share=st.sampled_from([0.2, 0.5, 0.8, 1.0]), biases=st.booleans(), seed=st.integers(0, 999))
def test_any_dead_rows_heads_and_columns(name: str, share: float, biases: bool, seed: int) -> None:
    build, shapes = BLOCKS[name]
    model = randomised(build(), seed)
    kill_at_random(model, share, biases, seed)
    lean = lean_of(model, shapes[0])
    assert_same(model, lean, shapes)
    assert parameter_count(lean) < parameter_count(model)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", BLOCKS)
def test_nothing_dead_nothing_changed(name: str) -> None:
    build, shapes = BLOCKS[name]
    model = randomised(build())
    lean = lean_of(model, shapes[0])
    assert type(lean.attention) is type(model.attention)
    assert not plan_of(lean).attentions


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", BLOCKS)
def test_save_build_load(name: str) -> None:
    build, shapes = BLOCKS[name]
    model = randomised(build())
    kill_at_random(model, 0.5, biases=False, seed=3)
    lean = lean_of(model, shapes[0])
    plan = SimplificationPlan.from_json(plan_of(lean).to_json())
    assert plan == plan_of(lean)
    assert "attention" in str(plan)
    fresh = apply(plan, build().double().eval())
    fresh.load_state_dict(lean.state_dict())
    assert_same(lean, fresh, shapes)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", BLOCKS)
def test_the_lean_one_can_be_narrowed_again(name: str) -> None:
    build, shapes = BLOCKS[name]
    model = randomised(build())
    kill_at_random(model, 0.4, biases=False, seed=5)
    lean = lean_of(model, shapes[0])
    assert not plan_of(lean_of(lean, shapes[0])).attentions
    attention = lean.attention
    weight = (
        attention.in_proj_weight if hasattr(attention, "in_proj_weight") else attention.qkv.weight
    )
    out = attention.out_proj if hasattr(attention, "out_proj") else attention.proj
    with torch.no_grad():
        weight[::2] = 0
        out.weight[::3] = 0
    leaner = lean_of(lean, shapes[0])
    assert_same(lean, leaner, shapes)
    narrower, before = (plan_of(m).attentions["attention"] for m in (leaner, lean))
    assert set(narrower.rows) < set(before.rows)
    assert parameter_count(leaner) < parameter_count(lean)


def _gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor | None]:
    model.zero_grad()
    y = model(x)
    (y * torch.randn(y.shape, dtype=y.dtype, generator=generator(9))).sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", [name for name in BLOCKS if "alone" not in name])
def test_same_gradients(name: str) -> None:
    build, shapes = BLOCKS[name]
    model = randomised(build())
    kill_at_random(model, 0.5, biases=False, seed=4)
    lean = lean_of(model, shapes[0])
    plan = plan_of(lean).attentions["attention"]
    x = torch.randn(shapes[1], dtype=torch.float64, generator=generator(1))
    expected, found = _gradients(model, x), _gradients(lean, x)
    size = plan.heads * plan.width
    values = [row - 2 * size for row in plan.rows if row >= 2 * size]
    heads, biased = list(plan.kept_heads), list(plan.kept_heads[: plan.biased])
    names = ("in_proj_", "out_proj.") if "multihead" in name else ("qkv.", "proj.")
    parts: dict[str, Callable[[Tensor], Tensor]] = {
        f"{names[0]}weight": lambda g: g[list(plan.rows)][:, list(plan.kept_inputs)],
        f"{names[0]}bias": lambda g: g[list(plan.rows)],
        f"{names[1]}weight": lambda g: g[list(plan.kept_outputs)][:, values],
        f"{names[1]}bias": lambda g: g[list(plan.kept_outputs)],
        "relative_position_bias_table": lambda g: g[:, heads],
        "logit_scale": lambda g: g[heads],
        "cpb_mlp.0.weight": lambda g: g[list(plan.hidden)],
        "cpb_mlp.2.weight": lambda g: g[biased][:, list(plan.hidden)],
    }
    compared = 0
    for key, part in parts.items():
        if (whole := expected.get(f"attention.{key}")) is not None and (key != f"{names[1]}bias"):
            torch.testing.assert_close(
                found[f"attention.{key}"], part(whole), rtol=1e-9, atol=1e-12
            )
            compared += 1
    assert compared >= (2 if "no bias" in name else 3)


def test_how_much_goes() -> None:
    """3 heads of 4: what is left is counted by hand."""
    model = randomised(MultiheadBlock())
    queries, keys, values = 0, WIDTH, 2 * WIDTH
    dead = [
        queries
        + 0,  # a constant other than zero: the weights go, the constant stays, and the key with it
        keys + 1,  # a constant: goes, and its query with it
        values + 2,  # a constant: goes, and its column
        *range(
            values + 4, values + 8
        ),  # all values of the second head: it goes with queries and keys
    ]
    kill_rows(model.attention, dead, biases=False, outputs=[0, 5, 6])
    lean = lean_of(model, (2, 7, WIDTH))
    rows = (2 + 4) + (3 + 4) + (3 + 4)  # queries, keys, values of the first and the third head
    expected = rows * WIDTH + rows + (WIDTH - 3) * (3 + 4) + (WIDTH - 3)
    assert parameter_count(lean.attention) == expected
    assert lean.attention.constant.tolist() == [model.attention.in_proj_bias[0].item()]
    assert plan_of(lean).attentions["attention"].kept_heads == (0, 2)


def test_a_query_that_is_zero_takes_its_key_along() -> None:
    model = randomised(MultiheadBlock())
    kill_rows(model.attention, [0], biases=True)
    lean = lean_of(model, (2, 7, WIDTH))
    assert len(lean.attention.in_proj_weight) == 3 * WIDTH - 2
    assert lean.attention.constant is None


def test_dimensions_that_count_in_a_norm_stay() -> None:
    """Cosine attention: a zero query still leaves its key in the key's norm."""
    model = randomised(WindowBlock(V2))
    kill_rows(model.attention, [0, 1, WIDTH + 1], biases=True)
    lean = lean_of(model, (1, 8, 8, WIDTH))
    rows = plan_of(lean).attentions["attention"].rows
    assert set(range(3 * WIDTH)) - set(rows) == {0, 1, WIDTH + 1}
    assert_same(model, lean, [(1, 8, 8, WIDTH), (2, 5, 6, WIDTH)])


def test_queries_and_keys_without_a_common_dimension_all_go() -> None:
    model = randomised(WindowBlock(V2))
    kill_rows(model.attention, [0, 1, WIDTH + 2, WIDTH + 3], biases=True)
    lean = lean_of(model, (1, 8, 8, WIDTH))
    rows = plan_of(lean).attentions["attention"].rows
    assert set(range(3 * WIDTH)) - set(rows) == {0, 1, 2, 3, *range(WIDTH, WIDTH + 4)}
    assert_same(model, lean, [(1, 8, 8, WIDTH), (2, 5, 6, WIDTH)])


def test_position_network_of_cosine_attention_is_narrowed() -> None:
    model = randomised(WindowBlock(V2))
    network = model.attention.cpb_mlp
    with torch.no_grad():
        network[0].weight[:500] = 0  # constants: folded
        network[2].weight[1] = 0  # the same bias at every place
    lean = lean_of(model, (1, 8, 8, WIDTH))
    assert lean.attention.cpb_mlp[0].weight.shape == (12, 2)
    assert lean.attention.cpb_mlp[2].weight.shape == (2, 12)
    assert plan_of(lean).attentions["attention"].kept_heads == (0, 2, 1)
    assert_same(model, lean, [(1, 8, 8, WIDTH), (2, 5, 6, WIDTH)])


@pytest.mark.parametrize("kind", [V1, V2])
def test_constant_inputs_are_not_constant_among_padded_tokens(kind: type[nn.Module]) -> None:
    """Tokens that pad a window are zero: a row that reads nothing but constants still tells them
    apart.
    """
    model = randomised(WindowAlone(kind))
    with torch.no_grad():
        model.first.weight[:] = 0
    lean = lean_of(model, (1, 8, 6, 5))
    assert_same(model, lean, [(1, 8, 6, 5), (2, 7, 10, 5), (1, 3, 2, 5)])


def test_even_heads_are_not_moved() -> None:
    model = randomised(MultiheadBlock())
    kill_rows(model.attention, [0, 5, 10, 2 * WIDTH, 2 * WIDTH + 4, 2 * WIDTH + 8], biases=True)
    attention = lean_of(model, (2, 7, WIDTH)).attention
    assert attention.slots is None
    assert attention.columns is None


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda a, y, m: a(y, y, y)[1], "weights are read"),
        (
            lambda a, y, m: a(
                y, y, y, attn_mask=m.expand(y.shape[0] * HEADS, 6, 6), need_weights=False
            )[0],
            "one mask for all heads",
        ),
        (lambda a, y, m: a(y, y + 1, y, need_weights=False)[0], "not self-attention"),
    ],
)
def test_other_uses_are_left_alone_and_named(call: Callable[..., Tensor], reason: str) -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.attention = (
                nn.Linear(5, WIDTH),
                nn.MultiheadAttention(WIDTH, HEADS, batch_first=True),
            )
            self.register_buffer("mask", torch.zeros(6, 6))

        def forward(self, x: Tensor) -> Tensor:
            return call(self.attention, self.first(x), self.mask)

    model = randomised(Other())
    kill_at_random(model, 0.5, biases=False, seed=0)
    lean = lean_of(model, (2, 6, 5))
    assert isinstance(lean.attention, nn.MultiheadAttention)
    assert reason in plan_of(lean).left_alone["attention"]
    assert_same(model, lean, [(2, 6, 5), (3, 6, 5)])


@pytest.mark.parametrize(
    "arguments", [{"add_zero_attn": True}, {"add_bias_kv": True}, {"kdim": WIDTH, "vdim": 5}]
)
def test_unusual_modules_are_left_alone(arguments: dict[str, Any]) -> None:
    class Unusual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.value = nn.Linear(5, WIDTH), nn.Linear(5, arguments.get("vdim", WIDTH))
            self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, **arguments)

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            value = self.value(x) if "vdim" in arguments else y
            return self.attention(y, y, value, need_weights=False)[0]

    model = randomised(Unusual())
    with torch.no_grad():
        model.first.weight[::2] = 0
    lean = lean_of(model, (2, 6, 5))
    assert "attention" in plan_of(lean).left_alone
    assert_same(model, lean, [(2, 6, 5), (3, 7, 5)])


def test_an_attention_called_twice_is_left_alone() -> None:
    class Twice(MultiheadBlock):
        def forward(self, x: Tensor) -> Tensor:
            for _ in range(2):
                y = self.norm(x)
                x = x + self.attention(y, y, y, need_weights=False)[0]
            return self.head(x)

    model = randomised(Twice())
    kill_at_random(model, 0.5, biases=False, seed=0)
    lean = lean_of(model, (2, 6, WIDTH))
    assert "more than once" in plan_of(lean).left_alone["attention"]
    assert_same(model, lean, [(2, 6, WIDTH)])


@pytest.mark.parametrize("name", ["multihead", "windows, shifted", "cosine, shifted"])
def test_dropout_stays_active_in_training(name: str) -> None:
    build, shapes = BLOCKS[name]
    model = randomised(build())
    kill_at_random(model, 0.3, biases=False, seed=1)
    model.attention.dropout = model.attention.attention_dropout = 0.5
    lean = lean_of(model, shapes[0]).train()
    x = torch.randn(shapes[0], dtype=torch.float64, generator=generator(1))
    assert not torch.equal(lean(x), lean(x))
    assert torch.equal(lean.eval()(x), lean(x))


@pytest.mark.parametrize("name", ["multihead", "windows, shifted", "cosine, shifted"])
def test_an_optimizer_goes_on(name: str) -> None:
    build, shapes = BLOCKS[name]
    model = randomised(build())
    kill_at_random(model, 0.5, biases=True, seed=1)
    x = torch.randn(shapes[0], dtype=torch.float64, generator=generator(1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.0)
    model(x).square().sum().backward()
    optimizer.step()
    weight = packed(model.attention)[0]
    moments = optimizer.state[weight]["exp_avg"]
    lean = simplify(model, x, optimizer=optimizer)
    rows = list(plan_of(lean).attentions["attention"].rows)
    slim = lean.attention.in_proj_weight if name == "multihead" else lean.attention.qkv.weight
    assert torch.equal(optimizer.state[slim]["exp_avg"], moments[rows])
    lean(x).square().sum().backward()
    optimizer.step()
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert {id(parameter) for parameter in lean.parameters()} <= held


@pytest.mark.parametrize("name", ["multihead", "windows, shifted", "cosine, shifted"])
def test_runs_in_half_precision_and_copies(name: str) -> None:
    build, shapes = BLOCKS[name]
    model = randomised(build()).float()
    kill_at_random(model, 0.5, biases=False, seed=1)
    x = torch.randn(shapes[0], generator=generator(1))
    lean = simplify(model, x)
    torch.testing.assert_close(copy.deepcopy(lean)(x), model(x), rtol=1e-4, atol=1e-4)
    inner = (x, x, x) if name == "multihead" else (x,)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = lean.attention(*inner)
    whole = lean.attention(*inner)
    half, whole = (half[0], whole[0]) if name == "multihead" else (half, whole)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(
        half.float(), whole, rtol=0.1, atol=0.1 * float(whole.detach().abs().max())
    )
    exported = torch.export.export(lean, (x,)).module()
    torch.testing.assert_close(exported(x), lean(x))


def small_swin(block: Any, merging: Any) -> nn.Module:
    return swin.SwinTransformer(
        patch_size=[4, 4], embed_dim=24, depths=[2, 2], num_heads=[2, 4], window_size=[4, 4], num_classes=5,
        block=block, downsample_layer=merging,
    )  # fmt: skip


def small_vit() -> nn.Module:
    from torchvision.models import VisionTransformer

    arguments = {"num_layers": 2, "num_heads": 4, "hidden_dim": 32, "mlp_dim": 64, "num_classes": 5}
    return VisionTransformer(image_size=32, patch_size=8, **arguments)


NETWORKS: dict[str, tuple[Build, Sequence[tuple[int, ...]]]] = {
    "swin": (
        lambda: small_swin(swin.SwinTransformerBlock, swin.PatchMerging), ((2, 3, 32, 32), (1, 3, 44, 52))
    ),
    "swin v2": (
        lambda: small_swin(swin.SwinTransformerBlockV2, swin.PatchMergingV2), ((2, 3, 32, 32), (1, 3, 44, 52))
    ),
    "vit": (small_vit, ((2, 3, 32, 32), (3, 3, 32, 32))),
}  # fmt: skip


@pytest.mark.sampled(2)
@pytest.mark.parametrize("share", [0.5, 0.9])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name: str, share: float) -> None:
    build, shapes = NETWORKS[name]
    model = randomised(build())
    kill_at_random(model, share, biases=False, seed=2)
    lean = lean_of(model, shapes[0])
    assert_same(model, lean, shapes)
    attentions = [
        name for name, m in model.named_modules() if isinstance(m, (nn.MultiheadAttention, V1))
    ]
    plan = plan_of(lean)
    assert not [name for name in attentions if name in plan.left_alone]
    for attention in attentions:
        weight, _, out_weight, _ = packed(model.get_submodule(attention))
        kept = plan.attentions[attention]
        assert not [row for row in kept.rows if not weight[row].any()]
        dead = [row for row in kept.kept_outputs if not out_weight[row].any()]
        # Where nothing is left at all, the norm behind needs one channel for its shape.
        assert not dead or not kept.kept_heads


def test_window_attention_is_one_node() -> None:
    names = [node.name for node in capture(WindowBlock(V2)).nodes]
    assert names == ["x", "norm", "attention", "add", "head", "output"]


def test_the_lean_one_follows_the_formula() -> None:
    """Against attention written out with the masked weights, independent of torch's module."""
    model = randomised(MultiheadBlock())
    kill_at_random(model, 0.5, biases=False, seed=8)
    weight, bias, out_weight, out_bias = packed(model.attention)
    x = torch.randn(2, 7, WIDTH, dtype=torch.float64, generator=generator(1))
    y = model.norm(x)
    q, k, v = (
        t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in F.linear(y, weight, bias).chunk(3, -1)
    )
    scores = (q @ k.transpose(-2, -1) / (WIDTH // HEADS) ** 0.5).softmax(-1)
    attended = F.linear((scores @ v).transpose(1, 2).flatten(2), out_weight, out_bias)
    lean = lean_of(model, (2, 7, WIDTH))
    torch.testing.assert_close(lean(x), model.head(x + attended), rtol=1e-9, atol=1e-9)
