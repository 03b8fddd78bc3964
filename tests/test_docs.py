"""Every Python block of the README and of the docs runs; blocks of one page continue each other."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path

import pytest

from snello.cli import help_texts

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), flags=re.M | re.S)


LONG = {"deploy.md", "neq.md"}
"""Pages whose examples take a minute each: they export, compile or train."""


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(p, marks=pytest.mark.exhaustive if p.name in LONG else (), id=p.name)
        for p in PAGES
        if blocks(p)
    ],
)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    pytest.importorskip("nncodec")
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    for block in blocks(page):
        exec(compile(block, str(page), "exec"), namespace)


def test_readme_examples_fit_on_a_screen():
    for block in blocks(ROOT / "README.md"):
        loop = block[block.index("model = ") :]
        assert len(loop.splitlines()) <= 22


@pytest.mark.parametrize("block", blocks(ROOT / "README.md"), ids=["outward", "homeward"])
def test_without_the_marked_lines_the_readme_is_a_plain_loop(block):
    """Nothing of snello is left in a loop without the lines that end in ``# snello``."""
    loop = block[block.index("model = ") :].partition("print(snello")[0].splitlines()
    marked = [line for line in loop if "# snello" in line]
    plain = "\n".join(line for line in loop if "# snello" not in line)
    assert marked
    assert not re.search(r"snello|serene|pruner|neq", plain.partition("    print(")[0])
    compile(plain, "README.md", "exec")


def test_every_public_name_has_a_page_and_every_command_its_help():
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs/reference.py")
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    pages = dict(reference.pages())
    shown = {path.rpartition("/")[2].removesuffix(".md") for path in pages}
    shown |= {module.rpartition(".")[2] for module in reference.MODULES}
    for line in (ROOT / "tests/golden/public_names.txt").read_text().splitlines():
        module, _, names = line.partition(": ")
        if module in {"snello.cli", "snello.graph.coupled.rules"}:
            continue  # the command line has a page of its own; rules are found by its readers
        missing = {n for n in names.split() if not n.startswith("_")} - shown
        assert not missing, f"{module}: no page for {missing}"
    for command in ("prune", "bench-device", "curate"):
        assert f"## snello {command}\n" in pages["reference/cli.md"]


def test_the_first_page_names_every_command():
    page = (ROOT / "docs/start.md").read_text()
    listed = page[page.index("## All commands") :]
    missing = [name for name in help_texts() if not re.search(rf"\b{name}\b", page)]
    assert not missing
    assert {"shrink", "tune", "prune"} <= set(re.findall(r"^snello ([\w-]+)", listed, flags=re.M))


def test_formulas_of_docstrings_are_whole():
    """Every opened ``$$`` is closed, and every ``\\left`` has its ``\\right`` within it."""
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                continue
            parts = (ast.get_docstring(node) or "").split("$$")
            assert len(parts) % 2, f"{path}: {node}"
            for formula in parts[1::2]:
                assert formula.count("\\left") == formula.count("\\right"), f"{path}: {formula}"
            assert not any("\\frac" in re.sub(r"\$[^$]*\$", "", text) for text in parts[::2])


def test_every_relative_link_leads_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
