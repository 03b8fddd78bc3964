"""Channels and residual branches chosen by measurement, and removed exactly."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from seams.search import find_branches, without
from snello import Record, load, save, simplify
from snello.errors import ConfigError
from snello.graph.coupled import coupling
from snello.pruning import LayerLimits
from snello.pruning.channels import Keep, measured_size
from snello.search.prune import prune
from snello.store import ModelSpec
from zoo import CifarResNet


def _images(count: int = 8) -> Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def _resnet() -> nn.Module:
    """A network of random weights with statistics that are not those of the first day."""
    torch.manual_seed(0)
    model = CifarResNet(14, 10)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return model.eval()


class Encoder(nn.Module):
    """Attention and a hidden layer, added to a stream."""

    def __init__(self, blocks: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inputs = nn.Linear(6, 16)
        self.norm = nn.ModuleList(nn.LayerNorm(16) for _ in range(blocks))
        self.qkv = nn.ModuleList(nn.Linear(16, 48) for _ in range(blocks))
        self.out = nn.ModuleList(nn.Linear(16, 16) for _ in range(blocks))
        self.up = nn.ModuleList(nn.Linear(16, 32) for _ in range(blocks))
        self.down = nn.ModuleList(nn.Linear(32, 16) for _ in range(blocks))
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inputs(x)
        b, n, _ = x.shape
        for norm, qkv, out, up, down in zip(
            self.norm, self.qkv, self.out, self.up, self.down, strict=True
        ):
            q, k, v = qkv(norm(x)).reshape(b, n, 3, 4, -1).permute(2, 0, 3, 1, 4)
            y = nn.functional.scaled_dot_product_attention(q, k, v)
            x = x + out(y.transpose(1, 2).reshape(b, n, -1))
            x = x + down(torch.relu(up(x)))
        return self.head(x.mean(1))


class Parallel(nn.Module):
    """Two convolutions with one sum: each is a branch of the other, but one has to stay."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.a(x) + self.b(x)).relu().mean((2, 3)))


class Gated(nn.Module):
    """A gate of its own, and one within a branch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.gate = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.up, self.inner = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.down, self.head = nn.Conv2d(8, 8, 1), nn.Linear(8, 5)
        nn.init.zeros_(self.down.weight)  # as residual blocks often start
        nn.init.zeros_(self.down.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x * self.gate(x.mean((2, 3), keepdim=True)).sigmoid()
        y = self.up(x).relu()
        y = y * self.inner(y.mean((2, 3), keepdim=True)).sigmoid()
        return self.head((x + self.down(y)).mean((2, 3)))


def _branches(model: nn.Module, x: Tensor) -> dict[str, frozenset[str]]:
    return {b.name: b.within for b in find_branches(model, coupling(model, x), x)}


def test_branches_hold_all_that_only_they_use() -> None:
    found = _branches(_resnet(), _images(2))
    assert found["layer1.1.conv2"] == {
        f"layer1.1.{name}"
        for name in (
            "conv1.weight",
            "bn1.weight",
            "bn1.bias",
            "conv2.weight",
            "bn2.weight",
            "bn2.bias",
        )
    }
    # The first convolution of a stream is no branch: nothing leads past it.
    blocks = [(stage, i) for stage in (1, 2, 3) for i in (0, 1)]
    assert set(found) == {f"layer{stage}.{i}.conv2" for stage, i in blocks}


def test_attention_and_hidden_layers_are_branches() -> None:
    found = _branches(Encoder(), torch.randn(2, 7, 6))
    assert set(found) == {"out.0", "out.1", "down.0", "down.1"}
    assert found["out.1"] == {
        f"{name}.1.{kind}" for name in ("norm", "qkv", "out") for kind in ("weight", "bias")
    } - {""}
    assert found["down.0"] == {
        f"{name}.0.{kind}" for name in ("up", "down") for kind in ("weight", "bias")
    }


def test_of_two_summands_one_stays() -> None:
    found = _branches(Parallel(), _images(2))
    assert set(found) == {"b"}


def test_gates_are_no_branches_but_a_part_of_one() -> None:
    found = _branches(Gated(), _images(2))
    assert set(found) == {"down"}
    assert found["down"] == {
        f"{name}.{kind}" for name in ("up", "inner", "down") for kind in ("weight", "bias")
    }


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("name", "count"),
    [("resnet18", 8), ("mobilenet_v3_small", 6), ("convnext_tiny", 18), ("swin_t", 24)],
)
def test_branches_of_known_networks_go_exactly(name: str, count: int) -> None:
    torch.manual_seed(0)
    model = getattr(torchvision.models, name)(weights=None).eval().double()
    x = torch.randn(2, 3, 64, 64, dtype=torch.double)
    branches = find_branches(model, coupling(model, x), x)
    assert len(branches) == count
    for branch in (branches[0], branches[len(branches) // 2], branches[-1]):
        reference = without(model, branch.zeroed)
        lean = simplify(reference, x)
        left = {n for n, _ in lean.named_parameters()}
        assert {n for n, _ in model.named_parameters()} - left == branch.within
        torch.testing.assert_close(lean(x), reference(x), rtol=0, atol=1e-9)


def test_a_network_without_branches_says_so() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)
    )
    with pytest.warns(UserWarning, match="no residual branch"):
        found = prune(
            model, _images(2), Keep(macs=0.5), calibration=[_images()], measured=True, branches=True
        )
    assert found.steps[-1].macs <= 0.5


@pytest.mark.parametrize(
    ("build", "x"),
    [(_resnet, _images()), (Encoder, torch.randn(8, 7, 6))],
    ids=["resnet", "encoder"],
)
@pytest.mark.parametrize(
    "keep", [Keep(macs=0.5), Keep(parameters=0.4), Keep(channels=0.5)], ids=str
)
def test_the_bounds_hold_and_the_sizes_are_right(build: Any, x: Tensor, keep: Keep) -> None:
    model = build()
    found = prune(model, x[:2], keep, calibration=[x], measured=True, branches=True)
    dense, size = measured_size(model, x), measured_size(found.model, x)
    last = found.steps[-1]
    if keep.macs is not None:
        assert size.macs <= keep.macs * dense.macs
    if keep.parameters is not None:
        assert size.parameters <= keep.parameters * dense.parameters
    assert last.parameters == pytest.approx(size.parameters / dense.parameters)
    assert last.branches or keep.macs is None
    assert bool(found.model(x).isfinite().all())


def test_what_is_left_equals_the_network_without_the_parts() -> None:
    """Float64: the removed branches at zero and the removed channels at zero."""
    model, x = _resnet().double(), _images().double()
    whole = LayerLimits(keep_at_least=0.999)  # so that branches are all that can go
    found = prune(
        model, x, Keep(macs=0.7), calibration=[x], measured=True, branches=True, limits=whole
    )
    branches = [
        b for b in find_branches(model, coupling(model, x), x) if b.name in found.steps[-1].branches
    ]
    left = {name for name, _ in found.model.named_parameters()}
    assert branches
    assert not any(b.within & left for b in branches)
    reference = without(model, [name for b in branches for name in b.zeroed])
    for module, other in _norms(reference, found.model):  # estimated again, for the lean network
        module.load_state_dict(other.state_dict())
    torch.testing.assert_close(found.model(x), reference(x), rtol=0, atol=1e-10)


def _norms(reference: nn.Module, lean: nn.Module) -> list[tuple[nn.Module, nn.Module]]:
    left = dict(lean.named_modules())
    return [
        (module, left[name])
        for name, module in reference.named_modules()
        if isinstance(module, nn.BatchNorm2d) and name in left
    ]


def test_the_part_that_does_least_goes_first() -> None:
    model, x = _resnet(), _images()
    idle: Any = model.get_submodule("layer2.1.bn2")
    nn.init.constant_(idle.weight, 1e-6)
    nn.init.constant_(idle.bias, 0)
    found = prune(model, x, Keep(macs=0.9), calibration=[x], measured=True, branches=True)
    assert found.steps[-1].branches == ("layer2.1.conv2",)
    # Without it, statistics are the only difference.
    assert found.steps[-1].channels == 0


def test_widths_are_multiples_and_limits_hold() -> None:
    model, x = _resnet(), _images()
    found = prune(
        model, x, Keep(macs=0.6), calibration=[x], measured=True, round_to=8,
        limits=LayerLimits(keep_at_least=0.5),
    )  # fmt: skip
    assert type(found.model) is type(model)
    for name, module in found.model.named_modules():
        if isinstance(module, nn.Conv2d):
            whole: Any = model.get_submodule(name)
            assert module.out_channels % 8 == 0 or module.out_channels == whole.out_channels
            assert module.out_channels >= whole.out_channels // 2


def test_excluded_modules_stay_whole() -> None:
    model, x = _resnet(), _images()
    found = prune(
        model, x, Keep(macs=0.6), calibration=[x], measured=True, branches=True, exclude=["layer1"]
    )
    for name, parameter in model.get_submodule("layer1").named_parameters():
        assert found.model.get_parameter(f"layer1.{name}").shape == parameter.shape


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"branches": True}, "measured=True"),
        ({"measured": True}, "measured needs calibration"),
        ({"measured": True, "normalise": "mean"}, "leave out normalise"),
        # An id without an address, so that all processes of pytest-xdist collect the same tests.
        pytest.param(
            {"measured": True, "calibration": iter(())}, "measured needs calibration", id="empty"
        ),
        ({"measured": True, "branches": True, "amount": Keep(macs=0.001)}, "cannot be reached"),
        ({"measured": True, "exclude": ["layer9"]}, "layer9"),
        ({"measured": True, "round_to": 0}, "round_to"),
    ],
    ids=str,
)
def test_errors(options: dict[str, Any], message: str) -> None:
    given = {"amount": Keep(macs=0.5), **options}
    if "exclude" in given or "round_to" in given or given["amount"].macs < 0.1:
        given["calibration"] = [_images()]
    with pytest.raises(ConfigError, match=message):
        prune(_resnet(), _images(2), given.pop("amount"), **given)


def test_steps_go_on_in_a_folder_and_through_a_file(tmp_path: Path) -> None:
    model, x = _resnet(), _images()
    before = copy.deepcopy(model.state_dict())

    def fit(network: nn.Module) -> None:
        torch.manual_seed(0)
        with torch.no_grad():
            for p in network.parameters():
                p.add_(0.01 * torch.randn_like(p))

    def run(folder: Path | None, fit: Any = fit) -> Any:
        return prune(
            model, x, Keep(macs=0.3), calibration=[x], measured=True, branches=True, steps=2,
            fit=fit, folder=folder,
        )  # fmt: skip

    whole = run(None)
    assert whole.steps[1].branches
    calls = []

    def failing(network: nn.Module) -> None:
        calls.append(network)
        if len(calls) == 2:
            raise KeyboardInterrupt
        fit(network)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "steps", failing)
    resumed = run(tmp_path / "steps")
    assert resumed.steps == whole.steps
    assert torch.equal(resumed.model(x), whole.model(x))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(ConfigError, match="other settings"):
        prune(model, x, Keep(macs=0.3), steps=2, folder=tmp_path / "steps")

    record = Record(ModelSpec("zoo:CifarResNet", {"depth": 14, "classes": 10}), (3, 16, 16))
    save(tmp_path / "lean.pt", whole.model, record, trust="zoo:CifarResNet")
    lean, _ = load(tmp_path / "lean.pt", trust="zoo:CifarResNet")
    assert torch.equal(lean(x), whole.model(x))
