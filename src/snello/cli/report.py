"""`snello report`: tables of measurements from this and other devices."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snello.errors import ConfigError
from snello.files import read_json, write_text

from ._inputs import check_output

if TYPE_CHECKING:
    from snello.deploy import DeviceResult, Profile
    from snello.lab.reporting import Table

HELP = "read results of 'snello measure' and of a kit's bench.py, and show them side by side"
EPILOG = (
    "example: snello report measure.json pi3.json phone.json --out=report.md\n"
    "A device's times are shown in the row of the timed file, or of the file it was exported from, "
    "matched by SHA-256.\n"
    "         snello report lean.pt.json pi3.json: the latency that 'snello shrink' predicted, and the measured "
    "one, also added to the page lean.pt.html"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options."""
    parser.add_argument(
        "results",
        nargs="+",
        help="JSON files; a device's column is named after its file (pi3.json: pi3)",
    )
    parser.add_argument("--out", help="also write the table, as Markdown, into this file")


def run(arguments: argparse.Namespace) -> None:
    """Read the results, show their tables and write them to a file."""
    out = check_output(arguments, arguments.out) if arguments.out else None
    from snello.deploy import read_device_result, read_profiles
    from snello.lab.reporting import markdown, show

    from ._profiles import clock_table, paper_table

    profiles: list[Profile] = []
    devices: list[tuple[str, DeviceResult]] = []
    searches: dict[Path, dict[str, Any]] = {}
    for path in map(Path, arguments.results):
        data = read_json(path)
        parts = data.keys() if isinstance(data, dict) else set()
        if {"candidates", "chosen"} <= parts:
            searches[path] = data
        elif "device" in parts:
            devices.append((path.stem, read_device_result(path)))
        else:
            profiles += read_profiles(path)
    names = [name for name, _ in devices]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(
            f"two devices are called {twice[0]!r}, after their files: rename one file, such as "
            "pi3.json"
        )
    tables = [paper_table("On paper", profiles)] if profiles else []
    if profiles or not searches:
        tables.append(clock_table("On the clock", profiles, devices))
    tables += [_joined(path, data, devices) for path, data in searches.items()]
    for table in tables:
        show(table)
    if out:
        text = "\n".join(map(markdown, tables))
        print(f"written: {write_text(out, text)}")


def _joined(path: Path, data: dict[str, Any], devices: Sequence[tuple[str, DeviceResult]]) -> Table:
    """Add measured latencies to the page and the JSON file of a search; the table.

    Raises:
        ConfigError: without a device's result, or if it does not belong to the search.
    """
    from snello.lab.reporting import as_json
    from snello.lab.reporting.pages import add_to_page, measured_on

    if not devices:
        raise ConfigError(
            f"{path} is a search: give what a kit's bench.py wrote on the device, too"
        )
    table, rows = measured_on(data, devices)
    data["measured"] = rows
    page = path.with_suffix(".html")
    if page.is_file():
        print(f"written: {add_to_page(page, [table], data)}")
    print(f"written: {write_text(path, as_json(data))}")
    return table
