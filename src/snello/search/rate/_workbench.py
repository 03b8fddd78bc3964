"""Forms in which a model can be coded, and trials of codec settings on them."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from torch import Tensor, nn

from snello.codec import CodecSettings, encode, quantised
from snello.errors import ConfigError, is_number
from snello.graph import evaluation
from snello.wrappers import copied

from ._correct import Correction
from ._trial import Evaluate, Method, RateTrial, coded_tensors, fill, passes


@dataclass(eq=False)
class Form:
    """A form in which the model can be coded: unchanged, or with folded BatchNorms.

    Attributes:
        model: the weights before quantisation; never changed.
        folded: true if its BatchNorms are folded.
        correction: correction of biases and statistics after quantisation; None for none.
        tensors: name -> tensor to code.
        groups: names of the tensors, with tied weights in one group.
    """

    model: nn.Module
    folded: bool
    correction: Correction | None = None
    tensors: dict[str, Tensor] = field(init=False)
    groups: list[list[str]] = field(init=False)

    def __post_init__(self) -> None:
        self.tensors = coded_tensors(self.model)
        tied: dict[tuple[object, ...], list[str]] = {}
        for name, value in self.tensors.items():
            tied.setdefault(
                (value.device, value.data_ptr(), value.shape, value.stride()), []
            ).append(name)
        self.groups = list(tied.values())
        self._twin = copied(self.model)

    def decode(self, settings: CodecSettings) -> tuple[dict[str, Tensor], nn.Module]:
        """Tensors to code with these settings, and the decoded model (reused by the next call)."""
        fill(self._twin, quantised(self.tensors, settings))
        if self.correction is None:
            return self.tensors, self._twin
        changed = self.correction.corrected(self._twin, self.tensors)
        coded = self.tensors | changed
        fill(self._twin, quantised(coded, settings))
        return coded, self._twin

    def size(self, settings: CodecSettings) -> int:
        """Size of the bitstream in bytes, before any correction."""
        return len(encode(self.tensors, settings))


CHANCES = 3
"""Number of consecutive settings to try, starting at the finest that would be a smaller stream."""


class Workbench:
    """Evaluation of settings, with the list of all trials and the best one.

    Args:
        evaluate: loss or accuracy of a model.
        bound: the worst value allowed.
        higher_is_better: true if `evaluate` returns an accuracy.
    """

    def __init__(self, evaluate: Evaluate, bound: float, higher_is_better: bool) -> None:
        self._evaluate, self._bound, self._higher = evaluate, bound, higher_is_better
        self._done: dict[tuple[int, CodecSettings], RateTrial] = {}
        self._forms: dict[int, Form] = {}
        self.trail: list[RateTrial] = []
        self.best: RateTrial | None = None

    def attempt(self, form: Form, settings: CodecSettings, method: Method) -> RateTrial:
        """Quantise, decode and evaluate; equal settings are evaluated once."""
        # The workbench keeps its forms alive, so their ids are unique.
        key = (id(form), settings)
        if key not in self._done:
            coded, decoded = form.decode(settings)
            size, value = len(encode(coded, settings)), measured(self._evaluate, decoded)
            passed = passes(value, self._bound, self._higher)
            trial = RateTrial(method, form.folded, settings, size, value, passed)
            self._done[key] = trial
            self._forms[id(trial)] = form
            self.trail.append(trial)
            if passed and (self.best is None or size < self.best.bytes):
                self.best = trial
        return self._done[key]

    def form_of(self, trial: RateTrial) -> Form:
        """The form that a trial was made on."""
        return self._forms[id(trial)]

    def best_of(self, method: Method) -> RateTrial | None:
        """The smallest trial of one method that passed; of equal ones the earlier."""
        passed = [trial for trial in self.trail if trial.passed and trial.method == method]
        return min(passed, key=lambda trial: trial.bytes, default=None)

    def coarsest(
        self,
        form: Form,
        settings_at: Callable[[int], CodecSettings],
        size_at: Callable[[int], float],
        indices: range,
        method: Method,
    ) -> None:
        """Bisect for the coarsest setting that passes, among those smaller than the best.

        Args:
            form: what to quantise.
            settings_at: index -> settings, from fine to coarse.
            size_at: index -> bytes, exact or estimated, decreasing with the index.
            indices: range of indices, not empty.
            method: recorded in the trials.
        """

        def passed(index: int) -> bool:
            return self.attempt(form, settings_at(index), method).passed

        first, last = indices[0], indices[-1]
        if self.best is None:
            _bisect(passed, first - 1, last + 1)
            return
        # Sizes decrease with the index: earlier settings cannot be smaller than the best.
        first = first_below(size_at, self.best.bytes, indices)
        # evaluate is noisy: if the finest setting just fails, the next may still pass.
        distinct = _first_distinct(settings_at, range(first, last + 1), CHANCES)
        start = next((index for index in distinct if passed(index)), None)
        if start is not None:
            _bisect(passed, *_gallop(passed, start, last))


def _first_distinct(
    settings_at: Callable[[int], CodecSettings], indices: range, count: int
) -> Iterator[int]:
    """The first `count` indices whose settings differ from those of the previous index."""
    before = None
    for index in indices:
        settings = settings_at(index)
        if settings != before:
            yield index
            count -= 1
        if not count:
            return
        before = settings


def _gallop(passed: Callable[[int], bool], fine: int, last: int) -> tuple[int, int]:
    """Double the step from an index that passed, until one fails; return the last two."""
    step = 1
    while fine < last:
        ahead = min(fine + step, last)
        if not passed(ahead):
            return fine, ahead
        fine, step = ahead, 2 * step
    return fine, last + 1


def _bisect(passed: Callable[[int], bool], fine: int, coarse: int) -> None:
    """Try indices between `fine`, which passes, and `coarse`, which does not, until none is left."""
    while coarse - fine > 1:
        middle = (fine + coarse) // 2
        if passed(middle):
            fine = middle
        else:
            coarse = middle


def first_below(size_at: Callable[[int], float], limit: float, indices: range) -> int:
    """The first index with a size below the limit; one after the last if there is none."""
    return indices[0] + bisect_left(indices, True, key=lambda index: size_at(index) < limit)


def measured(evaluate: Evaluate, model: nn.Module) -> float:
    """Evaluate a model in evaluation mode and return a float.

    Raises:
        ConfigError: if `evaluate` does not return a number.
    """
    with evaluation(model):
        value = evaluate(model)
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"evaluate returned {value!r}, a {type(value).__name__}; return one number, a loss or an accuracy"
        ) from error


def check_bound(max_drop: float, before: float, higher_is_better: bool) -> float:
    """Compute the worst value allowed.

    Raises:
        ConfigError: for an invalid `max_drop`, or if the original model's value is not finite.
    """
    if not is_number(max_drop) or not 0 <= max_drop < math.inf:
        raise ConfigError(
            f"max_drop={max_drop!r} must be the allowed loss of the value, 0 or more, in the unit "
            "of evaluate (0.002 for 0.2 points of an accuracy in [0, 1])"
        )
    if not math.isfinite(before):
        raise ConfigError(
            f"evaluate returns {before} for the model before compression: a finite value is needed "
            "as reference"
        )
    return before - max_drop if higher_is_better else before + max_drop
