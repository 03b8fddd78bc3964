"""`snello prune`: options, wrong words, flags in the table, and folders that are continued."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.seams.cli import save_or_rescue
from torch import nn

from snello.cli import main
from snello.errors import ConfigError, OutputError
from snello.store import ModelSpec, Record, build, load, save

for module in ("lightning", "rich", "sklearn"):
    pytest.importorskip(module)

from snello.lab.datasets import load_dataset, loader  # noqa: E402
from snello.lab.training import FineTuning, finetune  # noqa: E402

DIGITS = ModelSpec("lenet-300-100", {"in_features": 64})


@pytest.fixture
def argv(tmp_path: Path) -> list[str]:
    torch.manual_seed(0)
    file = save(tmp_path / "model.pt", build(DIGITS), Record(DIGITS, (1, 8, 8)))
    return ["prune", str(file), "--data=digits", "--calibration=50", f"--out={tmp_path / 'out.pt'}"]


def test_a_network_at_chance_is_flagged_in_the_table(
    argv: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--macs=0.03", "--keep-at-least=0.01", "--importance=random"]
    assert main([*argv, *options]) == 0, capsys.readouterr().err
    said = " ".join(capsys.readouterr().out.split())
    assert "at chance" in said
    assert "Warning: the pruned network is at chance on the test images" in said
    lean, _ = load(tmp_path / "out.pt")
    assert min(p.shape[0] for p in lean.parameters()) < 10, "less than a tenth is allowed"


@pytest.mark.parametrize(
    "importance", ["taylor-outputs", "fisher", "activation", "lobster", "serene"]
)
def test_every_importance_prunes_in_steps(
    argv: list[str], importance: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--macs=0.5", "--steps=2", f"--importance={importance}"]
    assert main([*argv, *options]) == 0, capsys.readouterr().err
    steps = json.loads((tmp_path / "out.pt.json").read_text())["steps"]
    assert steps[-1]["macs"] <= 0.5 < steps[1]["macs"]


def test_a_network_whose_file_cannot_be_written_is_saved_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that became full during a pruning had lost its network."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "file").touch()
    model, record = build(DIGITS).eval(), Record(DIGITS, (1, 8, 8))
    with pytest.raises(
        OutputError, match=r"out\.pt: .*; the network was saved as .* instead"
    ) as said:
        save_or_rescue(tmp_path / "file" / "out.pt", model, record)
    (rescued,) = tmp_path.glob("snello-*/out.pt")
    assert str(rescued) in str(said.value)
    assert torch.equal(load(rescued)[0](x := torch.randn(2, 1, 8, 8)), model(x))


def test_a_network_that_can_be_saved_nowhere_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path) -> None:
        raise OutputError(f"cannot write {path}: the disk is full")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("snello.store.save", full)
    with pytest.raises(OutputError, match=r"cannot write out\.pt: the disk is full$"):
        save_or_rescue(Path("out.pt"))
    assert not [*tmp_path.iterdir()]


def test_a_folder_is_not_continued_with_another_fine_tuning(
    argv: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*argv, "--macs=0.8", f"--folder={tmp_path / 'steps'}", "--finetune=1", "--distil"]
    assert main(words) == 0, capsys.readouterr().err
    assert main(words) == 0, capsys.readouterr().err
    assert main([*words, "--lr=0.02"]) == 1
    assert "fit.lr 0.01 there, 0.02 here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("--calibration=80", "samples 50 there, 80 here"),
        ("--seed=1", "evaluate.seed null there, 1 here"),
        ("--importance=lobster", "importance"),
    ],
)
def test_a_folder_is_not_continued_with_other_images_or_scores(
    argv: list[str], tmp_path: Path, option: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*argv, "--macs=0.8", f"--folder={tmp_path / 'steps'}", "--importance=serene"]
    assert main(words) == 0, capsys.readouterr().err
    assert main([*words, option]) == 1
    assert text in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--macs=0.5", "--importance=tailor"], "did you mean 'taylor'"),
        (["--macs=0.5", "--keep-at-least=7"], "keep_at_least is a share"),
        (["--macs=0.5", "--distil"], "without --finetune"),
        (["--macs=0.5", "--finetune=1", "--distil-features=fc9"], "no module 'fc9'"),
        (["--macs=0.5", "--finetune=1", "--distil-features=fc1"], "outputs have positions"),
        (["--macs=0.5", "--folder=setup.cfg/x"], "cannot make the folder"),
        (["--macs=2"], "a share to keep"),
        ([], "choose the share to keep"),
    ],
)
def test_wrong_words_are_refused_in_a_line(
    argv: list[str],
    options: list[str],
    text: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "setup.cfg").write_text("")
    assert main([*argv, *options]) == 1
    said = capsys.readouterr().err
    assert text in said
    assert "Traceback" not in said
    assert not (tmp_path / "out.pt").exists()


def test_the_dense_network_is_not_replaced(
    argv: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (tmp_path / "model.pt").read_bytes()
    assert main([*argv, "--macs=0.5", f"--out={tmp_path}/./model.pt"]) == 1
    assert "would replace a file that is read, such as the dense network" in capsys.readouterr().err
    assert (tmp_path / "model.pt").read_bytes() == before


class Maps(nn.Module):
    """A network with feature maps."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, width, 3), nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.conv(x.reshape(-1, 1, 8, 8)).relu().mean((2, 3)))


def test_features_of_the_dense_network_are_an_option_of_fine_tuning() -> None:
    torch.manual_seed(0)
    teacher, splits = Maps(8).eval(), load_dataset("digits")
    images = next(iter(loader(splits.test, splits, 64)))[0]

    def distance(settings: FineTuning) -> float:
        torch.manual_seed(1)
        student = finetune(Maps(4), splits, settings, teacher=teacher)
        maps = [
            nn.functional.normalize(m.conv(images.reshape(-1, 1, 8, 8)).square().mean(1).flatten(1))
            for m in (student, teacher)
        ]
        assert not student.conv._forward_hooks
        return float((maps[0] - maps[1]).square().sum(1).mean().detach())

    plain = FineTuning(epochs=2, lr=0.01, augment="none", limit=640, batch_size=64)
    alike = dataclasses.replace(plain, features=("conv",), feature_weight=100.0)
    assert distance(alike) < 0.8 * distance(plain)
    with pytest.raises(ConfigError, match="needs a teacher"):
        finetune(Maps(4), splits, alike)


@pytest.mark.parametrize(
    ("name", "value"), [("feature_weight", 0.0), ("temperature", 0.0), ("batch_size", 0), ("warmup", 1.0)]
)  # fmt: skip
def test_impossible_settings_of_a_fine_tuning_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{name} (must be positive|is a share)"):
        FineTuning(**{name: value})


def test_fine_tuning_by_adamw_moves_every_weight_by_the_learning_rate_at_first() -> None:
    splits = load_dataset("digits")
    settings = FineTuning(
        1, 1e-3, 64, weight_decay=0.0, warmup=0.0, augment="none", limit=64, optimizer="AdamW"
    )
    torch.manual_seed(0)
    model = Maps(4)
    before = model.head.weight.detach().clone()
    finetune(model, splits, settings)
    torch.testing.assert_close(
        (model.head.weight - before).abs(), torch.full_like(before, 1e-3), rtol=1e-2, atol=0
    )
    with pytest.raises(ConfigError, match='the optimizer is "SGD" or "AdamW", not \'Adam\''):
        FineTuning(optimizer="Adam")  # type: ignore[arg-type]
