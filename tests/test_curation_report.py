"""``snello curate``: planted wrong labels and copies are found, and its file trains a recipe."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from snello.curation import Kept, near_duplicates
from snello.errors import ConfigError, DataError

pytest.importorskip("lightning")
pytest.importorskip("jsonargparse")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from snello.cli import main


@pytest.mark.parametrize("samples", [5, 2500])
def test_planted_copies_are_the_closest_pairs(samples: int) -> None:
    """Also where they lie in different chunks."""
    random = torch.Generator().manual_seed(0)
    features = torch.randn(samples, 8, generator=random)
    copies = {(1, 3)} if samples == 5 else {(10, 20), (3, 1500), (1200, 2400), (7, 2499)}
    for first, second in copies:
        features[second] = 2 * features[first]
    pairs, likeness = near_duplicates(features, len(copies))
    assert {tuple(pair) for pair in pairs.tolist()} == copies
    assert torch.allclose(likeness, torch.ones(len(copies)))
    unit = torch.nn.functional.normalize(features[:50].double(), dim=1)
    every, values = near_duplicates(features[:50], 10_000)
    count = min(samples, 50)
    assert len(every) == count * (count - 1) // 2
    similar = (unit @ unit.T)[every[:, 0], every[:, 1]]
    assert torch.allclose(values.double(), similar, atol=1e-5)
    with pytest.raises(ConfigError, match="count"):
        near_duplicates(features, 0)
    with pytest.raises(ConfigError, match=r"\(N, F\)"):
        near_duplicates(features[:, 0])
    features[4] = torch.nan
    with pytest.raises(DataError, match="of 1 of"):
        near_duplicates(features)


def test_the_command_reports_and_selects(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, kept = tmp_path / "digits.json", tmp_path / "kept.json"
    words = [
        "curate", "digits", "--epochs=3", "--count=8", f"--out={out}", f"--kept={kept}", "--ratio=0.7"
    ]  # fmt: skip
    assert main(words) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "label suspects" in said
    result = json.loads(out.read_text())
    # Samples that were never right have the number of epochs, and were not forgotten.
    forgotten = sum(0 < count < 3 for count in result["scores"]["forgetting"])
    assert f"forgotten at least once {forgotten} " in said
    assert result["presentations"] == 3 * len(result["scores"]["AUM"])
    assert len(result["duplicates"]) == 8
    sheets = {path.name for path in tmp_path.glob("*.png")}
    assert {f"digits.json{part}.png" for part in ("", ".hardest", ".easiest")} <= sheets
    chosen = Kept.load(kept)
    assert len(chosen) == round((1 - 0.7) * chosen.samples)
    assert chosen.presentations == result["presentations"]
    run = ["train", "digits", "--method=baseline", "--epochs=1", f"--data.kept={kept}"]
    assert main([*run, f"--out={tmp_path / 'run'}"]) == 0
    capsys.readouterr()
    # Another seed holds out other images for validation, so that the indices are of others.
    assert main([*run, "--seed=1", f"--out={tmp_path / 'other'}"]) == 1
    assert "other labels" in capsys.readouterr().err


def test_files_of_suspects_and_copies_are_named(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    random, folder = torch.Generator().manual_seed(0), tmp_path / "images"
    for label in range(2):
        (folder / f"class{label}").mkdir(parents=True)
        for number in range(24):
            pixels = torch.randint(80, (16, 16, 3), generator=random, dtype=torch.uint8)
            pixels[4 + 6 * label : 8 + 6 * label] += 150
            if number >= 22:  # of the other class
                pixels = pixels.roll(6 - 12 * label, 0)
            image.fromarray(pixels.numpy()).save(folder / f"class{label}" / f"{number:02}.png")
    out = tmp_path / "out.json"
    words = ["--epochs=4", "--image-size=16", "--model=lenet-300-100", "--count=3"]
    assert main(["curate", "imagefolder", f"--data-path={folder}", f"--out={out}", *words]) == 0
    result = json.loads(out.read_text())
    suspects = {Path(one["file"]) for one in result["suspects"]}
    assert suspects
    assert all(path.is_file() and path.stem in ("22", "23") for path in suspects)
    assert all(Path(one["file"]).parent.name == one["label"] for one in result["suspects"])
    assert all(Path(file).is_file() for one in result["duplicates"] for file in one["files"])


def test_a_single_image_has_no_duplicates(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "one.json"
    assert main(["curate", "digits", "--epochs=1", "--limit=1", f"--out={out}"]) == 0
    assert json.loads(out.read_text())["duplicates"] == []
    assert not (tmp_path / "one.json.duplicates.png").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--ratio=1"], "--ratio"),
        (["--count=0"], "--count"),
        (["--keep=dual", "--kept=kept.json", "--epochs=4"], "--epochs=10"),
        (["--limit=50", "--kept=kept.json"], "--limit"),
        (["--arguments=["], "not valid JSON"),
        (["--epochs=0"], "epochs"),
        (["--out=a.json", "--kept=a.json"], "same file"),
        (["--out=a.json", "--kept=a.json.png"], "--kept=a.json.png"),
        (["--out=a.json", "--kept=a.json.html"], "--kept=a.json.html"),
    ],
)
def test_wrong_options_end_in_one_line(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(["curate", "digits", *words]) == 1
    complaint = capsys.readouterr().err
    assert message in complaint
    assert len(complaint.splitlines()) == 1


def test_a_learning_rate_without_finite_features_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("digits", "--limit=20", "--epochs=1", "--lr=1e30", "--batch-size=20")
    assert main(["curate", *arguments, f"--out={tmp_path / 'report'}"]) == 1
    said = capsys.readouterr().err
    assert "not finite: lower the learning rate, 1e+30" in said
