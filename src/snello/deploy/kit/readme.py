"""README of a kit."""

from __future__ import annotations

from collections.abc import Sequence

from snello._version import __version__

from .models import KitModel

_TEXT = """# Time these models on this device

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


def readme(models: Sequence[KitModel], random_calibration: bool) -> str:
    """Text that tells how to use a kit, with a table of its models.

    Args:
        models: models of the kit.
        random_calibration: whether int8 ranges were taken from random inputs.
    """
    rows = [f"| {m.file} | {m.precision} | {m.bytes} | {m.source} |" for m in models]
    calibration = (
        "The ranges of the int8 files were taken from random inputs: they tell how fast int8 is, not how accurate."
        if random_calibration
        else ""
    )
    return _TEXT.format(calibration=calibration, rows="\n".join(rows), version=__version__)
