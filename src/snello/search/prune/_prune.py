"""Channel pruning of a trained network in steps: rank, remove, recover, fine-tune."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from snello.graph import Example, Inputs
from snello.processes import meet, sum_on_cpu
from snello.pruning import LayerLimits
from snello.pruning.channels import ChannelImportance, Keep
from snello.search.identity import digest_of
from snello.wrappers import unwrapped

from ._arguments import check_arguments, check_recovery
from ._folder import Folder
from ._run import Choice, Run
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
    choice = Choice(
        importance=importance, normalise=normalise, limits=limits, round_to=round_to,
        exclude=tuple(sorted((exclude,) if isinstance(exclude, str) else exclude)),
        measured=measured, branches=branches,
    )  # fmt: skip
    settings = {
        **choice.settings(), "amount": asdict(amount), "steps": steps,
        "reconstruction": reconstruction, "batches": len(batches),
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
    run = Run(model, example_inputs, choice, batches, reconstruction, fit, evaluate)
    taken = saved.taken()
    for step in taken:
        # The bound may be narrower than in the call that took the step.
        if (why := _too_far(taken[0], step, max_drop)) is not None:
            lean = saved.network(model, step.step - 1)
            return Pruned(lean.train(model.training), tuple(taken[: step.step]), why)
    lean = saved.network(model, max(len(taken) - 1, 0))
    meet("prune", f"{len(taken)} steps")  # all have read the folder before one writes to it
    if not taken:
        run.check_reachable(amount)
        taken = [run.dense_step(lean)]
        _show(taken[-1], on_step)
    for number in range(len(taken), steps + 1):
        narrow, step = run.step(lean, number, amount.after(number / steps))
        _show(step, on_step)
        if (why := _too_far(taken[0], step, max_drop)) is not None:
            return Pruned(lean.train(model.training), tuple(taken), why)
        lean = narrow
        taken.append(step)
        saved.keep(lean, taken)
    return Pruned(lean.train(model.training), tuple(taken))


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
