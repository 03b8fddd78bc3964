"""The end of a command: its exit status, the one line that it says, and signals on the way."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest

from seams.cli import decompress_command, is_speaker, prune_command, sigterm_raised
from snello import __version__
from snello.cli import main
from snello.errors import ConfigError, Stopped

pytest.importorskip("rich", reason="the extra report is not installed")


@pytest.fixture
def ending(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException | None], int]:
    """Run a command that ends with this error, or with none; its exit status."""

    def run(error: BaseException | None) -> int:
        def command(arguments: Any) -> None:
            if error is not None:
                raise error

        monkeypatch.setattr(decompress_command, "run", command)
        return main(["decompress", "x.snello"])

    return run


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (None, 0, ""),
        (ConfigError("too much: 3"), 1, "error: too much: 3"),
        (OSError(28, "No space left on device", "a.pt"), 1, "error: a.pt: No space left on device"),
        (OSError("odd"), 1, "error: operating system: odd"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (Stopped("stopped at epoch 3", signal.SIGTERM), 143, "stopped at epoch 3"),
    ],
)
def test_status_and_line(
    error: BaseException | None,
    status: int,
    said: str,
    ending: Callable[[BaseException | None], int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert ending(error) == status
    captured = capsys.readouterr()
    assert captured.err == (f"snello: {said}\n" if said else "")
    assert not captured.out


def test_a_command_with_a_folder_is_told_to_continue_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(prune_command, "run", stopped)
    assert main(["prune", "model.pt", "--data=digits", "--macs=0.5", "--folder=steps"]) == 130
    assert capsys.readouterr().err == (
        "snello: interrupted; the same command continues from steps\n"
    )


def test_other_errors_are_faults_of_snello_and_keep_their_traceback(
    ending: Callable[[BaseException | None], int],
) -> None:
    with pytest.raises(ZeroDivisionError):
        ending(ZeroDivisionError())


def test_message_of_several_lines_with_control_characters_is_one_printable_line(
    ending: Callable[[BaseException | None], int], capsys: pytest.CaptureFixture[str]
) -> None:
    ending(ConfigError("a file\n  says \x1b[31mred\x07 and è"))
    said = capsys.readouterr().err
    assert said == "snello: error: a file says \\x1b[31mred\\x07 and è\n"


def test_only_the_first_of_several_processes_says_that_it_was_stopped(
    ending: Callable[[BaseException | None], int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert ending(KeyboardInterrupt()) == 130
    assert not capsys.readouterr().err
    monkeypatch.setenv("RANK", "0")
    assert is_speaker()


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--version"])
    assert left.value.code == 0
    assert capsys.readouterr().out == f"snello {__version__}\n"


@pytest.mark.parametrize(
    "words", [[], ["simplify", "m.pt", "--seed=x"], ["export", "m", "--batch=two"]]
)
def test_usage_errors_end_with_status_2_and_one_line(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("snello: error: ")
    assert said.count("\n") == 1
    assert "--help" in said


# Signals


def test_sigterm_becomes_an_exception_and_the_next_one_ends_the_process() -> None:
    with pytest.raises(Stopped, match="SIGTERM") as stopped, sigterm_raised():
        signal.raise_signal(signal.SIGTERM)
    assert stopped.value.number == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_handler_is_there_within_the_block_alone() -> None:
    with sigterm_raised():
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_handler_of_the_user_is_left_alone() -> None:
    def mine(number: int, frame: object) -> None: ...

    before = signal.signal(signal.SIGTERM, mine)
    try:
        with sigterm_raised():
            assert signal.getsignal(signal.SIGTERM) is mine
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)


def test_other_threads_set_no_handler() -> None:
    """Python allows signal handlers in the main thread alone; a command runs there or elsewhere."""
    found: list[object] = []

    def run() -> None:
        with sigterm_raised():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [signal.SIG_DFL]
