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
    """The facts of a run that a method may be built from.

    Attributes:
        options: the block of the recipe that the method uses.
        seed: of the recipe.
        model: network (``nn.Module``) in training; None for a selection.
        share: the P of ``stochastic-P``, in [0, 1].
        imitated: frozen share of every step of the run that ``imitates`` names; None if there is no
            such run.
    """

    options: Any
    seed: int
    model: Any = None
    share: float = 0.0
    imitated: Sequence[float] | None = None


@dataclass(frozen=True)
class MethodSpec:
    """One method: a row of :data:`METHOD_SPECS`.

    Attributes:
        name: in recipes and on the command line.
        label: in tables and plots.
        kind: "sensitivity" (decays and prunes), "selection" (freezes neurons) or "baseline".
        build: makes the sensitivity or the selection from a :class:`Setting`.
        uses: block of the recipe that holds the options; empty for none.
        colour: of its curve, for matplotlib; None takes the next one of the cycle.
        defaults: default values of the block, for a sensitivity.
        scores: importance of a trained network from calibration batches, for one-shot pruning.
        takes_share: a share follows the name, as in ``stochastic-0.2``.
        imitates: name of the method whose finished run is imitated.
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
    """A baseline adds nothing to the training."""


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

    return Velocity(setting.options.eps, setting.options.mu)


def _stochastic(setting: Setting) -> Selection:
    from snello.equilibrium import Stochastic

    return Stochastic(setting.share, seed=setting.seed)


def _stochastic_star(setting: Setting) -> Selection:
    from snello.equilibrium import MatchedStochastic

    if setting.imitated is None:
        raise ConfigError(
            "stochastic-star freezes as many neurons as a finished NEq run did: train with "
            "--method=neq first, into the folder 'neq' next to this run's (or matched= in Python)"
        )
    # The first steps, in which nothing is frozen, are those of both runs.
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
