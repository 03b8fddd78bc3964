"""`snello simplify`: remove the dead neurons of a model file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ._images import add_image_arguments
from ._inputs import (
    add_model_arguments,
    check_model_file,
    check_named_model,
    finish,
    on_device,
    read_model,
)
from ._own_code import named_code

if TYPE_CHECKING:
    from snello.simplification import SimplificationPlan

HELP = "remove every dead neuron; the outputs stay the same (verified in float64)"
EPILOG = "example: snello simplify runs/digits/serene/model.pt --out=lean.pt"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options."""
    add_model_arguments(parser)
    parser.add_argument(
        "--out", default="simplified.pt", help="the model file to write; default: simplified.pt"
    )
    parser.add_argument(
        "--prefer", choices=("bytes", "latency", "plain"), default="bytes",
        help="remove every dead neuron, or only those whose removal saves more time than it costs, or needs no "
        "index operation (for int8); default: bytes",
    )  # fmt: skip
    parser.add_argument(
        "--round-to", type=int, default=1, metavar="N",
        help="keep dead neurons until channel counts are multiples of N; default: 1",
    )  # fmt: skip
    parser.add_argument(
        "--fold-batchnorm",
        action="store_true",
        help="also fold BatchNorms into the layers next to them",
    )
    add_image_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    """Simplify, write, and report the kept neurons and the layers left alone."""
    from snello.deploy import footprint
    from snello.lab.reporting import Table, busy, percent
    from snello.simplification import fold_batchnorm, folds_of, plan_of
    from snello.simplification import simplify as make_lean
    from snello.store import save

    out = check_model_file(arguments, arguments.out, in_place=True)
    model, record = read_model(arguments)
    check_named_model(arguments, model, record, out)
    model, inputs = on_device(model, record.inputs(), arguments)
    with busy("simplifying and verifying"):
        lean = make_lean(model, inputs, prefer=arguments.prefer, round_to=arguments.round_to)
        plan = plan_of(lean)
        assert plan is not None
        if arguments.fold_batchnorm:
            lean = fold_batchnorm(lean, inputs)
    before, after = footprint(model, inputs), footprint(lean, inputs)
    save(out, lean, record, trust=named_code(arguments))
    total = f"{after.parameters}/{before.parameters} ({percent(1 - after.parameters / before.parameters)} removed)"
    folded = f"; BatchNorms folded {len(folds_of(lean))}" if arguments.fold_batchnorm else ""
    table = Table(
        f"{record.model.label}: neurons kept", ("Layer", "Neurons", "Inputs", "Remark"), _rows(plan),
        f"Parameters {total}; MACs {after.macs}/{before.macs}; index operations {plan.index_operations}{folded}.",
    )  # fmt: skip
    result = {"before": before, "after": after, "plan": plan}
    finish(table, result, Path(f"{out}.json"))
    print(f"written: {out}")


def _rows(plan: SimplificationPlan) -> tuple[tuple[str, ...], ...]:
    """One row per layer with weights, then one per layer or operation that was left alone."""
    rows = []
    for name, layer in plan.layers.items():
        remark = f"{layer.folded} constants folded" if layer.folded else ""
        outputs = f"{len(layer.kept_outputs)}/{layer.outputs}"
        rows.append((name, outputs, f"{len(layer.kept_inputs)}/{layer.inputs}", remark))
    for name, part in plan.attentions.items():
        outputs = f"{len(part.kept_outputs)}/{part.outputs}"
        inputs = f"{len(part.kept_inputs)}/{part.inputs}"
        kept = f"heads {len(part.kept_heads)}/{part.heads}, rows of queries, keys, values {len(part.rows)}"
        rows.append((name, outputs, inputs, f"{kept}/{3 * part.heads * part.width}"))
    rows += [(name, "", "", f"left alone: {why}") for name, why in plan.left_alone.items()]
    return tuple(rows)
