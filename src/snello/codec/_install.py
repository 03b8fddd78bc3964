"""The package nncodec, in a folder of its own where it would drag an environment down.

nncodec 2.1 declares numpy < 2 and nine packages of which its coder needs none. An installer that
obeys takes numpy back to 1.26, which excludes other packages (ExecuTorch wants numpy 2).
[`install`][snello.codec.install] builds the package alone, into a folder of the same environment;
the coder is found there where nncodec is not installed otherwise.
"""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from types import ModuleType

from snello.errors import ConfigError, MissingExtraError, OutputError

REQUIREMENT = "nncodec>=2.1,<3"
FOLDER = Path(sysconfig.get_path("data")) / "share" / "snello" / "nncodec"
"""A part of the environment, so that it goes when the environment is deleted."""
_CHECK = "import nncodec.nnc_core.coder, nncodec.nnc_core.approximator"


def require_nncodec(module: str = "nncodec") -> ModuleType:
    """Import a module of nncodec, from the environment or from the folder that `install` filled.

    Raises:
        MissingExtraError: with the two ways to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        if FOLDER.is_dir() and str(FOLDER) not in sys.path:
            # Last, so that nothing in it hides a package of the environment.
            sys.path.append(str(FOLDER))
            importlib.invalidate_caches()
            return require_nncodec(module)
        raise MissingExtraError(
            f"NNC coding needs the package 'nncodec' ({error}); install it with: snello install-codec, "
            "or, where numpy < 2 does not disturb: pip install 'snello[nnc]'"
        ) from error


def install(folder: Path | None = None) -> Path:
    """Build nncodec without its dependencies into a folder; a C++ compiler is needed.

    An earlier build is replaced once the new one can be imported.

    Args:
        folder: place of the build; by default `FOLDER`, where snello looks.

    Returns:
        The folder.

    Raises:
        ConfigError: without pip or a compiler, or if the build fails, with the last line of pip.
        OutputError: if the folder cannot be written.
    """
    folder = FOLDER if folder is None else folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".nncodec."))
    except OSError as error:
        raise OutputError(
            f"{folder.parent}: cannot be written ({error.strerror or error}); use a virtual environment"
        ) from error
    try:
        _build(building)
        if folder.exists():
            shutil.rmtree(folder)
        building.chmod(0o755)  # the mode of a temporary folder keeps other users out
        building.rename(folder)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be replaced ({error.strerror or error})") from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return folder


def _build(folder: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    _run([*pip, "--no-deps", "--target", str(folder), REQUIREMENT], "the build failed")
    _run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, sys.argv[1]); {_CHECK}", str(folder)],
        "the build cannot be imported",
    )  # fmt: skip


def _run(command: list[str], failure: str) -> None:
    found = subprocess.run(command, text=True, capture_output=True, check=False)
    if found.returncode == 0:
        return
    said = found.stderr.strip()
    if "No module named pip" in said:
        remedy = "this environment has no pip: python -m ensurepip"
    elif shutil.which("g++") is None and shutil.which("c++") is None:
        remedy = "there is no C++ compiler (Debian: apt install g++; macOS: xcode-select --install)"
    else:
        remedy = said.splitlines()[-1][:300] if said else f"exit status {found.returncode}"
    raise ConfigError(f"{REQUIREMENT} into a folder of its own: {failure}: {remedy}")
