"""Damaged and hostile containers end in an error, or in the tensors that they declare, within the
limits of time and memory. Ten thousand files behind the marker ``exhaustive``.
"""

from __future__ import annotations

import random

import pytest

pytest.importorskip("nncodec", reason="the extra nnc is not installed")

import damaged_containers as damage
from snello.codec import Limits, decompress

if "memory_bytes" not in Limits.enforced():
    pytest.skip("memory is limited and measured on Linux only", allow_module_level=True)

SEEDS = [
    pytest.param(0, 60),
    *(pytest.param(s, 500, marks=pytest.mark.exhaustive) for s in range(1, 21)),
]


@pytest.mark.parametrize(("seed", "count"), SEEDS)
def test_damage_ends_in_an_error_or_in_what_is_declared(seed: int, count: int) -> None:
    tallies = damage.run(count, seed=seed)
    assert tallies.keys() == damage.KINDS.keys()
    for name, tally in tallies.items():
        assert tally.count > 0, name
        assert not tally.violations, f"{name}: {tally.violations}"
        assert tally.errors + tally.decoded == tally.count, name
        if damage.KINDS[name].ends == damage.ERROR:
            assert tally.decoded == 0, name


def test_samples_are_whole() -> None:
    """Lest everything above is an error because the samples are."""
    for data in damage._SAMPLES:
        assert decompress(data, damage.LIMITS).tensors
        parts = damage.Parts.of(data)
        assert parts.joined() == data
        resigned = damage.resigned(parts.content(), parts.stream)
        assert decompress(resigned, damage.LIMITS).record == decompress(data, damage.LIMITS).record
        assert b"".join(damage.units_of(parts.stream)) == parts.stream


SLOW_TO_MAKE = ("re-signed: manifest bomb", "re-signed: many claimed tensors")


@pytest.mark.parametrize("name", sorted(damage.KINDS.keys() - set(SLOW_TO_MAKE)))
def test_the_same_seed_gives_the_same_damage(name: str) -> None:
    kind = damage.KINDS[name]
    one, two = (kind.damage(random.Random(name), damage._SAMPLES[0]) for _ in range(2))
    assert one == two
