"""Tables of measurements, one row per model: counts, and latencies on this and other devices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from snello.deploy import DeviceResult, DeviceTime, Profile
from snello.lab.reporting import Table, megabytes, milliseconds

NOTHING = "-"


def paper_table(title: str, profiles: Sequence[Profile]) -> Table:
    """Table of counts: parameters, operations, bytes, memory."""
    header = (
        "Model", "Params", "Non-zero", "Dead\nneurons", "MACs\n[M]", "File\n[MB]", "Peak memory\n[MB]",
    )  # fmt: skip
    methods = {profile.peak_memory.method for profile in profiles if profile.peak_memory}
    notes = []
    if "tensors" in methods:
        notes.append("Peak memory: parameters, inputs and simultaneously live activations.")
    if "process" in methods:
        notes.append(
            "*: memory growth of a separate process, including the runtime's buffers; not "
            "comparable with the others."
        )
    return Table(title, header, tuple(map(_paper, profiles)), " ".join(notes))


def clock_table(
    title: str, profiles: Sequence[Profile], devices: Sequence[tuple[str, DeviceResult]] = ()
) -> Table:
    """Table of local latencies, with a column for each other device and precision.

    A device's result is assigned to the row whose file it timed, or from whose file it was
    exported, by SHA-256; other results get rows of their own.
    """
    columns = [*_local_columns(profiles), *_device_columns(profiles, devices)]
    names = list(dict.fromkeys([p.name for p in profiles] + [n for c in columns for n in c.cells]))
    rows = tuple((name, *(column.cells.get(name, NOTHING) for column in columns)) for name in names)
    return Table(
        title, ("Model", *(column.title for column in columns)), rows, _note(profiles, devices)
    )


@dataclass(frozen=True)
class _Column:
    """A column: its title, and the cells of the rows that have one."""

    title: str
    cells: dict[str, str]


def _local_columns(profiles: Sequence[Profile]) -> list[_Column]:
    runtimes = dict.fromkeys(name for profile in profiles for name in profile.latencies)
    return [
        _Column(
            "\n".join(
                [*runtime.replace("onnxruntime", "onnx runtime").replace(".", " ").split(), "[ms]"]
            ),
            {
                p.name: milliseconds(p.latencies[runtime])
                for p in profiles
                if runtime in p.latencies
            },
        )
        for runtime in runtimes
    ]


def _device_columns(
    profiles: Sequence[Profile], devices: Sequence[tuple[str, DeviceResult]]
) -> list[_Column]:
    columns = []
    for name, result in devices:
        for precision in sorted({time.precision for time in result.models}):
            cells: dict[str, list[str]] = {}
            for time in result.models:
                if time.precision == precision:
                    # An unmatched file gets its own row: a row of that name may be another model.
                    rows = [p.name for p in profiles if _same(time, p)] or [f"{time.file} ({name})"]
                    for row in rows:
                        cells.setdefault(row, []).append(_device_ms(time))
            joined = {row: "\n".join(lines) for row, lines in cells.items()}
            columns.append(_Column(f"{name}\n{precision}\n[ms]", joined))
    return columns


def _paper(profile: Profile) -> tuple[str, ...]:
    paper, peak = profile.footprint, profile.peak_memory
    return (
        profile.name,
        _or(paper, lambda p: str(p.parameters)),
        _or(paper, lambda p: str(p.nonzeros)),
        _or(paper, lambda p: str(p.dead_neurons)),
        _or(paper, lambda p: f"{p.macs / 1e6:.3f}"),
        _or(profile.file_bytes, megabytes)
        + (" coded" if profile.bitstream_bytes is not None else ""),
        _or(peak, lambda p: f"{megabytes(p.bytes)}{'*' if p.method == 'process' else ''}"),
    )


def _or(value: Any, text: Callable[[Any], str]) -> str:
    return NOTHING if value is None else text(value)


def _device_ms(time: DeviceTime) -> str:
    return f"{time.median_ms:.3f}\n{time.p10_ms:.3f}-{time.p90_ms:.3f}"


def _same(time: DeviceTime, profile: Profile) -> bool:
    return profile.sha256 is not None and profile.sha256 in (time.sha256, time.source_sha256)


def _note(profiles: Sequence[Profile], devices: Sequence[tuple[str, DeviceResult]]) -> str:
    notes = []
    conditions = {
        f"batch {t.batch}, {t.threads} thread(s), {t.warmup} warm-up and {t.repeats} timed forwards"
        for profile in profiles
        for t in profile.latencies.values()
    }
    if conditions:
        notes.append(f"Latency: median (p10-p90); {'; '.join(sorted(conditions))}, in turns.")
    for name, r in devices:
        d = r.device
        notes.append(
            f"{name}: {d.get('cpu')}, {d.get('cores')} cores, {d.get('os')}, ONNX Runtime {d.get('onnxruntime')}; "
            f"batch {r.batch}, {r.threads} thread(s), {r.warmup} warm-up and {r.repeats} timed forwards, in turns."
        )
        far = [t for t in r.models if t.precision == "float32" and not t.difference <= 1e-3]
        notes += [f"{name}: outputs of {t.file} differ by {t.difference:.2g}!" for t in far]
    return " ".join(notes)
