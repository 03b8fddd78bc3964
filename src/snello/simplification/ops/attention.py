r"""Self-attention: the rows and columns of its projections that the output depends on.

With weights $A = \mathrm{softmax}(QK^\top/\sqrt d)$, head by head, and output $AVP^\top
+ b$:

- a constant dimension of V is unchanged by A, whose rows sum to one: it becomes a bias;
- a constant dimension of K adds the same number to the scores of all keys, which softmax ignores:
  it is removed, with the same dimension of Q;
- if a dimension of Q is zero, it is removed with the same dimension of K; if it is another
  constant, only that constant is stored;
- a head without values is removed.

If queries and keys are normalised (cosine similarity), every dimension also contributes to the norm
of its vector. It is removed only if it is zero; if Q and K have no dimension in common, the scores
of the head are all zero.

The attention of a library is registered in `attention_weights`.
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
from snello.simplification.ir.channels import Layout, Signal
from snello.simplification.ir.plan import AttentionPlan

from .attention_weights import AttentionWeights, attention_weights
from .call import Call
from .layers import Producer
from .operation import Absorbed, Lowered, Operation, Placement, Wanted, adapter
from .registry import is_plain, rule_for


@dataclass(frozen=True)
class _Alive:
    """Dimensions of all heads that are kept: each boolean, shape (heads * width,).

    Attributes:
        queries, keys, values: rows of the packed projection that are computed.
        constants: queries whose value is a constant other than zero.
        heads: all dimensions of the heads that have values.
    """

    queries: Tensor
    keys: Tensor
    values: Tensor
    constants: Tensor
    heads: Tensor

    @property
    def rows(self) -> Tensor:
        """Rows of the packed projection: boolean, shape (3 * heads * width,)."""
        return torch.cat([self.queries, self.keys, self.values])


@dataclass(frozen=True)
class _Folding:
    """Biases with constants folded in, in float64, for all rows of the original.

    Attributes:
        bias: bias of the packed projection, shape (3 * heads * width,).
        out_bias: bias of the output projection, shape (outputs,).
        values: constant dimensions of V that were folded into `out_bias`, shape (heads * width,).
    """

    bias: Tensor
    out_bias: Tensor
    values: Tensor


@dataclass(frozen=True, eq=False)
class Attention(Producer):
    """Self-attention.

    Attributes:
        call: the node that calls the module; `node` is the tensor among its results.
        weights: the module's parameters.
    """

    call: fx.Node
    weights: AttentionWeights

    @cached_property
    def weight(self) -> Tensor:
        """Weight of the packed projection, on the CPU."""
        return self.weights.weight.detach().cpu()

    @cached_property
    def out_weight(self) -> Tensor:
        """Weight of the output projection, on the CPU."""
        return self.weights.out_weight.detach().cpu()

    @cached_property
    def bias(self) -> Tensor:
        """Bias of the packed projection, float64: shape (3 * heads * width,)."""
        size = self.out_weight.shape[1]
        bias = _or_zeros(self.weights.bias, 3 * size)
        keys = torch.arange(size, 2 * size)
        return bias.index_fill(0, keys, 0) if self.weights.cosine else bias

    def _projected(self, signal: Signal) -> Signal:
        """Constants among the rows of the packed projection, for constants of the input."""
        varying = ~signal.constant
        if self.weights.windowed:  # tokens are padded with zeros
            varying = varying | (signal.value != 0)
        constant = ~((self.weight != 0) & varying).any(1)
        value = self.bias + _product(self.weight, signal.value.masked_fill(varying, 0))
        return Signal.of(constant, value)

    def _by_head(self, dimensions: Tensor) -> Tensor:
        """True where any dimension of the same head is in the mask: shape (heads * width,)."""
        any_ = dimensions.view(self.weights.heads, -1).any(1)
        return any_.repeat_interleave(len(dimensions) // self.weights.heads)

    def _alive(self, needed: Tensor, projected: Signal) -> _Alive:
        """The dimensions on which the needed outputs depend, by the rules of the module docstring.

        Args:
            needed: outputs, boolean, shape (outputs,).
            projected: constants of the packed projection.
        """
        fixed_query, fixed_key, fixed_value = projected.constant.chunk(3)
        zero_query, zero_key, _ = projected.zero.chunk(3)
        values = ~fixed_value & (self.out_weight[needed] != 0).any(0)
        heads = self._by_head(values)
        if self.weights.cosine:
            queries, keys = heads & ~zero_query, heads & ~zero_key
            scored = self._by_head(queries & keys)
            queries, keys = queries & scored, keys & scored
        else:
            queries = keys = heads & ~fixed_key & ~zero_query
        return _Alive(queries & ~fixed_query, keys, values, queries & fixed_query, heads)

    def propagate(self, *signals: Signal) -> Signal:
        value = self._projected(signals[0])
        size = self.out_weight.shape[1]
        varying = (self.out_weight != 0) & ~value.constant[2 * size :]
        bias = _or_zeros(self.weights.out_bias, len(self.out_weight))
        return Signal.of(~varying.any(1), bias + _product(self.out_weight, value.value[2 * size :]))

    def live_inputs(self, useful: Tensor, signal: Signal, *signals: Signal) -> list[Tensor]:
        return [self._read(self._alive(useful & ~signal.constant, self._projected(signals[0])))]

    def _read(self, alive: _Alive) -> Tensor:
        return (self.weight[alive.rows] != 0).any(0)

    def arrange(
        self, signal: Signal, useful: Tensor, *received: Layout, forced: Tensor | None = None
    ) -> Wanted:
        (layout,) = received
        produced = self.produced(signal, useful, forced)
        if produced.is_empty:
            return [layout], produced
        if self.weights.windowed:
            read = self._read(self._alive(produced.present, self._projected(layout.absence)))
            layout = layout.extended(read & (layout.absent != 0))
        if layout.is_empty:
            layout = layout.arranged(torch.zeros(1, dtype=torch.long))
        return [layout], produced

    def lower(self, placement: Placement) -> Lowered:
        (layout,), (has,) = placement.wanted, placement.received
        differs = not torch.equal(layout.order, has.order) and not layout.is_empty
        edits = (
            (adapter(self.operands[0], self.call, self.axes[0], has, layout),) if differs else ()
        )
        projected = self._projected(layout.absence)
        alive = self._alive(placement.produced.present, projected)
        size = self.out_weight.shape[1]
        values = projected.value[2 * size :].masked_fill(alive.values, 0)
        out_bias = _or_zeros(self.weights.out_bias, len(self.out_weight))
        folding = _Folding(
            bias=self.bias + _product(self.weight, layout.absent),
            out_bias=out_bias + _product(self.out_weight, values), values=values,
        )  # fmt: skip
        plan = self._plan(alive, layout, placement.produced, folding)
        if self._is_whole(plan):
            return Lowered(edits=edits)
        return Lowered(
            attentions={self.name: plan}, values=self._values(plan, folding), edits=edits
        )

    def _plan(
        self, alive: _Alive, layout: Layout, produced: Layout, folding: _Folding
    ) -> AttentionPlan:
        size = self.out_weight.shape[1]
        width = size // self.weights.heads
        heads = [h for h in self.weights.kept_heads if alive.heads[h * width]]
        biased, hidden, position_bias = self._network(heads)
        heads.sort(key=lambda head: head not in biased)
        dims = torch.cat(
            [torch.arange(h * width, (h + 1) * width) for h in heads] or [torch.arange(0)]
        )
        by_part = alive.rows.view(3, -1)
        rows = [d + part * size for part in range(3) for d in dims[by_part[part, dims]].tolist()]
        constants = dims[alive.constants[dims]].tolist()
        bias, out_bias = folding.bias[rows], folding.out_bias[produced.order]
        return AttentionPlan(
            outputs=len(self.out_weight), inputs=self.weight.shape[1], heads=self.weights.heads, width=width,
            kept_outputs=tuple(produced.order.tolist()), kept_inputs=tuple(layout.order.tolist()),
            kept_heads=tuple(heads), rows=tuple(rows), constants=tuple(constants),
            biased=len(biased), hidden=tuple(hidden),
            bias=self.weights.bias is not None or bool((bias != 0).any()),
            out_bias=self.weights.out_bias is not None or bool((out_bias != 0).any()),
            position_bias=position_bias is not None,
            folded=int((layout.absent != 0).sum()) + int((folding.values != 0).sum()),
        )  # fmt: skip

    def _network(self, heads: Sequence[int]) -> tuple[list[int], list[int], Tensor | None]:
        """The part of the network of the position bias that the given heads need.

        Returns:
            The heads whose position bias is not constant, the hidden neurons that compute it, and
            the bias of the last layer with constant hidden neurons folded in, or None.
        """
        if self.weights.network is None:
            return [], [], None
        first, first_bias, last, last_bias = (
            None if t is None else t.detach().cpu().double() for t in self.weights.network
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

    def _values(self, plan: AttentionPlan, folding: _Folding) -> dict[str, Tensor]:
        packed, out = self.weights.names
        values = {}
        if plan.bias:
            values[f"{packed}bias"] = folding.bias[list(plan.rows)]
        if plan.constants:
            values["constant"] = folding.bias[list(plan.constants)]
        if plan.out_bias:
            values[f"{out}bias"] = folding.out_bias[list(plan.kept_outputs)]
        position_bias = self._network(plan.kept_heads)[2]
        if position_bias is not None:
            values["cpb_mlp.2.bias"] = position_bias[list(plan.kept_heads[: plan.biased])]
        return {f"{self.name}.{name}": value for name, value in values.items()}

    def _is_whole(self, plan: AttentionPlan) -> bool:
        """True if the plan changes nothing in the module."""
        own, network = self.weights, self.weights.network
        return (
            (plan.kept_heads, plan.rows, plan.constants)
            == (own.kept_heads, own.rows, own.constants)
            and plan.kept_inputs == tuple(range(plan.inputs))
            and plan.kept_outputs == tuple(range(plan.outputs))
            and (network is None or len(plan.hidden) == len(network[0]))
        )


def _or_zeros(bias: Tensor | None, length: int) -> Tensor:
    return (
        torch.zeros(length, dtype=torch.float64) if bias is None else bias.detach().cpu().double()
    )


def _product(weight: Tensor, vector: Tensor) -> Tensor:
    """Product in float64. Only columns with a nonzero factor are converted, to save memory."""
    columns = vector.nonzero().flatten()
    return weight[:, columns].double() @ vector[columns]


def why_not(graph: Graph, node: fx.Node, module: nn.Module) -> str | None:
    """Reason why an attention has no rule; None if module and call do not exclude one."""
    name = str(node.target)
    inner = [f"{name}.{part}" for part, _ in module.named_modules() if part]
    if any(graph.is_shared(part) for part in (name, *inner)):
        return "called more than once, or its parameters are tied"
    if not is_plain(module):
        return "its weights are not plain parameters (a parametrisation, or a mask of torch.nn.utils.prune)"
    if isinstance(module, nn.MultiheadAttention):
        if not module._qkv_same_embed_dim:
            return "keys or values have another width than queries"
        if module.bias_k is not None or module.bias_v is not None or module.add_zero_attn:
            return "it appends keys and values of its own"
    if (weights := attention_weights(module)) is not None and weights.windowed:
        return None
    if _query(node) is None:
        return "not self-attention of one batched tensor, with one mask for all heads"
    if any(user.target is not operator.getitem or _used_beyond(user) for user in node.users):
        return "its attention weights are read"
    return None


def _used_beyond(user: fx.Node) -> bool:
    """True if a result of attention other than the first is read."""
    return bool(user.args[1] != 0) and bool(user.users)


_ARGUMENTS = (
    "query", "key", "value", "key_padding_mask", "need_weights", "attn_mask", "average_attn_weights",
    "is_causal",
)  # fmt: skip


def _query(node: fx.Node) -> fx.Node | None:
    """The one tensor that is query, key and value of a call, with one mask for all heads at most."""
    given: dict[str, Any] = {**dict(zip(_ARGUMENTS, node.args, strict=False)), **node.kwargs}
    query = given.get("query")
    if (
        not isinstance(query, fx.Node)
        or given.get("key") is not query
        or given.get("value") is not query
    ):
        return None
    mask = given.get("attn_mask")
    by_head = isinstance(mask, fx.Node) and len(shape_of(mask) or ()) != 2
    return None if by_head else query


@rule_for(nn.Module)  # for the base of all modules, so that every other rule is tried before
def attention(call: Call) -> Operation | None:
    """Calls of self-attention.

    Attention in windows returns a tensor and is the operation. Other attention returns a tuple: the
    call is absorbed, and the operation is the `getitem` of the first result.
    """
    module = call.module
    weights = None if module is None else attention_weights(module)
    if module is None or weights is None or why_not(call.graph, call.node, module) is not None:
        return None
    if not weights.windowed:
        return Absorbed.of(call.node) if _operand(call, _query(call.node), 3) is not None else None
    operand = _operand(call, call.argument(0, "x"), 4)
    if operand is None:
        return None
    return Attention(call.node, (operand,), (3,), 3, call.name, call.node, weights)


@rule_for(operator.getitem)
def attention_result(call: Call) -> Operation | None:
    """The tensor among the results of self-attention."""
    source = call.node.args[0] if call.node.args[1] == 0 else None
    module = call.graph.layer(source) if isinstance(source, fx.Node) else None
    if not isinstance(source, fx.Node) or module is None:
        return None
    if not isinstance(attention(call.at(source)), Absorbed):
        return None
    weights, operand = attention_weights(module), _query(source)
    assert weights is not None
    assert operand is not None
    return Attention(call.node, (operand,), (2,), 2, str(source.target), source, weights)


def _operand(call: Call, operand: object, rank: int) -> fx.Node | None:
    """The input of attention, if it has this number of axes, with channels on the last one."""
    if not isinstance(operand, fx.Node) or len(shape_of(operand) or ()) != rank:
        return None
    return operand if call.axes.get(operand, rank - 1) == rank - 1 else None
