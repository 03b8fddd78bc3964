"""Torch-Pruning on masked networks, as its documentation intends and as fairly as it can be asked.

In each of its dependency groups, the channels are pruned that in every layer of the group have only
zero weights or, by the oracle, lead to no output. In grouped convolutions equally many are taken
per group; packed qkv layers and groups with a LayerNorm (where a constant counts) are left alone.
It folds no constants.

It runs in a process of its own with a limit on time and memory: on some networks (Swin) it needs
more than any machine has.

Sources: https://github.com/VainF/Torch-Pruning and its wiki, "DepGraph & Group"; Fang et al.,
DepGraph: Towards Any Structural Pruning, CVPR 2023.
"""

from __future__ import annotations

import copy
import multiprocessing
import os
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from removable import Removable
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from snello.neurons import dead_neurons

LIMIT_SECONDS, LIMIT_BYTES = 120, 8 * 2**30


def torch_pruned(
    model: nn.Module, x: Tensor, count: Removable, heads: set[str]
) -> tuple[str, nn.Module | None, float]:
    """A pruned copy of a model.

    Args:
        model: a masked network; it is not changed.
        x: an example input.
        count: the oracle's verdict.
        heads: names of the layers whose rows stay.

    Returns:
        "ok" or what went wrong, the pruned copy or None, and the seconds that it took.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pruned.pt"
        arguments = (model, x, count, heads, path)
        process = multiprocessing.get_context("fork").Process(target=_limited, args=arguments)
        process.start()
        process.join(LIMIT_SECONDS)
        if process.is_alive():
            process.kill()
            process.join()
            return f"stopped after {LIMIT_SECONDS} s", None, float(LIMIT_SECONDS)
        if not path.exists():
            return f"its process died with exit code {process.exitcode}", None, 0.0
        # Written a moment ago by this script's own process.
        result: tuple[str, nn.Module | None, float] = torch.load(path, weights_only=False)
        return result


def _limited(model: nn.Module, x: Tensor, count: Removable, heads: set[str], path: Path) -> None:
    statm = Path("/proc/self/statm")  # elsewhere the limit on time must do
    if statm.exists():
        mapped = int(statm.read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (mapped + LIMIT_BYTES,) * 2)
    lean: nn.Module | None = copy.deepcopy(model)
    status, begin = "ok", time.perf_counter()
    try:
        prune_useless(lean, x, count, heads)
    except Exception as reason:
        lean, status = None, f"{type(reason).__name__}: {reason}".partition("\n")[0][:200]
    temporary = path.with_suffix(".part")
    torch.save((status, lean, time.perf_counter() - begin), temporary)
    temporary.rename(path)


def prune_useless(model: nn.Module, x: Tensor, count: Removable, heads: set[str]) -> None:
    """Prune, in place, every channel that is dead or useless in its whole dependency group.

    Follows https://github.com/VainF/Torch-Pruning/wiki/3.-DepGraph-&-Group.
    """
    import torch_pruning as tp

    for parameter in model.parameters():
        parameter.requires_grad_(True)
    graph = tp.DependencyGraph().build_dependency(model, example_inputs=x, verbose=False)
    layers = {
        n.name: model.get_submodule(n.name) for n in count.layers if not n.name.endswith("in_proj")
    }
    useless = {
        layers[n.name]: dead_neurons(layers[n.name]) | (~n.useful & ~n.constant) for n in count.layers
        if isinstance(layers.get(n.name), (nn.Linear, _ConvNd))
    }  # fmt: skip
    packed = [m for n, m in model.named_modules() if n.endswith(("qkv", "to_qkv"))]
    kept = [model.get_submodule(name) for name in heads] + packed
    chosen = []
    for group in graph.get_all_groups(ignored_layers=kept):
        channels = _useless_channels(graph, group, useless)
        if channels:
            chosen.append((group[0].dep.target.module, group[0].dep.handler, channels))
    for module, handler, channels in chosen:
        group = graph.get_pruning_group(module, handler, channels)
        if graph.check_pruning_group(group):
            group.prune()


def _useless_channels(graph: Any, group: Any, useless: dict[nn.Module, Tensor]) -> list[int]:
    root = group[0].dep.target.module
    able = torch.ones(graph.get_out_channels(root), dtype=torch.bool)
    equal = 1
    for item in group:
        module = item.dep.target.module
        if isinstance(module, (nn.LayerNorm, nn.GroupNorm)):
            return []
        groups = getattr(module, "groups", getattr(module, "num_groups", 1))
        if groups > 1 and groups != getattr(module, "out_channels", None):
            equal = max(equal, groups)
        if graph.is_out_channel_pruning_fn(item.dep.handler) and isinstance(
            module, (nn.Linear, _ConvNd)
        ):
            rows = useless.get(
                module, torch.zeros(graph.get_out_channels(module), dtype=torch.bool)
            )
            able[torch.tensor(item.root_idxs)] &= rows[torch.tensor(item.idxs)]
    if equal > 1 and len(able) % equal == 0:
        # A channel goes where its neighbours in the other groups go too: groups stay equally wide.
        able = able.reshape(equal, -1).all(0).repeat(equal)
    return able.nonzero().flatten().tolist()
