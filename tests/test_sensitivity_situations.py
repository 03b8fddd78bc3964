"""Sensitivities in training loops that are not a forward, an observation and a step of one batch."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.utils.checkpoint import checkpoint

from snello.equilibrium import SelectiveUpdate, Stochastic
from snello.errors import ConfigError
from snello.sensitivity import Lobster, OutputSensitivity, SeReNe, lobster_scores

OBSERVED = [SeReNe, OutputSensitivity]
X = torch.randn(8, 4, generator=torch.Generator().manual_seed(0)).double()


def mlp(width: int = 6) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 5), nn.ReLU(), nn.Linear(5, 3)
    ).double()


class Checkpointed(nn.Module):
    """A network whose two halves run again in the backward pass."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.net, self.reentrant = mlp(), reentrant

    def forward(self, x: Tensor) -> Tensor:
        hidden = checkpoint(self.net[:2], x.requires_grad_(), use_reentrant=self.reentrant)
        found: Tensor = checkpoint(self.net[2:], hidden, use_reentrant=self.reentrant)
        return found


class Experts(nn.Module):
    """A mixture whose second expert receives no example."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(4, 6), nn.Linear(4, 6)])
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(torch.cat([self.experts[0](x), self.experts[1](x[:0])]))
        return found


# Outputs and forward passes


@pytest.mark.parametrize("method", OBSERVED)
def test_outputs_of_another_forward_are_refused(method: Any) -> None:
    model = mlp()
    observer = method(model, every=1)
    model(X)
    with pytest.raises(ConfigError, match="do not depend on the layers"):
        observer.observe(mlp()(X))


def test_a_second_forward_before_the_observation_is_refused() -> None:
    """Its neurons have no influence on the first outputs: all weights would decay."""
    model = mlp()
    serene = SeReNe(model, every=1)
    first = model(X)
    model(-X)
    with pytest.raises(ConfigError, match="before the next one"):
        serene.observe(first)


@pytest.mark.parametrize("estimate", ["sampled", "full", "lower-bound", "local"])
def test_checkpointed_layers_are_measured_as_plain_ones(estimate: Any) -> None:
    model, plain = Checkpointed(False), mlp()
    serene, expected = (SeReNe(m, every=1, estimate=estimate) for m in (model, plain))
    for _ in range(2):
        outputs = model(X.clone())
        serene.observe(outputs)
        outputs.sum().backward()
        expected.observe(plain(X))
    assert serene.sensitivity().keys() == {"net.0", "net.2"}
    for name, value in expected.sensitivity().items():
        torch.testing.assert_close(serene.sensitivity()[f"net.{name}"], value, rtol=1e-12, atol=0)


def test_reentrant_checkpoints_hide_the_layers_which_is_said() -> None:
    model = Checkpointed(True)
    serene = SeReNe(model, every=1)
    with pytest.warns(UserWarning, match="use_reentrant=False"):
        serene.observe(model(X.clone()))
    with warnings.catch_warnings(action="error"):
        serene.observe(model(X.clone()))  # said once
    with pytest.raises(ConfigError, match="use_reentrant=False"):
        OutputSensitivity(model).observe(model(X.clone()))


def test_examples_need_a_forward_to_repeat() -> None:
    model = mlp()
    outputs = model(X)
    with pytest.raises(ConfigError, match="no forward pass"):
        SeReNe(model, examples=4).observe(outputs)


@pytest.mark.parametrize("estimate", ["sampled", "full", "lower-bound", "local"])
def test_an_expert_without_examples_was_not_called(estimate: Any) -> None:
    model = Experts()
    serene = SeReNe(model, 0.5, estimate=estimate)
    serene.observe(model(X.float()))
    assert serene.sensitivity().keys() == {"experts.0"}
    idle = model.experts[1].weight.clone()
    serene.step()
    assert torch.equal(model.experts[1].weight, idle)


# Frozen parameters


@pytest.mark.parametrize("method", [Lobster, *OBSERVED])
def test_weights_frozen_during_training_do_not_decay(method: Any) -> None:
    model = mlp()
    observer = method(model, 0.5)
    for _ in range(2):  # the second time, the frozen layer has the gradient of the first
        frozen, trained = model[0].weight.clone(), model[2].weight.clone()
        outputs = model(X)
        observer.observe(outputs)
        outputs.square().sum().backward()
        observer.step()
        assert not torch.equal(model[2].weight, trained)
        still = not model[0].weight.requires_grad
        assert torch.equal(model[0].weight, frozen) == still
        model[0].requires_grad_(False)


def test_lobster_leaves_neurons_that_are_frozen() -> None:
    """Their gradients are not computed; zeros would count as no sensitivity, and decay most."""
    model = mlp()
    update = SelectiveUpdate(model, None, X[:2], Stochastic(0.5))
    update.step()
    before = copy.deepcopy(model)
    lobster = Lobster(model, 0.1)
    model(X).square().sum().backward()
    lobster.step()
    for name, mask in update.frozen.items():
        now, then = model.get_submodule(name), before.get_submodule(name)
        assert mask.any()
        for key, value in now.named_parameters():
            still = value == then.get_parameter(key)
            assert still[mask].all(), name
            assert not still[~mask].all(), name


def test_accumulated_batches_may_freeze_and_thaw_layers() -> None:
    model = mlp()
    output = OutputSensitivity(model, 0.5, every=1, estimate="full")
    output.observe(model(X))
    alone = {name: value.clone() for name, value in output.sensitivity().items()}
    model[0].requires_grad_(False)
    output.observe(model(X))
    model[0].requires_grad_(True)
    found = output.sensitivity()
    assert found.keys() == alone.keys()
    for name, value in alone.items():
        torch.testing.assert_close(found[name], value, rtol=1e-12, atol=0)


@pytest.mark.parametrize("method", OBSERVED)
def test_a_model_of_frozen_layers_keeps_them(method: Any) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).double()
    for layer in (model[0], model[2]):
        layer.requires_grad_(False)
    before = [p.clone() for p in model.parameters()]
    observer = method(model, 0.5)
    observer.observe(model(X))
    observer.step()
    assert all(map(torch.equal, before, model.parameters()))


@pytest.mark.parametrize("method", [SeReNe, OutputSensitivity, Lobster])
def test_a_model_of_which_nothing_would_decay_is_refused(method: Any) -> None:
    model = nn.Sequential(nn.Embedding(4, 3), nn.Flatten(), nn.LayerNorm(6))
    with pytest.raises(ConfigError, match="no layer of Sequential would decay"):
        method(model)
    method(nn.Linear(4, 3), exclude=nn.Linear)  # of the user's own will


# Precision


def test_half_precision_sums_many_classes() -> None:
    """bfloat16 has 8 bits: a sum of a thousand equal values stops at 256 of them."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 1000)).bfloat16()
    exact = copy.deepcopy(model).double()
    found, expected = (_full(m, X.to(m[0].weight.dtype)) for m in (model, exact))
    torch.testing.assert_close(found["0.weight"].double(), expected["0.weight"], rtol=0.02, atol=0)


def _full(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    output = OutputSensitivity(model, estimate="full")
    output.observe(model(x))
    return output.sensitivity()


def test_half_precision_averages_many_batches() -> None:
    model = mlp().bfloat16()
    data = [(X.bfloat16(), torch.arange(8) % 3)]
    one, many = (lobster_scores(data * n)(model, "weight")["0"] for n in (1, 400))
    torch.testing.assert_close(many, one, rtol=1e-4, atol=0)


def test_complex_weights_decay_by_real_sensitivities() -> None:
    layer = nn.Linear(4, 3, bias=False).to(torch.complex128)
    before = layer.weight.detach().clone()
    output = OutputSensitivity(layer, 0.5, estimate="full")
    output.observe(layer(X.to(torch.complex128)).abs())
    share = (1 - output.sensitivity()["weight"]).clamp_min(0)
    output.step()
    torch.testing.assert_close(layer.weight.detach(), before - 0.5 * share * before)


# States and copies


@pytest.mark.parametrize("method", OBSERVED)
@pytest.mark.parametrize("other", OBSERVED)
def test_the_state_of_another_model_or_method_is_refused(method: Any, other: Any) -> None:
    model = mlp()
    observer = method(model)
    observer.observe(model(X))
    observer.step()
    with pytest.raises(ConfigError, match="the state of another model"):
        other(mlp(7)).load_state_dict(observer.state_dict())


@pytest.mark.parametrize("method", OBSERVED)
@pytest.mark.parametrize("state", [{}, None, {"calls": 1, "latest": {"0": 3}}])
def test_what_is_no_state_is_refused(method: Any, state: Any) -> None:
    with pytest.raises(ConfigError, match=f"not a state of {method.__name__}: "):
        method(mlp()).load_state_dict(state)


@pytest.fixture
def group(tmp_path: Path) -> Iterator[Any]:
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/s", rank=0, world_size=1)
    yield distributed.group.WORLD
    distributed.destroy_process_group()


@pytest.mark.parametrize("method", OBSERVED)
def test_a_copy_shares_the_group_of_processes(method: Any, group: Any) -> None:
    model = mlp()
    twin, own = copy.deepcopy((model, method(model, group=group)))
    own.observe(twin(X))
    own.step()
    assert not torch.equal(twin[0].weight, model[0].weight)


def test_some_examples_of_a_model_called_by_keyword_that_returns_a_mapping() -> None:
    """As those of transformers: the second forward gets the same arguments, and gives logits."""

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.last = nn.Linear(6, 12).double(), nn.Linear(12, 3).double()

        def forward(self, *, x: Tensor) -> dict[str, Tensor]:
            return {"logits": self.last(self.first(x).relu())}

    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    some, first = Wrapped(), Wrapped()
    a = SeReNe(some, estimate="full", examples=4, every=1)
    b = SeReNe(first, estimate="full", every=1)
    a.observe(some(x=x)["logits"])
    b.observe(first(x=x[:4])["logits"])
    torch.testing.assert_close(a.sensitivity(), b.sensitivity(), rtol=1e-12, atol=0)


def test_some_examples_of_another_output_than_the_scores_are_refused() -> None:
    """The second forward would measure the scores, silently."""

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(6, 12), nn.Linear(12, 3)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            features = self.first(x).relu()
            return {"features": features, "logits": self.last(features)}

    model = Wrapped()
    serene = SeReNe(model, examples=4, every=1)
    with pytest.raises(ConfigError, match=r"outputs of 12 classes, but .* scores, of 3"):
        serene.observe(model(torch.randn(8, 6))["features"])
    serene.observe(model(torch.randn(8, 6))["logits"])
    assert serene.sensitivity()["first"].shape == (12,)
