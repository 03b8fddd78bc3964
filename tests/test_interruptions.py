"""Runs that are killed, stopped, or out of disk at any moment lose nothing: resumed, they end with
the same bits.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import snello
from snello.cli import main
from snello.errors import OutputError
from snello.store import ModelSpec, Record, archives, build, load, save

pytest.importorskip("lightning")
pytest.importorskip("sklearn")
pytest.importorskip("jsonargparse")

EPOCHS = 4
KINDS = ("kill", "term", "full disk")
TIMES = {"seconds", "backward_ms", "dense_ms", "sparse_ms"}
RUN = (
    "train", "digits", "--method=serene", "--device=cpu", "--data.limit=200", f"--epochs={EPOCHS}", "--serene.pwe=1",
    "--serene.finetune=1", "--optimizer.momentum=0.9", "--optimizer.lr=0.003", "--ema=0.9",
    "--optimizer.milestones=[45]",
)  # fmt: skip
# Lengths that are given are not fitted to the epochs: runs of other lengths stay comparable.
SMALL = (
    "--data.limit=100", "--lobster.finetune=0", "--serene.finetune=0", "--device=cpu",
    "--optimizer.milestones=[45]", "--lobster.pwe=5", "--serene.pwe=5",
)  # fmt: skip


# Run in a process of its own, which forks one process for every run without importing torch again.


def _forked(argv: tuple[str, ...], said: Path, during: Callable[[int], None] | None = None) -> int:
    """Exit status of a command line in a forked process, negative for a signal that it died of."""
    pid = os.fork()
    if not pid:
        with (
            open(said, "w") as file,
            contextlib.redirect_stderr(file),
            contextlib.redirect_stdout(file),
        ):
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
    """The command line, in a process whose files cannot grow beyond some size from some moment
    on.
    """
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
    importlib.import_module("snello.lab.training")  # once, and not in every process that is forked
    importlib.import_module("snello.lab.reporting")
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
            found.append(
                [kind, out.name, status, said, left, resumed, (folder / "said").read_text()]
            )
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
    code = CHILD.format(
        tests=str(Path(__file__).parent), folder=str(folder), counts=counts, seed=seed
    )
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
    """An interrupted run says what happened, and leaves no half-written file under a name of its
    own.
    """
    assert status in {"kill": (-9, 0), "term": (143, -15, 0), "full disk": (1, 0)}[kind], (
        kind,
        said,
    )
    if status == 143:
        assert "stopped at epoch " in said or "stopped by SIGTERM" in said
        assert "; continue with --resume" in said or "stopped by SIGTERM" in said
    if status == 1:
        assert str(folder) in said
        assert "File too large" in said
        assert "Traceback" not in said
    if kind != "kill":
        # The signal may come when all is written.
        assert set(left) <= {"last.ckpt", "model.pt", "recipe.json", "result.json", "report.html"}


def _check_equal(straight: Path, resumed: Path) -> None:
    expected, found = (load(folder / "model.pt")[0].state_dict() for folder in (straight, resumed))
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), (resumed, name)
    expected, found = (_figures(folder) for folder in (straight, resumed))
    assert found == expected


def _figures(folder: Path) -> Any:
    result = json.loads((folder / "result.json").read_text())
    epochs = [{k: v for k, v in epoch.items() if k not in TIMES} for epoch in result["epochs"]]
    same = ("test_accuracy", "test_loss", "flag", "distributions")
    return epochs, *(result[name] for name in same)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.parametrize(
    ("counts", "seed"),
    [(1, 1), *(pytest.param(2, seed, marks=pytest.mark.exhaustive) for seed in range(2, 12))],
)
def test_interrupted_anywhere_and_resumed_the_weights_are_the_same(
    counts: int, seed: int, tmp_path: Path
) -> None:
    _check_all(tmp_path, counts, seed)


@pytest.mark.parametrize("gone", [["result.json"], ["result.json", "model.pt"]])
def test_a_run_stopped_behind_its_last_epoch_only_writes_what_is_missing(
    gone: list[str], tmp_path: Path, one_thread: None
) -> None:
    assert main([*RUN, f"--out={tmp_path / 'straight'}"]) == 0
    shutil.copytree(tmp_path / "straight", tmp_path / "run")
    for name in gone:
        (tmp_path / "run" / name).unlink()
    assert main([*RUN, f"--out={tmp_path / 'run'}", "--resume"]) == 0
    _check_equal(tmp_path / "straight", tmp_path / "run")


def test_a_run_stopped_behind_its_last_epoch_keeps_its_flag(
    tmp_path: Path, one_thread: None
) -> None:
    """A last epoch at twenty times the learning rate undoes what the bound on the accuracy held."""
    from snello.lab.training import load_recipe, train

    recipe = load_recipe("digits", [
        "--methods=[lobster]", "--device=cpu", "--data.limit=200", "--epochs=4", "--lobster.pwe=1",
        "--lobster.finetune=1", "--lobster.max_drop=0.01", "--optimizer.momentum=0.9", "--optimizer.lr=0.03",
        "--optimizer.milestones=[3]", "--optimizer.gamma=20",
    ])  # fmt: skip
    straight = train(recipe, "lobster", tmp_path)
    assert straight.flag == "beyond max_drop"
    (tmp_path / "result.json").unlink()
    with warnings.catch_warnings():
        # The weights at zero are those of the masks in the checkpoint.
        warnings.filterwarnings("error", ".*no mask holds them")
        assert train(recipe, "lobster", tmp_path, resume=True).flag == straight.flag


# A disk that is really full


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB, which one checkpoint of 0.8 MB fits into and two do not; needs
    root.
    """
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    try:
        done = subprocess.run(mount, capture_output=True, check=False)
    except OSError:
        done = None
    if done is None or done.returncode:
        pytest.skip("no file system can be mounted here")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.slow
def test_a_full_disk_keeps_the_last_checkpoint(
    tiny_disk: Path, tmp_path: Path, one_thread: None, capsys: pytest.CaptureFixture[str]
) -> None:
    out, straight = tiny_disk / "run", tmp_path / "straight"
    assert main([*RUN, f"--out={out}"]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert (
        f"cannot write {out / 'last.ckpt'}: No space left on device; the folder {out} needs 8"
        in said
    )
    assert "make room there; 1 finished epochs are kept" in said
    assert "continue with --resume" in said
    assert sorted(path.name for path in out.iterdir()) == ["last.ckpt", "recipe.json"]
    assert archives.load(out / "last.ckpt")["epoch"] == 0

    subprocess.run(["mount", "-o", "remount,size=9m", str(tiny_disk)], check=True)
    assert main([*RUN, f"--out={out}", "--resume"]) == 0
    assert main([*RUN, f"--out={straight}"]) == 0
    _check_equal(straight, out)


@pytest.mark.parametrize(
    "words",
    [
        ["measure", "model.pt", "--repeats=1", "--warmup=0", "--out=lean.json"],
        [
            "sweep",
            "model.pt",
            "--data=digits",
            "--ratios=0.5",
            "--importances=l1",
            "--out=lean.json",
        ],
        ["prune", "model.pt", "--data=digits", "--macs=0.5", "--importance=l2", "--out=lean.pt"],
        [
            "shrink",
            "model.pt",
            "--data=digits",
            "--minimise=macs",
            "--allow=channels",
            "--out=lean",
        ],
        ["curate", "digits", "--limit=100", "--epochs=1", "--out=lean.json"],
    ],
    ids=lambda words: words[0],
)
def test_a_page_that_does_not_fit_leaves_the_numbers(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    """Pages have 0.9 MB, numbers a few kB."""
    monkeypatch.chdir(tmp_path)
    spec = ModelSpec("lenet-300-100", {"in_features": 64})
    save("model.pt", build(spec), Record(spec, (1, 8, 8)))

    def full(*_: Any) -> None:
        raise OutputError("No space left on device")

    monkeypatch.setattr("snello.lab.reporting.pages.write_page", full)
    assert main(words) == 1
    (numbers,) = Path().glob("lean*.json")
    assert json.loads(numbers.read_text())


@pytest.mark.slow
def test_a_small_folder_for_temporary_files_does_not_matter(
    tiny_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything is written beside its place, nothing by way of $TMPDIR."""
    (tiny_disk / "filled").write_bytes(bytes(1000 * 1024))
    monkeypatch.setenv("TMPDIR", str(tiny_disk))
    monkeypatch.setattr(tempfile, "tempdir", None)
    assert main([*RUN, f"--out={tmp_path / 'run'}"]) == 0


# Two processes, one folder


@pytest.mark.parametrize(
    "command", [RUN, ("journey", "digits", *SMALL, "--epochs=1")], ids=lambda words: words[0]
)
def test_one_process_at_a_time(
    command: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from seams.training import claimed

    with claimed(tmp_path):
        assert main([*command, f"--out={tmp_path}"]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"snello: error: {tmp_path} is in use by another process: wait")
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_leftovers_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    from seams.training import claimed

    for name in (".last.ckpt.x1.tmp", ".model.pt.y2.tmp", ".other.tmp", "mine.tmp"):
        (tmp_path / name).write_bytes(b"half")
    with claimed(tmp_path):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other.tmp", "mine.tmp"]


def test_a_checkpoint_with_pickled_code_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["train", "digits", *SMALL, "--epochs=1", f"--out={tmp_path}"]
    assert main(argv) == 0
    (tmp_path / "result.json").unlink()
    torch.save({"epoch": torch.nn.Linear(2, 2)}, tmp_path / "last.ckpt")
    assert main([*argv, "--resume"]) == 1
    assert (
        "last.ckpt contains pickled code (torch.nn.modules.linear.Linear)"
        in capsys.readouterr().err
    )


# Signals


SLOW = """
import sys, time
from snello.cli import main
from snello.lab.training import Classification

step = Classification.training_step

def slow(self, batch, batch_idx):
    print("step", flush=True)
    time.sleep(0.4)
    return step(self, batch, batch_idx)

Classification.training_step = slow
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.sampled(1)
@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("twice", [False, True])
def test_a_signal_finishes_the_step(number: int, status: int, twice: bool, tmp_path: Path) -> None:
    run = subprocess.Popen(
        [sys.executable, "-c", SLOW, *RUN, "--data.batch_size=20", f"--out={tmp_path / 'run'}"],
        env=_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert run.stdout is not None
    assert run.stdout.readline() == "step\n"
    run.send_signal(number)
    if twice:
        time.sleep(0.1)
        run.send_signal(number)
    out, err = run.communicate(timeout=60)
    assert run.returncode == status
    assert not out, "no other step is begun"
    if not twice or number == signal.SIGINT:
        assert err == (
            f"snello: stopped at epoch 1; continue with --resume (0 of {EPOCHS} epochs are saved "
            f"in {tmp_path / 'run'})\n"
        )
    assert set(os.listdir(tmp_path / "run")) <= {"recipe.json", ".lock"}


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_any_command(
    number: int, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("snello.cli.recipes.recipe_names", lambda *_: os.kill(os.getpid(), number))
    assert main(["recipes", "ls"]) == status
    assert capsys.readouterr().err.count("\n") == 1
    assert signal.getsignal(signal.SIGTERM) == before


# Longer runs


def _extended(tmp_path: Path, method: str, first: tuple[str, ...], then: tuple[str, ...]) -> None:
    """A run that goes on has the bits of one that was as long from the start."""
    run = ("train", "digits", f"--method={method}", *SMALL)
    assert main([*run, *first, f"--out={tmp_path / 'run'}"]) == 0
    assert main([*run, *then, f"--out={tmp_path / 'run'}", "--resume"]) == 0
    assert main([*run, *then, f"--out={tmp_path / 'straight'}"]) == 0
    _check_equal(tmp_path / "straight", tmp_path / "run")
    # And it is finished.
    assert main([*run, *then, f"--out={tmp_path / 'run'}", "--resume"]) == 0


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("method", "first", "then"),
    [
        ("baseline", ["--epochs=2"], ["--epochs=4"]),
        (
            "baseline",
            ["--epochs=1", "--optimizer.schedule=step"],
            ["--epochs=2", "--optimizer.schedule=step"],
        ),
        ("neq", ["--epochs=3", "--ema=0.9"], ["--epochs=4", "--ema=0.9"]),
        ("serene", ["--epochs=3", "--serene.finetune=1"], ["--epochs=5", "--serene.finetune=3"]),
    ],
)
def test_a_finished_run_is_extended(
    method: str, first: list[str], then: list[str], tmp_path: Path, one_thread: None
) -> None:
    _extended(tmp_path, method, tuple(first), tuple(then))


@pytest.mark.parametrize(
    ("method", "first", "then", "reason"),
    [
        (
            "baseline",
            ["--optimizer.schedule=cosine"],
            ["--optimizer.schedule=cosine", "--epochs=5"],
            "learning rate of zero",
        ),
        (
            "baseline",
            [],
            ["--epochs=1"],
            "cannot be made shorter than that: choose --epochs=3 or more",
        ),
        (
            "serene",
            ["--serene.finetune=1"],
            ["--serene.finetune=1", "--epochs=5"],
            "add --serene.finetune=3",
        ),
        (
            "serene",
            ["--serene.finetune=1"],
            ["--serene.finetune=2"],
            "its pruning was to end with epoch 2",
        ),
    ],
)
def test_where_the_schedule_forbids_it_the_reason_is_given(
    method: str,
    first: list[str],
    then: list[str],
    reason: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = ["train", "digits", f"--method={method}", *SMALL, "--epochs=3", f"--out={tmp_path}"]
    assert main([*run, *first]) == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert main([*run, *first, *then, "--resume"]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert "holds a run of 3 epochs, 3 of them finished" in said
    assert reason in said
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_stopped_run_may_get_another_end_of_pruning_while_that_is_ahead() -> None:
    from seams.training import refusal
    from snello.lab.training import load_recipe

    there = {"epochs": 10, "serene": {"finetune": 2}}
    longer = load_recipe("digits", ["--epochs=20", "--serene.finetune=2"])
    assert refusal(there, longer, "serene", 7) is None
    assert refusal(there, longer, "serene", 8) is not None
    assert refusal(there, longer, "baseline", 10) is None
    cosine = load_recipe("digits", ["--epochs=20", "--optimizer.schedule=poly"])
    assert refusal(there, cosine, "baseline", 0) is None
    assert refusal(there, cosine, "baseline", 1) is not None


def test_ctrl_c_while_the_command_line_is_imported_ends_quietly() -> None:
    """Python had shown a traceback of the imports."""
    code = """if True:
        import os, signal, sys
        class Finder:
            def find_spec(self, name, path=None, target=None):
                if name == "snello.cli":
                    os.kill(os.getpid(), signal.SIGINT)
        sys.meta_path.insert(0, Finder())
        from snello.__main__ import main
        main()
    """
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")
