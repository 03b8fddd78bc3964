"""Weights of self-attention, whatever the library that it comes from.

A library's attention is made known by :func:`register_attention`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from snello.graph import TargetTable

Network = tuple[Tensor, Tensor, Tensor, Tensor | None]
"""Weights and biases of the two layers that compute a position bias: hidden, then heads."""

PACKED_NAMES = ("in_proj_", "out_proj.")
WINDOW_NAMES = ("qkv.", "proj.")
"""Prefixes of the parameters of both projections."""


@dataclass(frozen=True)
class AttentionWeights:
    """Parameters of an attention in the geometry of the original: rows that a lean one lacks are
    zero.

    Attributes:
        weight, bias: of the packed projection, shape (3 * heads * width, inputs): queries, keys,
            values.
        out_weight, out_bias: of the output projection, shape (outputs, heads * width).
        heads: number of heads of the original.
        cosine: whether queries and keys are normalised, and keys have no bias.
        windowed: whether tokens are padded with zeros, so that constant inputs differ from place to
            place; then the module maps (N, H, W, C) to (N, H, W, C). Else it is called like
            nn.MultiheadAttention.
        names: prefixes of the parameters of both projections.
        kept_heads, rows, constants: those of the module; see :class:`AttentionPlan`.
        biased: heads that have a position bias.
        network: the layers that compute the position bias, if there are any.
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
        """Describe an attention that has all of its rows.

        Args:
            packed, out: weight and bias of both projections.
            heads: number of heads.
            windowed, network: as above; cosine similarity goes with a network.
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
    """Make a class of self-attention known.

    Args:
        target: the class, or its dotted name if its library need not be installed.
        reader: returns the weights of a module; None for a module that must be left alone, such as
            one of a subclass whose forward may differ.
    """
    _readers.add(target, reader)


def attention_weights(module: nn.Module) -> AttentionWeights | None:
    """Return the weights of self-attention that may be narrowed, lean or not; None for other
    modules.
    """
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
    if weight is None:  # three projections: why_not tells the reason why they are left alone
        weight = out.weight.new_empty(0, module.embed_dim)
    packed = weight, module.in_proj_bias
    return AttentionWeights.whole(packed, (out.weight, out.bias), module.num_heads)


register_attention(nn.MultiheadAttention, _multihead)
