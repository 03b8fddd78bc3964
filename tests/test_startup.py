"""Help, listing, usage errors and completion import no torch; names of packages resolve lazily.

The seconds are a benchmark's (``benchmarks/startup.py``); here the imported modules are counted.
"""

from __future__ import annotations

import ast
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import snello
from seams.cli import COMMANDS, names
from snello.cli import main as snello_main
from snello.deploy import FORMATS, model_runtimes
from snello.lab.datasets import dataset_names
from snello.lab.models import model_names
from snello.pruning import CALIBRATED, IMPORTANCES
from snello.pruning.channels import CHANNEL_IMPORTANCES
from snello.store import MODEL_FILES

SOURCE = Path(snello.__file__).parent
LAZY = [
    ".".join(("snello", *path.relative_to(SOURCE).parts[:-1]))
    for path in sorted(SOURCE.rglob("__init__.py"))
    if "_lazily(" in path.read_text()
]
HEAVY = {"torch", "numpy", "lightning", "torchmetrics", "torchvision", "jsonargparse", "yaml",
         "rich", "matplotlib", "sklearn", "onnx", "onnxruntime", "nncodec", "argcomplete",
         "optuna", "sqlalchemy"}  # fmt: skip
MODULES = 250
"""Modules that a light command may import, those of Python included: 150 to 190 are imported."""

LIGHT = {
    "help": ["--help"],
    "version": ["--version"],
    "recipes": ["recipes", "ls"],
    "unknown command": ["simplfy"],
    "unknown option": ["prune", "m.pt", "--mac=0.5"],
    "unknown field": ["journey", "digits", "--epoch=3"],
    "unknown recipe": ["train", "digts"],
    "unknown method": ["train", "digits", "--method=serenee"],
    **{
        f"{command} --help": [command.__name__.rpartition(".")[2].replace("_", "-"), "--help"]
        for command in COMMANDS
    },
}
_CHILD = """
import json, sys
from snello.cli import main
results = {}
for name, words in json.loads(sys.argv[1]).items():
    before = set(sys.modules)
    try:
        status = main(words)
    except SystemExit as left:
        status = left.code
    results[name] = [status, sorted({m.partition(".")[0] for m in sys.modules}), len(sys.modules)]
print("\\n" + json.dumps(results))
"""


def _child(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join((str(SOURCE.parent), os.environ.get("PYTHONPATH", "")))
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": path, **environment},
    )  # fmt: skip


@pytest.fixture(scope="module")
def imported() -> dict[str, tuple[int, list[str], int]]:
    """Exit status, packages and number of modules, after each command in one child process."""
    found = _child(_CHILD, json.dumps(LIGHT)).stdout.splitlines()[-1]
    return {name: tuple(values) for name, values in json.loads(found).items()}


@pytest.mark.parametrize("name", LIGHT)
def test_what_computes_nothing_imports_nothing_heavy(
    name: str, imported: dict[str, tuple[int, list[str], int]]
) -> None:
    status, packages, count = imported[name]
    usage = name in ("unknown command", "unknown option")
    assert status == (2 if usage else 1 if name.startswith("unknown") else 0)
    assert not HEAVY & set(packages)
    assert count <= MODULES


def test_completion_imports_no_torch(tmp_path: Path) -> None:
    pytest.importorskip("argcomplete")
    line, out = "snello prune --importance=", tmp_path / "completions"
    code = """
import os, sys
leave = os._exit
def stop(status=0):
    print(sorted({m.partition(".")[0] for m in sys.modules})); sys.stdout.flush(); leave(status)
os._exit = stop
sys.argv[0] = "snello"
from snello.cli import main
main()
"""
    found = _child(
        code,
        _ARGCOMPLETE="1", _ARGCOMPLETE_STDOUT_FILENAME=str(out), _ARGCOMPLETE_IFS=" ",
        COMP_LINE=line, COMP_POINT=str(len(line)), COMP_TYPE="9",
    )  # fmt: skip
    assert {"--importance=taylor", "--importance=l1"} <= set(out.read_text().split())
    assert not (HEAVY - {"argcomplete"}) & set(ast.literal_eval(found.stdout))


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_of_each_shell_calls_the_command(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("argcomplete")
    assert snello_main(["completion", shell]) == 0
    assert "_ARGCOMPLETE" in (said := capsys.readouterr().out)
    assert "snello" in said


def test_importing_snello_imports_no_torch() -> None:
    code = "import sys, snello; assert dir(snello); print('torch' in sys.modules)"
    code += "; snello.SnelloError; print('torch' in sys.modules); snello.NEq; print('torch' in sys.modules)"
    assert _child(code).stdout.split() == ["False", "False", "True"]


def _typed(package: str) -> set[str]:
    """Names that a package imports for type checkers alone."""
    path = SOURCE.joinpath(*package.split(".")[1:], "__init__.py")
    block = next(node for node in ast.parse(path.read_text()).body if isinstance(node, ast.If))
    assert ast.unparse(block.test).removeprefix("_typing.") == "TYPE_CHECKING"
    return {
        f"{node.module or ''}:{alias.name}"
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


@pytest.mark.parametrize("package", LAZY)
def test_lazy_names_are_those_that_type_checkers_see(package: str) -> None:
    module = importlib.import_module(package)
    typed = {pair.partition(":")[2]: pair.partition(":")[0] for pair in _typed(package)}
    assert set(module.__all__) <= {*typed, "__version__"}
    for name, home in typed.items():
        if home:
            found = getattr(importlib.import_module(f"{package}.{home}"), name)
        else:
            found = importlib.import_module(f"{package}.{name}")
        assert getattr(module, name) is found, name
        assert module.__getattr__(name) is found, name
        assert name in dir(module)


def test_unknown_names_of_lazy_packages_are_attribute_errors() -> None:
    for package in map(importlib.import_module, LAZY):
        for name in ("no_such_name", "_private", "__wrapped__"):
            with pytest.raises(AttributeError, match=f"no attribute '{name}'"):
                getattr(package, name)


def test_help_lists_the_names_of_the_tables() -> None:
    """They are read from the source of the tables, not imported."""
    assert names.importances() == (*IMPORTANCES, *CALIBRATED)
    assert names.channel_importances() == tuple(CHANNEL_IMPORTANCES)
    assert names.datasets() == dataset_names()
    assert names.models() == model_names()
    assert set(names.formats()) == {format.name for format in FORMATS.values()}
    assert set(names.suffixes()) == {*(kind.suffix for kind in MODEL_FILES), *FORMATS}
    assert set(names.runtimes()) == set(model_runtimes())
