"""Bit allocation: a quantisation parameter for each tensor, from tables of bytes and costs.

At quantisation parameter q, let a tensor have the cost `c(q)` (the error in the outputs caused by
its quantisation) and the size `r(q)` in bytes. To minimise the total size for a given total cost,
all tensors share one *price* λ (a Lagrange multiplier), and each takes the q that minimises
`c(q) + λ r(q)` (Shoham and Gersho, "Efficient bit allocation for an arbitrary set of quantizers",
IEEE Trans. ASSP, 1988). At high rate, `c = a Δ²` and a weight takes `-log2 Δ` bits plus a
constant, which gives reverse water-filling (Cover and Thomas, "Elements of Information Theory",
10.3.3): `a Δ² / n` is equal for all tensors, and changing the price shifts all parameters by the
same amount.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from snello.codec import QP_MAX, QP_MIN, CodecSettings, encode, step_size
from snello.errors import ConfigError

OCTAVE = 4
"""Quantisation parameters per doubling of the step size."""

OCTAVES = 11
"""Doublings of the step size among the candidates of a tensor."""

Table = Mapping[int, float]
"""Quantisation parameter -> cost, or bytes, of one tensor."""


@dataclass(frozen=True)
class Allocation:
    """Quantisation parameters of all tensors at a given price.

    Attributes:
        qp_of: tensor name -> quantisation parameter.
        bytes: estimate of the stream's bytes, without its header.
        cost: estimate of the cost: the sum over tensors, as if their errors did not interact.
    """

    qp_of: Mapping[str, int]
    bytes: float
    cost: float


def coarsest_qp(tensor: Tensor) -> int:
    """The smallest quantisation parameter at which every value of a tensor rounds to zero.

    Args:
        tensor: floating-point, not empty. For an all-zero tensor the result is `QP_MIN`.
    """
    largest = float(tensor.detach().abs().max())
    # A value rounds to zero below half a step: the step must exceed twice the largest magnitude.
    found = bisect_left(range(QP_MIN, QP_MAX + 1), 2 * largest * (1 + 1e-6), key=step_size)
    return min(QP_MIN + found, QP_MAX)


def candidate_qps(tensor: Tensor) -> range:
    """Candidates from fine to coarse: `OCTAVES` octaves up to the coarsest one."""
    top = coarsest_qp(tensor)
    return range(max(QP_MIN, top - OCTAVE * OCTAVES), top + 1)


def byte_table(tensor: Tensor, settings: CodecSettings, *, sample: int = 2**17) -> dict[int, float]:
    """Bytes of one tensor at every candidate parameter.

    The tensor is coded once per octave; sizes in between are interpolated.

    Args:
        tensor: floating-point, not empty.
        settings: codec settings; their quantisation parameters are ignored.
        sample: for a tensor with more elements than this, only evenly spaced rows are coded, and
            their bytes are scaled to the whole tensor.

    Raises:
        ConfigError: as [`snello.codec.encode`][].
        MissingExtraError: without nncodec.
    """
    qps = candidate_qps(tensor)
    rows, factor = _sampled(tensor, sample)
    coded = {qp: _coded_bytes(rows, qp, settings) * factor for qp in _grid(qps)}
    return {qp: _between(coded, qp) for qp in qps}


def curvature_costs(tensor: Tensor, curvature: Tensor, qps: Iterable[int]) -> dict[int, float]:
    """Second-order costs, from the variance Δ² / 12 of uniformly distributed rounding errors.

    Zero weights have no error. For steps that round most weights to zero, the estimate is too high,
    because the error of a weight cannot exceed the weight itself. This is intended: it compensates
    for the second-order approximation, which underestimates the loss of a whole layer.

    Args:
        tensor: floating-point, not empty.
        curvature: second derivative of the cost with respect to each weight, with the tensor's
            shape.
        qps: parameters to compute the costs at.

    Raises:
        ConfigError: if the shapes of tensor and curvature differ.
    """
    if curvature.shape != tensor.shape:
        raise ConfigError(
            f"curvature of shape {tuple(curvature.shape)} for a tensor of {tuple(tensor.shape)}"
        )
    total = float(curvature[(tensor != 0).to(curvature.device)].double().sum())
    # Half the curvature times the variance Δ² / 12.
    return {qp: total * step_size(qp) ** 2 / 24 for qp in qps}


def probed_costs(probes: Table, qps: Iterable[int]) -> dict[int, float]:
    """Costs at every parameter, interpolated from measurements.

    Interpolation is geometric; extrapolation is proportional to Δ². A measured cost below that of a
    finer step is noise and is raised to the latter.

    Args:
        probes: parameter -> measured cost, not negative; at least one.
        qps: parameters to compute the costs at.

    Raises:
        ConfigError: without a measured cost.
    """
    if not probes:
        raise ConfigError("probed_costs: there is no measured cost; measure at least one parameter")
    rising: dict[int, float] = {}
    for qp in sorted(probes):
        rising[qp] = max([probes[qp], _TINY, *rising.values()])
    return {qp: _cost_at(rising, qp) for qp in qps}


def allocate(
    byte_tables: Mapping[str, Table], cost_tables: Mapping[str, Table], price: float
) -> Allocation:
    """Choose for each tensor the parameter that minimises `cost + price * bytes`.

    Ties go to the coarser parameter.

    Args:
        byte_tables: tensor name -> bytes at each parameter.
        cost_tables: the same names and parameters -> cost.
        price: cost per byte, above 0. A higher price gives fewer bytes.

    Raises:
        ConfigError: if the tables differ in names or parameters, or the price is not above 0.
    """
    if not price > 0:
        raise ConfigError(f"allocate: price={price!r} must be above 0")
    qp_of = {}
    for name, sizes in byte_tables.items():
        costs = cost_tables.get(name, {})
        if not sizes or sizes.keys() != costs.keys():
            raise ConfigError(
                f"allocate: bytes and costs of tensor {name!r} have different parameters"
            )
        qp_of[name] = min(sizes, key=lambda qp: (costs[qp] + price * sizes[qp], -qp))
    total = sum(byte_tables[name][qp] for name, qp in qp_of.items())
    return Allocation(qp_of, total, sum(cost_tables[name][qp] for name, qp in qp_of.items()))


_TINY = 1e-30  # stands for a cost of zero: geometric interpolation needs positive values


def _coded_bytes(tensor: Tensor, qp: int, settings: CodecSettings) -> int:
    return len(encode({"": tensor}, replace(settings, qp_of={"": qp})))


def _sampled(tensor: Tensor, limit: int) -> tuple[Tensor, float]:
    """Evenly spaced rows with about `limit` elements, and the ratio of the whole to them."""
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
