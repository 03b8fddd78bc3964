"""``snello bench-device``: write a folder (kit) that times models on another device."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from snello.errors import ConfigError
from snello.files import check_new_folder

from ._calibration import add_calibration_arguments, calibration, warn_random
from ._inputs import seed
from ._own_code import add_own_code_argument
from ._subjects import subjects

if TYPE_CHECKING:
    from torch import Tensor

    from snello.deploy import Subject

HELP = (
    "write a folder that times models on another device; it needs only onnxruntime and numpy there"
)
EPILOG = (
    "example: snello bench-device kit lean.pt dense.pt\n"
    "         copy the folder, run 'python bench.py' there, and read what it wrote:\n"
    "         snello report measure.json device.json"
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
    add_own_code_argument(parser)
    add_calibration_arguments(parser)
    parser.set_defaults(model=None)


def run(arguments: argparse.Namespace) -> None:
    """Export and quantise the models, and write the folder."""
    from snello.deploy import device_kit
    from snello.lab.reporting import Table, busy, megabytes, show

    folder = check_new_folder(arguments.folder)
    seed(arguments)
    given = subjects(arguments, batch=2, short_names=True)
    data = None if arguments.no_int8 else _calibration(given, arguments)
    with busy("exporting"):
        kit = device_kit(folder, given, int8=not arguments.no_int8, calibration=data)
    rows = tuple((m.file, m.precision, megabytes(m.bytes), m.source) for m in kit.models)
    note = f"Copy {folder} to the device and run 'python bench.py' there; its README says how."
    show(
        Table("Kit for another device", ("File", "Precision", "Size [MB]", "Made from"), rows, note)
    )
    print(f"written: {folder}")


def _calibration(given: list[Subject], arguments: argparse.Namespace) -> list[Tensor] | None:
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
    return [images.to(dtype) for images in calibration(shapes[0], arguments)[0]]
