"""Facts about the images in OpenVINO's files: what is written is read, and outputs stay."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from facts_samples import check_read_as_written
from snello.deploy import export, file_runner

for package in ("openvino", "onnx", "onnxscript"):
    pytest.importorskip(package)

FACTS = {"mean": [0.5], "classes": ["a", 'the "b"', "<c>"], "input_shape": [6]}


def test_facts_are_read_as_written(tmp_path: Path) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(2, 6)
    path = export(nn.Sequential(nn.Linear(6, 4), nn.ReLU()).eval(), inputs, tmp_path / "m.xml")
    before = file_runner(path, inputs)()
    check_read_as_written(path, FACTS)
    assert torch.equal(torch.tensor(before[0]), torch.tensor(file_runner(path, inputs)()[0]))
    assert {file.name for file in tmp_path.iterdir()} == {"m.xml", "m.bin"}
