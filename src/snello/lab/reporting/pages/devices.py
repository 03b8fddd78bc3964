"""Latency that a search predicted, next to the one that was measured on the device later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from snello.errors import ConfigError
from snello.lab.reporting._tables import Table

if TYPE_CHECKING:
    from snello.deploy import DeviceResult


def measured_on(
    data: Mapping[str, Any], devices: Sequence[tuple[str, DeviceResult]]
) -> tuple[Table, list[dict[str, Any]]]:
    """Predicted latencies of a search, and those that a kit measured on other devices.

    Times are assigned to the files of the dense and of the chosen network by SHA-256.

    Args:
        data: the JSON that `snello shrink` wrote.
        devices: name and result of each device.

    Returns:
        A table with a row per network and device, and the same as data for `json`.

    Raises:
        ConfigError: if a device has timed none of the files.
    """
    rows = [row for name, result in devices for row in _measured(data, name, result)]
    missing = [name for name, _ in devices if all(row["device"] != name for row in rows)]
    if missing:
        files = ", ".join(file["file"] for file in data.get("files", ()))
        raise ConfigError(
            f"{missing[0]} has timed none of the search's files ({files or 'it names none'}): make the kit of "
            "them with snello bench-device, as the search wrote them"
        )  # fmt: skip
    header = ("Network", "Precision", "Device", "Predicted [ms]", "Measured [ms]", "Difference")
    cells = tuple(
        (
            row["file"], row["precision"], row["device"], _ms(row["predicted_ms"]), _ms(row["measured_ms"]),
            "-" if row["difference"] is None else f"{row['difference']:+.1%}".replace("%", " %"),
        )
        for row in rows
    )  # fmt: skip
    note = " ".join(
        f"{name}: {r.device.get('cpu')}, ONNX Runtime {r.device.get('onnxruntime')}, batch {r.batch}, {r.threads} "
        f"thread(s), {r.repeats} forwards in turns." for name, r in devices
    )  # fmt: skip
    planned = f"Predicted for {data['device']}. " if data.get("device") else ""
    note = f"{planned}Both are 10th percentiles. {note}"
    return Table("Predicted and measured latency", header, cells, note), rows


def _measured(data: Mapping[str, Any], name: str, result: DeviceResult) -> list[dict[str, Any]]:
    candidates = {candidate["key"]: candidate for candidate in data["candidates"]}
    rows = []
    for file in data.get("files", ()):
        candidate = candidates[file["key"]]
        precision = "int8" if candidate["precision"] == "int8" else "float32"
        # Without a search for latency, the prediction is in another unit.
        predicted = candidate["predicted"] if data["unit"] == "ms" else None
        for time in result.models:
            if time.precision == precision and file["sha256"] in (time.sha256, time.source_sha256):
                difference = None if not predicted else time.p10_ms / predicted - 1
                rows.append({
                    "key": file["key"], "file": file["file"], "precision": precision, "device": name,
                    "predicted_ms": predicted, "measured_ms": time.p10_ms, "difference": difference,
                })  # fmt: skip
    return rows


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
