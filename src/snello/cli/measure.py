"""`snello measure`: measure size, operations, memory and latency of models."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from snello.errors import ConfigError
from snello.files import temporary_files_in

from ._inputs import add_architecture_arguments, check_json_file, finish, seed
from ._names import runtimes, suffixes
from ._own_code import named_code
from ._subjects import subjects

HELP = "measure parameters, non-zeros, MACs, memory, bytes and latency of models in one run"
EPILOG = (
    "example: snello measure lean.pt --onnx=lean.onnx --threads=1\n"
    "example: snello measure dense.pt lean.pt lean-int8.onnx --runtimes=pytorch,onnxruntime"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare files or architecture, runtimes and the conditions of timing."""
    parser.add_argument(
        "files",
        nargs="*",
        help=f"model files ({', '.join(suffixes())}), or folders of them; none: the architecture of --model",
    )
    add_architecture_arguments(parser)
    parser.add_argument("--onnx", help="the exported model, timed interleaved with PyTorch")
    parser.add_argument(
        "--runtimes", default="pytorch",
        help="runtimes for PyTorch models, comma-separated, of: "
        f"{', '.join(runtimes())}; default: pytorch",
    )  # fmt: skip
    parser.add_argument(
        "--out", default="measure.json", help="the JSON file to write; default: measure.json"
    )
    parser.add_argument("--repeats", type=int, default=50, help="timed forwards")
    parser.add_argument("--warmup", type=int, default=10, help="untimed forward passes before them")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--batch", type=int, default=1, help="samples per forward pass")


def run(arguments: argparse.Namespace) -> None:
    """Profile all models in one run, print both tables and write `--out`."""
    out = check_json_file(arguments, arguments.out)
    from snello.deploy import compare
    from snello.lab.reporting import busy, pages, show

    from ._profiles import clock_table, paper_table

    pages.check_libraries()
    seed(arguments)  # random weights of an architecture, random inputs
    given = subjects(arguments, batch=arguments.batch)
    if arguments.onnx:
        if len(given) != 1 or given[0].model is None:  # an exported file has no model
            raise ConfigError("--onnx is the export of one PyTorch model: pass one model file only")
        given = [replace(given[0], onnx=Path(arguments.onnx))]
    options = {name: getattr(arguments, name) for name in ("batch", "repeats", "warmup", "threads")}
    # Exports for other runtimes are written next to the result: on a disk that was checked.
    with busy("measuring"), temporary_files_in(out.parent):
        profiles = compare(given, runtimes=tuple(arguments.runtimes.split(",")), **options)
    # A single profile is the whole JSON, without a list "models": the layout of earlier versions.
    result = profiles[0] if len(profiles) == 1 else {"models": profiles}
    paper = paper_table("On paper", profiles)
    clock = clock_table("On the clock, in one run", profiles)
    show(paper)
    page = pages.measurement_page(profiles, (paper, clock), named_code(arguments))
    finish(clock, result, out)
    print(f"written: {pages.write_page(page, out.with_suffix('.html'))}")
