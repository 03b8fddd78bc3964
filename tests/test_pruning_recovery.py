"""Recovery from pruning: least squares, statistics, distillation."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from snello import simplify
from snello.errors import ConfigError, DataError
from snello.pruning.recovery import (
    FeatureDistillation,
    correct_biases,
    distillation,
    recalibrate,
    reconstruct,
)
from zoo import CifarResNet


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 8, 3, stride=2, bias=False),
        nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=4, padding="same"), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 20), nn.ReLU(), nn.Linear(20, 5),
    ).double().eval()  # fmt: skip


def _kill(model: nn.Module, layer: str, neurons: list[int]) -> None:
    module = model.get_submodule(layer)
    with torch.no_grad():
        module.weight[neurons] = 0
        if module.bias is not None:
            module.bias[neurons] = 0


def _images(count: int = 64, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, 9, 9, generator=generator, dtype=torch.float64)


def test_a_redundant_channel_is_made_up_for_exactly() -> None:
    """Where a dead channel is a copy of a live one, least squares finds the dense outputs."""
    dense = _network()
    with torch.no_grad():
        dense[0].weight[5] = 2 * dense[0].weight[3]
        dense[0].bias[5] = 2 * dense[0].bias[3]  # ReLU keeps the factor
    pruned = copy.deepcopy(dense)
    _kill(pruned, "0", [5])
    x = _images()
    before = (pruned(x) - dense(x)).abs().max()
    found = reconstruct(pruned, dense, [x[:32], x[32:]], damping=1e-9)
    assert before > 1e-3
    assert (pruned(x) - dense(x)).abs().max() < 1e-5 * before
    assert found.errors["2"][0] > 1e-3 > 1e6 * found.errors["2"][1]


def test_errors_fall_and_zeros_stay() -> None:
    dense, x = _network(), _images(128)
    pruned = copy.deepcopy(dense)
    _kill(pruned, "0", [0, 4, 7, 9])
    _kill(pruned, "5", [3])
    _kill(pruned, "9", [1, 2, 3, 11])
    zeros = {name: p == 0 for name, p in pruned.named_parameters()}
    plain = (pruned(x) - dense(x)).square().mean()
    found = reconstruct(pruned, dense, [x])
    assert all((p[zeros[name]] == 0).all() for name, p in pruned.named_parameters())
    # "0" reads the images themselves, so that nothing is lost there; the others have something to repair.
    assert set(found.errors) == {"0", "2", "5", "9", "11"}
    assert not found.left_alone
    for name in ("2", "5", "11"):
        assert found.errors[name][1] < found.errors[name][0]
    unseen = _images(64, seed=5)
    assert (pruned(x) - dense(x)).square().mean() < 0.5 * plain
    assert (pruned(unseen) - dense(unseen)).square().mean() < plain
    lean = simplify(pruned, x)
    torch.testing.assert_close(lean(unseen), pruned(unseen), rtol=0, atol=1e-10)


def test_weights_are_the_damped_minimum() -> None:
    """The gradient of the stated objective is zero at the weights that were found."""
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 3, bias=False)).double()
    pruned = copy.deepcopy(dense)
    _kill(pruned, "0", [1, 2])
    before = pruned[2].weight.detach().clone()
    x = torch.randn(40, 6, dtype=torch.float64)
    reconstruct(pruned, dense, [x], exclude=["0"], damping=0.3)
    inputs, targets = pruned[1](pruned[0](x)).detach(), dense(x).detach()
    weight = pruned[2].weight.detach().clone().requires_grad_()
    damping = 0.3 * inputs.square().sum(0).mean()
    objective = (targets - inputs @ weight.T).square().sum() + damping * (
        weight - before
    ).square().sum()
    (gradient,) = torch.autograd.grad(objective, weight)
    assert gradient.abs().max() < 1e-9


def test_single_weights_tied_and_repeated_layers_are_left_alone() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.relu(self.a(torch.relu(self.a(x)))))

    dense = Twice()
    pruned = copy.deepcopy(dense)
    with torch.no_grad():
        pruned.b.weight[0, 1] = 0
    state = copy.deepcopy(pruned.state_dict())
    found = reconstruct(pruned, dense, [torch.randn(9, 4)])
    assert found.left_alone == {
        "a": "it runs 2 times in a forward pass", "b": "its neurons have lost different inputs",
    }  # fmt: skip
    assert all(torch.equal(value, state[name]) for name, value in pruned.state_dict().items())
    assert "b: its neurons" in str(found)


def test_every_neuron_has_its_mean_of_before_by_its_bias_alone() -> None:
    dense, x = _network(), _images(128)
    pruned = copy.deepcopy(dense)
    _kill(pruned, "0", [0, 4, 7, 9])
    _kill(pruned, "5", [3])
    before = {name: p.clone() for name, p in pruned.named_parameters()}
    names = correct_biases(pruned, dense, [x[:64], x[64:]])
    assert names == ("0", "5", "9", "11"), "2 has no bias"
    for name, parameter in pruned.named_parameters():
        if name.removesuffix(".bias") not in names:
            assert torch.equal(parameter, before[name]), name
    assert not pruned[5].bias[3].any()
    assert torch.equal(pruned[0].bias, before["0.bias"]), "nothing before it was pruned"
    for stop in (6, 10, 12):
        ours, theirs = pruned[:stop](x), dense[:stop](x)
        axes = [axis for axis in range(ours.dim()) if axis != 1]
        live = [i for i in range(ours.shape[1]) if not (stop == 6 and i == 3)]
        assert torch.allclose(ours.mean(axes)[live], theirs.mean(axes)[live], rtol=1e-9)
    with pytest.raises(DataError, match="correct_biases: there is no batch"):
        correct_biases(pruned, dense, [])
    with pytest.raises(ConfigError, match="correct_biases: parameter"):
        correct_biases(nn.Linear(2, 3), nn.Linear(2, 4), [x])


@pytest.mark.parametrize("momentum", [0.1, None])
def test_statistics_are_those_of_the_data(momentum: float | None) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=momentum), nn.Dropout(0.5))
    model = model.double().train()
    model[2].eval()
    x = _images(30)
    assert recalibrate(model, [x[:10], x[10:20], x[20:]]) == 1
    outputs = model[0](x)
    torch.testing.assert_close(model[1].running_mean, outputs.mean((0, 2, 3)))
    halves = [model[0](part).var((0, 2, 3)) for part in x.split(10)]
    torch.testing.assert_close(model[1].running_var, torch.stack(halves).mean(0))
    assert (model.training, model[1].training, model[2].training) == (True, True, False)
    assert model[1].momentum == momentum


def test_no_norms_no_batches_and_targets() -> None:
    assert recalibrate(nn.Linear(3, 2), [torch.randn(4, 3)]) == 0
    with pytest.raises(DataError, match="no batch"):
        recalibrate(nn.BatchNorm1d(3), [])
    with pytest.raises(ConfigError, match="apparently inputs and targets"):
        recalibrate(nn.BatchNorm1d(3), [(torch.randn(4, 3), torch.zeros(4))])
    with pytest.raises(DataError, match="no batch"):
        reconstruct(nn.Linear(3, 2), nn.Linear(3, 2), [])
    with pytest.raises(ConfigError, match="before it is simplified"):
        reconstruct(nn.Linear(3, 2), nn.Linear(3, 3), [torch.randn(4, 3)])
    with pytest.raises(ConfigError, match="damping must be positive"):
        reconstruct(nn.Linear(3, 2), nn.Linear(3, 2), [torch.randn(4, 3)], damping=0.0)


def _norm() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=0.3))
    model(_images(4).float())
    return model.eval()


def _interrupted() -> Iterator[Tensor]:
    yield torch.randn(4, 3, 8, 8)
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("batches", "error", "message"),
    [
        ([torch.randn(0, 3, 8, 8)], DataError, "has no samples"),
        ([torch.randn(4, 3, 8, 8), torch.full((4, 3, 8, 8), torch.nan)], DataError, "not finite"),
        ([torch.randn(1, 3, 3, 3)], DataError, "one value per channel"),
        (torch.randn(4, 3, 8, 8), ConfigError, "put it into a list"),
        (_interrupted(), KeyboardInterrupt, "^$"),
    ],
)
def test_statistics_are_as_before_after_any_error(
    batches: Any, error: type[BaseException], message: str
) -> None:
    model = _norm()
    before, momentum = copy.deepcopy(model.state_dict()), model[1].momentum
    with pytest.raises(error, match=message):
        recalibrate(model, batches)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert (model[1].momentum, model[1].training) == (momentum, False)


@pytest.mark.parametrize("recover", [reconstruct, correct_biases])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_inputs_that_nothing_can_be_fitted_to_change_nothing(recover: Any, value: float) -> None:
    dense = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    pruned = copy.deepcopy(dense)
    with torch.no_grad():
        pruned[0].weight[0], pruned[0].bias[0], pruned[2].weight[:, 0] = 0, 0, 0
    before = copy.deepcopy(pruned.state_dict())
    for batches, error, message in (
        ([torch.full((8, 4), value)], DataError, "layer '0' before pruning are not finite"),
        ([torch.randn(0, 4)], DataError, "has no samples"),
        (torch.randn(8, 4), ConfigError, "put it into a list"),
    ):
        with pytest.raises(error, match=message):
            recover(pruned, dense, batches)
    assert all(torch.equal(value, before[name]) for name, value in pruned.state_dict().items())


def test_tied_layers_keep_their_weights_and_keywords_are_inputs_too() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.hidden = nn.Embedding(9, 6), nn.Linear(6, 8)
            self.back, self.head = nn.Linear(8, 6), nn.Linear(6, 9)
            self.head.weight = self.embed.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.back(input=torch.relu(self.hidden(input=self.embed(x)))))

    torch.manual_seed(0)
    dense, words = Words(), torch.randint(0, 9, (200,))
    pruned = copy.deepcopy(dense)
    with torch.no_grad():
        pruned.hidden.weight[:2] = pruned.hidden.bias[:2] = pruned.back.weight[:, :2] = 0
    found = reconstruct(pruned, dense, [words])
    assert set(found.errors) == {"hidden", "back"}
    assert found.errors["back"][1] < found.errors["back"][0]
    assert found.left_alone == {"head": "its weight or bias is tied to that of another module"}
    assert torch.equal(pruned.embed.weight, dense.embed.weight)
    assert torch.equal(pruned.head.bias, dense.head.bias)
    assert correct_biases(pruned, dense, [words]) == ("hidden", "back")


def test_keywords_of_batches_may_come_in_any_order() -> None:
    class Difference(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, plus: Tensor, minus: Tensor) -> Tensor:
            return self.layer(plus - minus)

    dense = Difference()
    pruned = copy.deepcopy(dense)
    with torch.no_grad():
        pruned.layer.weight[:, 0] = 0
    plus, minus = torch.randn(8, 4) + 1, torch.randn(8, 4)
    first = {"plus": plus[:4], "minus": minus[:4]}
    correct_biases(pruned, dense, [first, {"minus": minus[4:], "plus": plus[4:]}])
    gap = pruned(plus, minus).mean(0) - dense(plus, minus).mean(0)
    assert float(gap.abs().max()) < 1e-6


def test_features_of_half_precision_do_not_overflow_and_names_are_checked_first() -> None:
    student, teacher = (nn.Sequential(nn.Conv2d(3, 4, 1)).half() for _ in range(2))
    with torch.no_grad():
        student[0].weight.mul_(3000)
    with pytest.raises(ConfigError, match="no module '9'"):
        FeatureDistillation(student, teacher, ["0", "9"])
    assert not student[0]._forward_hooks
    features = FeatureDistillation(student, teacher, "0")
    x = torch.randn(2, 3, 4, 4).half()
    student(x), teacher(x)
    assert 0 < features.loss().item() < 1
    with pytest.raises(ConfigError, match="not a tuple; pass its logits"):
        distillation((x,), x)  # type: ignore[arg-type]


def test_distillation_has_the_scale_and_the_minimum_of_cross_entropy() -> None:
    torch.manual_seed(0)
    teacher = torch.randn(16, 5, dtype=torch.float64)
    student = torch.randn(16, 5, dtype=torch.float64, requires_grad=True)
    assert float(distillation(teacher, teacher)) == pytest.approx(0, abs=1e-12)
    # For a high temperature the gradient is that of half the squared distance of centred scores.
    (gradient,) = torch.autograd.grad(distillation(student, teacher, temperature=1e4), student)
    centred = (student - student.mean(1, keepdim=True)) - (teacher - teacher.mean(1, keepdim=True))
    torch.testing.assert_close(gradient, centred.detach() / 5 / 16, rtol=1e-3, atol=1e-6)
    with pytest.raises(ConfigError, match=r"shapes \(2, 3\) and \(2, 4\)"):
        distillation(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ConfigError, match="temperature"):
        distillation(torch.zeros(2, 3), torch.zeros(2, 3), temperature=0)


def test_features_of_a_lean_network_are_compared_with_the_dense_ones() -> None:
    torch.manual_seed(0)
    dense = CifarResNet(8, 10).eval()
    pruned = copy.deepcopy(dense)
    _kill(pruned, "layer1.0.conv1", [0, 1, 2])
    x = torch.randn(4, 3, 32, 32)
    lean = simplify(pruned, x)
    features = FeatureDistillation(pruned, dense, ["layer1", "layer2"])
    with pytest.raises(ConfigError, match="run student and teacher"):
        features.loss()
    dense(x), pruned(x)
    loss = features.loss()
    loss.backward()
    assert loss > 0
    assert pruned.conv1.weight.grad.abs().sum() > 0
    assert dense.conv1.weight.grad is None
    features.remove()
    assert not pruned.layer1._forward_hooks
    same = FeatureDistillation(dense, dense, {"layer1": "layer1"})
    dense(x)
    assert float(same.loss().detach()) == 0
    with pytest.raises(ConfigError, match="no module 'layer9'"):
        FeatureDistillation(lean, dense, ["layer9"])
