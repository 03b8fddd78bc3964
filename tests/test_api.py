"""The face of the package: its names, and what importing it costs."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import snello

PROBE = """
import json, sys
import torch
before = set(sys.modules)
import snello
print(json.dumps(sorted({name.partition(".")[0] for name in set(sys.modules) - before})))
"""


def test_nothing_public_is_left_out() -> None:
    """Beside __all__ the package shows its folders and files alone."""
    public = {name for name in vars(snello) if not name.startswith("_")}
    files = {path.stem for path in Path(snello.__file__).parent.iterdir()}
    assert public - set(snello.__all__) <= files


def test_verbs_are_functions() -> None:
    assert callable(snello.simplify)
    assert importlib.import_module("snello.simplification").simplify is snello.simplify


def test_the_former_place_of_models_still_answers() -> None:
    former = importlib.import_module("snello.models")
    for name, place in (("build", "snello.store"), ("CifarResNet", "snello.lab.models")):
        with pytest.warns(DeprecationWarning, match=place):
            assert getattr(former, name) is getattr(importlib.import_module(place), name)
    with pytest.raises(AttributeError, match="nothing"):
        _ = former.nothing


@pytest.mark.parametrize("old", ["snello.simplify", "snello.simplify._plan"])
def test_the_old_name_of_a_package_names_the_new_one(old: str) -> None:
    with pytest.raises(ImportError, match=r"snello\.simplification"):
        importlib.import_module(old)
    assert callable(snello.simplify), "a failed import must not take the function away"


def test_import_needs_torch_alone() -> None:
    source = str(Path(snello.__file__).parents[1])
    found = subprocess.run(
        [sys.executable, "-c", PROBE], env={**os.environ, "PYTHONPATH": source},
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    new = set(json.loads(found.stdout.splitlines()[-1]))
    assert "snello" in new
    # torch loads parts of itself, and so its own dependencies, when they are first used.
    torchs_own = {"torch", "triton", "sympy", "mpmath", "networkx", "jinja2", "filelock", "fsspec"}
    assert new - {"snello"} - set(sys.stdlib_module_names) <= torchs_own


@pytest.mark.parametrize(
    "name", ["snello.lab.training", "snello.lab.reporting", "snello.cli", "snello.lab.datasets"]
)
def test_packages_list_what_they_export(name: str) -> None:
    if name == "snello.lab.training":
        pytest.importorskip("lightning")
        pytest.importorskip("jsonargparse")
    package = importlib.import_module(name)
    assert sorted(package.__all__) == sorted(set(package.__all__))
    assert all(hasattr(package, exported) for exported in package.__all__)
