"""One quantisation parameter per tensor: where the next bit buys most. Arithmetic on tables; no
network is run.

Let a tensor cost ``c(q)`` (what its quantisation does to the outputs) and take ``r(q)`` bytes at
quantisation parameter q. The smallest sum of bytes at a given sum of costs has one *price* λ for
all tensors: each takes the q that minimises ``c(q) + λ r(q)`` (Shoham and Gersho, "Efficient bit
allocation for an arbitrary set of quantizers", IEEE Trans. ASSP, 1988). At high rate, ``c = a Δ²``
and a weight takes ``-log2 Δ`` bits, so that this is reverse water-filling (Cover and Thomas,
"Elements of Information Theory", 10.3.3): ``a Δ² / n`` is the same everywhere, and a change of the
price moves all the parameters by the same amount.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from snello.codec._settings import QP_MAX, QP_MIN, CodecSettings, step_size
from snello.codec._stream import encode
from snello.errors import ConfigError

OCTAVE = 4
"""Quantisation parameters per doubling of the step size."""

Table = Mapping[int, float]
"""Quantisation parameter -> cost, or bytes, of one tensor."""


@dataclass(frozen=True)
class Allocation:
    """Which quantisation parameter each tensor takes at one price.

    Attributes:
        qp_of: tensor name -> quantisation parameter.
        bytes: estimate of the stream's bytes, without its header.
        cost: estimate of the costs, summed as if the tensors did not know of each other.
    """

    qp_of: Mapping[str, int]
    bytes: float
    cost: float


def coarsest_qp(tensor: Tensor) -> int:
    """The least quantisation parameter at which every value of a tensor rounds to zero.

    Args:
        tensor: floating, not empty. One of zeros only gets the least parameter there is.
    """
    largest = float(tensor.detach().abs().max())
    # Just above half a step rounds to one step: twice the value is the first step that swallows it.
    found = bisect_left(range(QP_MIN, QP_MAX + 1), 2 * largest * (1 + 1e-6), key=step_size)
    return min(QP_MIN + found, QP_MAX)


def candidate_qps(tensor: Tensor, octaves: int) -> range:
    """Quantisation parameters worth considering, from fine to coarse: a number of octaves below the
    coarsest.
    """
    top = coarsest_qp(tensor)
    return range(max(QP_MIN, top - OCTAVE * octaves), top + 1)


def byte_table(
    tensor: Tensor, settings: CodecSettings, *, octaves: int = 11, sample: int = 2**17
) -> dict[int, float]:
    """Bytes of one tensor at every candidate parameter: coded once per octave, interpolated in
    between.

    Args:
        tensor: floating, not empty.
        settings: the tools of the coder; their quantisation parameters do not matter.
        octaves: as for :func:`candidate_qps`.
        sample: of a tensor with more elements than this, evenly spaced rows are coded and scaled
            up.

    Raises:
        ConfigError: as :func:`snello.codec.encode`.
        MissingExtraError: without nncodec.
    """
    qps = candidate_qps(tensor, octaves)
    rows, factor = _sampled(tensor, sample)
    coded = {qp: _coded_bytes(rows, qp, settings) * factor for qp in _grid(qps)}
    return {qp: _between(coded, qp) for qp in qps}


def curvature_costs(tensor: Tensor, curvature: Tensor, qps: Iterable[int]) -> dict[int, float]:
    """Costs to second order: rounding errors spread evenly over a step have the variance Δ² / 12,
    zeros have none.

    That overrates steps that swallow most weights, whose errors cannot exceed the weights. It is
    meant to: to second order, the loss of a whole layer looks cheap.

    Args:
        tensor: floating, not empty.
        curvature: second derivative of the cost with respect to each weight on its own; the
        tensor's shape. qps: where the costs are wanted.

    Raises:
        ConfigError: for a curvature of another shape.
    """
    if curvature.shape != tensor.shape:
        raise ConfigError(
            f"curvature of shape {tuple(curvature.shape)} for a tensor of {tuple(tensor.shape)}"
        )
    total = float(curvature[(tensor != 0).to(curvature.device)].double().sum())
    return {qp: total * step_size(qp) ** 2 / 24 for qp in qps}


def probed_costs(probes: Table, qps: Iterable[int]) -> dict[int, float]:
    """Costs at every parameter from some that were measured: Δ² beyond them, geometric in between.

    A measured cost below that of a finer step is noise: the costs are first made to rise with the
        step.

    Args:
        probes: parameter -> measured cost, none negative; at least one.
        qps: where the costs are wanted.

    Raises:
        ConfigError: without a probe.
    """
    if not probes:
        raise ConfigError(
            "probed_costs: there is no measured cost to go by; probe at least one parameter"
        )
    rising: dict[int, float] = {}
    for qp in sorted(probes):
        rising[qp] = max([probes[qp], _TINY, *rising.values()])
    return {qp: _cost_at(rising, qp) for qp in qps}


def allocate(
    byte_tables: Mapping[str, Table], cost_tables: Mapping[str, Table], price: float
) -> Allocation:
    """The parameter of each tensor that minimises ``cost + price * bytes``. The coarser one wins a
    tie.

    Args:
        byte_tables: tensor name -> bytes at each parameter.
        cost_tables: the same names and parameters -> cost.
        price: what a byte may save in cost, above 0. A higher one gives fewer bytes.

    Raises:
        ConfigError: for tables that do not belong together, or a price that is not above 0.
    """
    if not price > 0:
        raise ConfigError(f"allocate: price={price!r} must be above 0")
    qp_of = {}
    for name, sizes in byte_tables.items():
        costs = cost_tables.get(name, {})
        if not sizes or sizes.keys() != costs.keys():
            raise ConfigError(
                f"allocate: bytes and costs of tensor {name!r} are not of the same parameters"
            )
        qp_of[name] = min(sizes, key=lambda qp: (costs[qp] + price * sizes[qp], -qp))
    total = sum(byte_tables[name][qp] for name, qp in qp_of.items())
    return Allocation(qp_of, total, sum(cost_tables[name][qp] for name, qp in qp_of.items()))


_TINY = 1e-30  # a cost of nothing at all: geometric interpolation needs something above zero


def _coded_bytes(tensor: Tensor, qp: int, settings: CodecSettings) -> int:
    return len(encode({"": tensor}, replace(settings, qp_of={"": qp})))


def _sampled(tensor: Tensor, limit: int) -> tuple[Tensor, float]:
    """Evenly spaced rows with about ``limit`` elements, and how many times more there are."""
    if tensor.numel() <= limit or tensor.dim() < 2:
        return tensor, 1.0
    count = max(1, tensor.shape[0] * limit // tensor.numel())
    chosen = torch.arange(count, device=tensor.device) * tensor.shape[0] // count
    return tensor[chosen], tensor.shape[0] / count


def _grid(qps: range) -> list[int]:
    return sorted({*qps[::OCTAVE], qps[-1]})


def _between(values: Table, qp: int) -> float:
    """Linear interpolation."""
    if qp in values:
        return values[qp]
    low, high = max(q for q in values if q < qp), min(q for q in values if q > qp)
    share = (qp - low) / (high - low)
    return values[low] * (1 - share) + values[high] * share


def _cost_at(rising: Table, qp: int) -> float:
    below, above = [q for q in rising if q <= qp], [q for q in rising if q >= qp]
    if not below or not above:
        nearest = max(below) if below else min(above)
        return rising[nearest] * (step_size(qp) / step_size(nearest)) ** 2
    low, high = max(below), min(above)
    share = (qp - low) / (high - low) if high > low else 0.0
    return float(rising[low] ** (1 - share) * rising[high] ** share)
