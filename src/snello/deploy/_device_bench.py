"""Time ONNX models on this machine; needs only onnxruntime and numpy.

    python bench.py                      writes device.json next to this file
    python bench.py --threads 4 --repeats 200
    python bench.py --profile            also times single operations, and writes profile.json

The models are listed in models.json. Their timings are interleaved: each repeat calls every model
once, so that a temporary slowdown affects all of them equally. Outputs are compared with those on
the machine that created the kit. Copy device.json back and show it with: snello report measure.json
device.json
"""

# This file is copied into the kit unchanged and must not import snello; snello itself uses the
# functions below. It must run on the old Python versions of small boards (3.8).

from __future__ import annotations

import argparse
import base64
import contextlib
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from pathlib import Path
from typing import Any, Callable, Sequence  # noqa: UP035

FORMAT = "snello device 1"
KIT = "snello device kit 1"
PROFILE = "snello device profile 1"
OPERATIONS = "snello device operations 1"
# A minimal ONNX file, y = x for one float: running it first keeps the runtime's own memory out of
# the measurement of a model.
IDENTITY = bytes.fromhex(
    "08083a370a100a017812017922084964656e746974791201675a0f0a0178120a0a08080112040a020801620f0a0179120a0a0808"
    "0112040a02080142040a00100d"
)
DTYPES = {
    "tensor(float)": "float32", "tensor(double)": "float64", "tensor(float16)": "float16",
    "tensor(int64)": "int64", "tensor(int32)": "int32", "tensor(int8)": "int8",
    "tensor(uint8)": "uint8", "tensor(bool)": "bool",
}  # fmt: skip
# Outputs of another CPU may differ by rounding, relative to the largest magnitude.
AGREES = {"float32": 1e-3, "int8": 0.1}
MODEL = {"name": str, "file": str, "precision": str, "sha256": str, "bytes": int, "check": str}
REMEDY = (
    "copy the folder again, or make another: operations.json with snello bench-device --profile"
)
OPERATION = {"key": str, "one": str, "many": str, "branches": int}


class KitError(ValueError):
    """An error in the kit or the options, described in the message."""


def take_turns(
    names: Sequence[str], milliseconds: Callable[[str], float], repeats: int, warmup: int
) -> dict[str, list[float]]:
    """Time several models, interleaved; each round begins with the next model.

    Args:
        names: names of the models.
        milliseconds: function that runs a model once and returns its time in milliseconds.
        repeats: number of timed rounds.
        warmup: number of untimed rounds before them.
    """
    # A copy of snello.timing.take_turns, which this file cannot import; a test compares the two.
    times: dict[str, list[float]] = {name: [] for name in names}
    for round_ in range(warmup + repeats):
        start = round_ % len(names) if names else 0
        for name in [*names[start:], *names[:start]]:
            elapsed = milliseconds(name)
            if round_ >= warmup:
                times[name].append(elapsed)
    return times


def session_of(path: str | bytes, threads: int) -> Any:
    """Open an ONNX Runtime session on the CPU.

    Raises:
        KitError: for a file that ONNX Runtime cannot load.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4  # errors are raised as exceptions: do not log them as well
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no public base class
        name = path if isinstance(path, str) else "a model in memory"
        raise KitError(f"ONNX Runtime cannot load {name}: {error}") from error


def random_feed(session: Any, batch: int) -> dict[str, Any]:
    """Build inputs with the shapes recorded in a file: standard normal, zeros for integers.

    Raises:
        KitError: for an input of unknown type, or with a dynamic dimension other than the batch.
    """
    import numpy

    random, feed = numpy.random.RandomState(0), {}
    for node in session.get_inputs():
        shape = list(node.shape)
        if shape and not isinstance(shape[0], int):
            shape[0] = batch
        if node.type not in DTYPES or not all(isinstance(n, int) for n in shape):
            raise KitError(
                f"input {node.name!r} is {node.type} of shape {node.shape}; only the batch may be "
                "dynamic"
            )
        dtype = numpy.dtype(DTYPES[node.type])
        # Integers may be indices: zero is valid for every table.
        values = random.standard_normal(shape) if dtype.kind == "f" else numpy.zeros(shape)
        feed[node.name] = values.astype(dtype)
    return feed


def peak_memory(path: str, threads: int, batch: int) -> int | None:
    """Peak growth in bytes of a new process that loads and runs a file; None if unknown."""
    command = [sys.executable, "-I", os.path.abspath(__file__), "--peak", os.path.abspath(path)]
    command += ["--threads", str(threads), "--batch", str(batch)]
    try:
        child = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None  # a system without child processes, or an emulated CPU
    if child.returncode:
        said = child.stderr.strip()[-300:]
        raise KitError(f"{path}: the process that measures memory failed: {said}")
    return json.loads(child.stdout)  # type: ignore[no-any-return]


def _peak_here(path: str, threads: int, batch: int) -> int | None:
    """Peak memory growth of this process; `peak_memory` calls it in a new process."""
    import numpy

    session_of(IDENTITY, threads).run(None, {"x": numpy.ones(1, numpy.float32)})
    try:
        Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    except OSError:
        return None
    before = _status("VmRSS")
    session = session_of(path, threads)
    feed = random_feed(session, batch)
    for _ in range(3):
        session.run(None, feed)
    peak = _status("VmHWM")
    return None if before is None or peak is None else max(0, peak - before)


def _status(field: str) -> int | None:
    """A field of /proc/self/status in bytes; None if unavailable."""
    with contextlib.suppress(OSError), open("/proc/self/status") as file:
        for line in file:
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    return None


def operation_times(
    entries: Sequence[dict[str, Any]], threads: int, repeats: int = 30
) -> dict[str, float]:
    """Time single operations, in milliseconds.

    An operation's time is the difference between a model with several of its copies and a model
    with one, per copy. Of each model's times the 10th percentile counts: other programs can only
    add to it.

    Args:
        entries: `key`, `one` and `many` (ONNX models in base64) and `branches`, the copies in
            `many`.
        threads: threads of ONNX Runtime.
        repeats: timed calls of each model, after three untimed ones.

    Raises:
        KitError: for a model that does not run.
    """
    return {entry["key"]: _operation_time(entry, threads, repeats) for entry in entries}


def _operation_time(entry: dict[str, Any], threads: int, repeats: int) -> float:
    import numpy

    models = {part: session_of(base64.b64decode(entry[part]), threads) for part in ("one", "many")}
    feeds = {part: random_feed(session, 1) for part, session in models.items()}
    times = take_turns(
        list(models), lambda part: _milliseconds(models[part], feeds[part]), repeats, warmup=3
    )
    one, many = (float(numpy.quantile(times[part], 0.1)) for part in ("one", "many"))
    # Below the resolution of the clock the difference may be negative.
    return max((many - one) / (int(entry["branches"]) - 1), 1e-6)


def _milliseconds(session: Any, feed: dict[str, Any]) -> float:
    begin = time.perf_counter_ns()
    session.run(None, feed)
    return (time.perf_counter_ns() - begin) / 1e6


def operations_of(folder: Path, batch: int) -> dict[str, Any]:
    """Read the operations of a kit, before anything is timed.

    Raises:
        KitError: for a kit without operations, and for a batch of several samples.
    """
    if batch != 1:
        raise KitError(f"--profile times single samples: --batch={batch} does not fit it")
    return _part(folder / "operations.json", OPERATIONS, "operations", OPERATION, models=dict)


def profile(kit: dict[str, Any], result: dict[str, Any], repeats: int) -> dict[str, Any]:
    """Time the operations of a kit; `result` has the times of its whole models."""
    times, keys = operation_times(kit["operations"], result["threads"], repeats), kit["models"]
    models = [
        {"name": row["name"], "precision": row["precision"], "ms": row["p10_ms"],
         "operations": keys[row["file"]]}
        for row in result["models"]
        if row["file"] in keys
    ]  # fmt: skip
    return {
        "format": PROFILE, "device": result["device"], "threads": result["threads"], "times": times,
        "models": models, "note": "",
    }  # fmt: skip


def _part(path: Path, form: str, part: str, kinds: dict[str, type], **also: type) -> dict[str, Any]:
    """Content of a JSON file of a kit: a list of entries, all with the keys that `kinds` names."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise KitError(f"{path} cannot be read: {error}; {REMEDY}") from error
    found = content.get("format") if isinstance(content, dict) else None
    if found != form:
        raise KitError(f"{path} has the format {found!r}, this script reads {form!r}; {REMEDY}")
    _check(f"{path}", content, {part: list, **also})
    for number, entry in enumerate(content[part], 1):
        _check(f"{path}: entry {number} of {part}", entry, kinds)
    return content  # type: ignore[no-any-return]


def _check(where: str, entry: Any, kinds: dict[str, type]) -> None:
    found = entry if isinstance(entry, dict) else {}
    lacking = [key for key, kind in kinds.items() if not isinstance(found.get(key), kind)]
    if lacking:
        named = ", ".join(f"{key} ({kinds[key].__name__})" for key in lacking)
        raise KitError(f"{where} lacks {named}; {REMEDY}")


def _read_kit(folder: Path) -> list[dict[str, Any]]:
    kit = _part(folder / "models.json", KIT, "models", MODEL)
    for entry in kit["models"]:
        if entry["precision"] not in AGREES:
            raise KitError(f"{entry['file']}: unknown precision {entry['precision']!r}")
        data = (folder / entry["file"]).read_bytes()
        if hashlib.sha256(data).hexdigest() != entry["sha256"]:
            raise KitError(f"{entry['file']} was changed or damaged: copy the folder again")
    return kit["models"]  # type: ignore[no-any-return]


def _difference(session: Any, check: Path) -> float:
    """Largest difference from the kit's reference outputs, relative to the largest magnitude."""
    import numpy

    worst = 0.0
    try:
        with numpy.load(check, allow_pickle=False) as saved:
            feed = {node.name: saved[f"in_{i}"] for i, node in enumerate(session.get_inputs())}
            outputs = [saved[f"out_{i}"] for i, _ in enumerate(session.get_outputs())]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise KitError(f"{check} cannot be read: {error}; copy the folder again") from error
    for i, found in enumerate(session.run(None, feed)):
        expected = outputs[i]
        if found.shape != expected.shape:
            raise KitError(f"{check}: output {i} has shape {expected.shape}, here {found.shape}")
        if found.size:
            scale = float(numpy.abs(expected).max())
            off = float(numpy.abs(found.astype("f8") - expected.astype("f8")).max())
            worst = max(worst, off / scale if scale else off)
    return worst


def run(folder: Path, threads: int, batch: int, warmup: int, repeats: int) -> dict[str, Any]:
    """Time every model of a kit.

    Raises:
        KitError: for an incomplete or damaged kit, or options out of range.
    """
    import numpy

    conditions = {"threads": threads, "batch": batch, "warmup": warmup, "repeats": repeats}
    for name, value in conditions.items():
        if value < (name != "warmup"):
            raise KitError(f"--{name}={value}: choose at least {int(name != 'warmup')}")
    entries = _read_kit(folder)
    checks = {entry["file"]: folder / entry["check"] for entry in entries}
    sessions = {file: session_of(str(folder / file), threads) for file in checks}
    feeds = {file: random_feed(session, batch) for file, session in sessions.items()}
    differences = {file: _difference(sessions[file], check) for file, check in checks.items()}

    before = temperature()
    times = take_turns(
        list(sessions), lambda file: _milliseconds(sessions[file], feeds[file]), repeats, warmup
    )
    after = temperature()
    results = []
    for entry in entries:
        p10, median, p90 = (float(q) for q in numpy.quantile(times[entry["file"]], [0.1, 0.5, 0.9]))
        results.append({
            **{key: entry[key] for key in MODEL if key != "check"},
            "source_sha256": entry.get("source_sha256"),  # none of a network without a file
            "median_ms": median, "p10_ms": p10, "p90_ms": p90,
            "difference": differences[entry["file"]],
            "peak_bytes": peak_memory(str(folder / entry["file"]), threads, batch),
        })  # fmt: skip
    device = {**describe(), "celsius_before": before, "celsius_after": after}
    return {"format": FORMAT, "device": device, **conditions, "models": results}


def describe() -> dict[str, Any]:
    """Facts about this machine, for the result file."""
    import numpy
    import onnxruntime

    return {
        "cpu": cpu_name(), "cores": os.cpu_count(), "machine": platform.machine(),
        "os": platform.platform(),
        "governor": _first_line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "python": platform.python_version(), "onnxruntime": onnxruntime.__version__,
        "numpy": numpy.__version__, "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }  # fmt: skip


def cpu_name() -> str:
    """Names of the board and the CPU, if the system reports them."""
    board = _first_line("/proc/device-tree/model")
    names = []
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        for line in file:
            key, _, value = line.partition(":")
            if key.strip().lower() in ("model name", "hardware", "cpu part"):
                names.append(key.strip() + " " + value.strip() if "part" in key else value.strip())
    found = ", ".join(dict.fromkeys(name for name in [board or "", *names] if name))
    return found or platform.processor() or platform.machine() or "unknown"


def temperature() -> float | None:
    """Temperature of the first sensor in degrees Celsius; None without a sensor."""
    # A hot board lowers its clock: times are comparable only at similar temperatures.
    text = _first_line("/sys/class/thermal/thermal_zone0/temp")
    return int(text) / 1000 if text and text.lstrip("-").isdigit() else None


def _first_line(path: str) -> str | None:
    try:
        return Path(path).read_text().strip("\0\n ").partition("\n")[0] or None
    except (OSError, UnicodeDecodeError):
        return None


def _print(result: dict[str, Any]) -> None:
    device = result["device"]
    lines = [
        f"{device['cpu']}, {device['cores']} cores, ONNX Runtime {device['onnxruntime']}; "
        f"{result['threads']} thread(s), batch {result['batch']}, {result['warmup']} warm-up and "
        f"{result['repeats']} timed runs, all models interleaved"
    ]
    for row in result["models"]:
        lines.append(
            f"{row['file']:32} {row['median_ms']:9.3f} ms  (p10 {row['p10_ms']:.3f}, p90 {row['p90_ms']:.3f})"
        )
        if not row["difference"] <= AGREES[row["precision"]]:
            said = f"    WARNING: outputs differ by {row['difference']:.2g} from the kit's reference outputs"
            if row["precision"] == "int8":
                said += "; x86 CPUs without VNNI need the file of snello export --format=onnx-int8 --reduce-range"
            lines.append(said)
    sys.stdout.write("\n".join(lines) + "\n")


def main() -> int:
    """Parse the options, time the models and write the result."""
    here = Path(__file__).absolute().parent
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (("threads", 1), ("batch", 1), ("warmup", 10), ("repeats", 50)):
        parser.add_argument("--" + name, type=int, default=default)
    beside = str(here / "device.json")
    parser.add_argument("--out", default=beside, help="default: device.json next to this file")
    also = "also write profile.json: times of single operations"
    parser.add_argument("--profile", action="store_true", help=also)
    parser.add_argument("--peak", metavar="FILE", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        sys.stdout.write(json.dumps(_peak_here(options.peak, options.threads, options.batch)))
        return 0
    out = Path(options.out)
    try:
        kit = operations_of(here, options.batch) if options.profile else None
        if out.is_dir():
            raise KitError(f"--out={out} is a folder: give the name of a file in it")
        tempfile.TemporaryFile(dir=out.parent).close()  # else a wrong --out would lose the work
        result = run(here, options.threads, options.batch, options.warmup, options.repeats)
        _print(result)
        _write(out, result)
        if kit is not None:
            _write(out.with_name("profile.json"), profile(kit, result, options.repeats))
    except (KitError, ImportError, OSError) as error:
        sys.stderr.write(f"bench.py: error: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("bench.py: interrupted\n")
        return 130
    return 0


def _write(path: Path, content: dict[str, Any]) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(content, indent=1))
        temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    sys.stdout.write(f"written: {path}\n")


if __name__ == "__main__":
    sys.exit(main())
