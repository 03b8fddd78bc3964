"""Every Python block of the README and of the docs runs; blocks of one page continue each other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
INDEPENDENT = {"README.md"}  # its two examples stand alone


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), flags=re.M | re.S)


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)], ids=lambda p: p.name)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    pytest.importorskip("nncodec")
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    for block in blocks(page):
        if page.name in INDEPENDENT:
            namespace = {}
        exec(compile(block, str(page), "exec"), namespace)


def test_readme_examples_fit_on_a_screen():
    for block in blocks(ROOT / "README.md"):
        loop = block[block.index("data = load") :]
        assert len(loop.splitlines()) <= 22


def test_every_relative_link_leads_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
