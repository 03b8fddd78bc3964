"""A journey codes a network once: resumed, it keeps the bitstream of the same weights and bound."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("lightning", reason="the extra train is not installed")
pytest.importorskip("jsonargparse", reason="the extra train is not installed")
pytest.importorskip("nncodec", reason="the extra nnc is not installed")

from seams.training import coded
from snello.lab.datasets import Splits
from snello.lab.recipes import Recipe
from snello.lab.training import load_data, load_recipe
from snello.store import ModelSpec, Record, build, load, save

SPEC = ModelSpec("lenet-300-100", {"in_features": 64})
RECORD = Record(SPEC, (1, 8, 8))


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    found = load_recipe("digits")
    return replace(found, ship=replace(found.ship, qp=-20))


def test_bitstream_is_kept_until_weights_bound_or_file_change(
    recipe: Recipe, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model, splits = build(SPEC).eval(), load_data(recipe)
    save(tmp_path / "model.pt", model, RECORD)

    def code(recipe: Recipe) -> tuple[bytes, int]:
        path = coded(recipe, tmp_path, model, RECORD, splits)
        return path.read_bytes(), path.stat().st_mtime_ns

    first = code(recipe)
    assert code(recipe) == first, "coded again, though nothing had changed"

    finer = code(replace(recipe, ship=replace(recipe.ship, qp=-40)))
    assert len(finer[0]) > len(first[0])
    assert code(recipe)[0] == first[0]

    (tmp_path / "model.snello").write_bytes(first[0][:-1])
    assert code(recipe)[0] == first[0], "a damaged bitstream is coded again"

    (tmp_path / "coding.json").write_text("{")
    assert code(recipe)[0] == first[0]

    with torch.no_grad():
        next(model.parameters()).mul_(-1)
    save(tmp_path / "model.pt", model, RECORD)
    coded(recipe, tmp_path, model, RECORD, splits)
    decoded, _ = load(tmp_path / "model.snello")
    weight = next(iter(model.state_dict()))
    error = decoded.state_dict()[weight] - model.state_dict()[weight]
    assert error.abs().max() < model.state_dict()[weight].abs().max()


def test_search_is_not_repeated(recipe: Recipe, tmp_path: Path) -> None:
    """With a bound, a second call reads no image: it gets splits without any."""
    torch.manual_seed(0)
    model, splits = build(SPEC).eval(), load_data(recipe)
    save(tmp_path / "model.pt", model, RECORD)
    bound = replace(recipe, ship=replace(recipe.ship, qp=None, max_drop=0.2, validation_images=50))
    path = coded(bound, tmp_path, model, RECORD, splits)
    data = path.read_bytes()
    nothing: Splits = None  # type: ignore[assignment]
    assert coded(bound, tmp_path, model, RECORD, nothing).read_bytes() == data
