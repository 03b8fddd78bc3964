"""The table of methods.

A method's own module is imported when it is built, so that the names of methods need no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from snello.errors import ConfigError

from ._options import PruningConfig

if TYPE_CHECKING:
    from snello.equilibrium import Selection
    from snello.sensitivity import Sensitivity

Kind = Literal["baseline", "sensitivity", "selection"]


@dataclass(frozen=True)
class Setting:
    """Inputs from which a run constructs a method.

    Attributes:
        options: the method's block of the recipe.
        seed: the recipe's seed.
        model: network (`nn.Module`) in training; None for a selection.
        share: the P of `stochastic-P`, in [0, 1].
        imitated: frozen share at every decision of the run that `imitates` names; None if there
            is no such run.
    """

    options: Any
    seed: int
    model: Any = None
    share: float = 0.0
    imitated: Sequence[float] | None = None


@dataclass(frozen=True)
class MethodSpec:
    """One method: a row of [`METHOD_SPECS`][snello.lab.methods.METHOD_SPECS].

    Attributes:
        name: in recipes and on the command line.
        label: in tables and plots.
        kind: "sensitivity" (decays and prunes), "selection" (freezes neurons) or "baseline".
        build: function that constructs the sensitivity or the selection from a `Setting`.
        uses: recipe block that holds the options; empty for none.
        colour: matplotlib colour of the curve; None takes the next one of the colour cycle.
        defaults: default values of the block, for a sensitivity.
        scores: function that computes importances from calibration batches, for one-shot pruning.
        takes_share: True if a share follows the name, as in `stochastic-0.2`.
        imitates: name of the method whose frozen shares this one copies from a finished run.
    """

    name: str
    label: str
    kind: Kind
    build: Callable[[Setting], Any]
    uses: str = ""
    colour: str | None = None
    defaults: PruningConfig = field(default_factory=PruningConfig)
    scores: Callable[[Any], Any] | None = None
    takes_share: bool = False
    imitates: str | None = None


def _nothing(setting: Setting) -> None:
    """Build nothing: the baseline trains without a sensitivity or a selection."""


def _lobster(setting: Setting) -> Sensitivity:
    from snello.sensitivity import Lobster

    return Lobster(setting.model, setting.options.lmbda)


def _serene(setting: Setting) -> Sensitivity:
    from snello.sensitivity import SeReNe

    options = setting.options
    return SeReNe(setting.model, options.lmbda, every=options.every, seed=setting.seed)


def _output(setting: Setting) -> Sensitivity:
    from snello.sensitivity import OutputSensitivity

    options = setting.options
    return OutputSensitivity(setting.model, options.lmbda, every=options.every, seed=setting.seed)


def _neq(setting: Setting) -> Selection:
    from snello.equilibrium import Velocity

    options = setting.options
    return Velocity(options.eps, options.mu, smoothing=options.smoothing)


def _stochastic(setting: Setting) -> Selection:
    from snello.equilibrium import Stochastic

    return Stochastic(setting.share, seed=setting.seed)


def _stochastic_star(setting: Setting) -> Selection:
    from snello.equilibrium import MatchedStochastic

    if setting.imitated is None:
        raise ConfigError(
            "stochastic-star freezes as many neurons as a finished NEq run did: first train with "
            "--method=neq into the folder 'neq' next to this run's folder (or pass matched= in "
            "Python)"
        )
    # This run has the same warm-up, during which the selection is not asked.
    shares = setting.imitated[setting.options.warmup :]
    return MatchedStochastic(shares or [0.0], seed=setting.seed)


def _lobster_scores(batches: Any) -> Any:
    from snello.sensitivity import lobster_scores

    return lobster_scores(batches)


def _serene_scores(batches: Any) -> Any:
    from snello.sensitivity import serene_scores

    return serene_scores(batches)


METHOD_SPECS: Mapping[str, MethodSpec] = {
    spec.name: spec
    for spec in (
        MethodSpec("baseline", "Baseline", "baseline", _nothing, colour="0.35"),
        MethodSpec(
            "lobster", "LOBSTER", "sensitivity", _lobster, "lobster", "tab:orange",
            scores=_lobster_scores,
        ),
        MethodSpec(
            "serene", "SeReNe", "sensitivity", _serene, "serene", "tab:blue",
            defaults=PruningConfig(granularity="neuron"), scores=_serene_scores,
        ),
        MethodSpec(
            "output", "Output sensitivity", "sensitivity", _output, "output", "tab:purple",
        ),
        MethodSpec("neq", "NEq", "selection", _neq, "neq", "tab:green"),
        MethodSpec("stochastic", "Stochastic", "selection", _stochastic, "neq", takes_share=True),
        MethodSpec(
            "stochastic-star", "Stochastic*", "selection", _stochastic_star, "neq", imitates="neq",
        ),
    )
}  # fmt: skip
"""Every method by its name. To add one, add a row."""
