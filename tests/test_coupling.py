"""Laws of coupled channels: a network without them computes what the masked one does."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from random_graphs import network, seeded
from snello.errors import ConfigError, ModelError
from snello.graph import Coupling, Inputs, coupling, cut
from snello.graph.coupled import reference
from snello.graph.coupled.trial import randomised
from snello.graph.twins import tensors_of
from snello.lab.models import CifarResNet
from snello.simplification import SimplificationPlan, apply, coupled_plan
from zoo import ZOO

Build = Callable[[], tuple[nn.Module, object]]


def in_float64(model: nn.Module, example: object) -> tuple[nn.Module, Inputs]:
    inputs = Inputs.of(example).map(lambda x: x.double() if x.is_floating_point() else x)
    return randomised(model.eval()).double(), inputs


def some(groups: Coupling, seed: int, share: float = 0.5) -> dict[str, list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return {
        d.name: torch.randperm(d.width, generator=generator)[: int(share * d.width)].tolist()
        for d in groups.free
    }


def relative(found: list[Tensor], expected: list[Tensor]) -> float:
    pairs = [(a, b) for a, b in zip(found, expected, strict=True) if a.is_floating_point()]
    assert all(a.shape == b.shape for a, b in pairs)
    return max(float((a - b).abs().max() / b.abs().max().clamp_min(1e-30)) for a, b in pairs)


def outputs(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    with torch.no_grad():
        return tensors_of(inputs.map(torch.clone).call(model.eval()))


def expected_shapes(
    model: nn.Module, groups: Coupling, removed: dict[str, list[int]]
) -> dict[str, torch.Size]:
    gone: dict[tuple[str, int], set[int]] = {}
    for name, indices in removed.items():
        for member in groups[name].parameters:
            gone.setdefault((member.name, member.axis), set()).update(member.of(indices))
    shapes = {name: list(p.shape) for name, p in model.named_parameters()}
    for (name, axis), indices in gone.items():
        if name in shapes:
            shapes[name][axis] -= len(indices)
    return {name: torch.Size(shape) for name, shape in shapes.items()}


def named(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def check(model: nn.Module, example: object, *, tolerance: float = 1e-9) -> Coupling:
    """The law: cutting computes the masked outputs, and narrows every reader and writer."""
    model, inputs = in_float64(model, example)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    groups = coupling(model, inputs)
    for seed in range(2):
        removed = some(groups, seed)
        lean = cut(model, groups, removed, inputs)
        assert type(lean) is type(model)
        assert {type(m) for m in lean.modules()} == {type(m) for m in model.modules()}
        expected = reference(model, groups, removed, inputs)
        assert relative(outputs(lean, inputs), expected) <= tolerance
        shapes = {name: p.shape for name, p in lean.named_parameters()}
        assert shapes == expected_shapes(model, groups, removed)
        for name in (name for name, indices in removed.items() if indices):
            for member in groups[name].parameters:
                before, after = named(model)[member.name], named(lean)[member.name]
                assert after.shape[member.axis] < before.shape[member.axis]
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    return groups


@pytest.mark.sampled(7)
@pytest.mark.parametrize("name", ZOO)
def test_cutting_is_exact_on_the_zoo(name: str) -> None:
    sample = ZOO[name]
    groups = check(sample.build(), torch.randn(sample.shapes[0]))
    assert groups.free


@pytest.mark.parametrize("block", range(3))
def test_cutting_is_exact_on_random_graphs(block: int) -> None:
    for seed in range(20 * block, 20 * block + 20):
        drawn = seeded(seed)
        model = network(drawn).eval()
        x = torch.randn(drawn.shapes()[0], dtype=torch.float64)
        groups = coupling(model, x)
        removed = some(groups, seed)
        lean = cut(model, groups, removed, x)
        expected = reference(model, groups, removed, x)
        assert relative(outputs(lean, Inputs.of(x)), expected) <= 1e-9, f"seeded({seed})"


def test_a_channel_that_has_no_slice_in_a_parameter_is_masked() -> None:
    """In this network, one parameter belongs to a dimension, but not to each of its channels."""
    drawn = seeded(135)
    model, x = network(drawn).eval(), torch.randn(drawn.shapes()[0], dtype=torch.float64)
    groups = coupling(model, x)
    removed = some(groups, 135)
    expected = reference(model, groups, removed, x)
    assert relative(outputs(cut(model, groups, removed), Inputs.of(x)), expected) <= 1e-9


class Attention(nn.Module):
    """Heads by hand, on a stream with a pre-norm."""

    def __init__(self, *, sdpa: bool, heads: int = 4) -> None:
        super().__init__()
        self.sdpa, self.num_heads, self.head_dim = sdpa, heads, 6
        self.embed, self.norm = nn.Linear(5, 12), nn.LayerNorm(12)
        self.qkv, self.proj = nn.Linear(12, 3 * heads * 6), nn.Linear(heads * 6, 12)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        b, n, _ = x.shape
        qkv = self.qkv(self.norm(x)).reshape(b, n, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        y = (
            F.scaled_dot_product_attention(q, k, v)
            if self.sdpa
            else (q @ k.transpose(-2, -1) * 0.3).softmax(-1) @ v
        )
        return self.head(x + self.proj(y.transpose(1, 2).flatten(2)))


@pytest.mark.parametrize("sdpa", [True, False])
def test_heads_and_head_dimensions_are_dimensions_of_their_own(sdpa: bool) -> None:
    groups = check(Attention(sdpa=sdpa), torch.randn(2, 7, 5))
    widths = {d.kind: d.width for d in groups.free}
    assert widths == {"channels": 12, "heads": 4, "head_dim": 6}
    heads = next(d for d in groups.free if d.kind == "heads")
    qkv = next(m for m in heads.members if m.name == "qkv.weight" and m.axis == 0)
    assert qkv.indices[1] == tuple(24 * part + 6 + d for part in range(3) for d in range(6))


class WidthOfKeys(nn.Module):
    """Attention that takes the width of its heads from the keys, as that of diffusers."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(5, 24) for _ in range(3))
        self.heads, self.out = 3, nn.Linear(24, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)
        shape = (len(x), -1, self.heads, k.shape[-1] // self.heads)
        q, k, v = (y.view(shape).transpose(1, 2) for y in (q, k, v))
        return self.out((q @ k.mT).softmax(-1).matmul(v).transpose(1, 2).flatten(2)).mean(1)


def test_two_dimensions_of_one_width_are_not_cut_apart() -> None:
    """A trial that takes as many indices of both would not tell."""
    model, x = WidthOfKeys(), torch.randn(2, 7, 5)
    groups = coupling(model, x)
    assert [d.kind for d in groups.free] == ["heads"]
    assert [d.kind for d in groups.dimensions if d.pinned and d.width == 8] == ["head_dim"] * 2


class Split(nn.Module):
    """Half of the channels go a way of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left = nn.Conv2d(3, 8, 1), nn.Conv2d(4, 4, 3, padding=1)
        self.out = nn.Conv2d(12, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.stem(x).chunk(2, 1)
        return self.out(torch.cat([a, b, self.left(b)], 1).relu())


class Shuffle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.up, self.out = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 16, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.pixel_shuffle(self.up(self.stem(x)), 2))


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(5, 16), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.up(x).chunk(2, -1)
        return self.down(F.silu(gate) * value)


class Glu(Gated):
    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.glu(self.up(x)))


@pytest.mark.parametrize(
    ("build", "shape", "widths"),
    [
        (Split, (2, 3, 5, 5), [4, 4]),  # index i of both halves together
        (Shuffle, (2, 3, 5, 5), [6, 4]),  # four rows of the convolution for one channel
        (Gated, (2, 5), [8]),  # the gate with its value
        (Glu, (2, 5), [8]),
    ],
)
def test_parts_of_an_axis(
    build: type[nn.Module], shape: tuple[int, ...], widths: list[int]
) -> None:
    assert [d.width for d in check(build(), torch.randn(shape)).free] == widths


class Literal(nn.Module):
    """A size of the second layer is written into the code."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(4, 6), nn.Linear(6, 8), nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.first(x).relu())
        return self.third(y.reshape(-1, 4, 2).sum(1))


def test_a_size_in_the_code_pins_with_its_place() -> None:
    model = Literal()
    groups = coupling(model, torch.randn(5, 4))
    assert "first" in [d.name for d in groups.free]
    untried = coupling(model, torch.randn(5, 4), trial=False)
    fixed = [d for d in groups.dimensions if d.pinned and untried[d.name].pinned is None]
    assert fixed
    assert all("test_coupling.py:" in str(d.pinned) for d in fixed)
    with pytest.raises(ModelError, match=r"does not run.*test_coupling\.py:\d+"):
        cut(model, untried, {fixed[0].name: [0]}, torch.randn(5, 4))


def test_a_pin_outside_of_the_users_code_names_the_module_alone() -> None:
    """The line of the script that calls `coupling` says nothing about the model."""
    groups = coupling(
        nn.Sequential(nn.Linear(4, 4), nn.Softmax(-1), nn.Linear(4, 2)), torch.ones(2, 4)
    )
    assert groups["0"].pinned == "softmax or a cumulative sum along channels in 1"


class Normalised(nn.Module):
    """A norm written by hand."""

    def __init__(self, statistics: Callable[..., tuple[Tensor, Tensor]], *, keep: bool) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 3)
        self.statistics, self.keep = statistics, keep

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        spread, mean = self.statistics(y, -1, keepdim=self.keep)
        if not self.keep:
            spread, mean = spread[:, None], mean[:, None]
        return self.last((y - mean) / (spread + 1))


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize(
    "statistics",
    [
        torch.var_mean,
        torch.std_mean,
        lambda y, *dim, **keep: (y.std(*dim, **keep), y.mean(*dim, **keep)),
        lambda y, *dim, **keep: (y.var(*dim, **keep), y.sum(*dim, **keep)),
        lambda y, *dim, **keep: (y.norm(dim=dim, **keep), y.mean(*dim, **keep)),
    ],
    ids=["var_mean", "std_mean", "std", "var and sum", "norm"],
)
def test_statistics_are_those_of_the_kept_channels(
    statistics: Callable[..., tuple[Tensor, Tensor]], keep: bool
) -> None:
    groups = check(Normalised(statistics, keep=keep), torch.randn(5, 4))
    assert [d.name for d in groups.free] == ["first"]


class Listed(nn.Module):
    """The widths of a split are in one list."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes = [4, 8]
        self.first, self.a, self.b = nn.Linear(6, 12), nn.Linear(4, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.first(x).split(self.sizes, -1)
        return self.a(a) + self.b(b)


def test_widths_in_a_list_are_part_of_the_plan_of_a_cut() -> None:
    model, x = Listed().eval(), torch.randn(3, 6)
    groups = coupling(model, x)
    removed = {"first": [0, 1, 7]}
    made = coupled_plan(model, groups, removed, Inputs.of(x), None)
    assert SimplificationPlan.from_json(made.to_json()) == made
    lean, narrow = apply(made, model), cut(model, groups, removed, x)
    assert lean.sizes == narrow.sizes == [2, 7]
    assert torch.equal(lean(x), narrow(x))


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.linalg.matrix_exp(torch.diag_embed(self.first(x))).sum(-1))


def test_an_operation_without_a_rule_pins_what_it_reads() -> None:
    groups = coupling(Odd(), torch.randn(2, 4))
    assert not groups.free
    assert "test_coupling.py" in str(groups["first"].pinned)


class Chosen(nn.Module):
    """Values chosen among the positions of every channel, or among the channels."""

    def __init__(self, choose: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.choose = nn.Conv1d(3, 8, 1), nn.Linear(8, 2), choose

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.choose(self.first(x)).mean(2))


@pytest.mark.parametrize(
    "choose",
    [
        lambda x: x.topk(1)[0],
        lambda x: x.topk(2)[0],
        lambda x: x.topk(2, 2, False)[0],
        lambda x: x.kthvalue(1, keepdim=True)[0],
        lambda x: x.sort()[0][..., :2],
        lambda x: x.sort(descending=True, stable=True)[0][..., :2],
        lambda x: x.mode()[0][..., None],
    ],
)
def test_the_last_axis_is_the_default_of_a_choice(choose: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(2, 3, 5)
    assert "first" in {group.name for group in coupling(Chosen(choose), x).free}
    turned = Chosen(lambda y: choose(y.mT).mT[:, [0] * 8])
    assert "a choice among channels" in str(coupling(turned, x)["first"].pinned)


def test_outputs_are_pinned_and_wrong_cuts_refused() -> None:
    model = ZOO["residual"].build()
    groups = coupling(model, torch.randn(2, 2, 9, 8))
    assert groups["out"].pinned == "an output of the model"
    with pytest.raises(ConfigError, match="cannot be cut: an output"):
        cut(model, groups, {"out": [0]})
    with pytest.raises(ConfigError, match="did you mean 'stem'"):
        cut(model, groups, {"stam": [0]})
    with pytest.raises(ConfigError, match=r"6 indices, and 6\.\.6"):
        cut(model, groups, {"stem": [6]})
    with pytest.raises(ConfigError, match="all 6 indices"):
        cut(model, groups, {"stem": range(6)})


def test_json_and_table() -> None:
    groups = coupling(CifarResNet(8), torch.randn(1, 3, 8, 8))
    assert Coupling.from_json(json.loads(json.dumps(groups.to_json()))) == groups
    assert str(groups).splitlines()[0].split()[:3] == ["dimension", "kind", "width"]
    assert all(d.name in str(groups) for d in groups.dimensions)


def test_the_lean_network_trains_and_takes_other_sizes() -> None:
    model, _ = in_float64(CifarResNet(8), torch.randn(1, 3, 8, 8))
    inputs = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    groups = coupling(model, inputs)
    removed = some(groups, 0)
    lean = cut(model, groups, removed)
    other = torch.randn(3, 3, 13, 10, dtype=torch.float64)
    expected = reference(model, groups, removed, other)
    assert relative(outputs(lean, Inputs.of(other)), expected) <= 1e-9
    optimizer = torch.optim.SGD(lean.parameters(), lr=0.1)
    lean.train()(inputs).square().mean().backward()
    optimizer.step()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in lean.parameters())


def _vision(name: str, size: int = 64) -> Build:
    def build() -> tuple[nn.Module, object]:
        import torchvision

        options = {"init_weights": False} if name == "googlenet" else {}
        model = getattr(torchvision.models, name)(weights=None, **options)
        return model, torch.randn(2, 3, size, size)

    return build


def _vit() -> tuple[nn.Module, object]:
    from torchvision.models import VisionTransformer

    return VisionTransformer(32, 8, 2, 2, 32, 64), torch.randn(2, 3, 32, 32)


def _timm_vit() -> tuple[nn.Module, object]:
    timm = pytest.importorskip("timm")
    model = timm.create_model("vit_tiny_patch16_224", depth=2, img_size=64, embed_dim=48)
    return model, torch.randn(2, 3, 64, 64)


def _hugging(name: str, **options: object) -> Build:
    def build() -> tuple[nn.Module, object]:
        transformers = pytest.importorskip("transformers")
        config, model = (
            getattr(transformers, name.replace("*", kind)) for kind in ("Config", "Model")
        )
        sizes = {
            "vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
            "intermediate_size": 48,
        }  # fmt: skip
        ids = torch.randint(0, 50, (2, 7))
        example: object = {"input_ids": ids}
        if name.startswith("T5"):
            example = {"input_ids": ids, "decoder_input_ids": ids}
        if name.startswith("ViT"):
            example = {"pixel_values": torch.randn(2, 3, 32, 32)}
        torch.manual_seed(0)
        return model(config(**{**sizes, **options})), example

    return build


@pytest.mark.parametrize(
    ("build", "tolerance"),
    [
        pytest.param(_vit, 1e-9, id="torchvision vit"),
        pytest.param(_timm_vit, 1e-9, id="timm vit"),
        pytest.param(_hugging("Bert*"), 1e-9, id="bert"),
        pytest.param(_hugging("GPT2*", n_embd=32, n_layer=2, n_head=4), 1e-9, id="gpt2"),
        # Its norms compute in float32, whatever the weights are.
        pytest.param(_hugging("Llama*", num_key_value_heads=2), 1e-5, id="llama"),
        pytest.param(_hugging("ViT*", image_size=32, patch_size=8), 1e-9, id="hugging face vit"),
        pytest.param(
            _hugging("T5*", d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4), 1e-9, id="t5"
        ),
    ],
)
def test_cutting_is_exact_on_transformers(build: Build, tolerance: float) -> None:
    groups = check(*build(), tolerance=tolerance)
    assert {"heads", "head_dim"} <= {d.kind for d in groups.free}


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "name",
    ["resnet18", "mobilenet_v2", "mobilenet_v3_small", "densenet121", "shufflenet_v2_x0_5", "googlenet",
     "regnet_y_400mf", "efficientnet_b0", "convnext_tiny", "swin_t"],
)  # fmt: skip
def test_cutting_is_exact_on_torchvision(name: str) -> None:
    assert check(*_vision(name)()).free


class UsesAWeight(nn.Module):
    """Calls no layer of its own: it takes their weights, as `nn.MultiheadAttention` does."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.linear(x, self.first.weight, self.first.bias).relu()
        return F.linear(hidden, self.second.weight, self.second.bias)


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (UsesAWeight(), (2, 6)),
        (
            nn.Sequential(
                nn.Linear(5, 16),
                nn.TransformerEncoderLayer(16, 4, 24, 0.0, batch_first=True),
                nn.Linear(16, 3),
            ),
            (2, 7, 5),
        ),
    ],
)
def test_a_cut_layer_knows_its_sizes_even_if_another_module_uses_its_weight(
    model: nn.Module, shape: tuple[int, ...]
) -> None:
    groups = coupling(model.eval(), torch.randn(shape))
    lean = cut(model, groups, {d.name: [0] for d in groups.free if d.width > 1})
    layers = [m for m in lean.modules() if isinstance(m, nn.Linear)]
    for layer in layers:
        assert layer.weight.shape == (layer.out_features, layer.in_features)
    assert sum(layer.weight.numel() for layer in layers) < sum(
        m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear)
    )


def test_attention_is_coupled_alike_however_it_is_computed() -> None:
    """A GPU computes it in single precision by one operator, and in double precision by many."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True).eval()
    model, x = nn.Sequential(nn.Linear(8, 16), layer, nn.Linear(16, 3)).eval(), torch.randn(2, 5, 8)
    expected = coupling(model, x)
    assert {d.kind for d in expected.free} >= {"heads", "head_dim", "hidden"}
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        assert coupling(model, x) == expected


def test_attention_of_the_user_stays_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """As libraries of faster kernels replace it."""
    own = F.scaled_dot_product_attention
    calls = []

    def faster(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return own(*args, **kwargs)

    layer = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True).eval()
    model, x = nn.Sequential(nn.Linear(8, 16), layer, nn.Linear(16, 3)).eval(), torch.randn(2, 5, 8)
    expected = coupling(model, x)
    monkeypatch.setattr(F, "scaled_dot_product_attention", faster)
    assert coupling(model, x) == expected
    calls.clear()
    model.train()(x)
    assert len(calls) == 1
