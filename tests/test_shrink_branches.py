"""Residual branches as a lever of shrink."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from seams.search import ShapeModel, find_branches
from snello.errors import ConfigError
from snello.graph.coupled import coupling
from snello.pruning.channels import measured_size
from snello.search import shrink
from zoo import CifarResNet

X = torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def _resnet() -> nn.Module:
    """A network in which two blocks hardly do anything."""
    torch.manual_seed(0)
    model = CifarResNet(14, 10).eval()
    for name in ("layer1.1.bn2", "layer2.1.bn2"):
        norm: Any = model.get_submodule(name)
        nn.init.constant_(norm.weight, 1e-4)
        nn.init.zeros_(norm.bias)
    return model


def _agreement(dense: nn.Module) -> Any:
    with torch.no_grad():
        labels = dense(X).argmax(1)

    def evaluate(network: Any) -> Tensor:
        with torch.no_grad():
            return (network(X).argmax(1) == labels).float()

    return evaluate


def test_branches_that_do_nothing_go_and_the_prediction_is_exact(tmp_path: Path) -> None:
    model = _resnet()

    def search() -> Any:
        return shrink(
            model, X[:1], _agreement(model), max_drop=0.05, minimise="macs", allow=("branches",),
            calibration=[X], trials=6, folder=tmp_path / "search",
        )  # fmt: skip

    found = search()
    gone = {name for name, width in found.chosen.widths.items() if width == 0}
    assert {"layer1.1.conv2:branch", "layer2.1.conv2:branch"} <= gone
    assert "layer1.1.conv1.weight" not in dict(found.model.named_parameters())
    for candidate in found.candidates[1:]:
        assert candidate.predicted == pytest.approx(candidate.macs)
    assert measured_size(found.model, X[:1]).macs == found.chosen.macs < found.dense.macs
    again = search()  # from the folder
    assert again.chosen == found.chosen
    assert torch.equal(again.model(X), found.model(X))


def test_sizes_without_branches_and_channels_are_those_of_the_network() -> None:
    model = _resnet()
    groups = coupling(model, X[:1])
    branches = find_branches(model, groups, X[:1])
    shapes = ShapeModel(model, groups, X[:1], branches)
    found = shrink(
        model, X[:1], _agreement(model), max_drop=1.0, minimise="bytes", trials=4,
        allow=("branches", "channels"), calibration=[X],
    )  # fmt: skip
    mixed = [
        c for c in found.candidates
        if any(w == 0 for w in c.widths.values()) and any(w > 0 for w in c.widths.values())
    ]  # fmt: skip
    assert mixed
    for candidate in mixed:
        macs = sum(o.macs for o in shapes.operations(candidate.widths))
        assert macs == pytest.approx(candidate.macs)
        # The integer counters of the branches' norms are predicted as if they stayed.
        assert candidate.predicted == pytest.approx(candidate.cost, rel=1e-3)


def test_an_excluded_branch_stays() -> None:
    model = _resnet()
    found = shrink(
        model, X[:1], _agreement(model), max_drop=0.05, minimise="macs", allow=("branches",),
        calibration=[X], trials=3, exclude=["layer1.1.conv2:branch"],
    )  # fmt: skip
    assert "layer1.1.conv2.weight" in dict(found.model.named_parameters())
    with pytest.raises(ConfigError, match=r"layer9:branch"):
        shrink(
            model, X[:1], _agreement(model), minimise="macs", allow=("branches",),
            exclude=["layer9:branch"],
        )  # fmt: skip
