"""The benchmark of the published pruning protocol: it can be killed anywhere, its controls are what
they claim to be, and its steps land on the rungs.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from torch import nn

from snello.lab.datasets import load_dataset
from snello.sensitivity import SeReNe

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
published = pytest.importorskip(
    "pruning_published", reason="the benchmarks are not part of this distribution"
)
report = pytest.importorskip("pruning_published_report")
pytest.importorskip("sklearn")
pytest.importorskip("nncodec")

pytestmark = pytest.mark.usefixtures("one_thread")
P = replace(
    published.PROTOCOLS["lenet300"], data="digits", rungs=(0.5, 0.9), lmbda=1e-3, twt=0.1, pwe=1,
    least=0.6, plateau="strict", patience=1, longest=1, epochs=40, lr=0.005,
)  # fmt: skip


@pytest.fixture(scope="module")
def data() -> Any:
    splits = load_dataset("digits", seed=0)
    return published.Data(splits, P.batch, torch.device("cpu"), False)


@pytest.fixture(scope="module")
def dense(data: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    return published.dense_weights(P, data, 0, tmp_path_factory.mktemp("dense"))


def row(run: Any) -> dict[str, Any]:
    found = run.row()
    del found["seconds"]
    return json.loads(json.dumps(found))


@pytest.mark.parametrize(
    ("method", "plateau"),
    [("serene", "strict"), ("oneshot-han", "strict"), ("lobster", "released")],
)
def test_a_run_killed_again_and_again_ends_with_the_same_row(
    method: str, plateau: str, data: Any, dense: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    # At the small rate the loss falls all the time: the released rule then sees no plateau.
    p = P if plateau == "strict" else replace(P, plateau=plateau, lr=0.5)
    whole = published.Run(method, 0, dense, p, data, tmp_path / "whole.pt")
    assert whole.finish()
    starts = 0
    while True:
        again = published.Run(method, 0, dense, p, data, tmp_path / "again.pt")
        starts += 1
        if again.finish(stop_after=2):
            break
    assert starts > 2
    assert row(again) == row(whole)
    points = whole.progress.points
    assert [point["ratio"] for point in points] == [0.0, *P.rungs]
    for point in points[1:]:
        assert point["ratio"] - 0.001 < point["sparsity"] <= point["ratio"]
    assert [s["sparsity"] for s in whole.progress.steps] == sorted(
        s["sparsity"] for s in whole.progress.steps
    )
    assert points[0]["bytes"] > points[1]["bytes"] > points[2]["bytes"]


def test_a_checkpoint_of_other_settings_is_refused(
    data: Any, dense: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "run.pt"
    assert not published.Run("decay", 0, dense, P, data, path).finish(stop_after=1)
    other = published.Run("decay", 0, dense, replace(P, lmbda=0.5), data, path)
    with pytest.raises(SystemExit, match="other settings"):
        other.finish()


def test_what_has_finished_under_other_settings_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither a finished run nor a dense network may be taken for one of other settings."""
    line = [
        "--data=digits", "--methods=oneshot", "--seeds=0", "--patience=1", "--longest=1",
        f"--out={tmp_path}",
    ]  # fmt: skip
    assert published.main(line) == 0
    assert "lenet300-oneshot" in capsys.readouterr().out
    assert published.main(line) == 0
    assert capsys.readouterr().out == ""
    with pytest.raises(SystemExit, match=r"l0.0001-released-s0.json belongs to other settings"):
        published.main([*line, "--twt=0.1"])
    with pytest.raises(SystemExit, match=r"dense-s0.pt belongs to other settings"):
        published.main([*line, "--methods=han", "--longest=2"])


@pytest.mark.parametrize(
    "wrong", ["--pwe=0", "--twt=-1", "--least=0", "--least=2", "--lmbda=1", "--longest=0"]
)
def test_settings_outside_their_range_are_refused_before_the_first_epoch(
    tmp_path: Path, wrong: str
) -> None:
    with pytest.raises(SystemExit, match="not "):
        published.main(["--data=digits", wrong, f"--out={tmp_path}"])
    assert not list(tmp_path.iterdir())


def test_the_control_shrinks_every_weight_and_bias_alike() -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3, 2))
    model = model.double()
    before = {name: value.clone() for name, value in model.named_parameters()}
    decay = published.PlainDecay(model, 0.25)
    decay.step()
    decay.step()
    for name, value in model.named_parameters():
        factor = 1.0 if name.startswith("1.") else 0.75**2
        torch.testing.assert_close(value, before[name] * factor, rtol=1e-14, atol=0)


def test_the_released_sensitivity_is_the_full_one_over_the_batch() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)).double()
    x = torch.randn(6, 5, dtype=torch.float64)
    full = SeReNe(model, estimate="full", every=1, exclude=())
    released = published.ReleasedSeReNe(model, 1e-4, 6, 0)
    outputs = model(x)
    for method in (full, released):
        method.observe(outputs)
    for _ in range(2):  # before the step and after it
        expected = full.sensitivity()
        for name, value in released.sensitivity().items():
            torch.testing.assert_close(value, expected[name] / 6, rtol=1e-14, atol=0)
        full.step()
        released.step()


def test_the_released_plateau_counts_only_epochs_above_the_best_by_the_tolerance() -> None:
    plateau = published.ReleasedPlateau(2)
    losses = [1.0, 1.005, 0.999, 1.02, 1.005, 1.02, 1.03]
    assert [plateau.update(x) for x in losses] == [True, False, True] + [False] * 4
    assert plateau.reached
    plateau.reset(0.5)
    assert not plateau.reached
    assert plateau.update(2.0)  # any loss after a pruning step is the best so far
    state = plateau.state_dict()
    again = published.ReleasedPlateau(2)
    again.load_state_dict(state)
    assert again == plateau


def test_the_mean_insensitivity_counts_weights_that_are_not_zero() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 0.0], [2.0, 3.0]]))

    class Half:
        def sensitivity(self) -> dict[str, torch.Tensor]:
            return {"0": torch.tensor([0.5, 2.0])}

    assert published.mean_insensitivity(model, Half()) == pytest.approx(0.5 / 3)
    assert math.isnan(published.mean_insensitivity(nn.Sequential(nn.ReLU()), Half()))


@pytest.mark.parametrize("count", [2, 6])
def test_replayed_steps_take_each_batch_once(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for CUDA's graphs: a step runs at once, or when its capture is replayed."""
    seen: list[int] = []
    captured: list[torch.Tensor] = []

    class Graph:
        def replay(self) -> None:
            seen.append(int(captured[-1]))

    class Capture(contextlib.AbstractContextManager[None]):
        running = False

        def __init__(self, graph: Graph) -> None:
            Capture.running = True

        def __exit__(self, *_: object) -> None:
            Capture.running = False

    def step(images: torch.Tensor, labels: torch.Tensor) -> None:
        if Capture.running:
            captured.append(images)
        else:
            seen.append(int(images))

    for name, stand_in in (
        ("CUDAGraph", Graph), ("graph", Capture), ("Stream", MagicMock), ("current_stream", MagicMock()),
        ("stream", contextlib.nullcontext),
    ):  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, stand_in)
    published.replayed(step, iter([(torch.tensor(i), torch.tensor(i)) for i in range(count)]))
    assert seen == list(range(count))
    assert len(captured) == (count > published.WARM_UP)


def test_the_page_has_the_tables_of_what_has_finished(tmp_path: Path) -> None:
    page, runs = tmp_path / "page.md", tmp_path / "runs"
    runs.mkdir()
    page.write_text(f"# Title\n{report.BEGIN}\nreplaced\n{report.END}\nrest\n")
    report.write_page(runs, page, list(published.METHODS))
    assert "Not measured" in page.read_text()
    for seed, gain in ((0, 0.01), (1, 0.03)):
        for method, value in (("lobster", 0.9 + gain), ("decay", 0.9)):
            points = [
                {"ratio": r, "test": value, "bytes": 1500, "validation": 0.9}
                for r in (0.0, 0.5, 0.9)
            ]
            steps = [{"within_twt": True}, {"within_twt": False}]
            found = {
                "network": "lenet300", "method": method, "seed": seed, "points": points,
                "protocol": json.loads(json.dumps(P.__dict__)), "steps": steps, "epochs": 7,
                "shares": {"min": 0.9, "mean": 0.99, "max": 1.0},
            }  # fmt: skip
            (runs / f"{method}-{seed}.json").write_text(json.dumps(found))
    report.write_page(runs, page, list(published.METHODS))
    text = page.read_text()
    assert text.startswith("# Title\n")
    assert text.endswith("\nrest\n")
    assert "replaced" not in text
    assert "| lobster - decay | +2.00<br>(+1.00 to +3.00) |" in text
    assert "| 50% | 0.9900 (0.9000) | 1.50<br>(1.50 to 1.50) |" in text
    assert len(json.loads((tmp_path / "pruning_published.json").read_text())) == 4


def test_the_published_page_is_that_of_its_runs(tmp_path: Path) -> None:
    """Every number between the marks is that of the JSON beside the page."""
    results = ROOT / "docs" / "results"
    for i, row in enumerate(json.loads((results / "pruning_published.json").read_text())):
        (tmp_path / f"{i:03}.json").write_text(json.dumps(row))
    page = tmp_path / "page" / "pruning_potential.md"
    page.parent.mkdir()
    page.write_text((results / page.name).read_text())
    report.write_page(tmp_path, page, list(published.METHODS))
    assert page.read_text() == (results / page.name).read_text()
