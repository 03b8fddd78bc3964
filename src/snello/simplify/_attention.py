r"""The rule of self-attention: which rows and columns of its projections matter.

With weights :math:`A = \mathrm{softmax}(QK^\top/\sqrt d)`, head by head, and output :math:`AVP^\top + b`:

- a constant dimension of V passes through unchanged, as each row of A sums to one: it is a bias;
- a constant dimension of K adds the same to every key's score, which softmax ignores: it goes, with its query;
- a dimension of Q that is zero takes its key with it; one that is another constant leaves that constant only;
- a head without values goes altogether.

Where queries and keys are normalised (Swin V2), a dimension also counts in the norm of its own vector: it goes
only if it is zero, and the head's scores are all zero once no dimension is left that both vectors have.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from snello.graph import Graph, shape_of

from ._calls import argument
from ._draft import Draft
from ._lean_attention import Dense, Lean, LeanMultiheadAttention, dense
from ._lean_attention import is_attention as is_attention
from ._plan import AttentionPlan
from ._rule import Rule, Wanted
from ._signal import Layout, Signal
from ._structure import Absorbed
from ._torchvision import is_window_attention
from ._weighted import Producer, is_plain

Axes = dict[fx.Node, int]

_ARGUMENTS = (
    "query", "key", "value", "key_padding_mask", "need_weights", "attn_mask", "average_attn_weights", "is_causal",
)  # fmt: skip


@dataclass(frozen=True)
class _Alive:
    """Which dimensions of all heads matter: each boolean, shape (heads * width,).

    Attributes:
        queries, keys, values: rows of the packed projection that are computed.
        constants: queries that are one number other than zero.
        heads: dimensions of the heads that have values.
    """

    queries: Tensor
    keys: Tensor
    values: Tensor
    constants: Tensor
    heads: Tensor

    @property
    def rows(self) -> Tensor:
        """Of the packed projection: boolean, shape (3 * heads * width,)."""
        return torch.cat([self.queries, self.keys, self.values])


@dataclass(frozen=True, eq=False)
class Attention(Producer):
    """Self-attention.

    Attributes:
        call: the node that calls the module; ``node`` is the tensor among what it returns.
        dense: the module's parameters.
    """

    call: fx.Node
    dense: Dense

    @cached_property
    def weight(self) -> Tensor:
        """Of the packed projection, on the CPU."""
        return self.dense.weight.detach().cpu()

    @cached_property
    def out_weight(self) -> Tensor:
        """Of the output projection, on the CPU."""
        return self.dense.out_weight.detach().cpu()

    @cached_property
    def bias(self) -> Tensor:
        """Of the packed projection, float64: shape (3 * heads * width,)."""
        size = self.out_weight.shape[1]
        bias = _or_zeros(self.dense.bias, 3 * size)
        return bias.index_fill(0, torch.arange(size, 2 * size), 0) if self.dense.cosine else bias

    def _projected(self, signal: Signal) -> Signal:
        """What is known of queries, keys and values."""
        varying = ~signal.constant
        if self.dense.windowed:  # tokens are padded with zeros
            varying = varying | (signal.value != 0)
        constant = ~((self.weight != 0) & varying).any(1)
        return Signal.of(constant, self.bias + _product(self.weight, signal.value.masked_fill(varying, 0)))

    def _by_head(self, dimensions: Tensor) -> Tensor:
        """Whether any dimension of the same head is in the mask: shape (heads * width,)."""
        any_ = dimensions.view(self.dense.heads, -1).any(1)
        return any_.repeat_interleave(len(dimensions) // self.dense.heads)

    def _alive(self, needed: Tensor, projected: Signal) -> _Alive:
        fixed_query, fixed_key, fixed_value = projected.constant.chunk(3)
        zero_query, zero_key, _ = projected.zero.chunk(3)
        values = ~fixed_value & (self.out_weight[needed] != 0).any(0)
        heads = self._by_head(values)
        if self.dense.cosine:
            queries, keys = heads & ~zero_query, heads & ~zero_key
            scored = self._by_head(queries & keys)
            queries, keys = queries & scored, keys & scored
        else:
            queries = keys = heads & ~fixed_key & ~zero_query
        return _Alive(queries & ~fixed_query, keys, values, queries & fixed_query, heads)

    def forward(self, *signals: Signal) -> Signal:
        value = self._projected(signals[0])
        size = self.out_weight.shape[1]
        varying = (self.out_weight != 0) & ~value.constant[2 * size :]
        bias = _or_zeros(self.dense.out_bias, len(self.out_weight))
        return Signal.of(~varying.any(1), bias + _product(self.out_weight, value.value[2 * size :]))

    def reads(self, useful: Tensor, signal: Signal, *signals: Signal) -> list[Tensor]:
        return [self._read(self._alive(useful & ~signal.constant, self._projected(signals[0])))]

    def _read(self, alive: _Alive) -> Tensor:
        return (self.weight[alive.rows] != 0).any(0)

    def arrange(
        self, signal: Signal, useful: Tensor, *received: Layout, kept_alive: Tensor | None = None
    ) -> Wanted:
        (layout,) = received
        produced = self.produced(signal, useful, kept_alive)
        if not len(produced.order):
            return [layout], produced
        if self.dense.windowed:
            read = self._read(self._alive(produced.present, self._projected(layout.absence)))
            layout = layout.extended(read & (layout.fill != 0))
        if not len(layout.order):
            layout = layout.arranged(torch.zeros(1, dtype=torch.long))
        return [layout], produced

    def emit(self, draft: Draft, received: Sequence[Layout], wanted: list[Layout], produced: Layout) -> None:
        (layout,), (has,) = wanted, received
        if not torch.equal(layout.order, has.order) and len(layout.order):
            draft.fill(self.operands[0], self.call, self.axes[0], has, layout)
        projected = self._projected(layout.absence)
        alive = self._alive(produced.present, projected)
        size = self.out_weight.shape[1]
        folded = projected.value[2 * size :].masked_fill(alive.values, 0)
        bias = self.bias + _product(self.weight, layout.fill)
        out_bias = _or_zeros(self.dense.out_bias, len(self.out_weight)) + _product(self.out_weight, folded)
        plan = self._plan(alive, layout, produced, bias, out_bias, folded)
        if not self._is_whole(plan):
            draft.attentions[self.name] = plan
            self._values(draft, plan, bias, out_bias)

    def _plan(
        self, alive: _Alive, layout: Layout, produced: Layout, bias: Tensor, out_bias: Tensor, folded: Tensor
    ) -> AttentionPlan:
        size = self.out_weight.shape[1]
        width = size // self.dense.heads
        heads = [h for h in self.dense.kept_heads if alive.heads[h * width]]
        biased, hidden, position_bias = self._network(heads)
        heads.sort(key=lambda head: head not in biased)
        dims = torch.cat([torch.arange(h * width, (h + 1) * width) for h in heads] or [torch.arange(0)])
        rows = [
            d + part * size for part in range(3) for d in dims[alive.rows.view(3, -1)[part, dims]].tolist()
        ]
        constants = dims[alive.constants[dims]].tolist()
        return AttentionPlan(
            outputs=len(self.out_weight), inputs=self.weight.shape[1], heads=self.dense.heads, width=width,
            kept_outputs=tuple(produced.order.tolist()), kept_inputs=tuple(layout.order.tolist()),
            kept_heads=tuple(heads), rows=tuple(rows), constants=tuple(constants),
            biased=len(biased), hidden=tuple(hidden),
            bias=self.dense.bias is not None or bool((bias[rows] != 0).any()),
            out_bias=self.dense.out_bias is not None or bool((out_bias[produced.order] != 0).any()),
            position_bias=position_bias is not None,
            folded=int((layout.fill != 0).sum()) + int((folded != 0).sum()),
        )  # fmt: skip

    def _network(self, heads: Sequence[int]) -> tuple[list[int], list[int], Tensor | None]:
        """Heads with a position bias that is not the same everywhere, hidden neurons that compute it, bias."""
        if self.dense.network is None:
            return [], [], None
        first, first_bias, last, last_bias = (
            None if t is None else t.detach().cpu().double() for t in self.dense.network
        )
        assert first is not None
        assert last is not None
        assert first_bias is not None
        fixed = (first == 0).all(1)
        biased = [head for head in heads if (last[head] != 0)[~fixed].any()]
        hidden = ~fixed & (last[biased] != 0).any(0)
        bias = _or_zeros(last_bias, len(last)) + last @ F.relu(first_bias).masked_fill(~fixed, 0)
        stored = last_bias is not None or bool((bias[biased] != 0).any())
        return biased, hidden.nonzero().flatten().tolist(), bias if stored else None

    def _values(self, draft: Draft, plan: AttentionPlan, bias: Tensor, out_bias: Tensor) -> None:
        if plan.bias:
            draft.values[f"{self.name}.{self.dense.names[0]}bias"] = bias[list(plan.rows)]
        if plan.constants:
            draft.values[f"{self.name}.constant"] = bias[list(plan.constants)]
        if plan.out_bias:
            draft.values[f"{self.name}.{self.dense.names[1]}bias"] = out_bias[list(plan.kept_outputs)]
        position_bias = self._network(plan.kept_heads)[2]
        if position_bias is not None:
            biased = list(plan.kept_heads[: plan.biased])
            draft.values[f"{self.name}.cpb_mlp.2.bias"] = position_bias[biased]

    def _is_whole(self, plan: AttentionPlan) -> bool:
        """Whether the module would stay as it is."""
        d, network = self.dense, self.dense.network
        return (
            (plan.kept_heads, plan.rows, plan.constants) == (d.kept_heads, d.rows, d.constants)
            and plan.kept_inputs == tuple(range(plan.inputs))
            and plan.kept_outputs == tuple(range(plan.outputs))
            and (network is None or len(plan.hidden) == len(network[0]))
        )


def _or_zeros(bias: Tensor | None, length: int) -> Tensor:
    return torch.zeros(length, dtype=torch.float64) if bias is None else bias.detach().cpu().double()


def _product(weight: Tensor, vector: Tensor) -> Tensor:
    """In float64, over the columns that matter: a layer can be large."""
    columns = vector.nonzero().flatten()
    return weight[:, columns].double() @ vector[columns]


def why_not(graph: Graph, node: fx.Node, module: nn.Module) -> str | None:
    """Why an attention has no rule; None if it may have one, as far as the module and its call tell."""
    name = str(node.target)
    inner = [f"{name}.{part}" for part, _ in module.named_modules() if part]
    if any(graph.is_shared(part) for part in (name, *inner)):
        return "called more than once, or its parameters are tied"
    if not is_plain(module):
        return "its weights are not plain parameters (a parametrisation, or a mask of torch.nn.utils.prune)"
    if is_window_attention(module) or (isinstance(module, Lean) and module.windowed):
        return None
    if isinstance(module, nn.MultiheadAttention):
        if not module._qkv_same_embed_dim:
            return "keys or values have another width than queries"
        if module.bias_k is not None or module.bias_v is not None or module.add_zero_attn:
            return "it appends keys and values of its own"
    if _query(node) is None:
        return "not self-attention of one batched tensor without a mask"
    if any(user.target is not operator.getitem or _used_beyond(user) for user in node.users):
        return "its attention weights are read"
    return None


def _used_beyond(user: fx.Node) -> bool:
    """Whether something other than the first result is taken and read."""
    return bool(user.args[1] != 0) and bool(user.users)


def _query(node: fx.Node) -> fx.Node | None:
    """The one tensor that is query, key and value of a call without masks."""
    given: dict[str, Any] = {**dict(zip(_ARGUMENTS, node.args, strict=False)), **node.kwargs}
    query = given.get("query")
    if not isinstance(query, fx.Node) or given.get("key") is not query or given.get("value") is not query:
        return None
    masked = given.get("key_padding_mask") is not None or given.get("attn_mask") is not None
    return None if masked or given.get("is_causal", False) else query


def rule(graph: Graph, node: fx.Node, axes: Axes) -> Rule | None:
    """The rule of an attention's call, or of the tensor picked from what the call returns; None for others."""
    module = graph.layer(node)
    if module is None:
        return _picked_rule(graph, node, axes)
    if not is_attention(module) or why_not(graph, node, module) is not None:
        return None
    if isinstance(module, (nn.MultiheadAttention, LeanMultiheadAttention)):
        return Absorbed(node, (), (), None) if _operand(_query(node), axes, 3) else None
    operand = _operand(argument(node, 0, "x"), axes, 4)
    if operand is None:
        return None
    return Attention(node, (operand,), (3,), 3, str(node.target), node, dense(module))


def _operand(operand: object, axes: Axes, rank: int) -> fx.Node | None:
    """The input, if it has as many axes, and its channels on the last one."""
    if not isinstance(operand, fx.Node) or len(shape_of(operand) or ()) != rank:
        return None
    return operand if axes.get(operand, rank - 1) == rank - 1 else None


def _picked_rule(graph: Graph, node: fx.Node, axes: Axes) -> Rule | None:
    call = node.args[0] if node.target is operator.getitem and node.args[1] == 0 else None
    module = graph.layer(call) if isinstance(call, fx.Node) else None
    if not isinstance(call, fx.Node) or module is None or rule(graph, call, axes) is None:
        return None
    if not isinstance(module, (nn.MultiheadAttention, LeanMultiheadAttention)):
        return None
    operand = _query(call)
    assert operand is not None
    return Attention(node, (operand,), (2,), 2, str(call.target), call, dense(module))
