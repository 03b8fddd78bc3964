"""Facts about the images in `.pt2` files: what is written is read, and outputs stay."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from facts_samples import check_read_as_written
from snello.deploy import export, file_runner, format_of
from snello.errors import ModelError

FACTS = {"mean": [0.5], "classes": ["a", 'the "b"', "é"], "input_shape": [6]}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU()).eval()
    return export(model, torch.randn(2, 6), tmp_path / "m.pt2")


def test_facts_are_read_as_written(path: Path) -> None:
    inputs = torch.randn(3, 6)
    before = file_runner(path, inputs)()
    check_read_as_written(path, FACTS)
    assert torch.equal(before, file_runner(path, inputs)())
    assert torch.export.load(path).example_inputs is None
    assert [file.name for file in path.parent.iterdir()] == ["m.pt2"]


@pytest.mark.parametrize(
    "name", ["extra/other.json", "extra/snello.json/x", "data/extra/snello.json"]
)
def test_other_parts_are_refused(path: Path, name: str) -> None:
    with zipfile.ZipFile(path) as archive:
        inside = archive.namelist()[0].partition("/")[0]
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"{inside}/{name}", "{}")
    with pytest.raises(ModelError, match="part of another kind"):
        file_runner(path, torch.randn(2, 6))


@pytest.mark.parametrize("text", ["{", "[1]", "[" * 100_000, b"\xff\xfe{"])
def test_text_that_is_no_table_gives_no_facts(path: Path, text: str | bytes) -> None:
    with zipfile.ZipFile(path) as archive:
        inside = archive.namelist()[0].partition("/")[0]
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"{inside}/extra/snello.json", text)
    assert format_of(path).metadata(path) == {}
