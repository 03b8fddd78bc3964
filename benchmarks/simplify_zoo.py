"""Exact simplification over the zoo: success, removed share, exactness, time, latency;
Torch-Pruning beside it.

    python benchmarks/simplify_zoo.py --quick
    python benchmarks/simplify_zoo.py --models resnet vit_b_16 --shares 0.5 --variants A \\
        --out runs/bench/zoo.json
    python benchmarks/simplify_zoo.py --out runs/bench/simplify_zoo.json

One row per network, share of dead neurons and variant: A, the dead neurons are 0; B, they are
constants that are not zero (see ``masked_zoo.py``). What is removable is counted by an oracle of
its own (``removable.py``).

Errors are the largest difference from the masked network in float64 over its largest deviation from
the batch mean, on a batch of 3 and, where the network runs there, on another batch at another
resolution. "rounding" is the same figure for the masked network itself in float32: the least that
can be asked of a float32 result.

Torch-Pruning gets the same masked networks; how it is used: ``torch_pruning_zoo.py``. It folds no
constants, so its variant B is not exact.

Rows are written as they are made; a second run with the same --out computes only what is missing.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import os
import platform
import signal
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from masked_zoo import Member, dependence, error, heads, images, masked, outputs, zoo
from removable import DEFINITION, Removable, removable, size
from torch import Tensor, nn
from torch_pruning_zoo import torch_pruned

from snello.deploy import latencies, pytorch_runner
from snello.errors import SnelloError
from snello.files import write_text
from snello.lab.reporting import Table, markdown, percent, progress, show
from snello.simplification import simplify

QUICK = (
    "resnet-32",
    "resnet18",
    "mobilenet_v2",
    "densenet121",
    "swin_t",
    "lraspp_mobilenet_v3_large",
)
LIMIT_SECONDS = 600  # for simplify(), twice, and judging
BYTES_PER_PARAMETER = (
    30  # float32 and float64 twins of the masked and the lean network, and a copy at work
)


@dataclass(frozen=True)
class Outcome:
    """Result of one tool on one masked network; numbers are None where they could not be had.

    Attributes:
        status: "ok", or the first line of the error.
        removed: parameters and buffers gone, less what was added.
        added: entries of the border kernels, tables and appended constants that snello adds.
        error64, error32: of the outputs; see the script's docstring.
        second64, second32: at the second resolution.
        seconds: of wall time that the tool took.
        median_ms, p10_ms, p90_ms: latency of its result.
        ratio: median over the masked network's median.
    """

    status: str
    removed: int | None = None
    added: int | None = None
    error64: float | None = None
    error32: float | None = None
    second64: float | None = None
    second32: float | None = None
    seconds: float | None = None
    median_ms: float | None = None
    p10_ms: float | None = None
    p90_ms: float | None = None
    ratio: float | None = None


@dataclass(frozen=True)
class Row:
    """One masked network.

    Attributes:
        model, family, share, variant, seed: what it is.
        side, second: of the inputs; ``second`` is None where the network runs at one resolution
        only. rescued: neurons given back so that the outputs depend on the input.
        dependence: deviation of the outputs from their batch mean over their largest value.
        rounding: error of the masked network in float32.
        size, removable: parameters and buffers, and how many of them the oracle calls removable.
        dense_ms, dense_p10_ms, dense_p90_ms: latency of the masked network; None where it was not
        asked for. snello, torch_pruning: the outcomes; Torch-Pruning's is None if it was not asked
        for. conditions: where and how it was measured.
    """

    model: str
    family: str
    share: float
    variant: str
    seed: int
    side: int
    second: tuple[int, ...] | None
    rescued: int
    dependence: float
    rounding: float
    size: int
    removable: int
    dense_ms: float | None
    dense_p10_ms: float | None
    dense_p90_ms: float | None
    snello: Outcome
    torch_pruning: Outcome | None
    conditions: dict[str, Any]


# --- the two tools
# ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A masked network with everything that both tools are judged by."""

    model: nn.Module
    inputs: tuple[Tensor, ...]
    expected: tuple[list[Tensor], ...]
    count: Removable


def prepare(member: Member, share: float, variant: Any, seed: int) -> tuple[Case, int]:
    """The masked network and how many neurons were rescued in it."""
    model, rescued = masked(member, share, variant, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    side = member.side
    shapes = ((3, 3, side, side), (4, 3, round(side * 0.7 / 32) * 32 or side - 8, side + 32))
    twin = copy.deepcopy(model).double()
    inputs: list[Tensor] = []
    expected: list[list[Tensor]] = []
    for x in (images(shape, generator) for shape in shapes):
        try:
            expected.append(outputs(twin, x.double()))
        except (
            RuntimeError,
            AssertionError,
            ValueError,
        ):  # torchvision's own: a network of one resolution
            if not inputs:
                raise
            continue
        inputs.append(x)
    return Case(model, tuple(inputs), tuple(expected), removable(model, inputs[0])), rescued


def judge(case: Case, lean: nn.Module, lean64: nn.Module, seconds: float) -> Outcome:
    """Sizes and errors of a tool's result."""
    pairs = list(zip(case.expected, case.inputs, strict=True))
    exact = [error(y, outputs(lean64, x.double())) for y, x in pairs] + [None]
    single = [error(y, outputs(lean, x)) for y, x in pairs] + [None]
    removed = size(case.model, case.count.never_run) - size(lean, case.count.never_run)
    return Outcome("ok", removed, _added(lean), exact[0], single[0], exact[1], single[1], seconds)


def _added(lean: nn.Module) -> int:
    """Entries of the buffers in which folded constants are kept for border, joins and positions."""
    names = ("border", "constant", "table", "taps")
    kept = (buffer for name, buffer in lean.named_buffers() if name.rpartition(".")[2] in names)
    return sum(buffer.numel() for buffer in kept)


def with_snello(case: Case) -> tuple[Outcome, nn.Module | None]:
    """snello on a case; an error becomes the status, and so does a run without end."""
    x = case.inputs[0][:2]
    previous = signal.signal(signal.SIGALRM, _stop)
    signal.alarm(LIMIT_SECONDS)
    try:
        begin = time.perf_counter()
        lean = simplify(case.model, x)
        seconds = time.perf_counter() - begin
        # There and back loses nothing; another copy would be the most that the largest networks
        # have memory for.
        lean64 = simplify(case.model.double(), x.double())
        return judge(case, lean, lean64, seconds), lean
    except SnelloError as reason:
        return Outcome(_first_line(reason)), None
    except Exception as reason:  # a tool that crashes is a result
        return Outcome("crash: " + _first_line(reason)), None
    finally:
        case.model.float()
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def _stop(number: int, frame: Any) -> None:
    raise TimeoutError(f"stopped after {LIMIT_SECONDS} s")


def with_torch_pruning(case: Case) -> tuple[Outcome, nn.Module | None]:
    """Torch-Pruning on a case; an error becomes the status."""
    status, lean, seconds = torch_pruned(
        case.model, case.inputs[0][:1], case.count, heads(case.model)
    )
    if lean is None:
        return Outcome(status), None
    try:
        return judge(case, lean, copy.deepcopy(lean).double(), seconds), lean
    except Exception as reason:
        return Outcome(_first_line(reason)), None


def _first_line(reason: Exception) -> str:
    text = str(reason).strip().partition("\n")[0]
    return f"{type(reason).__name__}: {text}"[:200]


# --- rows ---------------------------------------------------------------------------------------------------


def measure(member: Member, share: float, variant: str, options: argparse.Namespace) -> Row:
    """One row, from the masked network to the latencies."""
    case, rescued = prepare(member, share, variant, options.seed)
    results = {"snello": with_snello(case)}
    if not options.no_torch_pruning:
        results["torch-pruning"] = with_torch_pruning(case)
    x = case.inputs[0][:1]
    nets = {
        "dense": case.model,
        **{name: lean for name, (_, lean) in results.items() if lean is not None},
    }
    runners = (
        {} if options.no_latency else {name: pytorch_runner(net, x) for name, net in nets.items()}
    )
    times = (
        latencies(runners, repeats=options.repeats, warmup=3, threads=options.threads)
        if runners
        else {}
    )
    dense = times.get("dense")
    outcomes = {
        name: _timed(outcome, times[name], dense.median_ms) if dense and name in times else outcome
        for name, (outcome, _) in results.items()
    }
    return Row(
        model=member.name, family=member.family, share=share, variant=variant, seed=options.seed,
        side=member.side, second=tuple(case.inputs[1].shape) if len(case.inputs) > 1 else None, rescued=rescued,
        dependence=dependence(case.expected[0]), rounding=error(case.expected[0], outputs(case.model, case.inputs[0])),
        size=size(case.model, case.count.never_run), removable=case.count.removable,
        dense_ms=dense and dense.median_ms, dense_p10_ms=dense and dense.p10_ms,
        dense_p90_ms=dense and dense.p90_ms,
        snello=outcomes["snello"], torch_pruning=outcomes.get("torch-pruning"), conditions=_conditions(options),
    )  # fmt: skip


def _timed(outcome: Outcome, latency: Any, dense_ms: float) -> Outcome:
    numbers = {"median_ms": latency.median_ms, "p10_ms": latency.p10_ms, "p90_ms": latency.p90_ms}
    return Outcome(**{**asdict(outcome), **numbers, "ratio": latency.median_ms / dense_ms})


def _conditions(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "device": "cpu", "machine": platform.machine(), "threads": options.threads, "batch": 1,
        "repeats": options.repeats, "warmup": 3, "torch": torch.__version__,
    }  # fmt: skip


def missing_memory(member: Member) -> str:
    """Why a network is skipped; empty if the machine seems to have the memory for it."""
    try:
        with torch.device("meta"):
            model = member.build()
    except SnelloError:  # RegNet computes its widths with tensors, which cannot be had without data
        model = member.build()
    parameters = sum(p.numel() for p in model.parameters())
    needed, free = BYTES_PER_PARAMETER * parameters, _available_bytes()
    return f"needs {needed / 2**30:.1f} GiB, {free / 2**30:.1f} are free" if needed > free else ""


def _available_bytes() -> int:
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        line = next(
            text for text in meminfo.read_text().splitlines() if text.startswith("MemAvailable")
        )
        return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


# --- the command line
# ---------------------------------------------------------------------------------------


def select(names: Sequence[str] | None) -> list[Member]:
    """Members by name or family, in the order of the zoo; all of them for None."""
    members = zoo()
    known = {*members, *(member.family for member in members.values())}
    if unknown := sorted(set(names or ()) - known):
        raise SystemExit(
            f"no network or family is called {unknown[0]!r}; there are: {', '.join(sorted(known))}"
        )
    return [m for m in members.values() if names is None or m.name in names or m.family in names]


def at_side(member: Member, side: int | None) -> Member:
    """A member with smaller inputs, if it takes them: transformers with a fixed grid and Inception
    do not.
    """
    fixed = member.family in ("vit", "maxvit", "inception") or side is None
    return member if fixed else replace(member, side=min(side, member.side))


def load(path: Path | None, fresh: bool) -> list[dict[str, Any]]:
    """The rows of an earlier run."""
    if path is None or fresh or not path.exists():
        return []
    rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"]
    return rows


def save(path: Path | None, rows: list[dict[str, Any]]) -> None:
    """All rows, written whole."""
    if path is not None:
        text = json.dumps({"definition": DEFINITION, "rows": rows}, indent=1)
        write_text(path, text + "\n")


def main() -> None:
    """Measure, print, write JSON."""
    options = _parser().parse_args()
    torch.set_num_threads(options.threads)
    members = select(options.models or (QUICK if options.quick else None))
    members = [at_side(member, options.side) for member in members]
    rows = load(options.out, options.fresh)
    done = {(row["model"], row["side"], row["share"], row["variant"], row["seed"]) for row in rows}
    todo = [(m, s, v) for m in members for s in options.shares for v in options.variants]
    todo = [(m, s, v) for m, s, v in todo if (m.name, m.side, s, v, options.seed) not in done]
    todo = [] if options.report else todo
    skipped: dict[str, str] = {}
    with progress(len(todo)) as line:
        for member, share, variant in todo:
            if not options.all and member.name not in skipped:
                skipped[member.name] = missing_memory(member)
            if skipped.get(member.name):
                line(
                    f"{member.name} {share} {variant}: skipped: {skipped[member.name]} (--all forces it)"
                )
                continue
            row = json.loads(json.dumps(asdict(measure(member, share, variant, options))))
            rows.append(row)
            save(options.out, rows)
            line("  ".join(_cells(row)))
            gc.collect()
    chosen = {member.name for member in members}
    shown = tuple(_cells(row) for row in rows if row["model"] in chosen)
    note = (
        f"{DEFINITION}\nremoved, TP: removed by snello and by Torch-Pruning, of what is removable. float64, float32, "
        "second (resolution, float64), error: largest output difference. [s]: of simplify(). [ms]: of the masked "
        f"network; ratio: simplified over masked. cpu, {options.threads} thread(s), batch 1, {options.repeats} "
        "repeats, median; spreads and conditions are in the JSON."
    )
    table = Table("Exact simplification of masked networks", _HEADER, shown, note)
    show(table)
    if options.page:
        write_text(options.page, markdown(table))


_HEADER = (
    "network", "side", "dead", "removed", "float64", "float32", "second", "[s]", "[ms]", "ratio",
    "TP", "error", "ratio",
)  # fmt: skip


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    ours, theirs = row["snello"], row["torch_pruning"]

    def removed(outcome: dict[str, Any] | None) -> str:
        if outcome is None:
            return "-"
        if outcome["removed"] is None:
            return str(outcome["status"]).partition(":")[0]
        net = outcome["removed"] / max(row["removable"], 1)
        if net >= 0.99 or not outcome.get("added"):
            return percent(net, 1)
        return (
            f"{percent(net, 1)} ({percent(net + outcome['added'] / max(row['removable'], 1), 1)})"
        )

    def number(outcome: dict[str, Any] | None, key: str, form: str) -> str:
        return "-" if outcome is None or outcome[key] is None else format(outcome[key], form)

    dense = "-" if row["dense_ms"] is None else f"{row['dense_ms']:.1f}"
    return (
        row["model"], f"{row['side']}", f"{row['share']:.0%} {row['variant']}", removed(ours),
        number(ours, "error64", ".0e"), number(ours, "error32", ".0e"), number(ours, "second64", ".0e"),
        number(ours, "seconds", ".1f"), dense,
        number(ours, "ratio", ".2f"), removed(theirs), number(theirs, "error64", ".0e"), number(theirs, "ratio", ".2f"),
    )  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--models", nargs="+", metavar="NAME", help="networks or families; default: all"
    )
    parser.add_argument("--quick", action="store_true", help=f"only {', '.join(QUICK)}")
    parser.add_argument(
        "--shares", nargs="+", type=float, default=[0.5, 0.9], help="of dead neurons per layer"
    )
    parser.add_argument("--variants", nargs="+", choices=("A", "B"), default=["A", "B"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=20, help="timed calls of each network")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--side", type=int, help="of the inputs, where a network takes smaller ones than its own"
    )
    parser.add_argument("--no-latency", action="store_true", help="exactness and sizes only")
    parser.add_argument("--no-torch-pruning", action="store_true")
    parser.add_argument(
        "--all", action="store_true", help="also networks that seem too large for the memory"
    )
    parser.add_argument(
        "--fresh", action="store_true", help="compute again what --out already holds"
    )
    parser.add_argument(
        "--report", action="store_true", help="only show the rows of --out, and measure nothing"
    )
    parser.add_argument("--page", type=Path, default=None, help="write the table as Markdown too")
    parser.add_argument("--out", type=Path, help="JSON; rows that it holds are not computed again")
    return parser


if __name__ == "__main__":
    main()
