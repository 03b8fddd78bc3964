"""The network as a picture: width, parameters, work and time of each layer, before and after."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path

from torch import Tensor, nn

from snello.deploy import LayerProfile, profile_layers
from snello.errors import SnelloError
from snello.lab.reporting._tables import Table
from snello.simplification import plan_of
from snello.store import load, read

from .charts import bars
from .page import Chart

_NOTE = "A layer that is gone has no bar."
COUNTS = {
    "Where the parameters are": ("parameters", _NOTE),
    "Width of the layers": ("neurons", _NOTE),
    "Where the multiply-accumulates are": ("MACs", "Of one sample."),
    "Where the time goes in PyTorch": (
        "milliseconds",
        "CPU time, median of 20 forwards of one sample in turns, one thread. ONNX Runtime fuses layers and "
        "divides its time in other ways.",
    ),
}
"""Title of a chart -> what it counts, and its note."""
_FIELDS = {
    "parameters": "parameters", "neurons": "width", "MACs": "macs", "milliseconds": "median_ms",
}  # fmt: skip
"""Counted quantity -> its field in the profile of a layer."""


def layer_charts(
    files: Mapping[str, str | Path], trust: Collection[str] = ()
) -> tuple[tuple[Chart, ...], tuple[Table, ...]]:
    """Bars with the width, parameters, operations and milliseconds of each layer.

    Args:
        files: name -> file, the dense network first. Only `.pt` files are drawn: a bitstream would
            have to be decoded, and an exported file has no layers.
        trust: the user's own factories that the files may name. Of a file that names another one,
            only the parameters are drawn.

    Returns:
        The charts, and a table of what was left at full width and why; none of both without a file.
    """
    drawn = {n: p for n, p in files.items() if Path(p).suffix == ".pt" and Path(p).is_file()}
    if not drawn:
        return (), ()
    try:
        loaded = {name: load(path, trust=trust) for name, path in drawn.items()}
        profiles = profile_layers({n: (m, r.example_inputs(1)) for n, (m, r) in loaded.items()})
    except SnelloError:  # an untrusted factory, or no shape of inputs is recorded
        counts = {name: parameters_of(read(path)[1]) for name, path in drawn.items()}
        return _charts({"parameters": counts}), ()
    counted = {
        kind: {name: _column(kind, rows) for name, rows in profiles.items()} for kind in _FIELDS
    }
    left = _left_alone({name: model for name, (model, _) in loaded.items()})
    return _charts(counted), left


def parameters_of(state: Mapping[str, Tensor]) -> dict[str, float]:
    """Module -> number of its parameters and buffers, in the order of the state."""
    counts: Counter[str] = Counter()
    for name, tensor in state.items():
        counts[name.rpartition(".")[0] or name] += tensor.numel()
    return dict(counts)


def _column(kind: str, rows: tuple[LayerProfile, ...]) -> dict[str, float]:
    values = {row.name: round(getattr(row, _FIELDS[kind]) or 0, 4) for row in rows}
    return {name: value for name, value in values.items() if value > 0}


def _charts(counted: Mapping[str, Mapping[str, Mapping[str, float]]]) -> tuple[Chart, ...]:
    found = []
    for title, (kind, note) in COUNTS.items():
        by_network = counted.get(kind, {})
        layers = dict.fromkeys(layer for count in by_network.values() for layer in count)
        rows = [
            {"layer": layer, "network": name, kind: count.get(layer, 0)}
            for layer in layers
            for name, count in by_network.items()
        ]
        if rows:
            found.append(bars(title, rows, "layer", kind, by="network", note=note))
    return tuple(found)


def _left_alone(models: Mapping[str, nn.Module]) -> tuple[Table, ...]:
    rows = tuple(
        (name, what, why)
        for name, model in models.items()
        if (plan := plan_of(model)) is not None
        for what, why in plan.left_alone.items()
    )
    if not rows:
        return ()
    note = "Exact, but wider than its dead neurons would allow."
    return (Table("Left at full width", ("Network", "What", "Why"), rows, note),)
