"""`snello bench-device`: write a folder (kit) that times models on another device."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING

from snello.errors import ConfigError
from snello.files import check_new_folder

from ._calibration import (
    CALIBRATION,
    add_calibration_arguments,
    calibration,
    check_samples,
    warn_random,
)
from ._inputs import refuse_without, seed
from ._own_code import add_own_code_argument
from ._subjects import subjects_and_images

if TYPE_CHECKING:
    from torch import Tensor

    from snello.deploy import Subject
    from snello.store import ImageInput

HELP = (
    "write a folder that times models on another device; it needs only onnxruntime and numpy there"
)
EPILOG = (
    "example: snello bench-device kit lean.pt dense.pt\n"
    "         copy the folder, run 'python bench.py' there, and read what it wrote:\n"
    "         snello report measure.json device.json\n"
    "         snello bench-device kit dense.pt --profile   for snello shrink --device=profile.json"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options."""
    parser.add_argument("folder", help="the folder to make")
    parser.add_argument(
        "files",
        nargs="+",
        help="model files (.pt, .safetensors, .snello) and ONNX files, or folders of them",
    )
    parser.add_argument("--no-int8", action="store_true", help="leave the int8 versions out")
    parser.add_argument(
        "--profile", action="store_true", help="add operations and narrower networks: 'python bench.py --profile' on "
        "the device then writes a profile for snello shrink --device=profile.json",
    )  # fmt: skip
    add_own_code_argument(parser)
    add_calibration_arguments(parser)
    parser.set_defaults(model=None)


def run(arguments: argparse.Namespace) -> None:
    """Export and quantise the models, and write the folder."""
    from snello.deploy import device_kit
    from snello.lab.reporting import Table, busy, megabytes, show

    if arguments.no_int8:
        refuse_without(arguments, "int8 files, which --no-int8 leaves out", *CALIBRATION)
    check_samples(arguments)
    folder = check_new_folder(arguments.folder)
    seed(arguments)
    found = subjects_and_images(arguments, batch=2, short_names=True)
    given = [subject for subject, _ in found]
    data = None if arguments.no_int8 else _calibration(given, _shared(found, arguments), arguments)
    with busy("exporting"):
        kit = device_kit(
            folder, given, int8=not arguments.no_int8, calibration=data, profile=arguments.profile
        )
    rows = tuple((m.file, m.precision, megabytes(m.bytes), m.source) for m in kit.models)
    script = "python bench.py --profile" if arguments.profile else "python bench.py"
    note = f"Copy {folder} to the device and run '{script}' there; its README says how."
    show(
        Table("Kit for another device", ("File", "Precision", "Size [MB]", "Made from"), rows, note)
    )
    print(f"written: {folder}")


def _shared(
    found: list[tuple[Subject, ImageInput | None]], arguments: argparse.Namespace
) -> ImageInput | None:
    """Preprocessing of the models that are quantised, which share the calibration images.

    Raises:
        ConfigError: if two of them differ and the command line does not decide.
    """
    if arguments.data is None or arguments.mean is not None:
        return None  # no images, or those of the command line
    known = [(s.name, i) for s, i in found if s.model is not None and i is not None]
    for name, images in known[1:]:
        if replace(images, classes=()) != replace(known[0][1], classes=()):
            raise ConfigError(
                f"{known[0][0]} and {name} normalise images differently, and share the calibration images: "
                "make a kit of each, or give --mean and --std"
            )
    return known[0][1] if known else None


def _calibration(
    given: list[Subject], images: ImageInput | None, arguments: argparse.Namespace
) -> list[Tensor] | None:
    """Calibration batches shared by all models; None for random inputs of each model's shape."""
    shapes = sorted({tuple(x.shape[1:]) for subject in given for x in subject.inputs})
    if not shapes:
        return None  # only ONNX files, which are not quantised
    if arguments.data is None:
        warn_random()
        return None
    if len(shapes) > 1:
        raise ConfigError(
            f"--data={arguments.data} fits models of one input shape, not of {shapes}"
        )
    dtype = next(x.dtype for subject in given for x in subject.inputs)
    return [batch.to(dtype) for batch in calibration(shapes[0], arguments, images)[0]]
