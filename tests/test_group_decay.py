"""The decay of whole channels: by one sensitivity per group, towards a narrower network."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from snello.errors import ConfigError
from snello.graph.coupled import coupling
from snello.sensitivity import GroupDecay, Lobster, OutputSensitivity, SeReNe
from test_pruner_channels import Residual

X = torch.randn(6, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Y = torch.arange(6) % 5
METHODS: dict[str, Any] = {
    "lobster": lambda m: Lobster(m, 0.1),
    "serene": lambda m: SeReNe(m, 0.1, estimate="full", every=1),
    "output": lambda m: OutputSensitivity(m, 0.1, every=1),
}


def observed(method: str) -> tuple[nn.Module, GroupDecay, Any]:
    torch.manual_seed(1)
    model = Residual().double()
    inner = METHODS[method](model)
    decay = GroupDecay(inner, model, coupling(model, X))
    outputs = model(X)
    decay.observe(outputs)
    nn.functional.cross_entropy(outputs, Y).backward()
    return model, decay, inner


@pytest.mark.parametrize("method", METHODS)
def test_all_that_writes_or_scales_a_channel_decays_by_its_largest_sensitivity(method: str) -> None:
    model, decay, inner = observed(method)
    before = copy.deepcopy(model.state_dict())
    found = {name: value.clone() for name, value in inner.sensitivity().items()}

    def of(layer: str) -> torch.Tensor:
        value = found[f"{layer}.weight" if f"{layer}.weight" in found else layer]
        return value.flatten(1).mean(1) if value.dim() > 1 else value

    largest = torch.stack([of("stem.0"), of("first.3"), of("second.6")])
    if method == "lobster":  # it measures biases, too
        extra = [found[f"{name}.bias"] for name in ("stem.0", "second.6")]
        largest = torch.cat([largest, torch.stack(extra)])
    expected = 1 - 0.1 * (1 - largest.amax(0)).clamp_min(0)
    measured = decay.sensitivity()["stem.0"]
    assert torch.allclose(1 - 0.1 * (1 - measured).clamp_min(0), expected, rtol=1e-12)
    decay.step()
    for name in ("stem.0", "stem.1", "first.3", "first.4", "second.6", "second.7"):
        for key in ("weight", "bias"):
            if f"{name}.{key}" in before:
                old, new = before[f"{name}.{key}"], model.state_dict()[f"{name}.{key}"]
                factor = expected.reshape(-1, *[1] * (old.dim() - 1))
                assert torch.allclose(new, old * factor, rtol=1e-12, atol=0), f"{name}.{key}"
    assert torch.equal(model.head.bias, before["head.bias"])  # type: ignore[arg-type, union-attr]
    assert torch.equal(model.head.weight, before["head.weight"])  # type: ignore[arg-type, union-attr]


def test_an_overflow_leaves_the_weights_alone() -> None:
    model, decay, _ = observed("lobster")
    before = copy.deepcopy(model.state_dict())
    model.stem[0].weight.grad[0] = torch.inf  # type: ignore[union-attr, operator, index]
    decay.step()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Heads(nn.Module):
    """Attention whose values are outputs, of fixed width, where heads and keys can be removed."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.key_dim, self.value_dim = 4, 3, 5
        self.qkv = nn.Linear(6, 4 * (3 + 3 + 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = self.qkv(x).view(*x.shape[:2], self.num_heads, -1).transpose(1, 2)
        q, k, v = parts.split([self.key_dim, self.key_dim, self.value_dim], -1)
        return nn.functional.scaled_dot_product_attention(q, k, v).sum(1).mean(1)


def test_rows_of_a_fixed_dimension_decay_with_the_others_that_they_belong_to() -> None:
    torch.manual_seed(0)
    model, x = Heads(), torch.randn(8, 5, 6)
    groups = coupling(model, x)
    assert [d.name for d in groups.free] == ["qkv:heads", "qkv:head_dim"]
    serene = SeReNe(model, 0.5, estimate="full", every=1, exclude=())
    decay = GroupDecay(serene, model, groups)
    before = model.qkv.weight.detach().clone()
    decay.observe(model(x))
    heads = decay.sensitivity()["qkv:heads"]
    decay.step()
    values = (model.qkv.weight / before).reshape(4, 11, 6)[:, 6:]
    assert torch.allclose(values, (1 - 0.5 * (1 - heads))[:, None, None].expand_as(values))


def test_a_model_that_cannot_be_narrowed_is_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    groups = coupling(model, torch.randn(2, 3))
    with pytest.raises(ConfigError, match=r"no dimension of the model can be narrowed.*an output"):
        GroupDecay(SeReNe(model, 0.1, exclude=()), model, groups)


def test_a_step_before_any_observation_is_refused() -> None:
    model = Residual().double()
    decay = GroupDecay(SeReNe(model, 0.1), model, coupling(model, X))
    with pytest.raises(ConfigError, match="nothing has been observed"):
        decay.step()


def test_frozen_parameters_do_not_decay_and_state_is_that_of_the_method() -> None:
    model, decay, inner = observed("serene")
    model.stem[0].weight.requires_grad_(False)  # type: ignore[union-attr, operator, index]
    before = model.stem[0].weight.clone()  # type: ignore[union-attr, operator, index]
    decay.step()
    assert torch.equal(model.stem[0].weight, before)  # type: ignore[union-attr, operator, index]
    state = decay.state_dict()
    assert state.keys() == inner.state_dict().keys()
    decay.load_state_dict(state)
    decay.remove()
