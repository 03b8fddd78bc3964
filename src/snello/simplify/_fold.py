"""Folding: the constants of absent channels move into those who read them. All arithmetic in float64."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from snello.graph import Graph

from ._liveness import Layout, Liveness, operands
from ._plan import SimplificationPlan
from ._rewrite import adapter_name
from ._rules import Layer


def folded_bias(rule: Layer, received: Layout, produced: Layout) -> Tensor:
    """The lean layer's bias, float64, shape ``(kept outputs,)``."""
    bias = rule.bias.cpu()[produced.kept]
    if folded_border(rule, received, produced) is not None:
        return bias
    return bias + _constant_taps(rule, received, produced).sum(1)


def folded_border(rule: Layer, received: Layout, produced: Layout) -> Tensor | None:
    """The border kernel, float64, shape ``(kept outputs, 1, *kernel)``; None where none is needed."""
    taps = _constant_taps(rule, received, produced)
    if not rule.pads_with_zeros or not bool((taps != 0).any()):
        return None
    assert isinstance(rule.module, _ConvNd)
    return taps.reshape(len(taps), 1, *rule.module.kernel_size)


def _constant_taps(rule: Layer, received: Layout, produced: Layout) -> Tensor:
    """What the absent inputs contribute through each kernel position: ``(kept outputs, positions)``."""
    weight = rule.weight.cpu()[produced.kept][:, received.absent]
    return torch.einsum("oik,i->ok", weight, received.fill[received.absent])


def set_constants(lean: nn.Module, graph: Graph, liveness: Liveness, plan: SimplificationPlan) -> None:
    """Write the folded biases, border kernels and fills into a lean model that the plan has shaped."""
    present = dict(lean.named_modules())
    for node, rule in liveness.rules.items():
        module = present.get(str(node.target))
        if isinstance(rule, Layer) and module is not None:
            received, produced = liveness.layouts[operands(node)[0]], liveness.layouts[node]
            _write(module, "bias", folded_bias(rule, received, produced))
            _write(module, "border", folded_border(rule, received, produced))
    nodes = {node.name: node for node in graph.nodes}
    for number, adapter in enumerate(plan.adapters):
        module = present.get(adapter_name(number))
        if adapter.constant and module is not None:
            layout, reader = liveness.layouts[nodes[adapter.operand]], nodes[adapter.reader]
            whole = liveness.rules[reader] is None
            fill = layout.fill if whole else layout.fill[liveness.layouts[reader].kept]
            _write(module, "constant", fill)


def _write(module: nn.Module, name: str, value: Tensor | None) -> None:
    target = getattr(module, name, None)
    if isinstance(target, Tensor) and value is not None:
        with torch.no_grad():
            target.copy_(value)
