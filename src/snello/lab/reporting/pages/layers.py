"""The network as a picture: the parameters of each layer, before and after."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from snello.store import read

from .charts import bars
from .page import Chart


def parameters_of(state: Mapping[str, Tensor]) -> dict[str, int]:
    """Module -> number of its parameters and buffers, in the order of the state."""
    counts: Counter[str] = Counter()
    for name, tensor in state.items():
        counts[name.rpartition(".")[0] or name] += tensor.numel()
    return dict(counts)


def layer_chart(files: Mapping[str, str | Path]) -> Chart | None:
    """Bars with the number of parameters of each layer.

    Args:
        files: name -> file, the dense network first. Only `.pt` files are drawn: a bitstream would
            have to be decoded, and an exported file has no layers.

    Returns:
        The chart; None if there is no file to draw.
    """
    counts = {
        name: parameters_of(read(path)[1])
        for name, path in files.items()
        if Path(path).suffix == ".pt" and Path(path).is_file()
    }
    if not counts:
        return None
    layers = list(dict.fromkeys(layer for count in counts.values() for layer in count))
    rows = [
        {"layer": layer, "network": name, "parameters": count.get(layer, 0)}
        for layer in layers
        for name, count in counts.items()
    ]
    note = "Logarithmic. A layer that is gone has no bar."
    return bars(
        "Where the parameters are", rows, "layer", "parameters", by="network", note=note, log=True
    )
