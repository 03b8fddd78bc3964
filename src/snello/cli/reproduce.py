"""`snello reproduce`: reproduce the published tables."""

from __future__ import annotations

import argparse
from pathlib import Path

from snello.errors import ConfigError, require
from snello.files import check_writable
from snello.lab.recipes import TABLES, published_table

from ._own_code import import_own_code
from ._recipes import FIELDS, is_first, need_training, overrides

HELP = "run or resume the rows of a published table, and report paper, measurement and difference"
EPILOG = (
    f"{FIELDS}\n\n"
    "example: snello reproduce table2 --row resnet32-cifar10-neq --quick\n"
    "         torchrun --nproc-per-node=8 -m snello reproduce table1 --row vgg16-cifar10-serene\n"
    "Finished rows are not run again; rows that cannot be run are reported with the reason.\n"
    "'snello reproduce table1 --list' lists the rows."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options."""
    parser.add_argument(
        "table", nargs="?", default="ls", choices=("table1", "table2", "ls"),
        help="1: pruning and coding; 2: training with NEq; ls, the default: list the rows of both",
    )  # fmt: skip
    parser.add_argument(
        "--row", metavar="NAME", help="run this row only; report the others if they are finished"
    )
    parser.add_argument(
        "--quick", action="store_true", help="small data and few steps, to check that it runs"
    )
    parser.add_argument("--list", action="store_true", help="list the rows and exit")
    parser.add_argument(
        "--out", help="folder of runs and report; default: runs/reproduce or runs/reproduce-quick"
    )
    parser.set_defaults(takes_recipe=True)


def run(arguments: argparse.Namespace) -> None:
    """Run the rows, show the tables and write the report."""
    if arguments.row is not None and arguments.table == "ls":
        raise ConfigError(f"--row={arguments.row}: name its table, one of {', '.join(TABLES)}")
    if arguments.list or arguments.table == "ls":
        names = TABLES if arguments.table == "ls" else (arguments.table,)
        for name in names:
            for row in published_table(name).rows:
                place = f"{name}  " if len(names) > 1 else ""
                print(f"{place}{row.name:32} snello train {row.recipe} --method={row.method}")
        return
    if arguments.row is not None:
        published_table(arguments.table).row(arguments.row)
    need_training(arguments)
    from snello.lab.training import reproduce

    require("matplotlib", "report", "drawing plots")
    if arguments.table == "table1":
        from snello.codec import require_nncodec

        require_nncodec()
        require("onnxruntime", "onnx", "measuring exported networks")
        require("onnxscript", "onnx", "exporting to ONNX")
    from snello.lab.reporting import progress, reproduction_tables, show, write_reproduction

    folder = Path(
        arguments.out or ("runs/reproduce-quick" if arguments.quick else "runs/reproduce")
    )
    check_writable(folder / f"{arguments.table}.md")
    options = overrides(arguments)
    import_own_code(
        option.partition("=")[2] for option in options if option.startswith("--model.name=")
    )
    with progress(0) as line:
        result = reproduce(
            arguments.table, folder,
            row=arguments.row, quick=arguments.quick, overrides=options, progress=line,
        )  # fmt: skip
    if not is_first():
        return
    for table in reproduction_tables(result):
        show(table)
    print(f"written: {write_reproduction(result, folder)}")
