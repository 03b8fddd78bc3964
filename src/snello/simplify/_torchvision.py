"""Modules of torchvision that are one operation, by name: it need not be installed."""

from __future__ import annotations

from torch import nn

from snello.graph import register_leaf

WINDOW_ATTENTIONS = (
    "torchvision.models.swin_transformer.ShiftedWindowAttention",
    "torchvision.models.swin_transformer.ShiftedWindowAttentionV2",
)

for _name in WINDOW_ATTENTIONS:
    register_leaf(_name)
# By its bare name, for copies of it in other libraries: traced in evaluation mode, it would be an
# identity and never be active in training again.
register_leaf("StochasticDepth")


def is_stochastic_depth(module: nn.Module | None) -> bool:
    """True of a StochasticDepth, torchvision's or another library's class of that name."""
    return type(module).__name__ == "StochasticDepth"


def is_window_attention(module: nn.Module | None) -> bool:
    """True of torchvision's (shifted) window attention of Swin, V1 or V2; not of subclasses."""
    kind = type(module)
    return f"{kind.__module__}.{kind.__qualname__}" in WINDOW_ATTENTIONS
