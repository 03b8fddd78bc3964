"""Comparison of a published table with measurements: paper, measured, difference."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from snello.files import write_text

from ._plots import plot_reproduction
from ._tables import Table, markdown
from ._values import as_json

if TYPE_CHECKING:  # drawing a table must not need the training extra
    from snello.lab.training import Quantity, ReproducedRow, Reproduction

NOT_RUN = "not run"
HERE = {
    "table1": {
        "accuracy": "Accuracy here [%]", "ms pytorch": "PyTorch here [ms]", "ms onnxruntime": "ONNX Rt here [ms]",
    },
    "table2": {"executed_gflops": "Executed here [GFLOP]", "backward_ratio": "Backward time here"},
}  # fmt: skip
"""Quantities that are measured but not published."""


def reproduction_tables(result: Reproduction) -> tuple[Table, Table]:
    """Build two tables: quantities comparable with the paper, and device-dependent quantities.

    Returns:
        A table with paper, measurement and difference of every device-independent quantity; and a
        table without differences, with the published times of other devices and the quantities
        measured on this device only.
    """
    table = result.table
    comparable = [q for q in table.quantities if not q.device]
    devices = [q for q in table.quantities if q.device]
    unpublished = HERE[table.name]
    quick = (
        " - QUICK: small data and few steps, not comparable with the paper" if result.quick else ""
    )
    return (
        Table(
            title=f"{table.title}: paper and here{quick}",
            header=(
                "Row",
                *(
                    f"{q.label}\n{part}"
                    for q in comparable
                    for part in ("paper", "measured", "difference")
                ),
            ),
            rows=tuple(
                (row.row.name, *(cell for q in comparable for cell in _three(row, q)))
                for row in result.rows
            ),
            note=f"Published: {table.source}. Difference: measured minus paper.",
        ),
        Table(
            title=f"{table.title}: not comparable with the paper{quick}",
            header=("Row", *(f"{q.label}\npaper" for q in devices), *unpublished.values()),
            rows=tuple(
                (
                    row.row.name,
                    *(_number(row.row.published[q.key], q.digits) for q in devices),
                    *(
                        _number(row.measured.get(key), 3) if row.measured else NOT_RUN
                        for key in unpublished
                    ),
                )
                for row in result.rows
            ),
            note="Measured on the device named in the conditions below, not on the paper's.",
        ),
    )


def _three(row: ReproducedRow, quantity: Quantity) -> tuple[str, str, str]:
    paper = row.row.published[quantity.key]
    if row.measured is None:
        return _number(paper, quantity.digits), NOT_RUN, "-"
    here = row.measured[quantity.key]
    difference = "-" if paper is None else f"{here - paper:+.{quantity.digits}f}"
    return _number(paper, quantity.digits), _number(here, quantity.digits), difference


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def write_reproduction(result: Reproduction, folder: str | Path) -> Path:
    """Write the table's `.md`, `.json` and `.png`.

    Returns:
        The path of the Markdown page.

    Raises:
        OutputError: if a file cannot be written.
        MissingExtraError: without matplotlib (extra `report`).
    """
    folder, name = Path(folder), result.table.name
    write_text(folder / f"{name}.json", as_json(result))
    plot_reproduction(result, folder / f"{name}.png")
    return write_text(folder / f"{name}.md", _page(result))


def _page(result: Reproduction) -> str:
    name = result.table.name
    quick = " --quick" if result.quick else ""
    parts = [f"# {result.table.title}: {name}", ""]
    if result.quick:
        parts += [
            "These are the recipes' quick variants: they only show that every row runs.",
            "",
        ]
    for table in reproduction_tables(result):
        parts += [markdown(table), ""]
    parts += [f"![Paper and here]({name}.png)", "", "### Conditions", ""]
    parts += [
        _conditions(row, f"snello reproduce {name} --row {row.row.name}{quick}")
        for row in result.rows
    ]
    return "\n".join(parts) + "\n"


def _conditions(row: ReproducedRow, command: str) -> str:
    if row.measured is None:
        return f"- `{command}`: {NOT_RUN}{f': {row.why_not}' if row.why_not else ''}"
    told = ", ".join(f"{key} {value}" for key, value in row.conditions.items())
    return f"- `{command}`: {told}"
