"""Two processes under torchrun decide alike, and train as one process with the joined batch does.

What equals what: without batch statistics (GroupNorm for BatchNorm) two processes of 10 images are
one process of 20, for every method. With BatchNorm each process normalises by its own 10 images, as
DistributedDataParallel does: two processes then are one that averages the gradients of two half
batches, which is written out here as a plain loop.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import snello

pytest.importorskip("lightning")
pytest.importorskip("torchvision")
if not torch.distributed.is_available():
    pytest.skip("torch was built without distributed", allow_module_level=True)

import dataset_files as files
import torchrun_samples as samples
from seams.training import initial_model
from snello.errors import ConfigError
from snello.lab.datasets import loader
from snello.lab.training import TrainingResult, load_data, train
from snello.store import load

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module", autouse=True)
def _own_counts() -> Iterator[None]:
    counts, margin = samples.cifar.CIFAR10_COUNTS, samples.quality.MARGIN
    yield
    samples.quality.MARGIN = margin
    samples.cifar.CIFAR10_COUNTS = counts  # type: ignore[misc]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for part, count in (("train", 8), ("test", 2)):
        for label, kind in enumerate(CIFAR10):
            for i in range(count):
                files.write_jpeg(
                    root / "cifar10" / part / kind / f"{i}.jpg", 100 * label + i, (32, 32)
                )
    return root


def _torchrun(data: Path, out: Path, *options: str, methods: tuple[str, ...] = ()) -> str:
    out.mkdir()
    source, tests = str(Path(snello.__file__).parents[1]), str(Path(__file__).parent)
    path = os.pathsep.join([source, tests, os.environ.get("PYTHONPATH", "")])
    found = subprocess.run(
        [
            sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
            *options, str(Path(__file__).with_name("torchrun_samples.py")), str(data), str(out),
            *methods,
        ],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=150, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr[-4000:]
    return found.stderr


@pytest.fixture(scope="module")
def rest_together(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of two processes' runs of the methods behind the marker."""
    out = tmp_path_factory.mktemp("torchrun") / "rest"
    _torchrun(data, out, methods=samples.REST)
    return out


def _losses(run: TrainingResult) -> list[float]:
    return [loss for epoch in run.epochs for loss in (epoch.train_loss, epoch.val_loss)]


@pytest.mark.parametrize("method", samples.QUICK)
def test_two_processes_train_and_decide_as_one(method: str, data: Path, tmp_path: Path) -> None:
    """Both laws in one test, so that one process pays for the two."""
    _torchrun(data, tmp_path / "together", methods=(method,))
    _check_one_training(tmp_path / "together", method, data, tmp_path / "alone")
    _check_one_decision(tmp_path / "together", method)


@pytest.mark.exhaustive
@pytest.mark.parametrize("method", samples.REST)
def test_with_every_method(method: str, data: Path, rest_together: Path, tmp_path: Path) -> None:
    _check_one_training(rest_together, method, data, tmp_path)
    _check_one_decision(rest_together, method)


def _check_one_training(together: Path, method: str, data: Path, out: Path) -> None:
    joined = TrainingResult.read(together / method / "result.json")
    assert joined.processes == 2
    alone = train(samples.recipe_of(str(data), batch_statistics=False), method, out)
    assert alone.processes == 1
    assert _losses(joined) == pytest.approx(_losses(alone), abs=1e-5)
    assert [e.pruned for e in joined.epochs] == pytest.approx(
        [e.pruned for e in alone.epochs], abs=1e-4
    )
    assert [e.updated for e in joined.epochs] == pytest.approx(
        [e.updated for e in alone.epochs], abs=5e-3
    )
    assert joined.test_loss == pytest.approx(alone.test_loss, abs=1e-5)


def _check_one_decision(together: Path, method: str) -> None:
    """Masks, frozen neurons and weights are the same on both ranks."""
    for kind in samples.NOTED.get(method, ()):
        (first, one), (second, other) = (
            torch.load(together / f"{method}-{kind}-{rank}.pt", weights_only=True)
            for rank in (0, 1)
        )
        assert first.keys() == second.keys()
        dropped = sum(
            int(mask.sum() if kind == "frozen" else (~mask).sum()) for mask in first.values()
        )
        assert dropped > 0, "masks that hold nothing would be the same in any case"
        for name, mask in first.items():
            assert torch.equal(mask, second[name]), name
        for name, weight in one.items():
            assert torch.equal(weight, other[name]), name


@pytest.mark.exhaustive
def test_with_batch_statistics_two_processes_are_two_half_batches(
    data: Path, rest_together: Path
) -> None:
    """The plain loop: the mean of the losses of what the two ranks see, one step."""
    joined = TrainingResult.read(rest_together / "with-statistics" / "result.json")
    recipe = samples.recipe_of(str(data), batch_statistics=True)
    splits = load_data(recipe)
    model, config = initial_model(recipe, splits), recipe.optimizer
    optimizer = torch.optim.SGD(
        model.parameters(), config.lr, momentum=config.momentum, weight_decay=config.weight_decay
    )
    halves = [
        loader(
            splits.train, splits, recipe.data.batch_size // 2, shuffle=True, seed=recipe.seed,
            augment="crop-flip", limit=recipe.data.limit, replicas=2, rank=rank,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    for epoch, record in enumerate(joined.epochs):
        for group in optimizer.param_groups:
            group["lr"] = config.lr * 0.1 ** sum(
                epoch >= milestone for milestone in config.milestones
            )
        losses = []
        for half in halves:
            half.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        for batches in zip(*halves, strict=True):
            optimizer.zero_grad()
            loss = torch.stack(
                [F.cross_entropy(model(images), labels) for images, labels in batches]
            ).mean()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        assert record.train_loss == pytest.approx(sum(losses) / len(losses), abs=1e-5)


@pytest.mark.exhaustive
def test_a_lost_process_is_started_again_and_the_run_resumes(
    data: Path, rest_together: Path, tmp_path: Path
) -> None:
    told = _torchrun(data, tmp_path / samples.KILLED, "--max-restarts=3")
    assert "Signal 9" in told or "exitcode: -9" in told or "SIGKILL" in told, told[-2000:]
    resumed = TrainingResult.read(tmp_path / samples.KILLED / "result.json")
    straight = TrainingResult.read(rest_together / "serene" / "result.json")
    assert _losses(resumed) == _losses(straight)
    one, other = (
        load(folder / "model.pt", trust="torchrun_samples:without_batch_statistics")[0].state_dict()
        for folder in (tmp_path / samples.KILLED, rest_together / "serene")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_batch_that_cannot_be_dealt_out_is_refused(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "TORCHELASTIC_RUN_ID": "x",
        "RANK": "0",
        "WORLD_SIZE": "3",
        "LOCAL_WORLD_SIZE": "3",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=r"batch_size=20 .* cannot be split evenly over 3"):
        train(samples.recipe_of(str(data), batch_statistics=False), "baseline", tmp_path)
