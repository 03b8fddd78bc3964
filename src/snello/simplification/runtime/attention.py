"""Self-attention without its dead rows: heads of different widths in one projection.

The projections store only live rows and columns. In the forward, the heads of queries, keys and
values are padded with zeros to the width of the widest, because zeros change neither a scalar
product nor a norm. If all heads are equally wide, no padding is needed. The scale of the scalar
products is that of the original width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snello.simplification.ir.plan import AttentionPlan
from snello.simplification.ops.attention_weights import (
    PACKED_NAMES,
    AttentionWeights,
    Network,
    attention_weights,
    register_attention,
)

from .constants import index_tensor

Cuts = dict[str, tuple[Tensor | None, ...]]
"""Parameter of an attention -> kept indices along each of its first axes; None for all indices."""


def cuts(module: nn.Module, plan: AttentionPlan) -> Cuts:
    """Return the indices that a plan keeps of each parameter of an attention."""
    own, last = _weights(module), 2 * plan.heads * plan.width
    rows, heads = _places(own.rows, plan.rows), _places(own.kept_heads, plan.kept_heads)
    values = _places([r for r in own.rows if r >= last], [r for r in plan.rows if r >= last])
    biased = _places(own.biased, plan.kept_heads[: plan.biased])
    hidden = torch.tensor(plan.hidden).long()
    inputs, outputs = (torch.tensor(x).long() for x in (plan.kept_inputs, plan.kept_outputs))
    packed, out = own.names
    return {
        f"{packed}weight": (rows, inputs), f"{packed}bias": (rows,),
        f"{out}weight": (outputs, values), f"{out}bias": (outputs,),
        "relative_position_bias_table": (None, heads), "logit_scale": (heads,),
        "cpb_mlp.0.weight": (hidden,), "cpb_mlp.0.bias": (hidden,),
        "cpb_mlp.2.weight": (biased, hidden), "cpb_mlp.2.bias": (biased,),
    }  # fmt: skip


def _places(of: Sequence[int], chosen: Sequence[int]) -> Tensor:
    """Positions of the chosen items in a sequence."""
    position = {item: i for i, item in enumerate(of)}
    return torch.tensor([position[item] for item in chosen], dtype=torch.long)


def cut(tensor: Tensor, indices: tuple[Tensor | None, ...]) -> Tensor:
    """Select indices along the first axes; None selects all indices of an axis."""
    for axis, index in enumerate(indices):
        tensor = tensor if index is None else tensor.index_select(axis, index.to(tensor.device))
    return tensor


class _HeadLayout:
    """Positions of rows and columns after the heads are padded to equal widths.

    Attributes:
        query_width, value_width: width of every head after padding, that of the widest.
        slots: for each position, an index into the rows followed by the constants followed by one
            zero; None if the rows already have this order.
        columns: for each kept value, its position; None if there is no padding.
    """

    def __init__(self, plan: AttentionPlan) -> None:
        size = plan.heads * plan.width
        position = {row: i for i, row in enumerate((*plan.rows, *plan.constants))}
        by_head = [range(head * plan.width, (head + 1) * plan.width) for head in plan.kept_heads]
        scored = [[d for d in dims if d in position or d + size in position] for dims in by_head]
        values = [[d + 2 * size for d in dims if d + 2 * size in position] for dims in by_head]
        self.query_width = max(1, max(map(len, scored), default=0))
        self.value_width = max(map(len, values), default=0)
        places = _padded(scored, self.query_width)
        places += _padded([[d + size for d in dims] for dims in scored], self.query_width)
        places += _padded(values, self.value_width)
        slots = [position.get(row, len(position)) for row in places]
        self.slots = None if slots == list(range(len(plan.rows))) else slots
        columns = [
            h * self.value_width + i for h, dims in enumerate(values) for i in range(len(dims))
        ]
        self.columns = None if len(columns) == len(by_head) * self.value_width else columns


def _padded(by_head: Sequence[Sequence[int]], width: int) -> list[int]:
    return [row for dims in by_head for row in (*dims, *[-1] * (width - len(dims)))]


def slim(module: nn.Module, cuts: Cuts, name: str) -> nn.Parameter:
    """Return a new parameter with the kept indices of a parameter of a module."""
    parameter = module.get_parameter(name)
    return nn.Parameter(cut(parameter.detach(), cuts[name]), requires_grad=parameter.requires_grad)


def slim_layer(module: nn.Module, cuts: Cuts, prefix: str, bias: bool) -> nn.Linear:
    """Return a projection with the kept indices.

    Args:
        module: the attention.
        cuts: kept indices of its parameters.
        prefix: prefix of the projection's parameters.
        bias: whether it has a bias; a new one is zero. False drops the bias of the original.
    """
    weight = slim(module, cuts, f"{prefix}weight")
    if not bias:
        return _linear(weight, None)
    present = any(name == f"{prefix}bias" for name, _ in module.named_parameters())
    new = nn.Parameter(weight.detach().new_zeros(len(weight)), weight.requires_grad)
    return _linear(weight, slim(module, cuts, f"{prefix}bias") if present else new)


def _linear(weight: nn.Parameter, bias: nn.Parameter | None) -> nn.Linear:
    layer = nn.Linear(1, 1, bias=False)
    layer.weight, layer.bias = weight, bias  # type: ignore[assignment]
    layer.out_features, layer.in_features = weight.shape
    return layer


class LeanAttention(nn.Module):
    """Base class of narrowed attentions.

    Args:
        module: the attention to narrow.
        plan: the kept rows, columns and heads.

    Attributes:
        keys: index of the first key and of the first value among the rows of the packed projection.
    """

    snello_leaf = True
    cosine = False
    windowed = False
    names = PACKED_NAMES
    slots: Tensor | None
    columns: Tensor | None
    constant: Tensor | None
    num_heads: int

    def __init__(self, module: nn.Module, plan: AttentionPlan) -> None:
        super().__init__()
        layout, parts = _HeadLayout(plan), cuts(module, plan)
        self.plan, self.num_heads, self.scale = plan, len(plan.kept_heads), plan.width**-0.5
        size = plan.heads * plan.width
        self.keys = sum(row < size for row in plan.rows), sum(row < 2 * size for row in plan.rows)
        self.query_width, self.value_width = layout.query_width, layout.value_width
        packed, out = _weights(module).names
        weight = slim_layer(module, parts, packed, plan.bias)
        self._set_projections(weight, slim_layer(module, parts, out, plan.out_bias))
        self._set_positions(module, parts)
        like = weight.weight.detach()
        constant = like.new_zeros(len(plan.constants)) if plan.constants else None
        self.register_buffer("constant", constant)
        for name, index in (
            ("slots", index_tensor(layout.slots)),
            ("columns", index_tensor(layout.columns)),
        ):
            self.register_buffer(
                name, None if index is None else index.to(like.device), persistent=False
            )

    def _set_projections(self, packed: nn.Linear, out: nn.Linear) -> None:
        raise NotImplementedError

    def _set_positions(self, module: nn.Module, parts: Cuts) -> None:
        """Narrow the parameters of the position bias, if there are any."""

    def _projections(self) -> tuple[Tensor, Tensor | None, nn.Linear]:
        raise NotImplementedError

    def expanded(self) -> AttentionWeights:
        """Return the weights in the shapes of the original; see `AttentionWeights`."""
        plan, (weight, bias, out) = self.plan, self._projections()
        size, rows = plan.heads * plan.width, torch.tensor(plan.rows, dtype=torch.long)
        full = weight.new_zeros(3 * size, weight.shape[1]).index_copy(
            0, rows.to(weight.device), weight
        )
        values = (rows[rows >= 2 * size] - 2 * size).to(weight.device)
        full_out = out.weight.new_zeros(len(out.weight), size).index_copy(1, values, out.weight)
        full_bias = None
        if bias is not None or self.constant is not None:
            full_bias = weight.new_zeros(3 * size)
            full_bias[list(plan.rows)] = weight.new_zeros(len(rows)) if bias is None else bias
            if self.constant is not None:
                full_bias[list(plan.constants)] = self.constant
        return AttentionWeights(
            full, full_bias, full_out, out.bias, plan.heads, self.cosine, self.windowed, self.names,
            plan.kept_heads, plan.rows, plan.constants, plan.kept_heads[: plan.biased], self._network(),
        )  # fmt: skip

    def _network(self) -> Network | None:
        return None

    def _split(self, x: Tensor, tokens: int) -> list[Tensor]:
        """Queries, keys and values, each of shape (N, heads, tokens, width).

        Args:
            x: input, shape (N, tokens, inputs).
            tokens: number of tokens of one example, which decides between two ways of padding.
        """
        weight, bias, _ = self._projections()
        if self.slots is None:
            y = F.linear(x, weight, bias)
        else:
            tail = weight.new_zeros(1) if self.constant is None else F.pad(self.constant, (0, 1))
            # Indexing rows of the weight takes a third of the time per number of indexing outputs
            # along the innermost axis.
            place = _place_rows if 3 * tokens > weight.shape[1] else _place_outputs
            y = place(x, weight, bias, tail, self.slots)
        widths = [
            self.num_heads * width
            for width in (self.query_width, self.query_width, self.value_width)
        ]
        return [_heads_first(part, self.num_heads) for part in torch.split(y, widths, -1)]

    def _merge(self, attended: Tensor) -> Tensor:
        """Project (N, heads, tokens, value width) to (N, tokens, outputs)."""
        x = attended.transpose(1, 2).flatten(2)
        out: Tensor = self._projections()[2](
            x if self.columns is None else _innermost(x, self.columns)
        )
        return out

    def _headless(self, x: Tensor) -> Tensor:
        """Return the output of an attention without heads: its bias at every token."""
        out = self._projections()[2]
        zeros = x.new_zeros(*x.shape[:-1], out.out_features)
        return zeros if out.bias is None else zeros + out.bias


def _place_rows(
    x: Tensor, weight: Tensor, bias: Tensor | None, tail: Tensor, slots: Tensor
) -> Tensor:
    """Pad the rows of a layer, then apply it. A row of zeros has a constant output, its bias."""
    rows = torch.cat([weight, weight.new_zeros(1, weight.shape[1])])
    bias = weight.new_zeros(len(weight)) if bias is None else bias
    return F.linear(x, rows[slots.clamp(max=len(weight))], torch.cat([bias, tail])[slots])


def _place_outputs(
    x: Tensor, weight: Tensor, bias: Tensor | None, tail: Tensor, slots: Tensor
) -> Tensor:
    """Apply a layer, then pad its outputs."""
    y = F.linear(x, weight, bias)
    return _innermost(torch.cat([y, tail.to(y.dtype).expand(*y.shape[:-1], len(tail))], -1), slots)


def _innermost(x: Tensor, index: Tensor) -> Tensor:
    """Select along the innermost of three axes; index_select is faster on two axes."""
    chosen = x.flatten(0, 1).index_select(1, index)
    return chosen.unflatten(0, x.shape[:2])  # type: ignore[no-any-return, no-untyped-call]


def _heads_first(x: Tensor, heads: int) -> Tensor:
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads).transpose(1, 2)


class LeanMultiheadAttention(LeanAttention):
    """Narrowed nn.MultiheadAttention with its signature; attention weights are never returned.

    Parameters: `in_proj_weight` (rows, inputs), `in_proj_bias` (rows,), `out_proj`.
    """

    in_proj_weight: Tensor
    in_proj_bias: Tensor | None

    # Tells nn.TransformerEncoderLayer that its fused kernel does not fit.
    _qkv_same_embed_dim = False

    def __init__(self, module: Any, plan: AttentionPlan) -> None:
        super().__init__(module, plan)
        self.batch_first, self.dropout = module.batch_first, module.dropout

    def _set_projections(self, packed: nn.Linear, out: nn.Linear) -> None:
        self.in_proj_weight, self.out_proj = packed.weight, out
        self.register_parameter("in_proj_bias", packed.bias)

    def _projections(self) -> tuple[Tensor, Tensor | None, nn.Linear]:
        return self.in_proj_weight, self.in_proj_bias, self.out_proj

    def forward(
        self,
        query: Tensor,
        key: object = None,
        value: object = None,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        if not self.num_heads:
            return self._headless(query), None
        x = query if self.batch_first else query.transpose(0, 1)
        q, k, v = self._split(x, x.shape[1])
        dropout = self.dropout if self.training else 0.0
        mask = _merged_mask(attn_mask, key_padding_mask, x)
        attended = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=dropout, scale=self.scale
        )
        y = self._merge(attended)
        return y if self.batch_first else y.transpose(0, 1), None


def _merged_mask(mask: Tensor | None, padding: Tensor | None, x: Tensor) -> Tensor | None:
    """The sum of both masks of nn.MultiheadAttention, which hide where they are True or -inf.

    Args:
        mask: shape (tokens, tokens).
        padding: shape (N, tokens).
        x: shape (N, tokens, channels).
    """
    masks = [] if mask is None else [mask]
    if padding is not None:
        masks.append(padding[:, None, None, :])
    added = [
        torch.zeros_like(m, dtype=x.dtype).masked_fill_(m, float("-inf"))
        if m.dtype is torch.bool
        else m.to(x.dtype)
        for m in masks
    ]
    return sum(added[1:], added[0]) if added else None


register_attention(LeanAttention, LeanAttention.expanded)


def _weights(module: nn.Module) -> AttentionWeights:
    weights = attention_weights(module)
    assert weights is not None
    return weights
