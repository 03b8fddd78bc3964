"""Writing of results: tables, numbers, JSON."""

from __future__ import annotations

import json
import re
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seams.reporting import progress_module
from snello.deploy import Latency
from snello.lab.reporting import (
    Table,
    as_json,
    busy,
    flops,
    markdown,
    megabytes,
    milliseconds,
    number,
    percent,
    progress,
    show,
)

TABLE = Table(
    title="Nets",
    header=("Name", "Size\n[MB]", "Time"),
    rows=(("a|b", "1.50", "2.000\n1.900-2.100"), ("lean", "0.0100", "1.0")),
    note="One thread.",
)

GOLDEN = """\
### Nets

| Name | Size [MB] | Time |
|---|---:|---:|
| a\\|b | 1.50 | 2.000<br>1.900-2.100 |
| lean | 0.0100 | 1.0 |

One thread.
"""


def _latency() -> Latency:
    """A latency of round numbers, whatever else it records."""
    from snello.deploy import latencies

    found = latencies({"x": lambda: None}, repeats=3, warmup=0, threads=1, batch=1)
    return next(iter(found.values()))


def test_markdown_golden() -> None:
    assert markdown(TABLE) == GOLDEN


def test_markdown_without_a_note_ends_with_the_table() -> None:
    assert markdown(Table("T", ("A",), (("x",),))) == "### T\n\n| A |\n|---|\n| x |\n"


TEXT = st.text(
    st.characters(codec="ascii", categories=("L", "N", "P", "Zs")) | st.sampled_from("|\n"),
    max_size=12,
)


@given(st.lists(st.tuples(TEXT, TEXT, TEXT), max_size=4))
def test_markdown_has_one_line_per_row_and_the_same_columns(
    rows: list[tuple[str, str, str]],
) -> None:
    """The invariant beside the golden text: no cell breaks out of its row or its column."""
    lines = markdown(Table("T", ("A", "B", "C"), tuple(rows))).splitlines()
    assert len(lines) == 4 + len(rows)
    for line in lines[2:]:
        assert line.replace("\\|", "").count("|") == 4


def test_show_draws_everything_when_piped(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rich")
    columns = range(6)
    wide = Table(
        "Wide [MB]",
        tuple(f"Col {n} [MB/ms]" for n in columns),
        (tuple(f"v{n}" for n in columns),),
        "[x]",
    )
    show(wide)
    out = capsys.readouterr().out
    # Too wide for 80 columns; in a pipe nothing needs to be folded. Brackets are units, no markup.
    assert all(text in out for text in (wide.title, *wide.header, *wide.rows[0], wide.note))
    header = next(line for line in out.splitlines() if "Col 0" in line)
    assert "Col 5" in header
    assert len(header.rstrip()) > 80


@pytest.mark.parametrize(
    ("share", "text"), [(0, "0.00 %"), (1, "100.00 %"), (0.12345, "12.35 %"), (0.99999, "100.00 %")]
)
def test_percent(share: float, text: str) -> None:
    assert percent(share) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (0.012345678, "0.012346"), (950.5, "950.5"), (1865952, "1865952")],
)
def test_number(value: float | None, text: str) -> None:
    assert number(value) == text


def test_percent_digits() -> None:
    assert percent(0.1234, 0) == "12 %"


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0.0000"), (300, "0.0003"), (99_900, "0.0999"), (100_000, "0.100"), (999_000, "0.999"),
     (1_000_000, "1.00"), (59_970_000, "59.97")],
)  # fmt: skip
def test_megabytes_are_decimal(size: int, text: str) -> None:
    assert megabytes(size) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1.00 k"),
        (138.9e6, "138.90 M"),
        (3.638e9, "3.64 G"),
        (305.1e9, "305.10 G"),
    ],
)
def test_flops(count: float, text: str) -> None:
    assert flops(count) == text


@given(st.floats(1, 1e13))
def test_flops_are_read_back(count: float) -> None:
    number, _, unit = flops(count).partition(" ")
    read = float(number) * {"": 1, "k": 1e3, "M": 1e6, "G": 1e9}[unit]
    assert read == pytest.approx(count, rel=0.5 if count < 1000 else 0.006)


def test_milliseconds() -> None:
    latency = _latency()
    median, spread = milliseconds(latency).split("\n")
    assert median == f"{latency.median_ms:.3f}"
    assert spread == f"{latency.p10_ms:.3f}-{latency.p90_ms:.3f}"


@dataclass(frozen=True)
class _Inner:
    path: Path
    shape: tuple[int, ...]


@dataclass(frozen=True)
class _Outer:
    name: str
    inner: _Inner
    by_name: dict[str, float]
    absent: None = None


def test_json_round_trip() -> None:
    value = _Outer("è", _Inner(Path("a/b"), (1, 2)), {"x": 0.1, "y": 1e-300})
    read = json.loads(as_json(value))
    assert read == {
        "name": "è", "inner": {"path": "a/b", "shape": [1, 2]}, "by_name": {"x": 0.1, "y": 1e-300}, "absent": None,
    }  # fmt: skip
    assert "è" in as_json(value)
    back = _Outer(
        read["name"],
        _Inner(Path(read["inner"]["path"]), tuple(read["inner"]["shape"])),
        read["by_name"],
    )
    assert back == value


def test_json_of_a_measured_result() -> None:
    latency = _latency()
    assert Latency(**json.loads(as_json(latency))) == latency
    assert json.loads(as_json({"a": [latency]})) == {"a": [asdict(latency)]}


def test_progress_prints_lines_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rich")
    with progress(2) as line:
        line("epoch 1 [bold]not markup[/bold]")
        line("x" * 200)
    captured = capsys.readouterr()
    assert captured.err.splitlines() == ["epoch 1 [bold]not markup[/bold]", "x" * 200]
    assert not captured.out


def test_what_an_earlier_attempt_finished_took_no_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("rich")
    monkeypatch.setattr(progress_module, "PERIOD", 0.02)
    with progress(8, "epoch", 6) as line:
        time.sleep(0.2)
        line("epoch 7")
        time.sleep(0.2)
    said = capsys.readouterr().err.splitlines()
    assert any(text.endswith("min so far") for text in said[: said.index("epoch 7")])
    pattern = r"7 of 8 epochs, 0:00 min, 0\.\d s each, about 0:00 min left"
    assert any(re.fullmatch(pattern, text) for text in said)


def test_the_time_of_an_unfinished_step_slows_no_finished_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = iter([0, 100, 150, 200, 420]).__next__  # start, step, text, step, text
    monkeypatch.setattr(progress_module.time, "monotonic", clock)
    pace = progress_module._Pace(4, "epoch")
    pace.finish_step()
    assert pace.text() == "1 of 4 epochs, 2:30 min, 100.0 s each, about 4:10 min left"
    pace.finish_step()
    assert pace.text() == "2 of 4 epochs, 7:00 min, 100.0 s each, about 0:00 min left"


def test_what_follows_the_last_step_is_none() -> None:
    pace = progress_module._Pace(2, "epoch")
    for _ in range(3):  # the last line announces the coding
        pace.finish_step()
    assert pace.text() == "2 of 2 epochs, 0:00 min so far"


def test_lines_within_a_step_do_not_count(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("rich")
    monkeypatch.setattr(progress_module, "PERIOD", 0.02)
    with progress(3) as line:
        line("epoch 1 of step 1", done=False)
        line("step 1")
        time.sleep(0.2)
    said = capsys.readouterr().err.splitlines()
    # The thread may speak before, on a busy machine.
    assert [x for x in said if x.startswith(("epoch", "step"))] == ["epoch 1 of step 1", "step 1"]
    assert any(text.startswith("1 of 3 steps") for text in said)


def test_busy_is_silent_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rich")
    with busy("coding"):
        pass
    captured = capsys.readouterr()
    assert not captured.err.strip()
    assert not captured.out


def test_a_pipe_gets_lines_with_rate_and_time_left_ever_more_rarely(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("rich")
    monkeypatch.setattr(progress_module, "PERIOD", 0.02)
    start = time.monotonic()
    with progress(4, "epoch") as line, busy("coding"):
        line("epoch 1")
        time.sleep(0.2)
    seconds = time.monotonic() - start
    said = capsys.readouterr().err.splitlines()
    assert "epoch 1" in said
    assert "coding: 0:00 min so far" in said
    pattern = r"1 of 4 epochs, 0:00 min, 0\.\d s each, about 0:0\d min left"
    spoken = [text for text in said if re.fullmatch(pattern, text)]
    assert spoken
    assert (
        0.02 * sum(range(len(spoken) + 1)) <= seconds
    )  # after 0.02, 0.06, 0.12 ... s: pauses grow
    threads = [thread.name for thread in threading.enumerate()]
    assert "snello progress" not in threads


def test_progress_on_a_terminal_keeps_its_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The bar is drawn and taken away; what was said stays."""
    pytest.importorskip("rich")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with progress(2) as line, busy("coding"):
        line("epoch 1 [bold]")
        line("epoch 2")
        line("coding")
    said = capsys.readouterr().err
    assert said.index("epoch 1 [bold]") < said.index("epoch 2") < said.index("coding")
    assert "2/2" in said
    assert "3/2" not in said


def test_table_without_a_note_ends_with_its_rows(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rich")
    show(Table("T", ("A", "B"), (("first", "last"),)))
    assert capsys.readouterr().out.split()[-1] == "last"


def test_numbers_of_a_slow_and_a_fast_call() -> None:
    """Three digits below a millisecond, two above: as many as a measurement has."""
    slow = Latency("pytorch", 12.3456, 11.0, 13.0, 1, 1, 0, 1, "cpu")
    assert milliseconds(slow) == "12.35\n11.00-13.00"
    fast = Latency("pytorch", 0.12345, 0.1, 0.2, 1, 1, 0, 1, "cpu")
    assert milliseconds(fast) == "0.123\n0.100-0.200"
