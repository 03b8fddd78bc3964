"""An oracle: which parameters of a masked network can be removed without changing its outputs.

Definition (:data:`DEFINITION`), with the readings that a number depends on:

* A *row* (neuron) is removable if its output is one constant, the same for every input and at every
  position, zero or not; or if no path of non-zero weights leads from it to an output.
* A *column* is removable if the input that it reads is such a constant, or if it is zero on every
  row that survives (this covers inputs whose own row is removable).
* The four BatchNorm entries of a channel go when what the BatchNorm gives is a constant or leads
  nowhere.
* Non-zero constants that a later layer sees through zero padding make its output depend on the
  position: such a row survives, and in a depthwise layer so does its only column.
* Everything else counts as needed: LayerNorm and GroupNorm entries, layer scales, tokens, position
  tables. A tool may well remove some of those, too: more than 100 % is possible.

How constants and paths are found: ``proof.py``. Operations without a rule there are refused by
    name.

>>> count = removable(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), torch.zeros(2, 4))
>>> count.removable, count.total
(0, 23)

It shares no code with ``snello.simplify``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from proof import Proof, Trace, tensors_of
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

DEFINITION = (
    "removable: rows whose output is one constant (same for every input, at every position) or that no path of "
    "non-zero weights connects to an output; columns that read such a constant or are zero on all surviving "
    "rows; the BatchNorm entries of such channels. Position-dependent constants (zero padding) are not removable."
)


@dataclass(frozen=True)
class LayerCount:
    """Rows and columns that can be removed from one layer.

    Attributes:
        name: of the module (``in_proj`` is appended for the packed weight of
        nn.MultiheadAttention). rows: surviving rows, boolean, shape ``(rows,)``.
        columns: surviving columns over all groups, boolean, shape ``(columns,)``; empty for
        BatchNorm. constant: rows whose output is one constant.
        useful: rows from which a path leads to an output.
        live_inputs: inputs that are not constant, shape as ``columns``.
        total: parameters and buffers of the layer.
        removable: how many of them can go.
    """

    name: str
    rows: Tensor
    columns: Tensor
    constant: Tensor
    useful: Tensor
    live_inputs: Tensor
    total: int
    removable: int


@dataclass(frozen=True)
class Removable:
    """The count over a network.

    Attributes:
        layers: in order of first execution.
        never_run: modules with parameters that evaluation mode does not run; they count neither
        way. total: parameters and buffers, without ``never_run`` and counters.
        constant_outputs: whether some output of the network does not depend on the input at all.
    """

    layers: tuple[LayerCount, ...]
    never_run: frozenset[str]
    total: int
    constant_outputs: bool

    @property
    def removable(self) -> int:
        """Sum over the layers."""
        return sum(layer.removable for layer in self.layers)


def size(model: nn.Module, without: frozenset[str] = frozenset()) -> int:
    """Numbers that the model's file stores: parameters and persistent buffers (constants and border
    kernels that simplification has added among them), tied ones once, without BatchNorm's batch
    counters.

    Args:
        model: any module.
        without: names of modules that are not counted.
    """
    seen: dict[int, int] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if name in without:
            continue
        own = {**module._parameters, **module._buffers}
        for key, tensor in own.items():
            stored = key not in module._non_persistent_buffers_set and key != "num_batches_tracked"
            if tensor is not None and stored:
                seen[id(tensor)] = tensor.numel()
    return sum(seen.values())


def removable(model: nn.Module, x: Tensor, *, borders: bool = True) -> Removable:
    """Count what can be removed from a model in evaluation mode.

    Args:
        model: any module made of the operations that have a rule here; it is not changed.
        x: an input of a shape that the model accepts; only its shape is used.
        borders: if False, a constant that depends on the position passes for a constant. Nothing
            can be removed on that ground, but it tells what does not depend on the input.

    Raises:
        NotImplementedError: naming an operation that has no rule.
    """
    model = copy.deepcopy(model).double().eval().requires_grad_(False)
    owners = {id(tensor): name for name, tensor in _weights(model)}
    parameters = {name: _owntensors_of(model, name) for name in owners.values()}
    never = size(model)
    _replace_attention(model)
    probe = torch.full((1, *x.shape[1:]), torch.nan, dtype=torch.float64, requires_grad=True)
    run = Proof(borders)
    with run:
        outputs = tensors_of(model(probe))
    fixed = any(not output.isnan().any() for output in outputs)
    live = [output for output in outputs if output.requires_grad]
    if live:
        torch.autograd.backward(live, [torch.ones_like(output) for output in live])
    calls: dict[str, list[Trace]] = {}
    for trace in run.traces:
        if trace.weight in owners:
            calls.setdefault(owners[trace.weight], []).append(trace)
    layers = tuple(_count(name, traces, parameters[name]) for name, traces in calls.items())
    idle = frozenset(name.removesuffix(".in_proj") for name in owners.values() if name not in calls)
    never -= sum(
        sum(t.numel() for t in parameters[name].values())
        for name in owners.values()
        if name in idle
    )
    return Removable(layers, idle, never, fixed)


def _weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Name and identifying tensor of every layer that has rows."""
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, _ConvNd)):
            yield name, module.weight
        elif isinstance(module, _BatchNorm) and module.running_mean is not None:
            yield name, module.running_mean
        elif isinstance(module, nn.MultiheadAttention):
            if module.in_proj_weight is None:
                raise NotImplementedError(
                    f"{name}: attention with other widths for keys and values"
                )
            yield f"{name}.in_proj", module.in_proj_weight


def _owntensors_of(model: nn.Module, name: str) -> dict[str, Tensor]:
    """Parameters and buffers of a layer of :func:`_weights`."""
    if name.endswith(".in_proj"):
        attention = model.get_submodule(name.removesuffix(".in_proj"))
        own = {"weight": attention.in_proj_weight, "bias": attention.in_proj_bias}
    else:
        module = model.get_submodule(name)
        own = {**module._parameters, **module._buffers}
    return {
        key: t for key, t in own.items() if isinstance(t, Tensor) and key != "num_batches_tracked"
    }


def _count(name: str, traces: list[Trace], own: dict[str, Tensor]) -> LayerCount:
    # A layer called twice can only lose what each call can do without.
    rows = torch.stack([trace.rows for trace in traces]).any(0)
    columns = torch.stack([trace.columns for trace in traces]).any(0)
    constant = torch.stack([trace.constant for trace in traces]).all(0)
    useful = torch.stack([trace.useful for trace in traces]).any(0)
    live_inputs = ~torch.stack([trace.constant_inputs for trace in traces]).all(0)
    total = sum(tensor.numel() for tensor in own.values())
    kept = sum(int(rows.sum()) for key in own if key != "weight" or "running_mean" in own)
    if "running_mean" in own:
        columns = live_inputs = columns[:0]
    else:
        groups, per_row, per_column = traces[0].connected.shape
        taps = own["weight"].numel() // (groups * per_row * per_column)
        pairs = rows.reshape(groups, -1).sum(1) * columns.reshape(groups, -1).sum(1)
        kept += int(pairs.sum()) * taps
    return LayerCount(name, rows, columns, constant, useful, live_inputs, total, total - kept)


class _Attention(nn.Module):
    """nn.MultiheadAttention spelled out, for self-attention with the batch first."""

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.inner = [attention]  # a list hides it from named_modules
        if not attention.batch_first or attention.bias_k is not None or attention.add_zero_attn:
            raise NotImplementedError("attention that is not batch first, or adds keys")

    def forward(self, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> tuple[Tensor, None]:
        a = self.inner[0]
        if q is not k or k is not v or options.get("attn_mask") is not None:
            raise NotImplementedError("attention that is not plain self-attention")
        q, k, v = (
            part.unflatten(-1, (a.num_heads, a.head_dim)).transpose(1, 2)
            for part in F.linear(q, a.in_proj_weight, a.in_proj_bias).chunk(3, dim=-1)
        )
        weights = torch.softmax((q * a.head_dim**-0.5) @ k.transpose(-2, -1), -1)
        return F.linear(
            (weights @ v).transpose(1, 2).flatten(2), a.out_proj.weight, a.out_proj.bias
        ), None


def _replace_attention(model: nn.Module) -> None:
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.MultiheadAttention):
                setattr(module, name, _Attention(child))
