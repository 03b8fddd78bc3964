"""Killed in the middle of an epoch and resumed, a run ends as if nothing had happened, bit for
bit.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

import snello
from seams.pruning import quality
from snello.errors import ConfigError, ModelError
from snello.store import load

pytest.importorskip("lightning")
pytest.importorskip("sklearn")

from snello.lab.training import EpochRecord, Recipe, TrainingResult, load_recipe, train

EPOCHS, KILLED_IN = 6, 3
SGD = ("--optimizer.momentum=0.9", "--optimizer.lr=0.003", "--optimizer.weight_decay=0.001")
# The decay of AdamW is decoupled; its state is two moments and a step count per parameter.
ADAMW = ("--optimizer.name=AdamW", "--optimizer.lr=0.00003")
CASES = {
    "baseline": ("baseline", SGD),
    "lobster": ("lobster", SGD),
    "serene": ("serene", SGD),
    "neq": ("neq", SGD),
    "serene-adamw": ("serene", ADAMW),
    "stochastic": ("stochastic-0.5", SGD),
    "serene+neq": ("serene+neq", (*SGD, "--neq.eps=0.01")),
    # A step of the optimizer every two batches, a schedule that moves with every step, and an
    # average beside.
    "serene-ema": (
        "serene",
        (*SGD, "--ema=0.8", "--accumulate=2", "--optimizer.schedule=poly"),
    ),
    "neq-every": (
        "neq",
        (*SGD, "--neq.every=3", "--neq.smoothing=0.5", "--optimizer.warmup_epochs=1"),
    ),
    # Epochs of other images and other numbers of steps.
    "neq-curated": (
        "neq",
        (*SGD, "--curation.method=infobatch", "--curation.anneal=1", "--optimizer.schedule=cosine"),
    ),
}
QUICK = ("lobster", "serene-ema", "serene+neq")
TIMES = {"seconds", "backward_ms", "dense_ms", "sparse_ms"}

CHILD = """
import os, signal, sys
sys.path.insert(0, {tests!r})
import torch
from snello.lab.training import Classification, train
from seams.pruning import quality
from test_resume import CASES, KILLED_IN, recipe_of

quality.MARGIN = -100
torch.set_num_threads(1)
step = Classification.training_step

def deadly(self, batch, batch_idx):
    if self.current_epoch == KILLED_IN - 1 and batch_idx == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, batch, batch_idx)

Classification.training_step = deadly
for case in {cases!r}:
    method = CASES[case][0]
    # One process per run, without importing torch anew each time.
    pid = os.fork()
    if not pid:
        train(recipe_of(case), method, os.path.join({folder!r}, case))
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
        sys.exit(f"{{case}} was not killed: status {{status}}")
"""


def recipe_of(case: str) -> Recipe:
    """Few images, and steps so small that every epoch is on a plateau: prunings fall on either side
    of the kill.
    """
    pruning = [
        f"--{method}.{option}"
        for method in ("lobster", "serene")
        for option in ("pwe=1", "finetune=1", "twt=0.005", "lmbda=0.0001")
    ]
    small = (
        "--data.limit=200",
        f"--epochs={EPOCHS}",
        "--optimizer.milestones=[4]",
        "--device=cpu",
        "--neq.probe=20",
    )
    return load_recipe("digits", [*small, *pruning, *CASES[case][1]])


@pytest.fixture(autouse=True)
def pruned_at_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps as small as these leave a network at chance, where pruning would wait."""
    monkeypatch.setattr(quality, "MARGIN", -100)


@pytest.fixture(scope="module")
def killed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one run per case that is tested, each killed by SIGKILL in an epoch's middle."""
    if not hasattr(os, "fork"):
        pytest.skip("needs os.fork")
    folder = tmp_path_factory.mktemp("killed")
    tests = [item for item in request.session.items if item.path == request.path]
    cases = [item.callspec.params["case"] for item in tests if "killed" in item.fixturenames]  # type: ignore[attr-defined]
    code = CHILD.format(cases=cases, tests=str(Path(__file__).parent), folder=str(folder))
    source = str(Path(snello.__file__).parents[1])
    path = os.pathsep.join([source, os.environ.get("PYTHONPATH", "")])
    child = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert child.returncode == 0, child.stderr[-3000:]
    return folder


def _timeless(record: EpochRecord) -> dict[str, Any]:
    return {name: value for name, value in asdict(record).items() if name not in TIMES}


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return load(folder / "model.pt")[0].state_dict()


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=() if c in QUICK else pytest.mark.exhaustive) for c in CASES]
)
def test_resumed_run_equals_one_never_killed(
    case: str, killed: Path, tmp_path: Path, one_thread: None
) -> None:
    recipe, method = recipe_of(case), CASES[case][0]
    assert not (killed / case / "result.json").exists()
    assert not (killed / case / "model.pt").exists()
    lines: list[str] = []
    resumed = train(recipe, method, killed / case, resume=True, progress=lines.append)
    assert len(lines) == EPOCHS - KILLED_IN + 1, "the finished epochs are not trained again"

    straight = train(recipe, method, tmp_path)
    expected, found = _weights(tmp_path), _weights(killed / case)
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        assert torch.equal(found[name], weight), name
    assert [_timeless(e) for e in resumed.epochs] == [_timeless(e) for e in straight.epochs]
    assert (resumed.test_accuracy, resumed.test_loss) == (
        straight.test_accuracy,
        straight.test_loss,
    )
    _check_something_happened(case, straight)


def _check_something_happened(case: str, run: TrainingResult) -> None:
    """The comparison would prove little about masks if none were there."""
    pruned = [epoch.pruned for epoch in run.epochs]
    if case.startswith(("lobster", "serene")):
        # An epoch's record is taken before the pruning step that may end it.
        assert 0 < pruned[KILLED_IN - 1] <= pruned[-1] < 1
        if case != "serene-ema":  # whose steps grow too small to find more to prune after the kill
            assert pruned[KILLED_IN - 1] < pruned[-1]
    else:
        assert pruned[-1] == 0
    if "neq" in case or case == "stochastic":
        assert run.epochs[KILLED_IN - 1].updated < 1
        assert run.epochs[-1].updated < 1


def test_finished_run_is_returned_not_repeated(tmp_path: Path) -> None:
    recipe = load_recipe(
        "digits", ["--epochs=1", "--data.limit=50", "--lobster.finetune=0", "--serene.finetune=0"]
    )
    first = train(recipe, "baseline", tmp_path)
    before = (tmp_path / "model.pt").read_bytes()
    lines: list[str] = []
    assert train(recipe, "baseline", tmp_path, resume=True, progress=lines.append) == first
    assert not lines
    assert (tmp_path / "model.pt").read_bytes() == before


ONE_EPOCH = [
    "--epochs=1",
    "--data.limit=50",
    "--lobster.finetune=0",
    "--serene.finetune=0",
    "--device=cpu",
]


def test_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    train(load_recipe("digits", ONE_EPOCH), "baseline", tmp_path)
    with pytest.raises(ConfigError, match=r"already holds a run.*--resume"):
        train(load_recipe("digits", ONE_EPOCH), "baseline", tmp_path)
    other = load_recipe("digits", [*ONE_EPOCH, "--seed=1", "--optimizer.lr=0.5"])
    with pytest.raises(
        ConfigError,
        match=r"another recipe: optimizer.lr is 0.1 there, 0.5 here; seed is 0 there, 1",
    ):
        train(other, "baseline", tmp_path, resume=True)
    with pytest.raises(ConfigError, match=r"method is 'baseline' there, 'neq' here"):
        train(load_recipe("digits", ONE_EPOCH), "neq", tmp_path, resume=True)


def test_settings_that_a_method_does_not_read_may_change(tmp_path: Path) -> None:
    first = train(load_recipe("digits", ONE_EPOCH), "baseline", tmp_path / "baseline")
    others = [
        "--lobster.pwe=7",
        "--serene.twt=0.2",
        "--neq.eps=0.1",
        "--ship.repeats=3",
        "--methods=[baseline]",
    ]
    assert (
        train(
            load_recipe("digits", [*ONE_EPOCH, *others]),
            "baseline",
            tmp_path / "baseline",
            resume=True,
        )
        == first
    )
    train(load_recipe("digits", ONE_EPOCH), "lobster", tmp_path / "lobster")
    with pytest.raises(ConfigError, match=r"lobster.pwe is \d+ there, 7 here"):
        train(
            load_recipe("digits", [*ONE_EPOCH, *others]),
            "lobster",
            tmp_path / "lobster",
            resume=True,
        )


def test_a_damaged_note_is_told_in_one_line(tmp_path: Path) -> None:
    train(load_recipe("digits", ONE_EPOCH), "baseline", tmp_path)
    for damaged in ("{", "[]", "[" * 100_000, '{"data": []}'):
        (tmp_path / "recipe.json").write_text(damaged)
        with pytest.raises(ConfigError, match=r"recipe.json is .*choose another --out"):
            train(load_recipe("digits", ONE_EPOCH), "baseline", tmp_path, resume=True)


def test_what_never_started_is_no_run(tmp_path: Path) -> None:
    """After a mistake is corrected the same command goes through."""
    with pytest.raises(ModelError, match="no weights"):
        train(load_recipe("digits", [*ONE_EPOCH, "--weights=nowhere.pt"]), "baseline", tmp_path)
    assert len(train(load_recipe("digits", ONE_EPOCH), "baseline", tmp_path).epochs) == 1


@pytest.mark.parametrize("name", ["model.pt", "last.ckpt", "result.json"])
def test_files_of_others_are_not_replaced(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"mine")
    with pytest.raises(ConfigError, match=f"holds a {name} but no recipe.json"):
        train(load_recipe("digits", ONE_EPOCH), "baseline", tmp_path)
    assert (tmp_path / name).read_bytes() == b"mine"


@pytest.mark.parametrize("name", ["last.ckpt", "result.json"])
def test_a_damaged_run_folder_is_told_in_one_line(tmp_path, name):
    recipe = load_recipe(
        "digits",
        [
            "--epochs=1",
            "--data.limit=50",
            "--lobster.finetune=0",
            "--serene.finetune=0",
            "--device=cpu",
        ],
    )
    train(recipe, "baseline", tmp_path)
    if name == "last.ckpt":
        (tmp_path / "result.json").unlink()
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:40])
    with pytest.raises(ModelError, match=rf"{name} is .*remove it"):
        train(recipe, "baseline", tmp_path, resume=True)
