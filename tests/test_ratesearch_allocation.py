"""Bytes where they matter: the arithmetic of allocation."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seams.search import (
    OCTAVE,
    allocate,
    byte_table,
    candidate_qps,
    coarsest_qp,
    curvature_costs,
    probed_costs,
)
from snello.codec import QP_MIN, CodecSettings, encode, quantised, step_size
from snello.errors import ConfigError

QUICK = settings(max_examples=25, deadline=None)
UNIFORM = CodecSettings(dependent_quantisation=False)

numbers = st.floats(0.01, 100, allow_nan=False)
tables = st.integers(1, 4).flatmap(
    lambda n: st.dictionaries(
        st.sampled_from("abc"),
        st.tuples(
            st.lists(numbers, min_size=n, max_size=n), st.lists(numbers, min_size=n, max_size=n)
        ),
        min_size=1,
    )
)


@QUICK
@given(tables, st.floats(1e-3, 1e3))
def test_no_allocation_of_as_few_bytes_costs_less(
    both: dict[str, tuple[list[float], list[float]]], price: float
) -> None:
    """The law that makes one price for all right: what it finds is a corner of the achievable
    set.
    """
    sizes = {name: dict(enumerate(sorted(pair[0], reverse=True))) for name, pair in both.items()}
    costs = {name: dict(enumerate(sorted(pair[1]))) for name, pair in both.items()}
    found = allocate(sizes, costs, price)
    for other in itertools.product(*(sizes[name] for name in sizes)):
        chosen = dict(zip(sizes, other, strict=True))
        size = math.fsum(sizes[name][qp] for name, qp in chosen.items())
        cost = math.fsum(costs[name][qp] for name, qp in chosen.items())
        assert size > found.bytes - 1e-9 or cost >= found.cost - 1e-9 * (1 + price * size)
    assert found.bytes == pytest.approx(sum(sizes[name][qp] for name, qp in found.qp_of.items()))


@QUICK
@given(tables, st.floats(1e-3, 1e3), st.floats(1, 1e3))
def test_a_higher_price_never_takes_more_bytes(
    both: dict[str, tuple[list[float], list[float]]], price: float, factor: float
) -> None:
    sizes = {name: dict(enumerate(pair[0])) for name, pair in both.items()}
    costs = {name: dict(enumerate(pair[1])) for name, pair in both.items()}
    assert (
        allocate(sizes, costs, price * factor).bytes <= allocate(sizes, costs, price).bytes + 1e-9
    )


def test_high_rate_allocation_is_reverse_water_filling() -> None:
    """With costs a Δ² and bits -n log2 Δ, a Δ² / n is the same everywhere, up to the integers."""
    slopes, counts, qps = (
        {"a": 1.0, "b": 50.0, "c": 1e-4},
        {"a": 100, "b": 700, "c": 40},
        range(-120, 100),
    )
    sizes = {name: {qp: n * (20 - qp / OCTAVE) / 8 for qp in qps} for name, n in counts.items()}
    costs = {name: {qp: a * step_size(qp) ** 2 for qp in qps} for name, a in slopes.items()}
    for price in (1e-6, 1e-4):
        found = allocate(sizes, costs, price).qp_of
        level = [slopes[n] * step_size(qp) ** 2 / counts[n] for n, qp in found.items()]
        assert max(level) / min(level) < 2  # one parameter more is a factor of 1.4
    moved = allocate(sizes, costs, 1e-6 * 2 ** (2 * 3)).qp_of
    assert moved == {
        name: qp + 3 * OCTAVE for name, qp in allocate(sizes, costs, 1e-6).qp_of.items()
    }


@QUICK
@given(st.integers(0, 2**31), st.integers(-6, 6))
def test_coarsest_parameter_is_the_first_that_leaves_nothing(seed: int, exponent: int) -> None:
    tensor = torch.randn(4, 5, generator=torch.Generator().manual_seed(seed)) * 10.0**exponent
    top = coarsest_qp(tensor)
    for qp, empty in ((top, True), (top - 1, False)):
        options = CodecSettings(dependent_quantisation=False, qp_of={"t": qp})
        assert (not quantised({"t": tensor}, options)["t"].any()) == empty


def test_zeros_have_one_candidate() -> None:
    assert list(candidate_qps(torch.zeros(3))) == [QP_MIN]


@pytest.mark.parametrize("dependent", [True, False])
def test_byte_table_is_what_the_coder_writes(dependent: bool) -> None:
    pytest.importorskip("nncodec")
    options = CodecSettings(dependent_quantisation=dependent)
    tensor = torch.randn(100, 60, generator=torch.Generator().manual_seed(0))
    table = byte_table(tensor, options)
    assert list(table) == list(candidate_qps(tensor))
    for qp in (min(table), max(table), max(table) - 9):
        coded = CodecSettings(dependent_quantisation=dependent, qp_of={"": qp})
        assert table[qp] == pytest.approx(len(encode({"": tensor}, coded)), rel=0.1, abs=30)
    part = byte_table(tensor, options, sample=3000)
    assert part.keys() == table.keys()
    assert all(part[qp] == pytest.approx(table[qp], rel=0.15, abs=150) for qp in table)


def test_curvature_costs_are_half_the_weighted_squared_error() -> None:
    """Of fine uniform rounding, in the mean; and zeros cost nothing."""
    generator = torch.Generator().manual_seed(0)
    tensor, curvature = (
        torch.randn(60, 70, generator=generator),
        torch.rand(60, 70, generator=generator).double(),
    )
    tensor[:20] = 0
    for qp in (-24, -16, -9):
        options = CodecSettings(dependent_quantisation=False, qp_of={"t": qp})
        error = quantised({"t": tensor}, options)["t"].double() - tensor.double()
        expected = float((error.square() * curvature).sum()) / 2
        assert curvature_costs(tensor, curvature, [qp])[qp] == pytest.approx(expected, rel=0.05)


def test_probed_costs_pass_through_the_probes_and_never_fall() -> None:
    table = probed_costs({-20: 1e-3, -12: 1e-4, -8: 1e-1}, range(-28, 0))
    assert table[-20] == pytest.approx(1e-3)
    assert table[-12] == pytest.approx(1e-3)  # a finer step that cost more: noise
    assert table[-8] == pytest.approx(1e-1)
    assert table[-4] == pytest.approx(4e-1)  # twice the step, four times the cost
    assert table[-24] == pytest.approx(1e-3 / 4)
    assert all(table[qp] <= table[qp + 1] * (1 + 1e-12) for qp in range(-28, -1))
    assert 1e-3 < table[-10] < 1e-1


def test_errors_name_what_is_wrong() -> None:
    with pytest.raises(ConfigError, match="price=0"):
        allocate({}, {}, 0)
    with pytest.raises(ConfigError, match="'a'"):
        allocate({"a": {1: 2.0}}, {"a": {2: 2.0}}, 1.0)
    with pytest.raises(ConfigError, match="measure at least one"):
        probed_costs({}, [0])
    with pytest.raises(ConfigError, match=r"\(2,\).*\(3,\)"):
        curvature_costs(torch.zeros(3), torch.zeros(2), [0])
