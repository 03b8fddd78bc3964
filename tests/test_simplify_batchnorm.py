"""Folding BatchNorm: the same outputs, no norm left that a layer could take in, nothing else
touched.
"""

from __future__ import annotations

import copy
import importlib
import io
import json
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from hard_cases import CASES
from hard_cases import kill as kill_named
from laws import generator, kill_neurons, randomise, tensors
from snello.errors import ModelError, SimplifyError
from snello.neurons import is_batchnorm
from snello.simplification import apply, plan_of, simplify
from snello.simplification.batchnorm import FoldedBatchNorm, apply_folds, fold_batchnorm, folds_of
from zoo import ZOO


@torch.no_grad()
def assert_same(a: nn.Module, b: nn.Module, *inputs: Tensor, tolerance: float = 1e-10) -> None:
    pairs = zip(
        tensors(a(*(x.clone() for x in inputs))),
        tensors(b(*(x.clone() for x in inputs))),
        strict=True,
    )
    for expected, found in pairs:
        assert expected.shape == found.shape
        assert float((expected - found).abs().max()) <= tolerance * max(
            1e-300, float(expected.abs().max())
        )


def ready(model: nn.Module, seed: int = 0) -> nn.Module:
    return randomise(model.double(), generator(seed)).eval()


def norms(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if is_batchnorm(module)]


IMAGE, LINE, CUBE, FLAT = (2, 4, 8, 7), (2, 4, 9), (2, 4, 5, 6, 5), (3, 4)

CHAINS: dict[str, tuple[Callable[[], list[nn.Module]], tuple[int, ...]]] = {
    "Linear": (lambda: [nn.Linear(4, 6), nn.BatchNorm1d(6)], FLAT),
    "Linear without bias": (lambda: [nn.Linear(4, 6, bias=False), nn.BatchNorm1d(6)], FLAT),
    "Conv1d": (lambda: [nn.Conv1d(4, 6, 3, padding=1), nn.BatchNorm1d(6)], LINE),
    "Conv2d": (lambda: [nn.Conv2d(4, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)], IMAGE),
    "Conv3d": (lambda: [nn.Conv3d(4, 6, 3, stride=2), nn.BatchNorm3d(6)], CUBE),
    "grouped": (lambda: [nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)], IMAGE),
    "depthwise": (lambda: [nn.Conv2d(4, 8, 3, groups=4, bias=False), nn.BatchNorm2d(8)], IMAGE),
    "reflect padding": (lambda: [nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(6)], IMAGE),
    "transposed 1d": (lambda: [nn.ConvTranspose1d(4, 6, 3, 2), nn.BatchNorm1d(6)], LINE),
    "transposed 2d": (lambda: [nn.ConvTranspose2d(4, 6, 3, 2, 1, bias=False), nn.BatchNorm2d(6)], IMAGE),
    "transposed 3d": (lambda: [nn.ConvTranspose3d(4, 6, 2), nn.BatchNorm3d(6)], CUBE),
    "transposed, grouped": (lambda: [nn.ConvTranspose2d(4, 6, 3, 2, groups=2), nn.BatchNorm2d(6)], IMAGE),
    "no affine": (lambda: [nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, affine=False)], IMAGE),
    "another eps": (lambda: [nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, eps=0.5)], IMAGE),
    "two norms": (lambda: [nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.BatchNorm2d(6)], IMAGE),
    "an identity between": (lambda: [nn.Conv2d(4, 6, 3), nn.Identity(), nn.BatchNorm2d(6)], IMAGE),
    "norm first, Linear": (lambda: [nn.BatchNorm1d(4), nn.Linear(4, 6, bias=False)], FLAT),
    "norm first, Conv2d": (lambda: [nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, stride=2)], IMAGE),
    "norm first, grouped": (lambda: [nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, groups=2, bias=False)], IMAGE),
    "norm first, reflect": (lambda: [nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect")], IMAGE),
    "between two layers": (lambda: [nn.Conv2d(4, 5, 1), nn.BatchNorm2d(5), nn.Conv2d(5, 6, 3)], IMAGE),
    "before and behind": (lambda: [nn.BatchNorm2d(4), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5)], IMAGE),
}  # fmt: skip


@pytest.mark.sampled(8)
@pytest.mark.parametrize("name", CHAINS)
def test_every_norm_of_a_chain_goes(name: str) -> None:
    build, shape = CHAINS[name]
    model = ready(nn.Sequential(*build(), nn.Sigmoid()))
    before = copy.deepcopy(model.state_dict())
    x = torch.randn(shape, dtype=torch.float64, generator=generator())
    folded = fold_batchnorm(model, x)
    assert norms(folded) == []
    assert set(folds_of(folded)) == set(norms(model))
    assert_same(model, folded, x)
    assert_same(model, folded, torch.cat([x, -x, 2 * x]))
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    # Two numbers per channel remain at most of the norm's five: the layer's bias.
    assert sum(t.numel() for t in folded.state_dict().values()) < sum(
        t.numel() for t in before.values()
    )


class Joined(nn.Module):
    """Layers that a norm must not be folded into: something else reads the layer, or the norm reads
    two.
    """

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.bn1, self.bn2 = (
            nn.Conv2d(4, 4, 1),
            nn.Conv2d(4, 4, 1),
            nn.BatchNorm2d(4),
            nn.BatchNorm2d(4),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return y + self.bn1(y) + self.bn2(self.b(x) + y)


class CalledTwice(nn.Module):
    def __init__(self, shares: str) -> None:
        super().__init__()
        self.shares = shares
        self.conv1, self.conv2 = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.bn1, self.bn2 = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        conv2 = self.conv1 if self.shares == "conv" else self.conv2
        bn2 = self.bn1 if self.shares == "norm" else self.bn2
        return torch.relu(bn2(conv2(torch.relu(self.bn1(self.conv1(x))))))


class ReadElsewhere(nn.Module):
    """The norm's parameters, and the convolution's, are read by the user's code."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what, self.conv, self.bn = what, nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        read = self.bn.weight.sum() if self.what == "norm" else self.conv.weight.sum()
        return self.bn(self.conv(x)) * read


def tied() -> nn.Module:
    model = nn.Sequential(
        nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
    )
    model[3].weight = model[0].weight
    return model


def hooked() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    model[0].register_forward_hook(lambda _module, _inputs, output: output.relu())
    return model


class Tokens(nn.Module):
    """BatchNorm over the tokens of a Linear's output: another axis than its features."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.bn = nn.Linear(9, 4), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.fc(x))


LEFT_ALONE: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "joined": (Joined, IMAGE),
    "convolution called twice": (lambda: CalledTwice("conv"), IMAGE),
    "norm called twice": (lambda: CalledTwice("norm"), IMAGE),
    "tied": (tied, IMAGE),
    "norm read elsewhere": (lambda: ReadElsewhere("norm"), IMAGE),
    "convolution read elsewhere": (lambda: ReadElsewhere("conv"), IMAGE),
    "hook": (hooked, IMAGE),
    "tokens": (Tokens, (2, 4, 9)),
    "an activation between": (lambda: nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.BatchNorm2d(4)), IMAGE),
    "no statistics": (lambda: nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)), IMAGE),
    "norm first, zero padding": (lambda: nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)), IMAGE),
    "norm first, padding same": (lambda: nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding="same")), IMAGE),
    "norm first, transposed": (lambda: nn.Sequential(nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 4, 3)), IMAGE),
    "InstanceNorm": (lambda: nn.Sequential(nn.Conv2d(4, 4, 1), nn.InstanceNorm2d(4, track_running_stats=True)), IMAGE),
    "weight norm": (lambda: nn.Sequential(parametrizations.weight_norm(nn.Conv2d(4, 4, 1)), nn.BatchNorm2d(4)), IMAGE),
}  # fmt: skip


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_what_cannot_be_folded_is_left_alone(name: str) -> None:
    build, shape = LEFT_ALONE[name]
    model = ready(build())
    x = torch.randn(shape, dtype=torch.float64, generator=generator())
    try:
        folded = fold_batchnorm(model, x)
    except ModelError:
        assert name == "weight norm"  # torch.fx cannot copy it
        return
    shared = name in ("convolution called twice", "norm called twice", "joined")
    assert shared or norms(folded) == norms(model)
    assert_same(model, folded, x, tolerance=1e-12)


@pytest.mark.sampled(5)
@pytest.mark.parametrize("name", ZOO)
def test_the_zoo(name: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ready(ZOO[name].build())
    inputs = ZOO[name].inputs(generator(1))
    folded = fold_batchnorm(model, inputs[0])
    assert type(folded) is type(model)
    for x in inputs:
        assert_same(model, folded, x)
    again = fold_batchnorm(folded, inputs[0])
    assert folds_of(again) == folds_of(folded)
    assert again.state_dict().keys() == folded.state_dict().keys()


def test_a_resnet_keeps_no_norm() -> None:
    model = ready(ZOO["resnet-8"].build())
    folded = fold_batchnorm(model, torch.randn(2, 3, 8, 8))
    assert norms(model)
    assert norms(folded) == []
    assert all(type(folded.get_submodule(name)) is FoldedBatchNorm for name in norms(model))


@pytest.mark.sampled(4)
@pytest.mark.parametrize("with_norms", [True, False])
@pytest.mark.parametrize("name", ["resnet-8", "average pool", "1d", "3d", "grouped", "residual"])
def test_a_lean_model_is_folded_and_loaded_without_pickled_code(
    name: str, with_norms: bool
) -> None:
    sample = ZOO[name]
    model = ready(sample.build())
    kill_neurons(model, 0.4, generator(2), with_norms=with_norms)
    inputs = sample.inputs(generator(1))
    lean = simplify(model, inputs[0])
    folded = fold_batchnorm(lean, inputs[0])
    plan, folds = plan_of(folded), json.loads(json.dumps(folds_of(folded)))
    assert plan == plan_of(lean)
    file = io.BytesIO()
    torch.save(folded.state_dict(), file)
    file.seek(0)
    fresh = apply_folds(folds, apply(plan, sample.build().double().eval()))
    fresh.load_state_dict(torch.load(file, weights_only=True))
    for x in inputs:
        assert_same(model, folded, x)
        assert_same(folded, fresh, x, tolerance=0.0)
        assert_same(folded, copy.deepcopy(folded), x, tolerance=0.0)


@pytest.mark.sampled(8)
@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize(
    "name",
    [
        n
        for n in CASES
        if n.startswith(
            ("grouped", "sum: ResNet", "gate: inverted", "constant: norm", "dimensions")
        )
    ],
)
def test_lean_hard_cases(name: str, constant: bool) -> None:
    """Border kernels and grouped convolutions of uneven width are folded too."""
    case = CASES[name]
    model = case.model()
    kill_named(model, case.dead, constant=constant)
    inputs = case.inputs(generator(1))
    lean = simplify(model, inputs[0])
    folded = fold_batchnorm(lean, inputs[0])
    for xs in inputs:
        assert_same(model, folded, *xs, tolerance=1e-9)


def test_folding_first_and_simplifying_then_agree() -> None:
    sample = ZOO["resnet-8"]
    model = ready(sample.build())
    kill_neurons(model, 0.4, generator(2), with_norms=True)
    inputs = sample.inputs(generator(1))
    lean = simplify(fold_batchnorm(model, inputs[0]), inputs[0])
    for x in inputs:
        assert_same(model, lean, x)


def test_a_fresh_model_takes_the_weights() -> None:
    model = ready(ZOO["resnet-8"].build())
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    folded = fold_batchnorm(model, x)
    fresh = apply_folds(folds_of(folded), ZOO["resnet-8"].build().double().eval())
    fresh.load_state_dict(folded.state_dict())
    assert_same(folded, fresh, x, tolerance=0.0)


def test_folds_of_another_model_name_the_layer() -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6))
    with pytest.raises(ModelError, match=r"'0' is no BatchNorm"):
        apply_folds({"0": "1"}, model)
    with pytest.raises(ModelError, match=r"'nowhere'"):
        apply_folds({"1": "nowhere"}, model)
    assert folds_of(model) == {}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_dtypes_stay_within_their_rounding(dtype: torch.dtype) -> None:
    model = randomise(ZOO["resnet-8"].build(), generator()).eval().to(dtype)
    x = torch.randn(2, 3, 8, 8).to(dtype)
    folded = fold_batchnorm(model, x)
    assert {t.dtype for t in folded.parameters()} == {dtype}
    assert_same(model, folded, x, tolerance=50 * torch.finfo(dtype).eps)


def test_arithmetic_is_done_in_float64() -> None:
    """A tiny variance and a huge mean: in float32 arithmetic the shift would lose half of its
    digits.
    """
    model = nn.Sequential(nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6, eps=1e-12)).eval()
    with torch.no_grad():
        model[1].running_mean.fill_(1234.567)
        model[1].running_var.fill_(1e-4)
        model[1].bias.copy_(model[1].running_mean / model[1].running_var.sqrt())
        model[0].weight.mul_(1e-3)
    exact = fold_batchnorm(
        copy.deepcopy(model).double(), torch.randn(2, 4, 3, 3, dtype=torch.float64)
    )
    folded = fold_batchnorm(model, torch.randn(2, 4, 3, 3))
    for a, b in zip(exact.parameters(), folded.parameters(), strict=True):
        assert torch.equal(a.float(), b)


def test_frozen_stays_frozen_and_memory_format_stays() -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6)).to(
        memory_format=torch.channels_last
    )
    model[0].weight.requires_grad_(False)
    folded = fold_batchnorm(model, torch.randn(2, 4, 8, 8))
    assert not folded[0].weight.requires_grad
    assert not folded[0].bias.requires_grad
    assert folded[0].weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_kept(training: bool) -> None:
    model = ZOO["resnet-8"].build().train(training)
    folded = fold_batchnorm(model, torch.randn(2, 3, 8, 8))
    assert (
        {m.training for m in model.modules()}
        == {m.training for m in folded.modules()}
        == {training}
    )


def test_a_wrong_fold_is_refused_naming_the_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("snello.simplification.batchnorm")
    right = module.affine_of
    monkeypatch.setattr(
        module,
        "affine_of",
        lambda norm: (right(norm)[0], right(norm)[1] + (norm.num_features == 5)),
    )
    model = ready(
        nn.Sequential(
            nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 1), nn.BatchNorm2d(5)
        )
    )
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(SimplifyError, match=r"'4' \(into '3'\)"):
        fold_batchnorm(model, torch.randn(2, 4, 3, 3, dtype=torch.float64))
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_a_model_that_cannot_be_traced_is_refused() -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.relu(x) if x.sum() > 0 else x

    with pytest.raises(ModelError, match="Branching"):
        fold_batchnorm(Branching(), torch.randn(2, 3))
