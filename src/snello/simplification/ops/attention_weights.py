"""Weights of self-attention modules of any library.

The attention of a library is registered by `register_attention`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from snello.graph import TargetTable

Network = tuple[Tensor, Tensor, Tensor, Tensor | None]
"""Weight and bias of the hidden layer and of the last layer that compute a position bias."""

PACKED_NAMES = ("in_proj_", "out_proj.")
WINDOW_NAMES = ("qkv.", "proj.")
"""Prefixes of the parameters of both projections."""


@dataclass(frozen=True)
class AttentionWeights:
    """Parameters of an attention in the shapes of the original.

    The rows that a lean attention does not have are zero.

    Attributes:
        weight, bias: packed projection, shapes (3 * heads * width, inputs) and (3 * heads *
            width,): rows of queries, then keys, then values.
        out_weight, out_bias: output projection, shapes (outputs, heads * width) and (outputs,).
        heads: number of heads of the original.
        cosine: whether queries and keys are normalised, and keys have no bias.
        windowed: whether the module maps (N, H, W, C) to (N, H, W, C) and pads tokens with zeros,
            so that a constant input is not constant over positions. Else it is called like
            nn.MultiheadAttention.
        names: prefixes of the names of the parameters of both projections.
        kept_heads, rows, constants: see `AttentionPlan`; of an attention that was never
            narrowed, all heads, all rows and none.
        biased: heads that have a position bias.
        network: the layers that compute the position bias; None if there are none.
    """

    weight: Tensor
    bias: Tensor | None
    out_weight: Tensor
    out_bias: Tensor | None
    heads: int
    cosine: bool
    windowed: bool
    names: tuple[str, str]
    kept_heads: tuple[int, ...]
    rows: tuple[int, ...]
    constants: tuple[int, ...]
    biased: tuple[int, ...]
    network: Network | None

    @staticmethod
    def whole(
        packed: tuple[Tensor, Tensor | None],
        out: tuple[Tensor, Tensor | None],
        heads: int,
        *,
        windowed: bool = False,
        network: Network | None = None,
    ) -> AttentionWeights:
        """Describe an attention that was never narrowed.

        Args:
            packed, out: weight and bias of both projections.
            heads: number of heads.
            windowed, network: as above; with a network, `cosine` is set.
        """
        names = WINDOW_NAMES if windowed else PACKED_NAMES
        all_heads, rows = tuple(range(heads)), tuple(range(len(packed[0])))
        return AttentionWeights(
            *packed,
            *out,
            heads,
            network is not None,
            windowed,
            names,
            all_heads,
            rows,
            (),
            all_heads,
            network,
        )


Reader = Callable[[Any], AttentionWeights | None]

_readers: TargetTable[Reader] = TargetTable()


def register_attention(target: type[nn.Module] | str, reader: Reader) -> None:
    """Register a class of self-attention modules.

    Args:
        target: the class, or its dotted name if its library need not be installed.
        reader: returns the weights of a module; None for a module that must be left alone, such as
            one of a subclass whose forward may differ.
    """
    _readers.add(target, reader)


def attention_weights(module: nn.Module) -> AttentionWeights | None:
    """Return the weights of a self-attention that may be narrowed; None for other modules."""
    readers = _readers.find_module(module)
    return readers[0](module) if readers else None


def network_of(module: Any) -> Network:
    """Return the network that computes the position bias in windows with cosine similarity."""
    first, last = module.cpb_mlp[0], module.cpb_mlp[2]
    return first.weight, first.bias, last.weight, last.bias


def _multihead(module: nn.MultiheadAttention) -> AttentionWeights | None:
    if type(module) is not nn.MultiheadAttention:
        return None
    out, weight = module.out_proj, module.in_proj_weight
    if weight is None:  # three separate projections: why_not returns the reason for the plan
        weight = out.weight.new_empty(0, module.embed_dim)
    packed = weight, module.in_proj_bias
    return AttentionWeights.whole(packed, (out.weight, out.bias), module.num_heads)


register_attention(nn.MultiheadAttention, _multihead)
