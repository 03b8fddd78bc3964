"""The verb: measure, cut, recover, fine-tune, once or in several steps."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from snello.errors import ConfigError, ModelError
from snello.files import write_text
from snello.graph import Example, Inputs, evaluation
from snello.pruning import LayerLimits
from snello.pruning.channels import ChannelImportance, ChannelPlan, Keep, plan_channels
from snello.pruning.channels import measured_size as size_of
from snello.pruning.recovery import recalibrate, reconstruct
from snello.simplification import SimplificationPlan, apply, plan_of
from snello.store import archives
from snello.wrappers import copied, unwrapped

from ._as_plan import as_plan

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class PruningStep:
    """One step.

    Attributes:
        step: its number, from 1; 0 is the dense network.
        macs, parameters: share of the dense network's that is left.
        channels: number of channels that this step has removed.
        cut: quality right after the cut and the recovery, before fine-tuning.
        quality: quality after fine-tuning. Both are None without ``evaluate``.
    """

    step: int
    macs: float
    parameters: float
    channels: int
    cut: float | None
    quality: float | None


@dataclass(frozen=True)
class Pruned:
    """Result of :func:`prune`.

    Attributes:
        model: the narrower network, of the class of the one that was given, in its mode.
        steps: the dense network, then one entry per step.
        stopped: why the last step was undone; None if all were taken.
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
    reconstruction: bool = False,
    normalise: Any = "auto",
    limits: LayerLimits | None = None,
    round_to: int = 1,
    exclude: Collection[str] = (),
    folder: str | Path | None = None,
    on_step: Callable[[PruningStep], object] | None = None,
) -> Pruned:
    """Remove channels from a trained network until a share of it is left.

    Each step measures the importance of the channels, removes those that are worth least with
    everything that reads and writes them, recovers without training, and fine-tunes. The steps are
    geometric: each keeps the same share of what the one before has left.

    Args:
        model: a trained network; it is not changed.
        example_inputs: of its real shape.
        amount: what shall be left at the end.
        importance: of channels; see :func:`snello.pruning.channels.plan_channels`. It is measured
            again before each step.
        fit: fine-tunes the network that it is given, in place. It builds its own optimizer, for the
            parameters are new after each cut. None: no fine-tuning.
        evaluate: returns the quality of a network, higher is better, on validation data; called in
            evaluation mode without gradients.
        steps: number of steps.
        max_drop: largest fall of the quality below the dense network's; a step that exceeds it is
            undone and ends the pruning. It needs ``evaluate``.
        calibration: inputs without targets. With them, BatchNorm statistics are estimated again
            after each cut.
        reconstruction: also fit the weights that read removed channels by least squares on the
            calibration inputs; see :func:`snello.pruning.recovery.reconstruct`. Not where a norm
            takes its statistics over removed channels.
        normalise, limits, round_to, exclude: see :func:`snello.pruning.channels.plan_channels`.
        folder: where each step is kept, written whole or not at all; with the steps of an earlier,
            interrupted call in it, that one is gone on with. None: nothing is written.
        on_step: called with every step; ``print`` shows it.

    Returns:
        The network and a table. ``plan_of(result.model)`` is its plan, so that :func:`snello.save`
        and :func:`snello.compress` take it.

    Raises:
        ConfigError: for numbers outside their range, ``max_drop`` without ``evaluate``,
            ``reconstruction`` without calibration inputs, a folder of another run, and a bound that
            cannot be reached.
        ModelError: if the model does not run on the example inputs.
    """
    _check(steps, max_drop, evaluate, calibration, reconstruction)
    model = unwrapped(model, "prune")
    batches = list(calibration)
    run = _Run(
        model, example_inputs, evaluate, None if folder is None else Path(folder), amount, steps
    )
    lean, taken = run.resumed()
    if not taken:
        taken = [PruningStep(0, 1.0, 1.0, 0, None, run.quality(lean))]
        _show(taken[-1], on_step)
    for number in range(len(taken), steps + 1):
        wanted = run.relative(lean, amount.after(number / steps))
        plan = plan_channels(
            lean, example_inputs, wanted, importance=importance, normalise=normalise,
            limits=limits, round_to=round_to, exclude=exclude,
        )  # fmt: skip
        narrow = _recovered(lean, plan, example_inputs, batches, reconstruction)
        cut = run.quality(narrow)
        if fit is not None:
            fit(narrow)
        size = size_of(narrow, example_inputs)
        step = PruningStep(
            number, size.macs / run.dense.macs, size.parameters / run.dense.parameters,
            sum(map(len, plan.removed.values())), cut, run.quality(narrow),
        )  # fmt: skip
        _show(step, on_step)
        if (why := _too_far(taken[0], step, max_drop)) is not None:
            return Pruned(lean.train(model.training), tuple(taken), why)
        lean = narrow
        taken.append(step)
        run.keep(lean, taken)
    return Pruned(lean.train(model.training), tuple(taken))


def _check(
    steps: int,
    max_drop: float | None,
    evaluate: object,
    calibration: Iterable[Example],
    reconstruction: bool,
) -> None:
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ConfigError(f"prune: steps is a number of steps, at least 1, not {steps!r}")
    if max_drop is not None and evaluate is None:
        raise ConfigError(
            "prune: max_drop needs evaluate, a function from a network to its quality"
        )
    if max_drop is not None and not max_drop >= 0:
        raise ConfigError(f"prune: max_drop is a fall of the quality, at least 0, not {max_drop}")
    if reconstruction and calibration == ():
        raise ConfigError("prune: reconstruction needs calibration, batches of inputs")


def _recovered(
    model: nn.Module,
    plan: ChannelPlan,
    example: Example,
    batches: Sequence[Example],
    reconstruction: bool,
) -> nn.Module:
    """The network without the channels, made up for what training does not need to."""
    source = model
    if reconstruction:
        if normed := [n for n in plan.removed if plan.removed[n] and plan.coupling[n].norms]:
            raise ConfigError(
                f"prune: reconstruction is not for dimension {normed[0]!r}, over which "
                f"{plan.coupling[normed[0]].norms[0][0]!r} takes its statistics; leave it out"
            )
        source = plan.zeroed(model)
        reconstruct(source, model, batches)
    narrow = apply(as_plan(model, plan, example), source)
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
    """One call: the dense network's size, and the folder that steps are kept in."""

    def __init__(
        self,
        model: nn.Module,
        example: Example,
        evaluate: Callable[[nn.Module], float] | None,
        folder: Path | None,
        amount: Keep,
        steps: int,
    ) -> None:
        self._model, self._example, self._evaluate = model, Inputs.of(example), evaluate
        self._folder = folder
        self._settings = {"amount": asdict(amount), "steps": steps}
        self.dense = size_of(model, example)
        if not self.dense.macs:
            raise ModelError(f"{type(model).__name__} multiplies nothing on the example inputs")

    def quality(self, model: nn.Module) -> float | None:
        """Evaluate a network by the caller's function."""
        if self._evaluate is None:
            return None
        with evaluation(model):
            return float(self._evaluate(model))

    def relative(self, model: nn.Module, target: Keep) -> Keep:
        """Bounds on the dense network as bounds on the one that is there now."""
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
        """The network after the last step that was kept, and the table; or the dense network."""
        fresh = copied(self._model)
        if self._folder is None or not (self._folder / "steps.json").is_file():
            return fresh, []
        table = json.loads((self._folder / "steps.json").read_text())
        if table["settings"] != json.loads(json.dumps(self._settings)):
            raise ConfigError(
                f"{self._folder} holds another pruning ({table['settings']}): give another folder, "
                "or remove it"
            )
        taken = [PruningStep(**entry) for entry in table["steps"]]
        content = archives.load(self._folder / f"step-{taken[-1].step}.pt")
        lean = apply(SimplificationPlan.from_json(content["plan"]), fresh)
        lean.load_state_dict(content["state_dict"])
        return lean, taken
