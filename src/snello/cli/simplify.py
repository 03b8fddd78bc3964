"""``snello simplify``: take the dead neurons out of a model file."""

from __future__ import annotations

import argparse
from pathlib import Path

from snello import modelfile, plan_of
from snello import simplify as make_lean
from snello.deploy import footprint

from ._inputs import add_model_arguments, check_writable, finish, on_device, read_model

HELP = "remove every dead neuron; the outputs stay the same (verified in float64)"
EPILOG = "example: snello simplify runs/digits/serene/model.pt --out=lean.pt"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options."""
    add_model_arguments(parser)
    parser.add_argument(
        "--out", default="simplified.pt", help="the model file to write; default: simplified.pt"
    )


def run(arguments: argparse.Namespace) -> None:
    """Simplify, write, and say what was kept and what was left alone."""
    from snello.reporting import Table, busy, percent

    out = check_writable(arguments.out)
    model, record = read_model(arguments)
    model, inputs = on_device(model, record.example_inputs(), arguments)
    with busy("simplifying and verifying"):
        lean = make_lean(model, inputs)
    plan = plan_of(lean)
    assert plan is not None
    before, after = footprint(model, inputs), footprint(lean, inputs)
    modelfile.save(out, lean, record)
    rows = [
        (name, f"{len(layer.kept_outputs)}/{layer.outputs}", f"{len(layer.kept_inputs)}/{layer.inputs}", "")
        for name, layer in plan.layers.items()
    ]
    rows += [(name, "", "", f"left alone: {why}") for name, why in plan.left_alone.items()]
    total = f"{after.parameters}/{before.parameters} ({percent(1 - after.parameters / before.parameters)} removed)"
    table = Table(
        f"{record.model.name}: neurons kept", ("Layer", "Neurons", "Inputs", "Remark"), tuple(rows),
        f"Parameters {total}; MACs {after.macs}/{before.macs}; index operations {plan.index_operations}.",
    )  # fmt: skip
    result = {"before": before, "after": after, "plan": plan}
    finish(table, result, Path(f"{out}.json"))
    print(f"written: {out}")
