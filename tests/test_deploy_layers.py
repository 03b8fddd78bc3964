"""The profile of layers adds up to the profile of the model."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from snello.deploy import footprint, profile_layers
from snello.errors import ConfigError, ModelError
from snello.store import build


class Twice(nn.Module):
    """A layer that is called twice, attention, and a product that no layer computes."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.layer = nn.Linear(8, 8)
        self.scale = nn.Parameter(torch.ones(8, 8))
        self.unused = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(self.layer(self.attention(x, x, x)[0])) @ self.scale


@pytest.mark.parametrize(
    ("model", "shape"), [(build("resnet-20"), (2, 3, 32, 32)), (Twice(), (2, 5, 8))]
)
def test_rows_sum_to_the_whole(model: nn.Module, shape: tuple[int, ...]) -> None:
    x = torch.rand(shape)
    training = model.training
    rows = profile_layers({"net": (model, x)}, repeats=2, warmup=1)["net"]
    whole = footprint(model, x)
    assert sum(row.macs for row in rows) == whole.macs
    assert sum(row.parameters for row in rows) == whole.parameters
    assert all(row.median_ms > 0 for row in rows[:-1])
    assert model.training == training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_layer_that_is_called_twice_counts_twice() -> None:
    rows = profile_layers({"net": (Twice(), torch.rand(1, 5, 8))}, repeats=1)["net"]
    assert [row.name for row in rows] == ["attention", "layer", "(between layers)"]
    assert rows[1].width == 8
    assert rows[1].macs == 2 * 5 * 64
    assert rows[2].macs == 5 * 64, "the product with a parameter"
    assert rows[2].parameters == 64 + 6, "the parameter, and a layer that is never called"


def test_models_are_timed_in_turns() -> None:
    order: list[str] = []

    class Named(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            order.append(self.label)  # type: ignore[arg-type]
            return super().forward(x)

    models = {name: (nn.Sequential(Named(2, 2)), torch.rand(1, 2)) for name in ("a", "b")}
    for name, (model, _) in models.items():
        model[0].label = name
    profile_layers(models, repeats=2, warmup=0)
    assert order[:10] == list("abaabbbbaa"), "a trial of each, then turns of two forwards"


def test_a_model_without_inputs_is_refused() -> None:
    with pytest.raises(ConfigError, match="example_inputs"):
        profile_layers({"net": (nn.Linear(2, 2), None)})  # type: ignore[dict-item]


def test_a_model_that_does_not_run_and_counts_out_of_range_are_named() -> None:
    model, x = nn.Linear(4, 3), torch.zeros(1, 4)
    with pytest.raises(ModelError, match=r"Linear does not run on inputs of shape \(1, 5\)"):
        profile_layers({"net": (model, torch.zeros(1, 5))})
    for name, least in {"repeats": 1, "warmup": 0, "threads": 1}.items():
        with pytest.raises(ConfigError, match=f"{name}={least - 1}: choose at least {least}"):
            profile_layers({"net": (model, x)}, **{name: least - 1})
