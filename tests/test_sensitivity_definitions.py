"""Every sensitivity equals its definition, written as plain loops; the sampled ones converge to
it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from snello.errors import ConfigError, DataError
from snello.neurons import rows, weighted_layers
from snello.sensitivity import Lobster, OutputSensitivity, SeReNe, lobster_scores, serene_scores


class Tokens(nn.Module):
    """Outputs (B, T, C)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.head = nn.Linear(3, 5), nn.Linear(4, 4), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.embed(x))
        return self.head(torch.sigmoid(self.mix(x.transpose(1, 2)).transpose(1, 2)))


def classifier() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(True), nn.Conv2d(4, 3, 3, stride=2), nn.Sigmoid(),
        nn.Flatten(), nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3),
    )  # fmt: skip


def segmenter() -> nn.Module:
    """Outputs (B, C, H, W)."""
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.Sigmoid(), nn.ConvTranspose2d(4, 4, 2, stride=2, groups=2), nn.Tanh(),
        nn.Conv2d(4, 3, 1),
    )  # fmt: skip


Build = Callable[[], nn.Module]
CASES: dict[str, tuple[Build, tuple[int, ...], int]] = {
    "classifier": (classifier, (4, 2, 6, 6), 1),
    "segmenter": (segmenter, (3, 2, 4, 4), 1),
    "tokens": (Tokens, (4, 4, 3), -1),
}


def case(name: str) -> tuple[nn.Module, Tensor, int]:
    build, shape, class_dim = CASES[name]
    torch.manual_seed(0)
    model = build().double().eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_var.uniform_(0.5, 2)
                module.weight.uniform_(0.5, 2)
    return model, torch.randn(shape, dtype=torch.float64), class_dim


def per_class(outputs: Tensor, class_dim: int) -> Tensor:
    """(B, C): the mean over positions."""
    if outputs.dim() == 2:
        return outputs
    return torch.stack([k.reshape(len(k), -1).mean(1) for k in outputs.unbind(class_dim)], 1)


def loops(
    model: nn.Module, x: Tensor, class_dim: int, name: str, combine: Callable[[Tensor], Tensor]
) -> Tensor:
    """Gradients of each class of each example alone with respect to one layer's pre-activation.

    ``combine`` takes the gradients of all classes, (C, neurons, positions), to (neurons,
    positions).
    """
    kept: list[Tensor] = []
    layer = model.get_submodule(name)
    handle = layer.register_forward_hook(lambda m, i, y: kept.append(y))
    total = torch.zeros((), dtype=torch.float64)
    for example in range(len(x)):
        kept.clear()
        scores = per_class(model(x[example : example + 1]), class_dim)[0]
        gradients = []
        for k in range(len(scores)):
            (g,) = torch.autograd.grad(scores[k], kept[0], retain_graph=True)
            axis = g.dim() - 1 if isinstance(layer, nn.Linear) else 1
            gradients.append(g.movedim(axis, 0).flatten(1))
        total = total + combine(torch.stack(gradients)).mean(1) / len(x)
    handle.remove()
    return total


COMBINE: dict[str, Callable[[Tensor], Tensor]] = {
    "full": lambda g: g.abs().mean(0),
    "lower-bound": lambda g: g.mean(0).abs(),
}


@pytest.mark.sampled(6)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    ("estimate", "classes_per_pass"), [("full", 1), ("full", 2), ("full", 7), ("lower-bound", 1)]
)
def test_serene_is_a_double_loop_over_examples_and_classes(
    name: str, estimate: Any, classes_per_pass: int
) -> None:
    model, x, class_dim = case(name)
    serene = SeReNe(
        model, estimate=estimate, classes_per_pass=classes_per_pass, class_dim=class_dim, exclude=()
    )
    serene.observe(model(x))
    found = serene.sensitivity()
    assert found.keys() == weighted_layers(model).keys()
    for layer, value in found.items():
        expected = loops(model, x, class_dim, layer, COMBINE[estimate])
        assert expected.all()
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)


def test_the_lower_bound_is_one() -> None:
    model, x, _ = case("classifier")
    found = {}
    for estimate in ("full", "lower-bound"):
        serene = SeReNe(model, estimate=estimate)  # type: ignore[arg-type]
        serene.observe(model(x))
        found[estimate] = serene.sensitivity()
        serene.remove()
    for layer, bound in found["lower-bound"].items():
        assert (bound <= found["full"][layer] + 1e-15).all()
        assert (bound < 0.99 * found["full"][layer]).any()


def test_local_is_whether_the_mean_pre_activation_is_positive() -> None:
    model, x, _ = case("classifier")
    kept: dict[str, Tensor] = {}
    serene = SeReNe(model, 0.25, estimate="local", exclude=())
    for name, layer in weighted_layers(model).items():
        layer.register_forward_hook(lambda m, i, y, n=name: kept.update({n: y.detach().clone()}))
    serene.observe(model(x))
    values = set()
    for name, value in serene.sensitivity().items():
        y = kept[name]
        means = [y.select(1, i).sum() / y.select(1, i).numel() for i in range(y.shape[1])]
        assert value.tolist() == [float(mean > 0) for mean in means]
        values |= set(value.tolist())
    assert values == {0.0, 1.0}
    before = model[0].weight.detach().clone()
    expected = before * (1 - 0.25 * (1 - serene.sensitivity()["0"]))[:, None, None, None]
    serene.step()
    assert torch.equal(model[0].weight, expected)


@pytest.mark.parametrize("name", CASES)
def test_the_error_of_sampled_serene_shrinks_as_one_over_the_root_of_the_draws(name: str) -> None:
    model, x, class_dim = case(name)
    full = SeReNe(model, estimate="full", class_dim=class_dim)
    full.observe(model(x))
    expected = full.sensitivity()
    full.remove()

    def error(draws: int) -> float:
        """Root mean square over seeds of the relative error."""
        squares = []
        for seed in range(6):
            # Many copies of the batch are many draws per example.
            serene = SeReNe(model, seed=seed, class_dim=class_dim)
            serene.observe(model(x.repeat(draws, *[1] * (x.dim() - 1))))
            found = serene.sensitivity()
            serene.remove()
            squares += [float((found[n] - e).norm() / e.norm()) ** 2 for n, e in expected.items()]
        return math.sqrt(sum(squares) / len(squares))

    few, many = error(8), error(512)
    assert many < 0.05
    assert 4 < few / many < 16  # 8 = sqrt(512 / 8)


def test_a_part_of_the_batch_is_observed_in_a_forward_of_its_own() -> None:
    model, x, _ = case("classifier")
    serene = SeReNe(model, estimate="full", examples=2)
    model.train()
    outputs = model(x)
    statistics, state = model[1].running_mean.clone(), torch.get_rng_state()
    serene.observe(outputs)
    assert torch.equal(model[1].running_mean, statistics)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())
    found = serene.sensitivity()
    serene.remove()
    model.eval()
    for layer, value in found.items():
        torch.testing.assert_close(
            value, loops(model, x[:2], 1, layer, COMBINE["full"]), rtol=1e-12, atol=0
        )
    outputs.sum().backward()  # the training forward is still whole


# Output sensitivity


def weight_loops(
    model: nn.Module, scores: Callable[[Tensor], list[Tensor]], x: Tensor, layer: str
) -> Tensor:
    """The mean over outputs of ``|d mean_b y / dw|``, one weight gradient at a time."""
    weight = model.get_submodule(layer).weight
    total = torch.zeros_like(weight)
    count = len(scores(model(x)))
    for k in range(count):
        model.zero_grad()
        scores(model(x))[k].backward()
        assert weight.grad is not None
        total = total + weight.grad.abs() / count
    model.zero_grad()
    return total.detach()


@pytest.mark.parametrize("name", CASES)
def test_output_sensitivity_is_a_loop_over_classes(name: str) -> None:
    model, x, class_dim = case(name)
    output = OutputSensitivity(model, estimate="full", class_dim=class_dim)
    output.observe(model(x))
    found = output.sensitivity()
    assert found.keys() == {f"{layer}.weight" for layer in weighted_layers(model)}
    for layer in weighted_layers(model):
        expected = weight_loops(model, lambda y: list(per_class(y, class_dim).mean(0)), x, layer)
        torch.testing.assert_close(found[f"{layer}.weight"], expected, rtol=1e-12, atol=1e-18)


@pytest.mark.parametrize("name", CASES)
def test_specific_output_sensitivity_asks_the_target_alone(name: str) -> None:
    model, x, class_dim = case(name)
    shape = [n for d, n in enumerate(model(x).shape) if d != class_dim % model(x).dim()]
    targets = torch.randint(3, shape, generator=torch.Generator().manual_seed(2))
    if len(shape) > 1:
        targets[0, 0] = -100

    def score(outputs: Tensor) -> list[Tensor]:
        outputs, total = outputs.movedim(class_dim, -1), torch.zeros(())
        for b in range(len(outputs)):
            picked = [
                y[t]
                for y, t in zip(outputs[b].reshape(-1, 3), targets[b].flatten(), strict=True)
                if t >= 0
            ]
            total = total + sum(picked, torch.zeros(())) / len(picked) / len(outputs)
        return [total]

    output = OutputSensitivity(model, kind="specific", class_dim=class_dim)
    output.observe(model(x), targets)
    for layer in weighted_layers(model):
        expected = weight_loops(model, score, x, layer)
        torch.testing.assert_close(
            output.sensitivity()[f"{layer}.weight"], expected, rtol=1e-12, atol=1e-18
        )


def test_sampled_output_sensitivity_has_the_full_one_as_its_mean() -> None:
    model, x, _ = case("classifier")
    full = OutputSensitivity(model, estimate="full")
    full.observe(model(x))
    drawn = OutputSensitivity(model, every=1)
    for _ in range(600):
        drawn.observe(model(x))
    for name, expected in full.sensitivity().items():
        assert float((drawn.sensitivity()[name] - expected).norm() / expected.norm()) < 0.1


def test_output_sensitivity_decays_by_its_insensitivity_and_only_every_nth_call_measures() -> None:
    model, x, _ = case("classifier")
    output = OutputSensitivity(model, 0.25, estimate="full", every=2)
    output.observe(model(x))
    found, before = (
        output.sensitivity(),
        {n: p.detach().clone() for n, p in model.named_parameters()},
    )
    output.step()
    for name, p in model.named_parameters():
        expected = before[name]
        if name in found:
            expected = expected - 0.25 * expected * (1 - found[name]).clamp(min=0)
        assert torch.equal(p, expected)
    output.observe(model(x))  # the second call: the latest stands
    assert all(torch.equal(output.sensitivity()[name], value) for name, value in found.items())
    twin = OutputSensitivity(model, estimate="full", every=2)
    twin.load_state_dict(output.state_dict())
    assert all(torch.equal(twin.sensitivity()[name], value) for name, value in found.items())
    twin.observe(model(x))
    assert not torch.equal(twin.sensitivity()["0.weight"], found["0.weight"])


@pytest.mark.parametrize(
    "targets", [None, torch.tensor([0, 1, 2, 3]), torch.zeros(4, 1, dtype=torch.int64)]
)
def test_targets_that_do_not_fit_are_refused(targets: Tensor | None) -> None:
    model, x, _ = case("classifier")
    with pytest.raises(ConfigError, match="targets"):
        OutputSensitivity(model, kind="specific").observe(model(x), targets)


# Which layers


@pytest.mark.parametrize(
    ("exclude", "left"),
    [
        (["3"], {"0", "6", "8"}),
        ([nn.Conv2d], {"6", "8"}),
        ([nn.Conv2d, "8"], {"6"}),
        (
            lambda name, module: isinstance(module, nn.Linear) and module.out_features == 3,
            {"0", "3", "6"},
        ),
    ],
)
def test_layers_are_left_out_by_name_type_or_function(exclude: Any, left: set[str]) -> None:
    model, x, _ = case("classifier")
    serene, output = SeReNe(model, exclude=exclude), OutputSensitivity(model, exclude=exclude)
    outputs = model(x)
    serene.observe(outputs)
    output.observe(outputs)
    assert serene.sensitivity().keys() == left
    assert output.sensitivity().keys() == {f"{name}.weight" for name in left}
    outputs.sum().backward()
    decayed = {n.rpartition(".")[0] for n in Lobster(model, exclude=exclude).sensitivity()}
    assert decayed - {"1"} == left


def test_frozen_weights_do_not_decay() -> None:
    model, x, _ = case("classifier")
    model[3].weight.requires_grad_(False)
    before = model[3].weight.clone()
    for method in (Lobster(model, 0.5), SeReNe(model, 0.5), OutputSensitivity(model, 0.5)):
        outputs = model(x)
        method.observe(outputs)
        outputs.sum().backward()
        first = model[0].weight.clone()
        method.step()
        assert torch.equal(model[3].weight, before)
        assert not torch.equal(model[0].weight, first)
        method.remove()


def test_a_tied_weight_decays_once_by_the_more_sensitive_of_its_neurons() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2)
    ).double()
    model[2].weight = model[0].weight
    serene = SeReNe(model, 0.25, estimate="full")
    serene.observe(model(torch.randn(4, 3, dtype=torch.float64)))
    found, before = serene.sensitivity(), model[0].weight.detach().clone()
    share = (1 - torch.maximum(found["0"], found["2"])).clamp(min=0)
    serene.step()
    assert torch.equal(model[0].weight, before - 0.25 * before * share[:, None])


# Scores of a trained network


def test_calibrated_scores_are_means_over_the_batches() -> None:
    model, x, _ = case("classifier")
    y = torch.tensor([0, 1, 2, 0])
    batches = [(x[:2], y[:2]), (x[2:], y[2:])]
    found = lobster_scores(batches)(model, "weight")
    expected: dict[str, Tensor] = {
        n: torch.zeros_like(m.weight) for n, m in weighted_layers(model).items()
    }
    for inputs, targets in batches:
        model.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        for name, total in expected.items():
            gradient = model.get_submodule(name).weight.grad
            assert gradient is not None
            total += gradient.abs() / 2
    model.zero_grad()
    model.train()
    per_neuron = lobster_scores(batches)(model, "neuron")
    assert all(module.training for module in model.modules())
    assert all(p.grad is None for p in model.parameters())
    for name, module in weighted_layers(model).items():
        torch.testing.assert_close(found[name], expected[name].detach(), rtol=1e-12, atol=0)
        torch.testing.assert_close(
            per_neuron[name], rows(module, expected[name].detach()).mean(1), rtol=1e-12, atol=0
        )
    neurons = serene_scores(batches, estimate="full")(model, "neuron")
    weights = serene_scores(batches, estimate="full")(model, "weight")
    model.eval()
    for name, module in weighted_layers(model).items():
        s = loops(model, x, 1, name, COMBINE["full"])
        torch.testing.assert_close(neurons[name], s, rtol=1e-12, atol=0)
        torch.testing.assert_close(
            rows(module, weights[name]),
            rows(module, module.weight.detach().abs()) * s[:, None],
            rtol=1e-12,
            atol=0,
        )
    assert not any(m._forward_hooks for m in model.modules())


@pytest.mark.parametrize("scores", [lobster_scores, serene_scores])
def test_scores_need_a_batch(scores: Any) -> None:
    with pytest.raises(DataError, match="no batch"):
        scores([])(case("classifier")[0], "weight")
