"""Runs that are killed, stopped, or out of disk at any moment lose nothing: resumed, they end with the same bits."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import snello
from snello import modelfile
from snello.cli import main

pytest.importorskip("lightning")
pytest.importorskip("sklearn")
pytest.importorskip("jsonargparse")

EPOCHS = 5
KINDS = ("kill", "term", "full disk")
TIMES = {"seconds", "backward_ms", "dense_ms", "sparse_ms"}
RUN = (
    "train", "digits", "--method=serene", "--device=cpu", "--data.limit=200", f"--epochs={EPOCHS}", "--serene.pwe=1",
    "--serene.finetune=1", "--optimizer.momentum=0.9", "--optimizer.lr=0.003", "--ema=0.9",
)  # fmt: skip
SMALL = ("--data.limit=100", "--lobster.finetune=0", "--serene.finetune=0", "--device=cpu")


# Run in a process of its own, which forks one process for every run without importing torch again.


def _forked(argv: tuple[str, ...], said: Path, during: Callable[[int], None] | None = None) -> int:
    """Exit status of a command line in a forked process, negative for a signal that it died of."""
    pid = os.fork()
    if not pid:
        with open(said, "w") as file, contextlib.redirect_stderr(file), contextlib.redirect_stdout(file):
            status = main(argv)
            file.flush()
        os._exit(status)
    if during is not None:
        during(pid)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _interrupted(kind: str, argv: tuple[str, ...], said: Path, after: float, room: int) -> int:
    if kind == "full disk":
        return _forked((*argv, f"--full={after},{room}"), said)
    number = signal.SIGKILL if kind == "kill" else signal.SIGTERM

    def during(pid: int) -> None:
        time.sleep(after)
        os.kill(pid, number)

    return _forked(argv, said, during)


def _main(argv: list[str]) -> int:
    """The command line, in a process whose files cannot grow beyond some size from some moment on."""
    import resource

    if argv[-1].startswith("--full="):
        after, room = argv.pop().removeprefix("--full=").split(",")
        limits = (int(room), resource.RLIM_INFINITY)
        timer = threading.Timer(float(after), resource.setrlimit, (resource.RLIMIT_FSIZE, limits))
        timer.daemon = True
        timer.start()
    return main(argv)


def interrupt_all(folder: Path, counts: int, seed: int) -> None:
    """Interrupt runs of each kind at random moments, resume them, and note what came of it."""
    torch.set_num_threads(1)
    generator, found = random.Random(seed), []
    started = time.perf_counter()
    assert _forked((*RUN, f"--out={folder / 'straight'}"), folder / "said") == 0, (
        folder / "said"
    ).read_text()
    seconds = time.perf_counter() - started
    size = (folder / "straight" / "last.ckpt").stat().st_size
    for number in range(counts):
        for kind in KINDS:
            out = folder / f"{kind}-{number}"
            argv = (*RUN, f"--out={out}")
            room = generator.randrange(size)
            status = _interrupted(kind, argv, folder / "said", seconds * generator.random(), room)
            left = sorted(path.name for path in out.iterdir()) if out.exists() else []
            said = (folder / "said").read_text()
            resumed = _forked((*argv, "--resume"), folder / "said")
            found.append([kind, out.name, status, said, left, resumed, (folder / "said").read_text()])
    (folder / "found.json").write_text(json.dumps(found))


CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_interruptions
main = test_interruptions.main
test_interruptions.main = lambda argv: test_interruptions._main(list(argv)) if "--full" in argv[-1] else main(argv)
test_interruptions.interrupt_all(Path({folder!r}), {counts}, {seed})
"""


def _environment() -> dict[str, str]:
    source = str(Path(snello.__file__).parents[1])
    path = os.pathsep.join([source, os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def _check_all(folder: Path, counts: int, seed: int) -> None:
    code = CHILD.format(tests=str(Path(__file__).parent), folder=str(folder), counts=counts, seed=seed)
    child = subprocess.run(
        [sys.executable, "-c", code], env=_environment(), capture_output=True, text=True, timeout=3000, check=False
    )  # fmt: skip
    assert child.returncode == 0, child.stderr[-3000:]
    found = json.loads((folder / "found.json").read_text())
    assert len(found) == len(KINDS) * counts
    for kind, name, status, said, left, resumed, then in found:
        _check_end(kind, folder / name, status, said, left)
        assert resumed == 0, (name, then)
        _check_equal(folder / "straight", folder / name)


def _check_end(kind: str, folder: Path, status: int, said: str, left: list[str]) -> None:
    """An interrupted run says what happened, and leaves no half-written file under a name of its own."""
    assert status in {"kill": (-9, 0), "term": (143, -15, 0), "full disk": (1, 0)}[kind], (kind, said)
    if status == 143:
        assert "stopped at epoch " in said or "stopped by SIGTERM" in said
        assert "; go on with --resume" in said or "stopped by SIGTERM" in said
    if status == 1:
        assert str(folder) in said
        assert "File too large" in said
        assert "Traceback" not in said
    if kind != "kill":
        assert set(left) <= {"last.ckpt", "model.pt", "recipe.json", "result.json"}


def _check_equal(straight: Path, resumed: Path) -> None:
    expected, found = (modelfile.load(folder / "model.pt")[0].state_dict() for folder in (straight, resumed))
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), (resumed, name)
    expected, found = (_figures(folder) for folder in (straight, resumed))
    assert found == expected


def _figures(folder: Path) -> Any:
    result = json.loads((folder / "result.json").read_text())
    epochs = [{k: v for k, v in epoch.items() if k not in TIMES} for epoch in result["epochs"]]
    return epochs, result["test_accuracy"], result["test_loss"]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.parametrize(
    ("counts", "seed"), [(2, 1), pytest.param(20, 0, marks=pytest.mark.exhaustive)], ids=["few", "sixty"]
)
def test_interrupted_anywhere_and_resumed_the_weights_are_the_same(
    counts: int, seed: int, tmp_path: Path
) -> None:
    _check_all(tmp_path, counts, seed)
