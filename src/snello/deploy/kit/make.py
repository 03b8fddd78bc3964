"""Creation of a kit: a folder with models and the script that times them."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from torch import Tensor

from snello.deploy import _device_bench as bench
from snello.deploy.formats import export, quantise
from snello.deploy.formats.onnx import onnx_session
from snello.deploy.formats.onnx_metadata import write_metadata
from snello.deploy.measure.compare import Subject
from snello.deploy.operations.operation import Precision
from snello.errors import ConfigError, ModelError, require
from snello.files import check_new_folder, sha256_of, writing_folder

from .models import Kit, KitModel
from .operations import with_narrowed, write_operations
from .readme import readme


def device_kit(
    folder: str | os.PathLike[str],
    subjects: Sequence[Subject],
    *,
    int8: bool = True,
    calibration: Iterable[tuple[Tensor, ...] | Tensor] | None = None,
    profile: bool = False,
) -> Kit:
    """Write a folder that times models on another device, with onnxruntime and numpy only.

    Args:
        folder: the folder to create; it appears only when complete.
        subjects: models (exported and verified) and ONNX files (copied). Their names become file
            names.
        int8: add an int8 version of every model that is not an ONNX file.
        calibration: batches of inputs (B, ...) for int8, shared by all models; None uses each
            model's example inputs, which the README states.
        profile: add every operation of the models at narrower widths, and three narrower versions
            of each model, so that `bench.py --profile` on the device writes the profile that
            [`snello.shrink`][snello.search.shrink.shrink] plans with.

    Raises:
        ConfigError: without a model, for equal or invalid names, or for files other than ONNX.
        ModelError: if a model cannot be exported or does not run.
        OutputError: if the folder exists and is not empty, or cannot be written.
        MissingExtraError: without the extra `onnx`.
    """
    folder = check_new_folder(folder)
    if profile:
        subjects = with_narrowed(subjects)
    _check(subjects)
    if profile and all(subject.model is None for subject in subjects):
        raise ConfigError("a profile needs a PyTorch model: an ONNX file cannot be narrowed")
    batches = None if calibration is None else list(calibration)
    with writing_folder(folder) as inside:
        models = [model for subject in subjects for model in _add(inside, subject, int8, batches)]
        kit = Kit(
            folder, tuple(models), batches is None and any(m.precision == "int8" for m in models)
        )
        content = {"format": bench.KIT, "models": [asdict(model) for model in models]}
        (inside / "models.json").write_text(json.dumps(content, indent=1))
        if profile:
            write_operations(inside / "operations.json", subjects, models, int8=int8)
        (inside / "README.md").write_text(
            readme(models, kit.random_calibration, profile=profile), encoding="utf-8"
        )
        shutil.copyfile(str(bench.__file__), inside / "bench.py")
    return kit


def _check(subjects: Sequence[Subject]) -> None:
    if not subjects:
        raise ConfigError("a kit needs at least one model")
    names = [subject.name for subject in subjects]
    names += [f"{subject.name}-int8" for subject in subjects if subject.model is not None]
    for subject in subjects:
        if names.count(subject.name) > 1 or not re.fullmatch(r"\w[\w.-]*", subject.name):
            raise ConfigError(
                f"the name {subject.name!r} cannot be a file name of the kit: names must differ, "
                "also from the int8 version of another model, and consist of letters, digits, '-', "
                "'_' and '.' only"
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
        onnx_session(subject.file)  # reports a damaged file here instead of on the device
        shutil.copyfile(subject.file, plain)
        return [_entry(subject, plain, _precision(plain))]
    export(subject.model, subject.inputs, plain)
    _describe(plain, subject)
    found = [_entry(subject, plain, "float32")]
    if int8:
        quantised = inside / f"{subject.name}-int8.onnx"
        quantise(plain, quantised, [subject.inputs] if calibration is None else calibration)
        _describe(quantised, subject)
        found.append(_entry(subject, quantised, "int8"))
    return found


def _describe(file: Path, subject: Subject) -> None:
    if subject.facts:
        write_metadata(file, subject.facts)


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
    session = onnx_session(file)
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
        "QuantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger",
    }  # fmt: skip
    return "int8" if operators & integer else "float32"
