"""Norms of every spelling: exact under random masks, and narrowed as far as their groups allow."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from laws import assert_same_outputs, generator, randomise
from snello.simplification import SimplificationPlan, apply, plan_of, simplify

X = torch.randn(2, 3, 7, 8, dtype=torch.float64, generator=generator(0))


class Functional(nn.Module):
    """A norm by a function, with parameters that are attributes.

    Args:
        function: takes the input, scale and shift.
        channels: of both.
    """

    def __init__(self, function: Callable[[Tensor, Tensor, Tensor], Tensor], channels: int) -> None:
        super().__init__()
        self.function = function
        self.scale = nn.Parameter(torch.ones(channels))
        self.shift = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.scale, self.shift)


class Response(nn.Module):
    """Global response normalisation as in ConvNeXt V2 (Woo et al., CVPR 2023)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels))
        self.shift = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        norm = x.norm(p=2, dim=(2, 3), keepdim=True)
        response = norm / (norm.mean(dim=1, keepdim=True) + 1e-6)
        shape = (1, -1, 1, 1)
        return x + torch.addcmul(self.shift.view(shape), self.scale.view(shape), x * response)


def channels_last(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    normed = F.layer_norm(x.permute(0, 2, 3, 1), (12,), scale, shift, 1e-6)
    return normed.permute(0, 3, 1, 2)


NORMS: dict[str, Callable[[], nn.Module]] = {
    "group": lambda: nn.GroupNorm(4, 12),
    "group without parameters": lambda: nn.GroupNorm(4, 12, affine=False),
    "one group": lambda: nn.GroupNorm(1, 12),
    "instance": lambda: nn.InstanceNorm2d(12, affine=True),
    "instance without parameters": lambda: nn.InstanceNorm2d(12),
    "instance with statistics": lambda: nn.InstanceNorm2d(
        12, affine=True, track_running_stats=True
    ),
    "functional group": lambda: Functional(lambda x, w, b: F.group_norm(x, 4, w, b, 1e-5), 12),
    "functional one group": lambda: Functional(lambda x, w, b: F.group_norm(x, 1, w, b), 12),
    "functional layer": lambda: Functional(channels_last, 12),
    "global response": lambda: Response(12),
}
KEPT = {
    "group": 9, "group without parameters": 9, "one group": 12, "instance": 8,
    "instance without parameters": 8, "instance with statistics": 8, "functional group": 9,
    "functional one group": 12, "functional layer": 12, "global response": 8,
}  # fmt: skip
"""Channels behind the norm with channels 0 to 3 dead: three groups, eight channels, or all."""


def network(name: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 12, 3), NORMS[name](), nn.ReLU(), nn.Conv2d(12, 12, 1), nn.Conv2d(12, 2, 3)
    )
    return randomise(model.double(), generator(seed)).eval()


@torch.no_grad()
def kill(layer: nn.Conv2d, dead: Tensor | slice) -> None:
    layer.weight[dead] = 0
    assert layer.bias is not None
    layer.bias[dead] = 0


@pytest.mark.parametrize("name", NORMS)
def test_outputs_stay_under_random_masks(name: str) -> None:
    for seed in range(2):
        model = network(name, seed)
        masks = generator(seed)
        kill(model[0], torch.rand(12, generator=masks) < 0.5)
        kill(model[3], torch.rand(12, generator=masks) < 0.5)
        lean = simplify(model, X)
        assert_same_outputs(model, lean, X)
        plan = plan_of(lean)
        assert plan is not None
        again = apply(SimplificationPlan.from_json(plan.to_json()), network(name, seed))
        again.load_state_dict(lean.state_dict())
        assert_same_outputs(model, again, X)
        assert_same_outputs(model, simplify(lean, X), X)


@pytest.mark.parametrize("name", NORMS)
def test_channels_that_the_norm_can_lose_go(name: str) -> None:
    model = network(name, 5)
    kill(model[0], slice(0, 4))
    lean = simplify(model, X)
    assert len(lean.get_submodule("0").weight) == min(KEPT[name], 8)
    assert lean.get_submodule("3").weight.shape[1] == KEPT[name]


@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_functional_norms_of_tokens(norm: str) -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(5, 12), nn.Linear(12, 3)
            self.scale = nn.Parameter(torch.ones(12))
            self.shift = nn.Parameter(torch.zeros(12))

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            if norm == "rms":
                return self.second(F.rms_norm(y, (12,), self.scale))
            return self.second(F.layer_norm(y, (12,), self.scale, self.shift))

    model = randomise(Tokens().double(), generator(3)).eval()
    kill(model.first, slice(2, 7))
    x = torch.randn(2, 6, 5, dtype=torch.float64, generator=generator(4))
    lean = simplify(model, x)
    assert_same_outputs(model, lean, x)
    assert len(lean.get_submodule("first").weight) == 7
