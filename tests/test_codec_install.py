"""The coder in a folder of its own: found, replaced as a whole, and never half there."""

from __future__ import annotations

import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from seams.codec import installation
from snello.cli import main
from snello.codec import install, require_nncodec
from snello.errors import ConfigError, MissingExtraError, OutputError


def wheel(folder: Path, modules: tuple[str, ...] = ("coder", "approximator")) -> str:
    """A wheel with the name of the codec's package and nothing but empty modules."""
    path = folder / "nncodec-2.1.9-py3-none-any.whl"
    info = "nncodec-2.1.9.dist-info"
    with zipfile.ZipFile(path, "w") as file:
        for name in ("__init__", *(f"nnc_core/{name}" for name in ("__init__", *modules))):
            file.writestr(f"nncodec/{name}.py", "")
        file.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: nncodec\nVersion: 2.1.9\n"
                      "Requires-Dist: numpy<2\n")  # fmt: skip
        file.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{info}/RECORD", "")
    return str(path)


def test_a_build_replaces_the_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "share/nncodec"
    folder.mkdir(parents=True)
    (folder / "old").touch()
    monkeypatch.setattr(installation, "REQUIREMENT", wheel(tmp_path))
    monkeypatch.setattr(installation, "FOLDER", folder)
    assert main(["install-codec"]) == 0
    assert str(folder) in capsys.readouterr().out
    assert (folder / "nncodec/nnc_core/coder.py").exists()
    # numpy was not installed with it, although the wheel asks for one.
    assert {p.name.partition("-")[0] for p in folder.iterdir()} == {"nncodec"}
    assert [p.name for p in folder.parent.iterdir()] == ["nncodec"]


@pytest.mark.parametrize("fault", ["no such package", "a part is missing"])
def test_a_failed_build_leaves_the_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    folder = tmp_path / "share/nncodec"
    folder.mkdir(parents=True)
    (folder / "old").touch()
    broken = (
        wheel(tmp_path, ("coder",)) if fault == "a part is missing" else str(tmp_path / "no.whl")
    )
    monkeypatch.setattr(installation, "REQUIREMENT", broken)
    with pytest.raises(ConfigError, match=r"approximator" if "part" in fault else r"no\.whl"):
        install(folder)
    assert [p.name for p in folder.parent.iterdir()] == ["nncodec"]
    assert [p.name for p in folder.iterdir()] == ["old"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="virtual environment"):
        install(tmp_path / "file/nncodec")


def test_the_folder_is_searched_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "snello_only_here.py").write_text("where = 'folder'")
    (tmp_path / "json.py").write_text("raise AssertionError('hides a module of the environment')")
    monkeypatch.setattr(installation, "FOLDER", tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert require_nncodec("snello_only_here").where == "folder"
    sys.modules.pop("snello_only_here")
    assert sys.path[-1] == str(tmp_path)
    assert require_nncodec("json").loads("1") == 1
    with pytest.raises(MissingExtraError, match="snello install-codec"):
        require_nncodec("snello_nowhere")


def test_the_requirement_is_that_of_the_extra() -> None:
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    assert tomllib.loads(text)["project"]["optional-dependencies"]["nnc"] == [
        installation.REQUIREMENT
    ]
