"""Training goes on after simplification: the optimizer, gradients, dropout, options that keep dead
neurons.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from laws import assert_same_outputs, generator, kill, kill_neurons, randomise
from pair import in_two_processes
from snello.errors import ConfigError
from snello.neurons import apply_masks, weighted_layers
from snello.simplification import make_plan, plan_of, simplify
from snello.simplification.ir.edits import IndexedSum
from zoo import ZOO

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True, foreach=True),
}


def dead_model(name: str, seed: int = 0) -> tuple[nn.Module, list[Tensor], dict[str, Tensor]]:
    """A model with dead neurons that are zero, inputs, and its dead neurons."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = randomise(ZOO[name].build().double(), generator(seed)).eval()
    dead = kill_neurons(model, 0.4, generator(seed + 2), with_norms=True)
    return model, ZOO[name].inputs(generator(seed + 1)), dead


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("name", ["lenet-5", "lenet-300-100", "resnet-8", "grouped"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_training_goes_on_as_it_would_have(name: str, kind: str) -> None:
    """Two steps, simplify, two steps: the same outputs as four steps of the masked original.

    Where dead neurons are zero: behind an activation that makes another constant of them, the
    original goes on to train the columns that read it, and the lean model one bias in their place.
    """
    model, inputs, _ = dead_model(name)
    masks = {key: p != 0 for key, p in model.named_parameters()}
    optimizer = OPTIMIZERS[kind](model.parameters())

    def masked_step(x: Tensor) -> None:
        step(model, optimizer, x)
        apply_masks(model, masks)

    masked_step(inputs[0])
    masked_step(inputs[0])
    twin = OPTIMIZERS[kind](model.parameters())
    twin.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    lean = simplify(model, inputs[0], optimizer=twin)
    assert sum(p.numel() for p in lean.parameters()) < sum(p.numel() for p in model.parameters())
    assert {id(p) for group in twin.param_groups for p in group["params"]} == {
        id(p) for p in lean.parameters()
    }
    for _ in range(2):
        masked_step(inputs[0])
        step(lean, twin, inputs[0])
    for x in inputs:
        assert_same_outputs(model, lean, x)


def test_state_is_cut_to_the_rows_and_columns_that_stay() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    kill(model, "0", torch.arange(6) % 2 == 0, with_norms=True)
    optimizer = torch.optim.Adam(model.parameters())
    step(model, optimizer, torch.randn(5, 4, dtype=torch.float64))
    kill(model, "0", torch.arange(6) % 2 == 0, with_norms=True)
    moments = {name: optimizer.state[p]["exp_avg"].clone() for name, p in model.named_parameters()}
    lean = simplify(model, torch.randn(2, 4, dtype=torch.float64), optimizer=optimizer)
    odd = torch.tensor([1, 3, 5])
    expected = {
        "0.weight": moments["0.weight"][odd], "0.bias": moments["0.bias"][odd],
        "2.weight": moments["2.weight"][:, odd], "2.bias": moments["2.bias"],
    }  # fmt: skip
    found = {name: optimizer.state[p]["exp_avg"] for name, p in lean.named_parameters()}
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert len(optimizer.state) == 4, "the original's state has gone"


def test_groups_keep_their_options() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    kill(model, "0", torch.arange(6) < 2, with_norms=True)
    groups = [
        {"params": model[0].parameters(), "lr": 0.5},
        {"params": model[2].parameters(), "lr": 0.1},
    ]
    optimizer = torch.optim.SGD(groups, momentum=0.9)
    lean = simplify(model, torch.randn(2, 4), optimizer=optimizer)
    names = {id(p): name for name, p in lean.named_parameters()}
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.1]
    assert [[names[id(p)] for p in group["params"]] for group in optimizer.param_groups] == [
        ["0.weight", "0.bias"],
        ["2.weight", "2.bias"],
    ]


def test_a_bias_that_folding_adds_trains_with_its_layer() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3, bias=False))
    with torch.no_grad():
        model[0].weight[:2] = 0
        model[0].bias.fill_(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    lean = simplify(model, torch.randn(2, 4), optimizer=optimizer)
    held = {id(p) for p in optimizer.param_groups[0]["params"]}
    assert held == {id(p) for p in lean.parameters()}
    assert "1.bias" in dict(lean.named_parameters())


def test_an_optimizer_of_another_model_is_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    other = torch.optim.SGD(nn.Linear(7, 2).parameters(), lr=0.1)
    before = list(other.param_groups[0]["params"])
    with pytest.raises(ConfigError, match=r"not this model's"):
        simplify(model, torch.randn(2, 4), optimizer=other)
    assert all(a is b for a, b in zip(before, other.param_groups[0]["params"], strict=True))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["mlp", "resnet-8", "residual", "concat", "grouped", "transposed"])
def test_gradients_are_those_of_the_masked_original(name: str, training: bool) -> None:
    model, inputs, _ = dead_model(name)
    lean = simplify(model, inputs[0]).train(training)
    model.train(training)
    x, twin = inputs[0].clone().requires_grad_(), inputs[0].clone().requires_grad_()
    model(x).square().sum().backward()
    lean(twin).square().sum().backward()
    torch.testing.assert_close(twin.grad, x.grad, rtol=1e-9, atol=1e-9 * float(x.grad.abs().max()))
    plan = plan_of(lean)
    assert plan is not None
    for layer_name, layer in weighted_layers(lean).items():
        original, kept = model.get_submodule(layer_name), plan.layers[layer_name]
        if kept.groups == 1 and layer.weight.shape[:2] == (
            len(kept.kept_outputs),
            len(kept.kept_inputs),
        ):
            expected = original.weight.grad[list(kept.kept_outputs)][:, list(kept.kept_inputs)]
            torch.testing.assert_close(layer.weight.grad, expected, rtol=1e-9, atol=1e-11)


class FunctionalDropout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(8, 64), nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.dropout(F.relu(self.fc1(x)), 0.5, training=self.training))


def test_functional_dropout_is_active_in_training_again() -> None:
    model = FunctionalDropout().double()
    kill(model, "fc1", torch.arange(64) < 20, with_norms=True)
    x = torch.randn(4, 8, dtype=torch.float64)
    lean = simplify(model, x)
    assert not torch.equal(lean.train()(x), lean(x))
    assert torch.equal(lean.eval()(x), lean(x))
    assert_same_outputs(model.eval(), lean, x)


# Options


def test_round_to_keeps_dead_neurons_and_outputs() -> None:
    layers = (nn.Linear(5, 32), nn.ReLU(), nn.Linear(32, 20), nn.ReLU(), nn.Linear(20, 3))
    model = randomise(nn.Sequential(*layers).double(), generator(0)).eval()
    kill(model, "0", torch.arange(32) < 13, with_norms=False)
    kill(model, "2", torch.arange(20) < 9, with_norms=False)
    x = torch.randn(4, 5, dtype=torch.float64)
    lean = simplify(model, x, round_to=8)
    found = weighted_layers(lean)
    assert (found["0"].out_features, found["2"].out_features, found["4"].out_features) == (
        24,
        16,
        3,
    )
    assert_same_outputs(model, lean, x)


def test_latency_leaves_a_join_alone_where_the_index_costs_more() -> None:
    """Two dead channels of 64 at a join: the index operation would move all of them."""
    model = ZOO["residual"].build().double().eval()
    plan_bytes, plan_time = _plans(model, dead=1)
    assert plan_bytes.neurons_removed == 1
    assert plan_bytes.index_operations == 1
    assert plan_time.neurons_removed == plan_time.index_operations == 0


def _plans(model: nn.Module, dead: int) -> tuple:
    last = [name for name in weighted_layers(model) if name.startswith("branch")][-1]
    neurons = len(model.get_submodule(last).weight)
    kill(model, last, torch.arange(neurons) < dead, with_norms=True)
    x = ZOO["residual"].inputs(torch.Generator())[0]
    return tuple(make_plan(model, x, prefer=p) for p in ("bytes", "latency"))


@pytest.mark.parametrize("prefer", ["bytes", "latency", "plain"])
@pytest.mark.parametrize("name", ["resnet-8", "residual", "concat"])
def test_every_preference_is_exact(name: str, prefer: str) -> None:
    model = ZOO[name].build().double().eval()
    randomise(model, generator(3))
    kill_neurons(model, 0.1, generator(4), with_norms=False)
    inputs = ZOO[name].inputs(generator(5))
    lean = simplify(model, inputs[0], prefer=prefer, round_to=2)
    for x in inputs:
        assert_same_outputs(model, lean, x)
    assert copy.deepcopy(lean).state_dict().keys() == lean.state_dict().keys()


def test_plain_leaves_the_index_operations_out_of_a_residual_stream() -> None:
    model = ZOO["resnet-8"].build().double().eval()
    randomise(model, generator(3))
    kill_neurons(model, 0.5, generator(4), with_norms=True)
    x = ZOO["resnet-8"].inputs(generator(5))[0]
    plans = {prefer: make_plan(model, x, prefer=prefer) for prefer in ("bytes", "plain")}
    assert plans["bytes"].index_operations > 2
    # The two shortcuts that pad channels (He et al.'s option A) are made by no layer that could
    # carry more.
    assert plans["plain"].index_operations <= 2
    assert 0 < plans["plain"].neurons_removed < plans["bytes"].neurons_removed


@pytest.mark.parametrize(("option", "value"), [("prefer", "speed"), ("round_to", 0)])
def test_options_that_make_no_sense(option: str, value: object) -> None:
    with pytest.raises(ConfigError, match=option):
        simplify(nn.Linear(2, 2), torch.randn(2, 2), **{option: value})


# Mixed precision, several processes


def test_autocast_runs_a_lean_model() -> None:
    """Under autocast a residual stream may be float32 and its branch bfloat16."""
    model, inputs, _ = dead_model("resnet-8")
    single = model.float()
    lean = simplify(single, inputs[0].float())
    plan = plan_of(lean)
    assert plan is not None
    assert plan.edits_of(IndexedSum), "nothing is added by index: the test would show nothing"
    x = inputs[0].float()
    for recording in (False, True):
        # Each with a context of its own: older torch (2.10) reuses weights cast without gradients.
        with torch.set_grad_enabled(recording), torch.autocast("cpu", torch.bfloat16):
            expected, found = single(x).float(), lean(x).float()
            torch.testing.assert_close(
                found, expected, rtol=0.1, atol=0.05 * float(expected.detach().abs().max())
            )
    found.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in lean.parameters())


def _distributed_step(rank: int) -> dict[str, Any]:
    model, inputs, _ = dead_model("resnet-8")
    lean = DistributedDataParallel(simplify(model, inputs[0]))
    lean(inputs[0][rank : rank + 1]).square().sum().backward()
    return {name: p.grad for name, p in lean.module.named_parameters()}


def test_two_processes_train_a_lean_model() -> None:
    first, second = in_two_processes(_distributed_step)
    model, inputs, _ = dead_model("resnet-8")
    lean = simplify(model, inputs[0])
    (lean(inputs[0][:2]).square().sum() / 2).backward()  # DDP averages over the processes
    for name, parameter in lean.named_parameters():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], parameter.grad, rtol=1e-9, atol=1e-12)


def test_a_remembered_border_follows_its_kernel() -> None:
    """Values remembered between forwards are forgotten when weights are loaded, moved or another
    size comes.
    """
    model = randomise(ZOO["zero padding"].build().double(), generator(0)).eval()
    kill_neurons(model, 0.5, generator(1), with_norms=False)
    inputs = ZOO["zero padding"].inputs(generator(2))
    lean = simplify(model, inputs[0])
    borders = [name for name in lean.state_dict() if name.endswith("border")]
    assert borders, "no border kernel: the test would show nothing"
    with torch.no_grad():
        before = [lean(x) for x in (inputs[0], inputs[1], inputs[0])]
        assert torch.equal(before[0], before[2])
        state = {
            name: value * 2 if name in borders else value
            for name, value in lean.state_dict().items()
        }
        twin = copy.deepcopy(lean)
        twin.load_state_dict(state)
        assert not torch.equal(twin(inputs[0]), before[0])
        lean.load_state_dict(state)
        assert torch.equal(lean(inputs[0]), twin(inputs[0]))
        single = lean.float()(inputs[0].float())
    torch.testing.assert_close(single.double(), twin(inputs[0]), rtol=1e-4, atol=1e-4)
