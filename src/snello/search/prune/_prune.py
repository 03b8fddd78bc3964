"""Channel pruning of a trained network in steps: rank, remove, recover, fine-tune."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

from torch import nn

from snello.errors import ConfigError, ModelError
from snello.files import write_text
from snello.graph import Example, Inputs, evaluation
from snello.graph.coupled import Coupling, coupling
from snello.pruning import LayerLimits
from snello.pruning.channels import ChannelImportance, Keep, plan_channels
from snello.pruning.channels import measured_size as size_of
from snello.pruning.recovery import correct_biases, recalibrate, reconstruct
from snello.simplification import SimplificationPlan, apply, plan_of, simplify
from snello.store import archives
from snello.wrappers import copied, unwrapped

from ._as_plan import as_plan
from ._measured import Removal, choose_measured

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class PruningStep:
    """Result of one pruning step.

    Attributes:
        step: number of the step, from 1; 0 is the dense network.
        macs, parameters: remaining share of the dense network's, in (0, 1].
        channels: number of channels removed by this step.
        branches: residual branches removed whole by this step, by the layer that wrote them.
        cut: quality after removal and recovery, before fine-tuning; None without `evaluate`.
        quality: quality after fine-tuning; None without `evaluate`.
    """

    step: int
    macs: float
    parameters: float
    channels: int
    cut: float | None
    quality: float | None
    branches: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pruned:
    """Result of [`prune`][snello.search.prune.prune].

    Attributes:
        model: the smaller network, in the mode of the original and of its class, or a
            `torch.fx.GraphModule` once a branch was removed.
        steps: an entry for the dense network, then one per step.
        stopped: reason why the last step was undone; None if all steps were taken.
    """

    model: nn.Module
    steps: tuple[PruningStep, ...]
    stopped: str | None = None

    def __str__(self) -> str:
        lines = [
            f"{'step':>4} {'MACs':>6} {'parameters':>10} {'after the cut':>13} {'fine-tuned':>10}"
        ]
        for s in self.steps:
            cut, quality = (("-" if q is None else f"{q:.4f}") for q in (s.cut, s.quality))
            lines.append(
                f"{s.step:>4} {s.macs:>6.3f} {s.parameters:>10.3f} {cut:>13} {quality:>10}"
            )
            if s.branches:
                lines.append(f"     without the branches of {', '.join(s.branches)}")
        return "\n".join(lines if self.stopped is None else [*lines, self.stopped])


def prune(
    model: nn.Module,
    example_inputs: Example,
    amount: Keep,
    *,
    importance: str | ChannelImportance = "l2",
    fit: Callable[[nn.Module], object] | None = None,
    evaluate: Callable[[nn.Module], float] | None = None,
    steps: int = 1,
    max_drop: float | None = None,
    calibration: Iterable[Example] = (),
    reconstruction: bool | Literal["biases"] = False,
    normalise: Any = "auto",
    limits: LayerLimits | None = None,
    round_to: int = 1,
    exclude: Collection[str] = (),
    measured: bool = False,
    branches: bool = False,
    folder: str | Path | None = None,
    on_step: Callable[[PruningStep], object] | None = None,
) -> Pruned:
    """Remove channels from a trained network until a given share of it is left.

    Each step computes the importance of the channels, removes the least important ones together
    with the weights that produce and consume them, recovers without training (BatchNorm statistics,
    least squares) and fine-tunes. The steps are geometric: each keeps the same share of the network
    left by the previous one.

    Args:
        model: a trained network; it is not changed.
        example_inputs: inputs with the shape used in deployment.
        amount: share to keep after the last step.
        importance: importance of channels, recomputed before each step; see
            [`snello.pruning.channels.plan_channels`][].
        fit: function that fine-tunes its argument, a network, in place. It must build its own
            optimizer, because each step creates new parameters. None: no fine-tuning.
        evaluate: function that returns the quality of a network on validation data, higher is
            better; called in evaluation mode without gradients.
        steps: number of steps.
        max_drop: largest allowed drop of the quality below the dense network's; a step that exceeds
            it is undone and ends the pruning. Requires `evaluate`.
        calibration: inputs without targets, to re-estimate BatchNorm statistics after each removal.
        reconstruction: also fit the weights that consumed removed channels by least squares on the
            calibration inputs; see [`snello.pruning.recovery.reconstruct`][]. "biases" shifts the
            biases alone; see [`snello.pruning.recovery.correct_biases`][]. Not possible if a
            normalisation layer computes its statistics over removed channels.
        normalise: normalisation of the scores across dimensions; see
            [`snello.pruning.channels.plan_channels`][].
        limits: lower limits on the widths, as shares of the dense network's.
        round_to: number of which widths are multiples.
        exclude: names of dimensions or modules that keep their widths.
        measured: choose by measurement: always the part whose removal changes the network's
            outputs on the calibration inputs least, per saving. The importance then only orders the
            channels of a dimension. It takes some forward passes per part, and pays above all
            with `round_to`, where few and large parts have to be chosen.
        branches: also remove whole residual branches, such as the convolutions of a residual
            block, the attention or the hidden layer of a transformer's. Requires `measured`.
        folder: folder in which each step is saved (atomically); if it holds the steps of an
            interrupted call, that call is continued. None: nothing is written.
        on_step: called with every step, for example `print`.

    Returns:
        The network and a table of the steps. `plan_of(result.model)` is its plan, so that
        [`snello.save`][snello.store.save] and [`snello.compress`][snello.codec.compress] accept it.

    Raises:
        ConfigError: for numbers out of range, `max_drop` without `evaluate`, `reconstruction` or
            `measured` without calibration inputs, `branches` without `measured`, a folder of
            another run, or a share that cannot be reached.
        ModelError: if the model does not run on the example inputs.
    """
    batches = list(calibration)
    _check(steps, max_drop, evaluate)
    _check_calibration(batches, reconstruction, measured, branches)
    model = unwrapped(model, "prune")
    settings = {
        "amount": asdict(amount),
        "steps": steps,
        "measured": measured,
        "branches": branches,
    }
    run = _Run(model, example_inputs, evaluate, None if folder is None else Path(folder), settings)
    lean, taken = run.resumed()
    if not taken:
        taken = [PruningStep(0, 1.0, 1.0, 0, None, run.quality(lean))]
        _show(taken[-1], on_step)
    for number in range(len(taken), steps + 1):
        wanted = run.relative(lean, amount.after(number / steps))
        options: dict[str, Any] = {
            "importance": importance, "limits": limits, "round_to": round_to, "exclude": exclude,
            "widths": run.widths, "groups": run.coupling if number == 1 else None,
        }  # fmt: skip
        removal = (
            choose_measured(lean, example_inputs, wanted, batches, branches=branches, **options)
            if measured
            else Removal(
                plan_channels(lean, example_inputs, wanted, normalise=normalise, **options)
            )
        )
        narrow = _recovered(lean, removal, example_inputs, batches, reconstruction)
        cut = run.quality(narrow)
        if fit is not None:
            fit(narrow)
        size = size_of(narrow, example_inputs)
        step = PruningStep(
            number, size.macs / run.dense.macs, size.parameters / run.dense.parameters,
            sum(map(len, removal.plan.removed.values())), cut, run.quality(narrow),
            tuple(branch.name for branch in removal.branches),
        )  # fmt: skip
        _show(step, on_step)
        if (why := _too_far(taken[0], step, max_drop)) is not None:
            return Pruned(lean.train(model.training), tuple(taken), why)
        lean = narrow
        taken.append(step)
        run.keep(lean, taken)
    return Pruned(lean.train(model.training), tuple(taken))


def _check(steps: int, max_drop: float | None, evaluate: object) -> None:
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ConfigError(f"prune: steps is a number of steps, at least 1, not {steps!r}")
    if max_drop is not None and evaluate is None:
        raise ConfigError(
            "prune: max_drop needs evaluate, a function from a network to its quality"
        )
    if max_drop is not None and not max_drop >= 0:
        raise ConfigError(f"prune: max_drop is a drop of the quality, at least 0, not {max_drop}")


def _check_calibration(
    batches: Sequence[Example], reconstruction: bool | str, measured: bool, branches: bool
) -> None:
    if reconstruction not in (False, True, "biases"):
        raise ConfigError(
            f"prune: reconstruction is True, False or 'biases', not {reconstruction!r}"
        )
    if branches and not measured:
        raise ConfigError(
            "prune: branches have no score: give measured=True, too, and calibration, batches of inputs"
        )
    for name, given in (("reconstruction", reconstruction), ("measured", measured)):
        if given and not batches:
            raise ConfigError(f"prune: {name} needs calibration, batches of inputs")


def _recovered(
    model: nn.Module,
    removal: Removal,
    example: Example,
    batches: Sequence[Example],
    reconstruction: bool | str,
) -> nn.Module:
    """The network without channels and branches, recovered as far as is possible untrained."""
    plan, source = removal.plan, removal.zeroed_branches(model)
    if reconstruction:
        if normed := [n for n in plan.removed if plan.removed[n] and plan.coupling[n].norms]:
            raise ConfigError(
                f"prune: reconstruction is not possible for dimension {normed[0]!r}, over which "
                f"{plan.coupling[normed[0]].norms[0][0]!r} computes its statistics; use "
                "reconstruction=False"
            )
        source = plan.zeroed(source)
        recover = correct_biases if reconstruction == "biases" else reconstruct
        recover(source, model, batches)
    narrow = apply(as_plan(model, plan, example), source)
    if removal.branches:
        narrow = simplify(narrow, example)
    if batches:
        recalibrate(narrow, batches)
    return narrow


def _show(step: PruningStep, on_step: Callable[[PruningStep], object] | None) -> None:
    if on_step is not None:
        on_step(step)


def _too_far(dense: PruningStep, step: PruningStep, max_drop: float | None) -> str | None:
    if max_drop is None or dense.quality is None or step.quality is None:
        return None
    drop = dense.quality - step.quality
    if drop <= max_drop:
        return None
    return (
        f"step {step.step} was undone: at {step.macs:.3f} of the MACs the quality is {step.quality:.4f}, "
        f"{drop:.4f} below the dense network's, more than max_drop={max_drop}"
    )


class _Run:
    """State of one call: the dense network's size and widths, and the folder for the steps."""

    def __init__(
        self,
        model: nn.Module,
        example: Example,
        evaluate: Callable[[nn.Module], float] | None,
        folder: Path | None,
        settings: dict[str, Any],
    ) -> None:
        self._model, self._example, self._evaluate = model, Inputs.of(example), evaluate
        self._folder = folder
        self._settings = settings
        self.dense = size_of(model, example)
        if not self.dense.macs:
            raise ModelError(
                f"{type(model).__name__} has no multiply-accumulates on the example inputs"
            )

    @cached_property
    def coupling(self) -> Coupling:
        """The coupled channels of the dense network."""
        return coupling(self._model, self._example)

    @property
    def widths(self) -> dict[str, int]:
        """The widths of the dense network's dimensions."""
        return {d.name: d.width for d in self.coupling.dimensions}

    def quality(self, model: nn.Module) -> float | None:
        """Evaluate a network with the caller's function; None without one."""
        if self._evaluate is None:
            return None
        with evaluation(model):
            return float(self._evaluate(model))

    def relative(self, model: nn.Module, target: Keep) -> Keep:
        """Convert a share of the dense network to a share of the current one."""
        now = size_of(model, self._example)
        shares = {
            "macs": now.macs / self.dense.macs,
            "parameters": now.parameters / self.dense.parameters,
        }
        wanted = {
            key: min(1.0, share / shares.get(key, 1.0))
            for key, share in vars(target).items()
            if share is not None
        }
        return Keep(**wanted)

    def keep(self, model: nn.Module, taken: Sequence[PruningStep]) -> None:
        """Write the network after a step, then the table."""
        if self._folder is None:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        plan = plan_of(model)
        assert plan is not None
        content = {"plan": plan.to_json(), "state_dict": model.state_dict()}
        archives.save(self._folder / f"step-{taken[-1].step}.pt", content)
        table = {"settings": self._settings, "steps": [asdict(step) for step in taken]}
        write_text(self._folder / "steps.json", json.dumps(table, indent=1))

    def resumed(self) -> tuple[nn.Module, list[PruningStep]]:
        """The network and the table after the last saved step, or the dense network."""
        fresh = copied(self._model)
        if self._folder is None or not (self._folder / "steps.json").is_file():
            return fresh, []
        table = json.loads((self._folder / "steps.json").read_text())
        if table["settings"] != json.loads(json.dumps(self._settings)):
            raise ConfigError(
                f"{self._folder} holds a pruning with other settings ({table['settings']}): choose "
                "another folder, or remove it"
            )
        taken = [
            PruningStep(**{**entry, "branches": tuple(entry["branches"])})
            for entry in table["steps"]
        ]
        content = archives.load(self._folder / f"step-{taken[-1].step}.pt")
        lean = apply(SimplificationPlan.from_json(content["plan"]), fresh)
        lean.load_state_dict(content["state_dict"])
        return lean, taken
