"""Damaged and hostile containers: a sample of what benchmarks/damaged_containers.py does by the
thousand.
"""

from __future__ import annotations

import importlib.util
import random
import sys
from pathlib import Path
from types import ModuleType

import pytest

from snello.codec import Limits, decompress

pytest.importorskip("nncodec", reason="the extra nnc is not installed")
if "memory_bytes" not in Limits.enforced():
    pytest.skip("memory is limited and measured on Linux only", allow_module_level=True)


@pytest.fixture(scope="module")
def damage() -> ModuleType:
    path = Path(__file__).parents[1] / "benchmarks" / "damaged_containers.py"
    spec = importlib.util.spec_from_file_location("damaged_containers", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["damaged_containers"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_damage_ends_in_an_error_or_in_what_is_declared(damage: ModuleType) -> None:
    tallies = damage.run(150, seed=1)
    assert tallies.keys() == damage.KINDS.keys()
    for name, tally in tallies.items():
        assert tally.count > 0, name
        assert not tally.violations, f"{name}: {tally.violations}"
        assert tally.errors + tally.decoded == tally.count, name
        if damage.KINDS[name].ends == damage.ERROR:
            assert tally.decoded == 0, name


def test_the_samples_are_whole(damage: ModuleType) -> None:
    """Lest everything above is an error because the samples are."""
    for data in damage._SAMPLES:
        assert decompress(data, damage.LIMITS).tensors
        parts = damage.Parts.of(data)
        assert parts.joined() == data
        resigned = damage.resigned(parts.content(), parts.stream)
        assert decompress(resigned, damage.LIMITS).record == decompress(data, damage.LIMITS).record
        assert b"".join(damage.units_of(parts.stream)) == parts.stream


def test_the_same_seed_gives_the_same_damage(damage: ModuleType) -> None:
    data = damage._SAMPLES[0]
    for name, kind in damage.KINDS.items():
        if name not in (
            "re-signed: manifest bomb",
            "re-signed: many claimed tensors",
        ):  # slow to make
            one, two = (kind.damage(random.Random(name), data) for _ in range(2))
            assert one == two, name
