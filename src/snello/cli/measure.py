"""``snello measure``: size, operations and latency of one model."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from snello import measure as measure_model
from snello.deploy import measure_onnx
from snello.errors import ConfigError

from ._inputs import add_model_arguments, check_writable, finish, on_device, read_model, seed

HELP = "measure parameters, non-zeros, MACs, bytes and latency of a model file or an ONNX file"
EPILOG = "example: snello measure lean.pt --onnx=lean.onnx --threads=1"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options."""
    add_model_arguments(parser)
    parser.add_argument("--onnx", help="the same model exported: timed in turns with PyTorch")
    parser.add_argument("--out", default="measure.json", help="the JSON file to write; default: measure.json")
    parser.add_argument("--repeats", type=int, default=50, help="timed forwards")
    parser.add_argument("--warmup", type=int, default=10, help="untimed forwards before them")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--batch", type=int, default=1, help="samples per forward")


def run(arguments: argparse.Namespace) -> None:
    """Measure, show, write."""
    out = check_writable(arguments.out)
    from snello.reporting import Table, busy, milliseconds

    with busy("measuring"):
        result, latencies, facts = _measured(arguments)

    rows = [(name.replace("_", " "), str(value)) for name, value in facts.items()]
    rows += [(f"{latency.runtime} [ms]", milliseconds(latency)) for latency in latencies]
    one = latencies[0]
    note = (
        f"Latency: median (p10-p90); batch {one.batch}, {one.threads} thread(s), {one.device}, "
        f"{one.warmup} warm-up and {one.repeats} timed forwards."
    )
    finish(Table(arguments.file or arguments.model, ("What", "Value"), tuple(rows), note), result, Path(out))


def _measured(arguments: argparse.Namespace) -> tuple[Any, list[Any], dict[str, Any]]:
    options = {name: getattr(arguments, name) for name in ("repeats", "warmup", "threads")}
    if arguments.file and arguments.file.endswith(".onnx"):
        seed(arguments)
        alone = measure_onnx(arguments.file, batch=arguments.batch, **options)
        return alone, [alone.latency], {"parameters": alone.parameters, "bytes": alone.bytes}
    if arguments.batch < 1:
        raise ConfigError(f"--batch={arguments.batch}: choose at least 1")
    model, record = read_model(arguments)
    model, inputs = on_device(model, record.example_inputs(arguments.batch), arguments)
    both = measure_model(model, inputs, onnx=arguments.onnx, **options)
    return both, list(both.latencies.values()), asdict(both.footprint)
