"""Projections of attention rest, although no module calls them: `qkv`, `proj`, `in_proj`."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

pytest.importorskip("torchvision")

import torchvision

from seams.equilibrium import by_channel
from snello.equilibrium import NEq, SelectiveUpdate, Stochastic, backward_flops

pytestmark = pytest.mark.usefixtures("one_thread")


class Crossed(nn.Module):
    """Attention from a short sequence to a longer one."""

    def __init__(self, **options: object) -> None:
        super().__init__()
        self.stem = nn.Linear(3, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, **options)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x.flatten(2).transpose(1, 2))
        keys = x[..., : self.attention.kdim]
        found, _ = self.attention(x[:, :2], keys, keys, need_weights=False)
        return self.head(self.norm(found).mean(1))


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(3, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(self.stem(x.flatten(2).transpose(1, 2))).mean(1))


class Scaled(nn.Module):
    """A module with a parameter without a layer, a number, that notes something when it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.gain = nn.Linear(4, 4), nn.Parameter(torch.tensor(1.5))
        self.seen: list[float] = []
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.last = found = self.gain * self.inner(x)
        return found


class Gained(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.head = nn.Linear(3, 4), Scaled(), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.stem(x.flatten(2).transpose(1, 2))).mean(1))


def swin(block: str = "") -> nn.Module:
    options = {}
    if block:
        options = {
            "block": torchvision.models.swin_transformer.SwinTransformerBlockV2,
            "downsample_layer": torchvision.models.swin_transformer.PatchMergingV2,
        }
    return torchvision.models.SwinTransformer(
        [2, 2], 8, [2, 1], [2, 4], [2, 2], stochastic_depth_prob=0.0, num_classes=3, **options
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "swin": swin,
    "swin v2": lambda: swin("v2"),
    "encoder": Encoder,
    "crossed": Crossed,
    "crossed, no bias": lambda: Crossed(bias=False),
    "crossed, own keys": lambda: Crossed(add_bias_kv=True),
    "crossed, own sizes": lambda: Crossed(kdim=4, vdim=4),
    "gain": Gained,
    "timm swin": lambda: pytest.importorskip("timm").models.SwinTransformer(
        8,
        2,
        num_classes=3,
        embed_dim=8,
        depths=(2,),
        num_heads=(2,),
        window_size=2,
        drop_path_rate=0,
    ),
    "timm vit": lambda: pytest.importorskip("timm").models.VisionTransformer(
        8, 4, num_classes=3, embed_dim=8, depth=2, num_heads=2, mlp_ratio=2
    ),
}
LENT = {
    "swin": "features.1.0.attn.qkv", "swin v2": "features.1.0.attn.proj",
    "encoder": "layers.layers.0.self_attn.in_proj",
    "crossed": "attention.in_proj", "crossed, no bias": "attention.out_proj", "crossed, own keys": "attention.in_proj",
    "crossed, own sizes": "attention.out_proj",
    "gain": "block.inner", "timm swin": "layers.0.blocks.0.attn.qkv", "timm vit": "blocks.0.norm1",
}  # fmt: skip
"""One layer of each that did not rest before, or keeps its module from resting."""


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = NETWORKS[name]().double()
    with torch.no_grad():  # tables, norms and keys are initialised with zeros
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(4, 3, 8, 8, generator=generator, dtype=torch.float64)
    return x, torch.randint(3, (4,), generator=generator)


def updated(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> SelectiveUpdate:
    return SelectiveUpdate(model, optimizer, batch()[0], Stochastic(0.5), dispatch="fixed")


def masks(
    update: SelectiveUpdate, whole: Callable[[str], bool], seed: int = 0
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.ones_like(mask) if whole(name) else torch.rand(len(mask), generator=generator) < 0.5
        for name, mask in update.frozen.items()
    }  # fmt: skip


def gradients(model: nn.Module) -> tuple[Tensor, dict[str, Tensor]]:
    x, y = batch(1)
    model.zero_grad()
    output = model(x)
    F.cross_entropy(output, y).backward()
    return output, {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in model.named_parameters()
    }


def held(update: SelectiveUpdate) -> dict[str, Tensor]:
    """Parameter name -> mask of its frozen entries, from what the optimizer holds."""
    names = {id(p): name for name, p in update.model.named_parameters()}
    found = {}
    for rows in update.freezer.hold._held:
        mask = torch.zeros_like(rows.parameter, dtype=torch.bool)
        rows.view(mask).index_fill_(0, rows.index, True)
        found[names[id(rows.parameter)]] = mask
    return found


WHOLE: dict[str, Callable[[str], bool]] = {
    "single neurons": lambda _: False,
    "whole attentions": lambda name: any(key in name for key in ("attn", "attention", "inner")),
    "all": lambda _: True,
}


@pytest.mark.parametrize("whole", WHOLE)
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_are_the_dense_ones_times_the_mask(name: str, whole: str) -> None:
    model = build(name)
    output, dense = gradients(model)
    update = updated(model)
    assert LENT[name] in update.frozen
    update.apply(masks(update, WHOLE[whole]))
    rows = held(update)
    found, sparse = gradients(model)
    # To rounding: torch chooses the kernel of a product also by what needs a gradient.
    torch.testing.assert_close(found, output, rtol=1e-12, atol=1e-14)
    for key, gradient in dense.items():
        mask = rows.get(key, torch.zeros_like(gradient, dtype=torch.bool))
        assert sparse[key][mask].count_nonzero() == 0, key
        torch.testing.assert_close(sparse[key], gradient.masked_fill(mask, 0), msg=key)
    update.remove()
    assert all("Sparse" not in type(m).__name__ for m in model.modules())
    torch.testing.assert_close(gradients(model)[1], dense)


@pytest.mark.parametrize("name", NETWORKS)
def test_resting_weights_are_bit_identical_and_thaw(name: str) -> None:
    model = build(name)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    gradients(model)
    optimizer.step()  # momentum
    update = updated(model, optimizer)
    update.apply(masks(update, WHOLE["all"]))
    before, rows = copy.deepcopy(model.state_dict()), held(update)
    for _ in range(2):
        gradients(model)
        optimizer.step()
    for key, value in model.named_parameters():
        assert torch.equal(value[rows[key]], before[key][rows[key]]) if key in rows else True, key
    head = [key for key, value in model.named_parameters() if not torch.equal(value, before[key])]
    assert set(head) == {key for key, _ in model.named_parameters()} - set(rows)
    update.apply({})
    gradients(model)
    optimizer.step()
    assert not torch.equal(model.state_dict()[next(iter(rows))], before[next(iter(rows))])


@pytest.mark.parametrize(
    "name", ["swin", "swin v2", "encoder", "crossed", "gain", "timm swin", "timm vit"]
)
def test_the_backward_pass_ends_behind_the_last_resting_layer(name: str) -> None:
    model, (x, _) = build(name), batch()
    update = updated(model)
    update.apply(masks(update, WHOLE["all"]))
    heads = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == 3]
    # Two per product of the head's weight, for each sample: no gradient of any input.
    assert backward_flops(model, x).total == 2 * len(x) * heads[-1].weight.numel()
    learning = {key for key, gradient in gradients(model)[1].items() if gradient.any()}
    assert {key.rpartition(".")[0] for key in learning} <= {*update.left_alone}


def test_tables_rest_with_their_layers_alone() -> None:
    model = build("swin")
    update, table = updated(model), "features.1.0.attn.relative_position_bias_table"
    projections = ["features.1.0.attn.qkv", "features.1.0.attn.proj"]
    full = {name: torch.ones_like(update.frozen[name]) for name in projections}
    update.apply({projections[0]: full[projections[0]]})
    assert gradients(model)[1][table].any()
    update.apply(full)
    assert not gradients(model)[1][table].any()


def test_weights_of_unobserved_neurons_learn_while_a_layer_before_them_does() -> None:
    """Keys of another size have a weight of their own, larger than a table."""
    model = build("crossed, own sizes")
    update = updated(model)
    frozen = masks(update, WHOLE["all"])
    update.apply({**frozen, "stem": ~frozen["stem"]})
    assert gradients(model)[1]["attention.k_proj_weight"].any()
    update.apply(frozen)
    assert not gradients(model)[1]["attention.k_proj_weight"].any()


def test_outputs_of_the_projections_are_observed() -> None:
    model, (x, _) = build("crossed"), batch()
    update = updated(model)
    found = update._probe.outputs(update.freezer.layers)
    model.eval()
    tokens = model.stem(x.flatten(2).transpose(1, 2))
    attention = model.attention
    weight, bias = attention.in_proj_weight, attention.in_proj_bias
    queries, rest = (
        F.linear(tokens[:, :2], weight[:8], bias[:8]),
        F.linear(tokens, weight[8:], bias[8:]),
    )
    projected = found["attention.in_proj"]
    torch.testing.assert_close(projected[:, :8, :2], queries.transpose(1, 2))
    assert not projected[:, :8, 2:].any()
    torch.testing.assert_close(projected[:, 8:], rest.transpose(1, 2))
    out = attention(tokens[:, :2], tokens, tokens)[0]
    torch.testing.assert_close(found["attention.out_proj"], by_channel(attention.out_proj, out))


def test_a_training_with_neq_resumes() -> None:
    def run(interrupted: bool) -> tuple[dict[str, Tensor], dict[str, float]]:
        model = build("swin")
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        neq = NEq(model, optimizer, batch()[0], eps=2e-2, dispatch="fixed")
        for epoch in range(4):
            if interrupted and epoch == 2:
                saved = copy.deepcopy(
                    (model.state_dict(), optimizer.state_dict(), neq.state_dict())
                )
                model = build("swin")
                optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
                neq = NEq(model, optimizer, batch()[0], eps=2e-2, dispatch="fixed")
                for part, state in zip((model, optimizer, neq), saved, strict=True):
                    part.load_state_dict(state)
            gradients(model)
            optimizer.step()
            updated = neq.step().updated
        return model.state_dict(), updated

    plain, resumed = run(False), run(True)
    assert plain[1] == resumed[1]
    assert any(share < 1 for name, share in plain[1].items() if "qkv" in name)
    assert all(
        torch.equal(a, b) for a, b in zip(plain[0].values(), resumed[0].values(), strict=True)
    )


def test_the_stand_in_leaves_its_notes_and_copies_are_plain() -> None:
    model, (x, _) = build("gain"), batch()
    update = updated(model)
    update.apply(masks(update, WHOLE["all"]))
    assert type(model.block) is not Scaled
    calls = model.block.calls
    model(x)
    assert model.block.calls == calls + 1
    assert torch.equal(model.head(model.block.last.mean(1)), model(x))
    assert type(copy.deepcopy(model).block) is Scaled
    with torch.no_grad():
        model(x)
    assert model.block.calls == calls + 3


@pytest.mark.exhaustive
def test_compiled() -> None:
    torch._dynamo.reset()
    model = build("crossed")
    update = updated(model)
    step = torch.compile(model, backend="eager")
    for seed, whole in enumerate(WHOLE.values()):
        update.apply(masks(update, whole, seed))
        _, expected = gradients(model)
        _, found = gradients(step)
        compiled = {key.removeprefix("_orig_mod."): value for key, value in found.items()}
        torch.testing.assert_close(compiled, expected)
    torch._dynamo.reset()
