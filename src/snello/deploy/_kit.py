"""A folder to copy to another device: models, a script that times them there, and what it brings
back.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from snello._version import __version__
from snello.errors import ConfigError, ModelError, require
from snello.files import check_new_folder, writing_folder

from . import _device_bench as bench
from ._compare import Subject, sha256_of
from ._export import export
from ._quantise import quantise
from ._runners import onnx_session

Precision = Literal["float32", "int8"]

README = """# Time these models on this device

Copy this folder to the device. It needs Python 3.8 or newer with two packages, and nothing else:

    python -m pip install onnxruntime numpy
    python bench.py

That takes about a minute and writes `device.json`; take the file back and read it beside what was measured
elsewhere with `snello report measure.json device.json`.

- Raspberry Pi: a 64-bit system (`uname -m` says aarch64); there are no packages of ONNX Runtime for 32 bits.
- Android: a terminal with a 64-bit Linux inside, such as Termux with `proot-distro install debian`.
- `--threads 4`, `--batch 8`, `--repeats 200` change the conditions; they are written into the result.
- A board without cooling slows down when it is hot: let it rest, and run twice. The temperature before and after
  is in the result where the system tells it, and so is the frequency governor.

Each repeat runs every model once, in turns, so that whatever slows the device for a while slows all models alike.
`device.json` holds the name of the CPU, the number of cores, the versions, the conditions, and for each model the
median, the 10th and the 90th percentile, the memory it takes, and how far its outputs are from those that the same
file gave where this folder was made. {calibration}

| File | Precision | Bytes | Made from |
|---|---|---:|---|
{rows}

`models.json` lists the same for the script, with the SHA-256 of every file. Made by snello {version}.
"""


@dataclass(frozen=True)
class KitModel:
    """One ONNX file of a kit.

    Attributes:
        name: of the model.
        file: within the folder.
        precision: of its weights and activations.
        bytes: size of the file.
        sha256: of the file.
        source: what it was made from.
        source_sha256: of that file; None where there was none.
        check: the file with inputs and outputs that the device compares with.
    """

    name: str
    file: str
    precision: Precision
    bytes: int
    sha256: str
    source: str
    source_sha256: str | None
    check: str


@dataclass(frozen=True)
class Kit:
    """A folder that times models on another device.

    Attributes:
        folder: what to copy.
        models: what is in it.
        random_calibration: whether int8 ranges were taken from random inputs: good for timing
            alone.
    """

    folder: Path
    models: tuple[KitModel, ...]
    random_calibration: bool


@dataclass(frozen=True)
class DeviceTime:
    """What a device says of one file: times in milliseconds, memory in bytes.

    Attributes:
        name, file, precision, bytes, sha256, source_sha256: see :class:`KitModel`.
        median_ms: median over the repeats.
        p10_ms: 10th percentile.
        p90_ms: 90th percentile.
        difference: largest difference to the outputs that lie in the kit, relative to the largest
        magnitude. peak_bytes: growth of a process of its own while it loads the file and runs it;
        None where unknown.
    """

    name: str
    file: str
    precision: Precision
    bytes: int
    sha256: str
    source_sha256: str | None
    median_ms: float
    p10_ms: float
    p90_ms: float
    difference: float
    peak_bytes: int | None


@dataclass(frozen=True)
class DeviceResult:
    """What ``bench.py`` wrote on a device.

    Attributes:
        device: facts: ``cpu``, ``cores``, ``os``, ``machine``, versions, temperatures.
        threads: threads of ONNX Runtime.
        batch: samples per call.
        warmup: untimed calls.
        repeats: timed calls.
        models: one row per file.
    """

    device: dict[str, Any]
    threads: int
    batch: int
    warmup: int
    repeats: int
    models: tuple[DeviceTime, ...]


def device_kit(
    folder: str | os.PathLike[str],
    subjects: Sequence[Subject],
    *,
    int8: bool = True,
    calibration: Iterable[tuple[Tensor, ...] | Tensor] | None = None,
) -> Kit:
    """Make a folder that times models on another device, with onnxruntime and numpy alone.

    Args:
        folder: the folder to make; it appears whole or not at all.
        subjects: models (exported and verified) and ONNX files (copied). Their names become file
        names. int8: add an int8 version of every model that is not an ONNX file.
        calibration: batches of inputs for int8, for all models alike; None takes each model's own
            inputs, which the README says.

    Raises:
        ConfigError: for no model, equal or unusable names, or files other than ONNX.
        ModelError: if a model cannot be exported or does not run.
        OutputError: if the folder exists and is not empty, or cannot be written.
        MissingExtraError: without the extra ``onnx``.
    """
    folder = check_new_folder(folder)
    _check(subjects)
    batches = None if calibration is None else list(calibration)
    with writing_folder(folder) as inside:
        models = [model for subject in subjects for model in _add(inside, subject, int8, batches)]
        kit = Kit(
            folder, tuple(models), batches is None and any(m.precision == "int8" for m in models)
        )
        content = {"format": bench.KIT, "models": [asdict(model) for model in models]}
        (inside / "models.json").write_text(json.dumps(content, indent=1))
        (inside / "README.md").write_text(_readme(kit))
        shutil.copyfile(str(bench.__file__), inside / "bench.py")
    return kit


def read_device_result(path: str | os.PathLike[str]) -> DeviceResult:
    """Read what ``bench.py`` wrote.

    Raises:
        ConfigError: if there is no such file, or it is none of ``bench.py``.
    """
    try:
        data = json.loads(Path(path).read_text())
        if data["format"] != bench.FORMAT:
            raise ConfigError(
                f"{path} is of format {data['format']!r}; this version reads {bench.FORMAT!r}"
            )
        keys = [f.name for f in fields(DeviceTime)]
        times = tuple(DeviceTime(**{key: row[key] for key in keys}) for row in data["models"])
        counts = {key: int(data[key]) for key in ("threads", "batch", "warmup", "repeats")}
        return DeviceResult(device=dict(data["device"]), models=times, **counts)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from error
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(
            f"{path} is no result of a kit's bench.py, or damaged: {error!r}"
        ) from error


def _check(subjects: Sequence[Subject]) -> None:
    if not subjects:
        raise ConfigError("a kit needs at least one model")
    names = [subject.name for subject in subjects]
    names += [f"{subject.name}-int8" for subject in subjects if subject.model is not None]
    for subject in subjects:
        if names.count(subject.name) > 1 or not re.fullmatch(r"\w[\w.-]*", subject.name):
            raise ConfigError(
                f"a model of the kit is called {subject.name!r}: names become file names; they must differ, also from "
                "the int8 version of another, and hold letters, digits, '-', '_' and '.' alone"
            )
        if subject.model is None and (subject.file is None or subject.file.suffix != ".onnx"):
            raise ConfigError(
                f"{subject.file or subject.name}: a kit takes PyTorch models and ONNX files"
            )


def _add(
    inside: Path,
    subject: Subject,
    int8: bool,
    calibration: list[tuple[Tensor, ...] | Tensor] | None,
) -> list[KitModel]:
    plain = inside / f"{subject.name}.onnx"
    if subject.model is None:
        assert subject.file is not None  # checked above
        onnx_session(subject.file, threads=1)  # says well what is wrong with a file
        shutil.copyfile(subject.file, plain)
        return [_entry(subject, plain, _precision(plain))]
    export(subject.model, subject.inputs, plain)
    found = [_entry(subject, plain, "float32")]
    if int8:
        quantised = inside / f"{subject.name}-int8.onnx"
        quantise(plain, quantised, [subject.inputs] if calibration is None else calibration)
        found.append(_entry(subject, quantised, "int8"))
    return found


def _entry(subject: Subject, file: Path, precision: Precision) -> KitModel:
    check = file.with_suffix(".npz")
    _write_check(file, check)
    return KitModel(
        name=subject.name,
        file=file.name,
        precision=precision,
        bytes=file.stat().st_size,
        sha256=sha256_of(file),
        source=subject.file.name if subject.file else subject.name,
        source_sha256=sha256_of(subject.file) if subject.file else None,
        check=check.name,
    )


def _write_check(file: Path, check: Path) -> None:
    numpy = require("numpy", "onnx", "a kit for another device")
    session = onnx_session(file, threads=1)
    try:
        feed = bench.random_feed(session, 1)
    except bench.KitError as error:
        raise ModelError(f"{file.name}: {error}") from error
    outputs = session.run(None, feed)
    arrays = {f"in_{i}": value for i, value in enumerate(feed.values())}
    arrays |= {f"out_{i}": value for i, value in enumerate(outputs)}
    numpy.savez(check, **arrays)


def _precision(file: Path) -> Precision:
    onnx = require("onnx", "onnx", "a kit for another device")
    operators = {node.op_type for node in onnx.load(str(file)).graph.node}
    integer = {
        "QuantizeLinear",
        "DynamicQuantizeLinear",
        "QLinearConv",
        "QLinearMatMul",
        "ConvInteger",
    }
    return "int8" if operators & integer else "float32"


def _readme(kit: Kit) -> str:
    rows = [f"| {m.file} | {m.precision} | {m.bytes} | {m.source} |" for m in kit.models]
    calibration = (
        "The ranges of the int8 files were taken from random inputs: they tell how fast int8 is, not how accurate."
        if kit.random_calibration
        else ""
    )
    return README.format(calibration=calibration, rows="\n".join(rows), version=__version__)
