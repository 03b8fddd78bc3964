"""NEq: what is measured, what is decided, and that frozen neurons stand still."""

from __future__ import annotations

import copy
import doctest
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import snello.equilibrium
from equilibrium_samples import OPTIMIZERS, batch, network, same, sgd, tensors, train
from seams.equilibrium import Probe, monitored_layers
from snello.equilibrium import NEq, SelectiveUpdate, similarity
from snello.errors import ConfigError, DivergenceError, ModelError


def some(neq: SelectiveUpdate, seed: int = 0) -> dict[str, Tensor]:
    """Masks with frozen and active neurons in every layer, and one layer frozen whole."""
    generator = torch.Generator().manual_seed(seed)
    masks = {n: torch.rand(len(m), generator=generator) < 0.5 for n, m in neq.frozen.items()}
    masks = {n: m.index_fill(0, torch.tensor([0]), True) for n, m in masks.items()}
    masks["3"] = torch.ones_like(masks["3"])
    return masks


def row(layer: nn.Module, tensor: Tensor, mask: Tensor) -> Tensor:
    return tensor.flatten()[mask] if isinstance(layer, nn.LayerNorm) else tensor[mask]


# --- what is held
# ---------------------------------------------------------------------------------------


@pytest.mark.sampled(6)
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("decay", [0.0, 0.1], ids=["", "decay in the loss"])
def test_frozen_rows_are_bit_identical_and_the_others_move(name: str, decay: float) -> None:
    model = network()
    optimizer = OPTIMIZERS[name](model.parameters())
    neq = NEq(model, optimizer, batch()[0])
    train(model, optimizer, 3)
    masks = some(neq)
    neq.apply(masks)
    before = copy.deepcopy(model)
    states = {
        p: {k: v.clone() for k, v in s.items() if torch.is_tensor(v)}
        for p, s in optimizer.state.items()
    }
    train(model, optimizer, 20, decay)
    for layer_name, mask in masks.items():
        layer, old = model.get_submodule(layer_name), before.get_submodule(layer_name)
        for key, parameter in layer.named_parameters():
            now, then = parameter.detach(), old.get_parameter(key).detach()
            assert torch.equal(row(layer, now, mask), row(layer, then, mask))
            assert (row(layer, now, ~mask) != row(layer, then, ~mask)).all()
            for k, state in optimizer.state[parameter].items():
                if not torch.is_tensor(state) or state.shape != parameter.shape:
                    continue
                frozen = row(layer, state, mask)
                if k in ("momentum_buffer", "exp_avg"):
                    assert frozen.count_nonzero() == 0
                else:
                    assert torch.equal(frozen, row(layer, states[parameter][k], mask))


def test_frozen_gradients_are_zero_and_the_others_dense() -> None:
    model = network()
    neq = NEq(model, sgd(model), batch()[0])
    x, y = batch()
    model[8].p = 0.0

    def gradients() -> dict[str, Tensor]:
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()
        return {
            n: torch.zeros_like(p) if p.grad is None else p.grad
            for n, p in model.named_parameters()
        }

    dense = gradients()
    masks = some(neq)
    neq.apply(masks)
    for name, sparse in gradients().items():
        layer, mask = (
            model.get_submodule(name.rpartition(".")[0]),
            masks.get(name.rpartition(".")[0]),
        )
        if mask is None:  # the head
            torch.testing.assert_close(sparse, dense[name])
            continue
        assert row(layer, sparse, mask).count_nonzero() == 0
        torch.testing.assert_close(row(layer, sparse, ~mask), row(layer, dense[name], ~mask))


def test_unfreezing_resumes_normal_training() -> None:
    model = network()
    optimizer = sgd(model)
    neq = NEq(model, optimizer, batch()[0])
    neq.apply(some(neq))
    train(model, optimizer, 3)
    neq.apply({})
    twin = copy.deepcopy(model)
    other = sgd(twin)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    # A row that was never stepped has no momentum; the twin must start from the same.
    torch.manual_seed(1)
    train(model, optimizer, 5)
    torch.manual_seed(1)
    train(twin, other, 5)
    assert same(tensors(model), tensors(twin))


def test_remove_gives_exactly_vanilla_training() -> None:
    model = network()
    optimizer = sgd(model)
    classes = [type(m) for m in model.modules()]
    hooks = (len(optimizer._optimizer_step_pre_hooks), len(optimizer._optimizer_step_post_hooks))
    neq = NEq(model, optimizer, batch()[0])
    neq.apply(some(neq))
    assert classes != [type(m) for m in model.modules()]
    neq.remove()
    assert classes == [type(m) for m in model.modules()]
    assert hooks == (
        len(optimizer._optimizer_step_pre_hooks),
        len(optimizer._optimizer_step_post_hooks),
    )
    assert not any(p._backward_hooks for p in model.parameters())
    assert not any(m._forward_hooks for m in model.modules())
    vanilla = network()
    torch.manual_seed(1)
    train(model, optimizer, 5)
    torch.manual_seed(1)
    train(vanilla, sgd(vanilla), 5)
    assert same(tensors(model), tensors(vanilla))


def test_nothing_frozen_is_exactly_vanilla_training() -> None:
    model, vanilla = network(), network()
    optimizer, plain = sgd(model), sgd(vanilla)
    torch.manual_seed(1)
    neq = NEq(model, optimizer, batch()[0], eps=0)
    for _ in range(3):
        train(model, optimizer, 2)
        assert neq.step().total == 1
    torch.manual_seed(1)
    for _ in range(3):
        train(vanilla, plain, 2)
    # The probe left random generators, modes and statistics alone: even the dropout masks are the
    # same.
    assert same(tensors(model), tensors(vanilla))


def test_batchnorm_statistics_move_as_in_vanilla() -> None:
    model, vanilla = network(), network()
    neq = NEq(model, sgd(model), batch()[0])
    neq.apply({name: torch.ones_like(mask) for name, mask in neq.frozen.items()})
    for net in (model, vanilla):
        F.cross_entropy(net(batch()[0]), batch()[1]).backward()
    assert torch.equal(model[1].running_mean, vanilla[1].running_mean)
    assert torch.equal(model[1].num_batches_tracked, vanilla[1].num_batches_tracked)
    assert model[1].running_mean.count_nonzero() > 0


def test_a_deep_copy_trains_freely_and_leaves_the_original_alone() -> None:
    model = network()
    neq = NEq(model, sgd(model), batch()[0])
    neq.apply(some(neq))
    before = tensors(model)
    twin = copy.deepcopy(model)
    assert not any(type(m).__name__.startswith("Sparse") for m in twin.modules())
    start = [p.detach().clone() for p in twin.parameters()]
    train(twin, sgd(twin), 3)
    assert all((p != q).any() for p, q in zip(twin.parameters(), start, strict=True))
    assert same(before, tensors(model))


# --- what is measured
# -----------------------------------------------------------------------------------


def cosine_by_hand(now: Tensor, before: Tensor) -> float:
    total = 0.0
    for a, b in zip(now.tolist(), before.tolist(), strict=True):
        product = sum(x * y for x, y in zip(a, b, strict=True))
        lengths = (sum(x * x for x in a) * sum(y * y for y in b)) ** 0.5
        if not any(a) and not any(b):
            total += 1.0
        elif lengths:
            total += product / lengths
    return total / len(now)


def test_phi_is_the_mean_cosine_over_positions() -> None:
    generator = torch.Generator().manual_seed(2)
    now, before = torch.randn(2, 5, 3, 6, generator=generator, dtype=torch.float64)
    now[:2, 0], before[:2, 0] = 0, 0  # silent both times
    now[3, 1] = 0  # fell silent
    now[4, 2] *= 1e-200  # tiny, but not silent
    expected = [cosine_by_hand(now[:, c], before[:, c]) for c in range(3)]
    tiny = torch.nn.functional.cosine_similarity(now[4, 2] * 1e200, before[4, 2], dim=0)
    expected[2] = (
        sum(cosine_by_hand(now[i : i + 1, 2], before[i : i + 1, 2]) for i in range(4)) + tiny
    ) / 5
    torch.testing.assert_close(similarity(now, before), torch.tensor(expected, dtype=torch.float64))


def test_a_linear_output_without_positions_compares_signs() -> None:
    now = torch.tensor([[3.0, -1.0, 0.0], [2.0, 1.0, 0.0]]).unsqueeze(2)
    before = torch.tensor([[1.0, 4.0, 0.0], [5.0, 2.0, 1.0]]).unsqueeze(2)
    assert similarity(now, before).tolist() == [1.0, 0.0, 0.5]


def test_the_probe_sees_outputs_before_the_activation_and_by_channel() -> None:
    model = network()
    x, _ = batch()
    layers, _ = monitored_layers(model)
    found = Probe(model, x).outputs(layers)
    model.eval()
    conv = model[0](x)
    norm = model[1](conv)
    assert torch.equal(found["0"], conv.flatten(2))
    assert torch.equal(found["1"], norm.flatten(2))  # the ReLU behind it works in place
    tokens = model[4](model[3](F.relu(norm)))
    assert torch.equal(found["4"], tokens.reshape(8, 72, 1))
    sequence = nn.Sequential(nn.Linear(5, 3), nn.LayerNorm(3), nn.Linear(3, 2))
    x = torch.randn(2, 7, 5)
    found = Probe(sequence, x).outputs(monitored_layers(sequence)[0])
    assert torch.equal(found["0"], sequence[0](x).transpose(1, 2))
    assert torch.equal(found["1"], sequence[:2](x).transpose(1, 2))


def test_the_probe_disturbs_nothing() -> None:
    class Noisy(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + torch.randn_like(x))

    model = Noisy(*network())
    model[1].eval()
    modes, before, state = (
        [m.training for m in model.modules()],
        tensors(model),
        torch.get_rng_state(),
    )
    neq = NEq(model, sgd(model), batch()[0])
    neq.step()
    assert [m.training for m in model.modules()] == modes
    assert same(before, tensors(model))
    assert torch.equal(state, torch.get_rng_state())


def test_the_whole_decision_against_the_definition() -> None:
    model = network()
    optimizer = sgd(model)
    x, _ = batch()
    neq = NEq(model, optimizer, x, eps=2e-2)
    layers, _ = monitored_layers(model)
    probe = Probe(model, x)
    reference, phi, velocity = probe.outputs(layers), None, None
    for _ in range(4):
        train(model, optimizer, 1)
        now = probe.outputs(layers)
        values = {
            n: [cosine_by_hand(now[n][:, c], reference[n][:, c]) for c in range(now[n].shape[1])]
            for n in now
        }
        old_phi = phi or {n: [1.0] * len(v) for n, v in values.items()}
        old_v = velocity or {n: [0.0] * len(v) for n, v in values.items()}
        velocity = {
            n: [a - b - 0.5 * c for a, b, c in zip(values[n], old_phi[n], old_v[n], strict=True)]
            for n in values
        }
        reference, phi = now, values
        neq.step()
        assert {n: m.tolist() for n, m in neq.frozen.items()} == {
            n: [abs(v) < 2e-2 for v in vs] for n, vs in velocity.items()
        }
    frozen = torch.cat(list(neq.frozen.values()))
    assert 0 < frozen.sum() < len(frozen)


def test_warm_up_counts_calls_of_step() -> None:
    model = network()
    neq = NEq(model, sgd(model), batch()[0], warmup=3)
    decided = [neq.step() for _ in range(4)]  # an untrained model is at equilibrium at once
    assert [step.total for step in decided] == [1, 1, 0, 0]
    assert [step.step for step in decided] == [1, 2, 3, 4]
    assert neq.status() == decided[-1]


# --- what is watched
# ------------------------------------------------------------------------------------


def test_the_head_the_excluded_and_the_unfit_are_left_alone() -> None:
    class Odd(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 2

    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.odd, self.tied = nn.Linear(4, 4), Odd(4, 4), nn.Linear(4, 4)
            self.functional, self.normed = (
                nn.Linear(4, 4),
                nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
            )
            self.b, self.head = nn.Linear(4, 4), nn.Linear(4, 2)
            self.b.weight = self.tied.weight

        def forward(self, x: Tensor) -> Tensor:
            x = self.normed(self.b(self.tied(self.odd(self.a(x)))))
            return self.head(F.linear(x, self.functional.weight))

    model = Unused()
    neq = NEq(model, sgd(model), torch.randn(3, 4))
    assert set(neq.frozen) == {"a"}
    assert set(neq.left_alone) == {"odd", "tied", "functional", "normed", "b", "head"}
    model = network()
    neq = NEq(model, sgd(model), batch()[0], exclude=("3", "7"))
    assert set(neq.frozen) == {"0", "1", "4"}


def test_the_layer_that_gives_the_outputs_always_learns() -> None:
    """In whatever order the layers are registered."""

    class Disordered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.classes, self.norm, self.first = (
                nn.Linear(4, 2),
                nn.BatchNorm1d(4),
                nn.Linear(4, 4),
            )
            self.second, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.classes(self.second(self.norm(self.first(x))))

    model = Disordered()
    neq = NEq(model, sgd(model), torch.randn(3, 4))
    assert set(neq.frozen) == {"norm", "first", "second"}
    assert "head" in neq.left_alone["classes"]


@pytest.mark.parametrize("options", [{"warmup": 1.5}, {"warmup": "2"}, {"positions": 3.0}])
def test_counts_are_whole_numbers(options: dict[str, Any]) -> None:
    model = network()
    with pytest.raises(ConfigError, match=rf"{next(iter(options))}: must be a whole number"):
        NEq(model, sgd(model), batch()[0], **options)


def test_a_frozen_model_is_not_taken_over() -> None:
    model = network()
    first = NEq(model, sgd(model), batch()[0])
    first.apply(some(first))
    with pytest.raises(ConfigError, match=r"layer '0' are frozen by another .* remove\(\)"):
        NEq(model, sgd(model), batch()[0])
    first.remove()
    assert set(NEq(model, sgd(model), batch()[0]).frozen) == {"0", "1", "3", "4", "7"}


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"eps": -1}, ConfigError, "eps"),
        ({"eps": float("nan")}, ConfigError, "eps"),
        ({"mu": 1.0}, ConfigError, "mu"),
        ({"warmup": 0}, ConfigError, "warmup"),
        ({"formula": "newest"}, ConfigError, "formula: .*paper, released"),
        ({"kinds": ["conv", "attention"]}, ConfigError, "kinds: 'attention'.*layernorm"),
        ({"kinds": []}, ConfigError, "kinds"),
        ({"positions": 0}, ConfigError, "positions"),
        ({"dispatch": "guessed"}, ConfigError, "dispatch: .*measured, fixed"),
        ({"exclude": ["nobody"]}, ConfigError, "nobody"),
        ({"probe": torch.zeros(0, 2, 8, 8)}, ConfigError, "probe"),
        ({"probe": torch.zeros(3, 5, 8, 8).double()}, ModelError, "probe"),
        ({"optimizer": sgd(nn.Linear(1, 1))}, ConfigError, "optimizer"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], says: str) -> None:
    model = network()
    complete = {"optimizer": sgd(model), "probe": batch()[0], **arguments}
    with pytest.raises(error, match=says):
        NEq(model, **complete)


@pytest.mark.parametrize(
    "masks",
    [
        {"nobody": torch.ones(6, dtype=torch.bool)},
        {"0": torch.ones(5, dtype=torch.bool)},
        {"0": torch.ones(6)},
    ],
)
def test_bad_masks_change_nothing(masks: dict[str, Tensor]) -> None:
    model = network()
    neq = NEq(model, sgd(model), batch()[0])
    neq.apply(some(neq))
    before = neq.frozen
    with pytest.raises(ConfigError, match="mask"):
        neq.apply(masks)
    assert same(list(before.values()), list(neq.frozen.values()))


def test_divergence_names_the_layer() -> None:
    model = network()
    neq = NEq(model, sgd(model), batch()[0])
    with torch.no_grad():
        model[3].weight.fill_(float("nan"))
    with pytest.raises(DivergenceError, match="'3'"):
        neq.step()


def test_a_layer_that_was_replaced_is_named() -> None:
    model = network()
    neq = NEq(model, sgd(model), batch()[0])
    model[3] = copy.deepcopy(model[3])
    with pytest.raises(ConfigError, match=r"layer '3' did not run on the probe: build a new NEq"):
        neq.step()


# --- the package
# ----------------------------------------------------------------------------------------


def test_the_example_of_the_package_runs() -> None:
    found = doctest.testmod(snello.equilibrium)
    assert found.attempted > 5
    assert found.failed == 0
