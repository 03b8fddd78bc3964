"""Channel pruning of a trained network in steps: rank, remove, recover, fine-tune."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from snello.errors import ConfigError, ModelError
from snello.graph import Example, Inputs, evaluation
from snello.graph.coupled import Coupling, coupling
from snello.processes import (
    copy_from_first,
    device_of_group,
    mean_over_processes,
    meet,
    sum_on_cpu,
)
from snello.pruning import LayerLimits
from snello.pruning.channels import ChannelImportance, Keep, plan_channels
from snello.pruning.channels import measured_size as size_of
from snello.pruning.recovery import correct_biases, recalibrate, reconstruct
from snello.search.identity import digest_of, name_of
from snello.simplification import apply, simplify
from snello.wrappers import unwrapped

from ._arguments import check_arguments, check_recovery, quality_of
from ._as_plan import as_plan
from ._folder import Folder
from ._measured import Removal, choose_measured
from ._step import Pruned, PruningStep


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
            optimizer, because each step creates new parameters. None: no fine-tuning. An attribute
            `settings` of plain values, if it has one, must be the same to continue a folder.
        evaluate: function that returns the quality of a network on validation data, higher is
            better; called in evaluation mode without gradients, averaged over processes. A step
            whose quality is NaN is undone and ends the pruning. It may have `settings`, as `fit`.
        steps: number of steps.
        max_drop: largest allowed drop of the quality below the dense network's; a step that exceeds
            it is undone and ends the pruning. Requires `evaluate`.
        calibration: inputs without targets, to re-estimate BatchNorm statistics after each removal.
        reconstruction: also fit the weights that consumed removed channels by least squares on the
            calibration inputs; see [`snello.pruning.recovery.reconstruct`][]. "biases" shifts the
            biases alone; see [`snello.pruning.recovery.correct_biases`][]. Not possible if a
            normalisation layer computes its statistics over removed channels.
        normalise: normalisation of the scores across dimensions; see
            [`snello.pruning.channels.plan_channels`][]. Not with `measured`.
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
            another run (other weights or settings), a share that cannot be reached, or an
            `evaluate` that gives no number.
        ModelError: if the model has no parameters, or does not run on the example inputs.
    """
    check_arguments(
        amount, steps, max_drop, limits, exclude, calibration,
        {"fit": fit, "evaluate": evaluate, "on_step": on_step},
    )  # fmt: skip
    batches = list(calibration)
    check_recovery(batches, reconstruction, measured, branches, normalise)
    model = unwrapped(model, "prune")
    exclude = (exclude,) if isinstance(exclude, str) else exclude
    settings = {
        "amount": asdict(amount), "steps": steps, "importance": name_of(importance),
        "normalise": normalise, "limits": None if limits is None else asdict(limits),
        "round_to": round_to, "exclude": sorted(exclude), "reconstruction": reconstruction,
        "measured": measured, "branches": branches, "batches": len(batches),
        "evaluate": getattr(evaluate, "settings", evaluate is not None),
        "inputs": Inputs.of(example_inputs).shapes,
        "fit": getattr(fit, "settings", None), "weights": "" if folder is None else digest_of(model),
    }  # fmt: skip
    meet("prune", str({**settings, "batches": None}))  # each process has its own batches
    settings["samples"] = int(
        sum_on_cpu(torch.tensor(sum(Inputs.of(batch).samples for batch in batches)))
    )
    saved = Folder(None if folder is None else Path(folder), settings)
    saved.check()
    run = _Run(model, example_inputs, evaluate)
    taken = saved.taken()
    for step in taken:
        # The bound may be narrower than in the call that took the step.
        if (why := _too_far(taken[0], step, max_drop)) is not None:
            lean = saved.network(model, step.step - 1)
            return Pruned(lean.train(model.training), tuple(taken[: step.step]), why)
    lean = saved.network(model, max(len(taken) - 1, 0))
    meet("prune", f"{len(taken)} steps")  # all have read the folder before one writes to it
    if not taken:
        if not branches:  # without scores or training, whether the final bound can be reached
            plan_channels(
                model, example_inputs, amount, importance=_equal, normalise=normalise,
                limits=limits, round_to=round_to, exclude=exclude, groups=run.coupling,
            )  # fmt: skip
        taken = [PruningStep(0, 1.0, 1.0, 0, None, run.dense_quality(lean))]
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
        for text in removal.plan.warnings:
            warnings.warn(f"prune: step {number}: {text}", stacklevel=2)
        narrow = _recovered(lean, removal, example_inputs, batches, reconstruction)
        cut = quality = run.quality(narrow)
        if fit is not None:
            fit(narrow)
            copy_from_first(narrow.state_dict().values())
            quality = run.quality(narrow)
        size = size_of(narrow, example_inputs)
        step = PruningStep(
            number, size.macs / run.dense.macs, size.parameters / run.dense.parameters,
            sum(map(len, removal.plan.removed.values())), cut, quality,
            tuple(branch.name for branch in removal.branches),
        )  # fmt: skip
        _show(step, on_step)
        if (why := _too_far(taken[0], step, max_drop)) is not None:
            return Pruned(lean.train(model.training), tuple(taken), why)
        lean = narrow
        taken.append(step)
        saved.keep(lean, taken)
    return Pruned(lean.train(model.training), tuple(taken))


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
    copy_from_first(narrow.state_dict().values())  # the processes have other batches
    return narrow


def _equal(_model: nn.Module, groups: Coupling) -> dict[str, Tensor]:
    """The same score for every channel."""
    return {dimension.name: torch.ones(dimension.width) for dimension in groups.free}


def _show(step: PruningStep, on_step: Callable[[PruningStep], object] | None) -> None:
    if on_step is not None:
        on_step(step)


def _too_far(dense: PruningStep, step: PruningStep, max_drop: float | None) -> str | None:
    """Reason why a step is undone; None if it stays."""
    if dense.quality is None or step.quality is None:
        return None
    undone = f"step {step.step} was undone: at {step.macs:.3f} of the MACs the quality is"
    if math.isnan(step.quality):
        return f"{undone} NaN; lower the learning rate of fit, or take more steps"
    drop = dense.quality - step.quality
    # A tolerance for rounding: 0.9 - 0.88 is slightly more than 0.02.
    if max_drop is None or drop <= max_drop + 1e-9:
        return None
    return (
        f"{undone} {step.quality:.4f}, {drop:.4f} below the dense network's, more than "
        f"max_drop={max_drop}"
    )


class _Run:
    """State of one call: the dense network's size, widths and quality."""

    def __init__(
        self,
        model: nn.Module,
        example: Example,
        evaluate: Callable[[nn.Module], float] | None,
    ) -> None:
        self._model, self._example, self._evaluate = model, Inputs.of(example), evaluate
        self.dense = size_of(model, example)
        if not self.dense.macs:
            raise ModelError(
                f"{type(model).__name__} has no multiply-accumulates on the example inputs"
            )
        if not self.dense.parameters:
            raise ModelError(f"{type(model).__name__} has no parameters to remove, only buffers")

    @cached_property
    def coupling(self) -> Coupling:
        """The coupled channels of the dense network."""
        return coupling(self._model, self._example)

    @property
    def widths(self) -> dict[str, int]:
        """The widths of the dense network's dimensions that can be narrowed."""
        return {d.name: d.width for d in self.coupling.free}

    def quality(self, model: nn.Module) -> float | None:
        """Evaluate a network with the caller's function, as a mean over the processes; None
        without one.
        """
        if self._evaluate is None:
            return None
        with evaluation(model):
            return mean_over_processes(quality_of(self._evaluate(model)), device_of_group())

    def dense_quality(self, model: nn.Module) -> float | None:
        """The quality of the network before pruning.

        Raises:
            ConfigError: if it is not finite.
        """
        found = self.quality(model)
        if found is not None and not math.isfinite(found):
            raise ConfigError(
                f"prune: evaluate gives {found} for the network before pruning: give a network and "
                "a function whose quality is a finite number"
            )
        return found

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
