"""The scripts in examples/ run, at a small size."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import snello

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))
SMALL = ("--epochs=1", "--finetune=1")


@pytest.mark.slow
@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_draws_its_picture(script: Path, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    source = str(Path(snello.__file__).parents[1])
    found = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", str(script), "--out=picture.png", *SMALL],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": source}, text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr[-2000:]
    assert "accuracy" in found.stdout
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
