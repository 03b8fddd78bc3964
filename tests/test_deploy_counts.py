"""Memory and ONNX files on paper: the same numbers by another way."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from snello.deploy import export, footprint, peak_memory
from snello.errors import ModelError
from snello.lab.models import CifarResNet


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 9), st.lists(st.integers(1, 40), min_size=3, max_size=6))
def test_memory_of_a_chain(batch: int, widths: list[int]) -> None:
    """While a linear layer works, its input and its output live; what came before does not."""
    layers = [nn.Linear(a, b, bias=False) for a, b in pairwise(widths)]
    found = peak_memory(nn.Sequential(*layers), torch.randn(batch, widths[0]))
    weights = sum(a * b for a, b in pairwise(widths))
    pairs = [a + b for a, b in pairwise(widths[1:])]
    assert found.bytes == 4 * (weights + batch * widths[0] + batch * max(pairs))
    assert found.method == "tensors"


def test_memory_of_views_in_place_and_ties() -> None:
    model = nn.Sequential(
        nn.Linear(8, 8, bias=False), nn.ReLU(inplace=True), nn.Unflatten(1, (2, 4)), nn.Flatten()
    )
    twice = nn.Sequential(model, nn.Linear(8, 8, bias=False))
    twice[1].weight = model[0].weight
    # Views and in-place operations add nothing; a tied weight is there once.
    assert peak_memory(twice.train(), torch.randn(3, 8)).bytes == 4 * (64 + 24 + 2 * 24)
    assert all(module.training for module in twice.modules())
    assert peak_memory(twice.double(), torch.randn(3, 8).double()).bytes == 8 * (64 + 24 + 2 * 24)
    with pytest.raises(ModelError, match=r"\(3, 7\)"):
        peak_memory(twice, torch.randn(3, 7))


def needs_onnx() -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="the extra onnx is not installed")


NETS = {
    "resnet-8": (CifarResNet(8), (3, 16, 16)),
    "groups": (
        nn.Sequential(
            nn.Conv2d(4, 6, 3, groups=2), nn.ReLU(), nn.ConvTranspose2d(6, 4, 2, stride=2, groups=2)
        ),
        (4, 9, 9),
    ),
    "tokens": (nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3)), (5, 6)),
}


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", NETS)
def test_an_onnx_file_counts_as_its_model(name: str, tmp_path: Path) -> None:
    needs_onnx()
    model, shape = NETS[name]
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.normal_(module.weight)
            nn.init.zeros_(module.weight[1:2])
        elif isinstance(module, nn.ConvTranspose2d):
            nn.init.zeros_(module.weight[:3, 1])
    x = torch.randn(2, *shape)
    found, expected = footprint(export(model, x, tmp_path / "net.onnx")), footprint(model, x)
    assert found.macs == expected.macs > 0
    assert found.dead_neurons == expected.dead_neurons >= 2
    if name != "resnet-8":  # its BatchNorms are folded
        assert (found.parameters, found.nonzeros) == (expected.parameters, expected.nonzeros)


def test_memory_of_a_file_grows_with_the_file(tmp_path: Path) -> None:
    needs_onnx()
    found = {}
    for width in (256, 2048):
        path = export(nn.Linear(width, width), torch.randn(1, width), tmp_path / f"{width}.onnx")
        found[width] = peak_memory(path)
    if found[256] is None or found[2048] is None:
        pytest.skip("this system does not tell the memory of a process")
    assert found[2048].method == "process"
    # 16.8 MB of weights, which the runtime may hold twice while it packs them; 0.26 MB and what is
    # always there.
    assert found[2048].bytes - found[256].bytes > 12e6
    (tmp_path / "text.onnx").write_text("no graph")
    with pytest.raises(ModelError, match="text"):
        peak_memory(tmp_path / "text.onnx")
