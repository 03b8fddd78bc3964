"""Self-attention in shifted windows without its dead rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snello.simplification.ir.plan import AttentionPlan
from snello.simplification.ops.attention_weights import (
    WINDOW_NAMES,
    Network,
    attention_weights,
    network_of,
)

from .attention import Cuts, LeanAttention, LeanMultiheadAttention, slim, slim_layer


def lean_attention(module: nn.Module, plan: AttentionPlan) -> nn.Module:
    """Narrow an attention by a plan; folded constants are zero until they are written."""
    weights = attention_weights(module)
    assert weights is not None
    if not weights.windowed:
        return LeanMultiheadAttention(module, plan)
    kind = LeanCosineWindowAttention if weights.cosine else LeanWindowAttention
    return kind(module, plan)


class LeanWindowAttention(LeanAttention):
    """Narrowed self-attention in shifted windows.

    Parameters: `qkv`, `proj`, `relative_position_bias_table` (offsets, heads).
    Shape: (N, H, W, inputs) to (N, H, W, outputs); H and W are padded to multiples of the window.

    Source: Liu et al., Swin Transformer: Hierarchical Vision Transformer using Shifted Windows,
        ICCV 2021.
    """

    windowed = True
    names = WINDOW_NAMES
    relative_position_index: Tensor

    def __init__(self, module: Any, plan: AttentionPlan) -> None:
        super().__init__(module, plan)
        self.window_size, self.shift_size = list(module.window_size), list(module.shift_size)
        self.attention_dropout, self.dropout = module.attention_dropout, module.dropout

    def _set_positions(self, module: nn.Module, parts: Cuts) -> None:
        self.register_buffer(
            "relative_position_index", module.get_buffer("relative_position_index").clone()
        )
        if not self.cosine:
            self.relative_position_bias_table = slim(module, parts, "relative_position_bias_table")

    def _set_projections(self, packed: nn.Linear, out: nn.Linear) -> None:
        self.qkv, self.proj = packed, out

    def _projections(self) -> tuple[Tensor, Tensor | None, nn.Linear]:
        return self.qkv.weight, self.qkv.bias, self.proj

    def forward(self, x: Tensor) -> Tensor:
        if not self.num_heads:
            return F.dropout(self._headless(x), self.dropout, self.training)
        batch, *size = x.shape[:3]
        high, wide = self.window_size
        x = F.pad(x, (0, 0, 0, -size[1] % wide, 0, -size[0] % high))
        grid = x.shape[1] // high, x.shape[2] // wide
        # As in the original, an axis with one window is not shifted.
        shift = [s if n > 1 else 0 for s, n in zip(self.shift_size, grid, strict=True)]
        if any(shift):
            x = torch.roll(x, [-s for s in shift], (1, 2))
        x = x.reshape(batch, grid[0], high, grid[1], wide, x.shape[-1])
        x = x.transpose(2, 3).reshape(batch * grid[0] * grid[1], high * wide, x.shape[-1])
        q, k, v = self._split(x, grid[0] * grid[1] * high * wide)
        y = self._merge(self._attend(q, k, v, batch, grid, shift))
        y = F.dropout(y, self.dropout, self.training)
        y = y.reshape(batch, *grid, high, wide, -1).transpose(2, 3).flatten(3, 4).flatten(1, 2)
        if any(shift):
            y = torch.roll(y, shift, (1, 2))
        return y[:, : size[0], : size[1]].contiguous()

    def _attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        batch: int,
        grid: tuple[int, int],
        shift: Sequence[int],
    ) -> Tensor:
        """Attention within windows: tensors of shape (N * windows, heads, tokens, width)."""
        # As separate operations: on CPUs scaled_dot_product_attention with a mask makes three
        # passes more over the scores.
        scores = self._scores(q, k)
        if (bias := self._position_bias()) is not None:
            scores = scores + bias
        if any(shift):
            windows = scores.reshape(batch, grid[0] * grid[1], *scores.shape[1:])
            scores = (windows + self._mask(grid, shift, q).unsqueeze(1)).flatten(0, 1)
        weights: Tensor = F.dropout(scores.softmax(-1), self.attention_dropout, self.training)
        return weights @ v

    def _scores(self, q: Tensor, k: Tensor) -> Tensor:
        scores: Tensor = (q * self.scale) @ k.transpose(-2, -1)
        return scores

    def _mask(self, grid: tuple[int, int], shift: Sequence[int], like: Tensor) -> Tensor:
        """-100 between tokens of one window that are not adjacent before the cyclic shift, else 0.

        Shape (windows, tokens, tokens).
        """
        regions = []
        for count, window, moved in zip(grid, self.window_size, shift, strict=True):
            place, length = torch.arange(count * window, device=like.device), count * window
            cut = (place >= length - window).long() + (place >= length - moved).long()
            regions.append((cut if moved else place * 0).view(count, window))
        rows, columns = regions
        region = 3 * rows[:, None, :, None] + columns[None, :, None, :]
        region = region.reshape(grid[0] * grid[1], -1)
        return (region.unsqueeze(1) != region.unsqueeze(2)).to(like.dtype) * -100.0

    def _position_bias(self) -> Tensor | None:
        """Shape (heads, tokens, tokens)."""
        return self._by_pair(self.relative_position_bias_table)

    def _by_pair(self, table: Tensor) -> Tensor:
        tokens = self.window_size[0] * self.window_size[1]
        by_pair: Tensor = table[self.relative_position_index].view(tokens, tokens, -1)
        return by_pair.permute(2, 0, 1)


class LeanCosineWindowAttention(LeanWindowAttention):
    """Narrowed attention with cosine similarity, and a position bias that a small network computes.

    Parameters: `qkv`, `proj`, `logit_scale` (heads, 1, 1), `cpb_mlp` (of the first
    `plan.biased` heads; the others have no position bias).

    Source: Liu et al., Swin Transformer V2: Scaling Up Capacity and Resolution, CVPR 2022.
    """

    cosine = True
    relative_coords_table: Tensor

    def _set_positions(self, module: nn.Module, parts: Cuts) -> None:
        super()._set_positions(module, parts)
        self.register_buffer(
            "relative_coords_table", module.get_buffer("relative_coords_table").clone()
        )
        self.logit_scale = slim(module, parts, "logit_scale")
        first = slim_layer(module, parts, "cpb_mlp.0.", bias=True)
        last = slim_layer(module, parts, "cpb_mlp.2.", self.plan.position_bias)
        self.cpb_mlp = nn.Sequential(first, nn.ReLU(inplace=True), last)

    def _network(self) -> Network:
        first, first_bias, last, last_bias = network_of(self)
        heads = torch.tensor(
            self.plan.kept_heads[: self.plan.biased], dtype=torch.long, device=last.device
        )
        full = last.new_zeros(self.plan.heads, last.shape[1]).index_copy(0, heads, last)
        if last_bias is None:
            return first, first_bias, full, None
        return (
            first,
            first_bias,
            full,
            last_bias.new_zeros(self.plan.heads).index_copy(0, heads, last_bias),
        )

    def _projections(self) -> tuple[Tensor, Tensor | None, nn.Linear]:
        given, (start, end) = self.qkv.bias, self.keys
        if given is None:
            return self.qkv.weight, None, self.proj
        bias = torch.cat(
            [given[:start], given.new_zeros(end - start), given[end:]]
        )  # keys have none
        return self.qkv.weight, bias, self.proj

    def _scores(self, q: Tensor, k: Tensor) -> Tensor:
        scale = self.logit_scale.clamp(max=math.log(100.0)).exp()
        return (F.normalize(q, dim=-1) * scale) @ F.normalize(k, dim=-1).transpose(-2, -1)

    def _position_bias(self) -> Tensor | None:
        if not self.plan.biased:
            return None
        table = self.cpb_mlp(self.relative_coords_table).view(-1, self.plan.biased)
        bias = 16 * torch.sigmoid(self._by_pair(table))
        return F.pad(bias, (0, 0, 0, 0, 0, self.num_heads - self.plan.biased))
