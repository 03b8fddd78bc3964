"""The front of a network at rest: parameters in no watched layer, and the cut behind them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import closing

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.efficientnet import MBConvConfig

from snello.equilibrium import FeatureCache, Prefix, SelectiveUpdate

pytestmark = pytest.mark.usefixtures("one_thread")


class Tokens(nn.Module):
    """Embeddings, a table of positions, and RMSNorms: no parameter of them is in a watched layer."""

    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.embed, self.positions = nn.Embedding(12, 8), nn.Parameter(torch.randn(5, 8))
        self.norms = nn.ModuleList(nn.RMSNorm(8) for _ in range(3))
        self.wide = nn.ModuleList(nn.Linear(8, 16) for _ in range(3))
        self.narrow = nn.ModuleList(nn.Linear(16, 8) for _ in range(3))
        self.head = nn.Linear(8, 12)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.positions
        for norm, wide, narrow in zip(self.norms, self.wide, self.narrow, strict=True):
            x = x + narrow(F.relu(wide(norm(x))))
        return self.head(x.mean(1))


def vit() -> nn.Module:
    return torchvision.models.VisionTransformer(
        image_size=8, patch_size=4, num_layers=3, num_heads=2, hidden_dim=8, mlp_dim=16, num_classes=12
    )  # fmt: skip


def convnext() -> nn.Module:
    blocks = [CNBlockConfig(8, 16, 2), CNBlockConfig(16, None, 2)]
    return torchvision.models.ConvNeXt(blocks, stochastic_depth_prob=0.5, num_classes=12)


def swin() -> nn.Module:
    return torchvision.models.SwinTransformer(
        [2, 2], 8, [2, 1], [2, 4], [2, 2], stochastic_depth_prob=0.5, num_classes=12
    )


def efficient() -> nn.Module:
    blocks = [
        MBConvConfig(1, 3, 1, 8, 8, 1),
        MBConvConfig(4, 3, 2, 8, 16, 2),
        MBConvConfig(4, 3, 1, 16, 16, 1),
    ]
    return torchvision.models.EfficientNet(
        blocks, dropout=0.2, stochastic_depth_prob=0.5, num_classes=12
    )


def images(size: int) -> Callable[[int], Tensor]:
    return lambda count: torch.randn(count, 3, size, size)


def tokens(count: int) -> Tensor:
    return torch.randint(12, (count, 5))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Tensor]]] = {
    "tokens": (Tokens, tokens),
    "vit": (vit, images(8)),
    "convnext": (convnext, images(32)),
    "swin": (swin, images(16)),
    "efficientnet": (efficient, images(16)),
}
FRONTS = {
    "tokens": ("embed", "positions", "norms.0", "wide.0", "narrow.0", "norms.1", "wide.1", "narrow.1",
               "norms.2"),  # a norm rests with all that runs before it
    "vit": ("conv_proj", "class_token", "encoder.pos_embedding", "encoder.layers.encoder_layer_0.",
            "encoder.layers.encoder_layer_1."),
    "convnext": ("features.0", "features.1", "features.2", "features.3.0."),
    "swin": ("features.0", "features.1", "features.2", "features.3.0."),
    "efficientnet": ("features.0.", "features.1.", "features.2."),
}  # fmt: skip
"""Beginnings of the names of the parameters in the first blocks."""


def made(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    build, draw = NETWORKS[name]
    model = build()
    with torch.no_grad():  # heads and tokens are initialised with zeros
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model, draw(11)


def resting(update: SelectiveUpdate, front: tuple[str, ...]) -> None:
    """Freeze the watched layers of the first blocks, and no other."""
    update.apply({
        name: torch.full_like(mask, name.startswith(front))
        for name, mask in update.frozen.items()
    })  # fmt: skip


def updated(model: nn.Module, x: Tensor, optimizer: torch.optim.Optimizer) -> SelectiveUpdate:
    return SelectiveUpdate(model, optimizer, x[:3], Prefix(lambda _: 0.0), dispatch="fixed")


@pytest.mark.parametrize("name", NETWORKS)
def test_all_parameters_of_resting_blocks_rest_and_thaw(name: str) -> None:
    model, x = made(name)
    labels = torch.arange(11)
    optimizer = torch.optim.AdamW(model.parameters(), 0.01, weight_decay=0.1)

    def step() -> set[str]:
        before = copy.deepcopy(dict(model.named_parameters()))
        optimizer.zero_grad(set_to_none=False)
        F.cross_entropy(model(x), labels).backward()
        optimizer.step()
        return {
            key for key, value in model.named_parameters() if not torch.equal(value, before[key])
        }

    everything = {key for key, _ in model.named_parameters()}
    assert step() == everything
    update = updated(model, x, optimizer)
    resting(update, FRONTS[name])
    front = {key for key in everything if key.startswith(FRONTS[name])}
    assert front
    assert step() == everything - front
    assert type(copy.deepcopy(model)) is type(NETWORKS[name][0]())
    update.apply({})
    assert step() == everything
    update.remove()
    assert type(model) is type(NETWORKS[name][0]())


@pytest.mark.parametrize("name", NETWORKS)
def test_no_gradient_passes_through_resting_blocks(name: str) -> None:
    model, x = made(name)
    update = updated(model, x, torch.optim.SGD(model.parameters(), 0.1))
    resting(update, FRONTS[name])
    needed: dict[str, bool] = {}
    for layer in update.frozen:
        if not layer.endswith((".in_proj", ".out_proj", ".qkv", ".proj")):  # not called as modules
            model.get_submodule(layer).register_forward_hook(
                lambda _, __, out, layer=layer: needed.__setitem__(layer, out.requires_grad)
            )
    model(x).sum().backward()
    assert needed == {layer: not layer.startswith(FRONTS[name]) for layer in needed}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_cut_lies_behind_the_resting_blocks(name: str) -> None:
    """A training from stored features is, to the bit, the training that computes them again."""

    def run(limit: int) -> tuple[dict[str, Tensor], set[str]]:
        model, x = made(name)
        labels = torch.arange(11)
        optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=1e-3)
        update = updated(model, x, optimizer)
        resting(update, FRONTS[name])
        with closing(FeatureCache(update, 11, measured=False, limit=limit)) as cache:
            for epoch in range(3):
                model.train()
                for where in torch.arange(11).split(4):
                    torch.manual_seed(epoch)  # stochastic depth behind the cut
                    optimizer.zero_grad()
                    F.cross_entropy(cache(x[where], where), labels[where]).backward()
                    optimizer.step()
            assert (cache.status.stored == 11) is (limit > 0), cache.status.reason
            return model.state_dict(), set(cache.status.layers)

    stored, layers = run(2**30)
    computed, _ = run(0)
    model, _ = made(name)
    held = {
        key.rpartition(".")[0]
        for key, _ in model.named_parameters()
        if key.startswith(FRONTS[name])
    }
    # Attention is a node of its own, or a function that takes the weights of its projections.
    called = {m for m in held if not any(part in m for part in ("attn", "attention"))}
    products = {m for m in called if isinstance(model.get_submodule(m), (nn.Linear, nn.Conv2d))}
    assert products
    assert products <= layers
    assert all(torch.equal(stored[key], computed[key]) for key in stored)


def test_the_features_of_a_vit_are_its_residual_stream() -> None:
    model, x = made("vit")
    update = updated(model, x, torch.optim.SGD(model.parameters(), 0.05))
    resting(update, FRONTS["vit"])
    with closing(FeatureCache(update, 11, measured=False)) as cache:
        cache(x, torch.arange(11)).sum().backward()
        assert cache.status.bytes_per_sample == 5 * 8 * 4  # four patches and the class token


def test_weights_tied_to_the_head_and_excluded_layers_are_always_updated() -> None:
    torch.manual_seed(0)
    model, x = Tokens(tied=True), tokens(4)
    update = updated(model, x, torch.optim.SGD(model.parameters(), 0.05))
    resting(update, ("wide", "narrow"))
    model(x).sum().backward()
    assert model.embed.weight.grad is not None
    assert model.embed.weight.grad.any()
    assert (model.positions.grad, model.norms[2].weight.grad) == (None, None)

    model = Tokens()
    update = SelectiveUpdate(model, None, x, Prefix(lambda _: 0.0), exclude=["wide.1"])
    resting(update, ("wide", "narrow"))
    model(x).sum().backward()
    assert model.wide[1].weight.grad is not None
    assert model.norms[1].weight.grad is None


def test_a_scale_learns_while_a_layer_before_it_does() -> None:
    torch.manual_seed(0)
    model, x = Tokens(), tokens(4)
    update = updated(model, x, torch.optim.SGD(model.parameters(), 0.05))
    resting(update, ("wide.0", "wide.1", "wide.2", "narrow.1", "narrow.2"))
    model(x).sum().backward()
    learning = {key for key, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert learning == {
        "narrow.0.weight", "narrow.0.bias", "norms.1.weight", "norms.2.weight", "head.weight", "head.bias",
    }  # fmt: skip


@pytest.mark.exhaustive
def test_compiled_models_whose_own_parameters_rest_have_the_same_gradients() -> None:
    torch.compiler.reset()
    model, x = made("vit")
    compiled = torch.compile(model, backend="aot_eager")
    compiled(x).sum().backward()
    update = updated(model, x, torch.optim.SGD(model.parameters(), 0.05))
    resting(update, FRONTS["vit"])
    found = []
    for run in (model, compiled):
        model.zero_grad()
        run(x).square().sum().backward()
        found.append({key: p.grad for key, p in model.named_parameters()})
    torch.testing.assert_close(*found)
    assert found[0]["class_token"] is None
    torch.compiler.reset()
