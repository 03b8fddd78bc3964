"""The wheel: it holds every file of the package, and what it holds is enough to run."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from seams.codec import installation

pytest.importorskip("hatchling")

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The content of the wheel, in a folder of its own."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "hatchling",
        "build",
        "-t",
        "wheel",
        "-d",
        str(folder / "dist"),
    ]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = (folder / "dist").glob("snello-*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


def _snello(installed: Path, *words: str) -> str:
    # -S: an editable installation would put the sources on the path. Without `site`, a virtual
    # environment is not known as such either, so that the codec's own folder would not be found.
    path = [
        str(installed),
        *(p for p in sys.path if p.endswith("site-packages")),
        str(installation.FOLDER),
    ]
    found = subprocess.run(
        [sys.executable, "-S", "-m", "snello", *words], cwd=installed.parent, text=True, check=True,
        capture_output=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
    )  # fmt: skip
    return found.stdout


def test_the_wheel_holds_every_file_of_the_package(installed: Path) -> None:
    wanted = {
        path.relative_to(ROOT / "src").as_posix()
        for path in (ROOT / "src/snello").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {
        p.relative_to(installed).as_posix() for p in installed.rglob("snello/**/*") if p.is_file()
    } == wanted
    assert _snello(installed, "--version").startswith("snello ")
    assert "digits" in _snello(installed, "recipes", "ls")


@pytest.mark.exhaustive
def test_the_demo_runs_from_the_wheel(installed: Path) -> None:
    for extra in ("lightning", "nncodec", "onnxruntime", "sklearn", "vl_convert"):
        pytest.importorskip(extra)
    _snello(installed, "journey", "digits", "--quick", f"--out={installed.parent / 'demo'}")
    assert (installed.parent / "demo/report.html").stat().st_size > 500_000


def test_an_index_would_take_the_wheel(installed: Path) -> None:
    pytest.importorskip("twine")
    wheels = [str(path) for path in (installed.parent / "dist").iterdir()]
    command = [sys.executable, "-m", "twine", "check", "--strict", *wheels]
    found = subprocess.run(command, text=True, capture_output=True, check=False)
    assert found.returncode == 0, found.stdout
    assert found.stdout.count("PASSED") == len(wheels) > 0
