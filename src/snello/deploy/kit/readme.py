"""README of a kit: a folder of models and a script that times them without snello."""

from __future__ import annotations

from collections.abc import Sequence

from snello._version import __version__

from .models import KitModel

_TEXT = """# Time these models on this device

Copy this folder to the device, which needs Python 3.8 or newer and two packages:

    python -m pip install onnxruntime numpy
    python bench.py

This takes about a minute and writes `device.json`. Copy this file back and compare it with other measurements:
`snello report measure.json device.json`.
{profile}
- Raspberry Pi: use a 64-bit system (`uname -m` prints aarch64); ONNX Runtime has no 32-bit packages.
- Debian and Raspberry Pi OS refuse `pip install` for their own Python ("externally-managed-environment"): write
  `python3 -m venv .venv`, and `.venv/bin/python` in place of `python` above.
- Android: use a terminal with a 64-bit Linux, such as Termux with `proot-distro install debian`.
- `--threads 4`, `--batch 8`, `--repeats 200` change the conditions, which are recorded in the result.
- A board without cooling slows down when it is hot: let it cool, and run twice. The result contains the temperature
  before and after and the frequency governor, if the system reports them.

Each repeat runs every model once (interleaved), so that a temporary slowdown affects all models equally.
`device.json` contains the name of the CPU, the number of cores, the versions, the conditions, and for each model the
median, the 10th and the 90th percentile of the time, its memory, and the difference of its outputs from those of the
same file on the machine that wrote this folder. {calibration}

| File | Precision | Bytes | Made from |
|---|---|---:|---|
{rows}

`models.json` lists the models for the script, with the SHA-256 of every file. Written by snello {version}.
"""


_PROFILE = """
`python bench.py --profile` also times single operations at many widths and writes `profile.json`, a profile of this
device: `snello shrink model.pt --data=... --minimise=latency --device=profile.json` plans with it. The files with
`-w75`, `-w50` and `-w25` in their names are narrower versions of the models, for the fit of its predictions.
"""


def readme(models: Sequence[KitModel], random_calibration: bool, *, profile: bool = False) -> str:
    """Instructions for a kit, with a table of its models.

    Args:
        models: models of the kit.
        random_calibration: True if the kit has int8 files calibrated on random inputs.
        profile: True if the kit has operations.
    """
    rows = [f"| {m.file} | {m.precision} | {m.bytes} | {m.source} |" for m in models]
    calibration = (
        "The int8 files were calibrated on random inputs: they are valid for timing, not for "
        "accuracy."
        if random_calibration
        else ""
    )
    return _TEXT.format(
        calibration=calibration, rows="\n".join(rows), version=__version__,
        profile=_PROFILE if profile else "",
    )  # fmt: skip
