"""When and how far: the threshold keeps its bound, the plateau counts bad epochs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from snello.errors import ConfigError
from snello.pruning import Plateau, search_threshold

# The search

scores_and_losses = st.lists(st.floats(0.001, 10), min_size=1, max_size=30)


@given(
    scores=scores_and_losses,
    seed=st.integers(0, 999),
    start=st.floats(0, 20),
    allowance=st.floats(0, 1),
)
@settings(max_examples=80, deadline=None, derandomize=True)
def test_the_bound_holds_for_any_loss(
    scores: list[float], seed: int, start: float, allowance: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    measured: dict[float, float] = {}

    def loss_at(threshold: float) -> float:
        measured[threshold] = 2 * float(torch.rand((), generator=generator))
        return measured[threshold]

    search = search_threshold(
        torch.tensor(scores, dtype=torch.float64),
        loss_at,
        loss=1.0,
        bound=1 + allowance,
        start=start,
    )
    assert search.loss <= search.bound == 1 + allowance
    assert search.trials == len(measured) <= 24
    if search.threshold:
        assert measured[search.threshold] == search.loss
        assert search.threshold == max(t for t, loss in measured.items() if loss <= search.bound)
    else:
        assert search.loss == 1.0
        assert all(loss > search.bound for loss in measured.values())


@given(scores=scores_and_losses, start=st.floats(0.001, 20), allowed=st.floats(0, 30))
@settings(max_examples=80, deadline=None, derandomize=True)
def test_a_monotone_loss_is_pruned_as_far_as_it_allows(
    scores: list[float], start: float, allowed: float
) -> None:
    tensor = torch.tensor(scores, dtype=torch.float64)

    def loss_at(threshold: float) -> float:
        return 1 + float(tensor[tensor < threshold].sum())

    search = search_threshold(
        tensor, loss_at, loss=1.0, bound=1 + allowed, start=start, max_trials=60
    )
    candidates = sorted(
        1 + sum(sorted(scores)[:n]) for n in range(len(scores) + 1) if _separable(scores, n)
    )
    optimum = max((c for c in candidates if c <= 1 + allowed), default=1.0)
    # Either the optimum, or within 5 % of the allowance under the bound.
    assert search.loss <= 1 + allowed
    assert (
        math.isclose(search.loss, optimum, rel_tol=1e-6)
        or 1 + allowed - search.loss < 0.05 * allowed
    )


def _separable(scores: list[float], n: int) -> bool:
    """True if some threshold prunes exactly the n smallest scores (the search resolves 1e-10 at
    best).
    """
    ranked = sorted(scores)
    return n in (0, len(ranked)) or ranked[n] - ranked[n - 1] > 1e-6


def test_nan_is_within_no_bound() -> None:
    search = search_threshold(torch.ones(3), lambda _: math.nan, loss=1.0, bound=9.0, start=0.5)
    assert search.threshold == 0
    assert search.trials >= 1


def test_nothing_to_prune_needs_no_trial() -> None:
    assert (
        search_threshold(torch.zeros(3), lambda _: 1 / 0, loss=1.0, bound=2.0, start=0.5).trials
        == 0
    )


# The plateau


def test_a_plateau_is_so_many_bad_epochs_in_a_row() -> None:
    plateau = Plateau(2, tolerance=0.01)
    assert plateau.update(1.0)
    assert not plateau.update(0.995)  # better, but by less than the tolerance
    assert not plateau.reached
    assert plateau.update(0.98)
    assert (plateau.best, plateau.bad) == (0.98, 0)
    assert not plateau.update(math.nan)
    assert not plateau.update(2.0)
    assert plateau.reached
    plateau.reset(1.5)
    assert not plateau.reached
    assert plateau.update(1.4)
    assert Plateau(**plateau.state_dict()) == plateau


def test_a_plateau_of_negative_losses_counts_improvements_alone() -> None:
    plateau = Plateau(2, tolerance=0.01)
    assert plateau.update(-1.0)
    assert not plateau.update(-0.995)  # worse
    assert not plateau.update(-1.005)  # better, but by less than the tolerance
    assert plateau.reached
    assert plateau.update(-1.02)
    assert plateau.best == -1.02


@pytest.mark.parametrize(
    ("options", "value"), [({"pwe": 0}, "0"), ({"pwe": 1, "tolerance": 1.0}, "1.0")]
)
def test_a_plateau_out_of_range_is_refused(options: dict[str, Any], value: str) -> None:
    with pytest.raises(ConfigError, match=f"not {value}"):
        Plateau(**options)
