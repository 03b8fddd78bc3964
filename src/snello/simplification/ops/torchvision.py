"""Modules and functions of torchvision, by name, because torchvision need not be installed."""

from __future__ import annotations

from typing import Any

from snello.graph import register_leaf

from .attention_weights import AttentionWeights, network_of, register_attention
from .call import Call
from .elementwise import identity
from .operation import Operation
from .registry import rule_for

WINDOW_ATTENTIONS = (
    "torchvision.models.swin_transformer.ShiftedWindowAttention",
    "torchvision.models.swin_transformer.ShiftedWindowAttentionV2",
)
"""Swin's attention in windows: Liu et al., ICCV 2021 and CVPR 2022."""


def _windows(module: Any) -> AttentionWeights | None:
    """Read the weights of window attention; not of subclasses, whose forward may differ."""
    kind = type(module)
    if f"{kind.__module__}.{kind.__qualname__}" not in WINDOW_ATTENTIONS:
        return None
    packed, out = (module.qkv.weight, module.qkv.bias), (module.proj.weight, module.proj.bias)
    network = network_of(module) if hasattr(module, "cpb_mlp") else None
    return AttentionWeights.whole(packed, out, module.num_heads, windowed=True, network=network)


for _name in WINDOW_ATTENTIONS:
    register_leaf(_name)
    register_attention(_name, _windows)

# By its bare name, for copies of it in other libraries. A leaf, because tracing in evaluation mode
# would reduce it to an identity in training mode, too.
register_leaf("StochasticDepth")


@rule_for("StochasticDepth", "torchvision.ops.stochastic_depth.stochastic_depth")
def stochastic_depth(call: Call) -> Operation | None:
    """Stochastic depth: the identity in evaluation mode (Huang et al., ECCV 2016)."""
    if call.module is not None and type(call.module).__name__ != "StochasticDepth":
        return None  # a subclass, whose forward may differ
    return identity(call)
