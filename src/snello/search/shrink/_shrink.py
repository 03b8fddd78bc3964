"""`shrink`: the cheapest network within a bound on the drop of its quality."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from torch import nn

from snello.codec import CodecSettings
from snello.deploy.operations import DeviceProfile, LatencyFit, read_profile
from snello.errors import ConfigError
from snello.graph import Example
from snello.neurons import check_finite
from snello.pruning.channels import ChannelImportance
from snello.wrappers import copied, unwrapped

from ._candidate import Candidate, Precision
from ._check import (
    COSTS,
    LEVERS,
    Lever,
    batches_of,
    check_functions,
    check_options,
    check_profile,
)
from ._coded import decoded
from ._search import Minimise, Search, precisions_of


@dataclass(frozen=True, eq=False)
class Shrunk:
    """Result of [`shrink`][snello.search.shrink.shrink].

    Attributes:
        model: the chosen network, in the mode of the original, in float32. For "int8", quantise it
            with [`snello.deploy.quantise`][snello.deploy.formats.quantise]; for "nnc", code it with
            `settings`.
        settings: codec settings of a bitstream; None for the other precisions.
        dense: the dense network in float32.
        chosen: the chosen candidate.
        candidates: all candidates, `dense` first.
        unit: unit of the cost; empty for the caller's own.
        bound: largest allowed upper limit of the drop.
        samples: number of samples of the quality; 1 if `evaluate` returns one number.
        widths: dimension -> width of the dense network.
        device: the device that latency was measured on, or predicted for.
        fits: precision -> offset, slope and residual of the predicted latency.
    """

    model: nn.Module = field(repr=False)
    settings: CodecSettings | None = field(repr=False)
    dense: Candidate
    chosen: Candidate
    candidates: tuple[Candidate, ...] = field(repr=False)
    unit: str
    bound: float
    samples: int
    widths: Mapping[str, int] = field(repr=False)
    device: str = ""
    fits: Mapping[str, LatencyFit] = field(default_factory=dict)

    @property
    def precision(self) -> Precision:
        """Precision of the chosen candidate."""
        return self.chosen.precision

    def deployed(self) -> nn.Module:
        """The network as it was evaluated: of a bitstream, with decoded weights.

        Raises:
            ConfigError: for int8, which is evaluated as a file.
        """
        if self.precision == "int8":
            raise ConfigError(
                "an int8 network is evaluated as a file: snello.deploy.export_int8 writes it, and "
                "snello.deploy.FileModel runs it"
            )
        if self.settings is None:
            return copied(self.model)
        return decoded(self.model, self.settings)

    def __str__(self) -> str:
        head = ("precision", "channels", "zeros", "predicted", "cost", "drop", "limit", "")
        rows = [head, *(self._row(candidate) for candidate in self.candidates)]
        sizes = [max(len(row[i]) for row in rows) for i in range(len(head))]
        return "\n".join("  ".join(map(str.rjust, row, sizes)).rstrip() for row in rows)

    def _row(self, c: Candidate) -> tuple[str, ...]:
        kept = sum(c.widths.get(n, w) for n, w in self.widths.items())
        numbers = ["-" if v is None else f"{v:.6g}" for v in (c.predicted, c.cost, c.drop, c.limit)]
        mark = "chosen" if c is self.chosen else c.why or ("" if c.passed else "beyond the bound")
        share = kept / max(sum(self.widths.values()), 1)
        return (c.precision, f"{share:.2f}", f"{c.sparsity:.2f}", *numbers, mark)


def shrink(
    model: nn.Module,
    example_inputs: Example,
    evaluate: Callable[[nn.Module], object],
    *,
    fit: Callable[[nn.Module], object] | None = None,
    max_drop: float = 0.01,
    minimise: Literal["latency", "macs", "bytes", "memory"] | Callable[[nn.Module], float] = "latency",
    device: DeviceProfile | str | os.PathLike[str] | None = None,
    allow: Collection[Lever] = LEVERS,  # type: ignore[assignment]
    calibration: Iterable[Example] = (),
    importance: str | ChannelImportance | None = None,
    round_to: int | None = None,
    exclude: Collection[str] = (),
    trials: int = 8,
    threads: int = 1,
    folder: str | os.PathLike[str] | None = None,
    on_candidate: Callable[[Candidate], object] | None = None,
) -> Shrunk:  # fmt: skip
    """Find the cheapest network whose quality drops by at most `max_drop`.

    1. The distance of the outputs is measured for every dimension of coupled channels at a few
       widths, with the least important channels cut out, and made monotone.
    2. The cost of any combination of widths is predicted. For a latency, every operation at every
       width is timed alone, and offset and slope are fitted on a few whole networks.
    3. A Lagrange multiplier gives a front of combinations, for each precision.
    4. Points of the front are built, recovered, fine-tuned with `fit`, evaluated and measured; the
       next one is chosen by bisection, so that the answer holds the bound by measurement. The
       precision whose dense network is cheapest comes first: what costs more than a point within
       the bound, or lies further away than one beyond it, is not tried in the others.

    Args:
        model: a trained network; it is not changed.
        example_inputs: inputs with the shape and the batch size of deployment.
        evaluate: function that returns the quality of a network on validation data, higher is
            better: one number, or one per sample (1 for a correct answer, 0 for a wrong one), with
            which the bound holds for the upper limit of the drop at 95 % confidence. It gets copies.
        fit: function that fine-tunes its argument, a network, in place; None: no fine-tuning. If it
            or `evaluate` has an attribute `settings` of plain values, it must be the same to
            continue a folder.
        max_drop: largest allowed drop of the quality below the dense network's.
        minimise: "latency" in ONNX Runtime on the CPU, "macs", "bytes" of the file, "memory" (peak,
            of a process that runs the network), or a function that returns the cost of a network.
        device: profile of the device to plan for, or its file; None: this machine. Latency on
            another device is predicted, not measured.
        allow: the levers: "channels" removes channels; "int8" quantises weights and activations;
            "nnc" codes a bitstream with a quantisation parameter per tensor and "weights" sets
            weights to zero for it, both if bytes are minimised. All of these by default; and
            "branches" removes whole residual branches, such as the convolutions of a residual
            block, which makes the network a `torch.fx.GraphModule`.
        calibration: inputs without targets: for sensitivities, BatchNorm statistics, ranges of
            int8, costs of quantisation. A few hundred samples; default: the example inputs.
        importance: importance of channels; see [`snello.pruning.channels.plan_channels`][]. None:
            the Fisher information of a classifier's own answers, or the magnitude for others.
        round_to: number of which widths are multiples. None: about eighths of a width, or for
            latency, from 16 on, multiples of 8; only those remain at which the table falls.
        exclude: names of dimensions that keep their widths, and of branches that stay.
        trials: number of candidates per precision, at most.
        threads: threads of ONNX Runtime.
        folder: folder of the log `candidates.jsonl`, of a line per result, and of the networks. A
            search that was interrupted is continued there; several processes with the same folder
            share the work. None: nothing is written.
        on_candidate: called with every candidate, for example `print`.

    Returns:
        The network, and all candidates with what was predicted and what was measured.

    Raises:
        ConfigError: for numbers out of range, unknown names, levers that do not lower the cost, a
            device without a latency to minimise, a folder of another search, calibration inputs
            that the model does not take, or functions that return no numbers.
        ModelError: if the model does not run on the example inputs, or holds NaN.
        MissingExtraError: without onnx and onnxruntime (latency, memory, int8) or nncodec (nnc).

    Sources: Yang et al., "NetAdapt", ECCV 2018; Shen et al., "Structural pruning via
    latency-saliency knapsack" (HALP), NeurIPS 2022; Shoham and Gersho, "Efficient bit allocation
    for an arbitrary set of quantizers", 1988.
    """
    counts = {"trials": trials, "threads": threads, "round_to": round_to}
    check_options(max_drop, minimise, allow, counts)
    check_functions({"evaluate": evaluate}, {"fit": fit, "on_candidate": on_candidate})
    if device is not None and minimise != "latency":
        raise ConfigError(
            "shrink: device is a profile of latencies, and minimise is another cost: leave it out"
        )
    model = unwrapped(model, "shrink")
    check_finite(model, "shrink: the model")
    profile = (
        device if device is None or isinstance(device, DeviceProfile) else read_profile(device)
    )
    cost: Minimise = minimise
    if profile is not None:
        check_profile(profile, precisions_of(cost, allow), threads)
    search = Search(
        copied(model).eval(), example_inputs, evaluate, fit, max_drop, cost, profile, allow,
        batches_of(calibration, model), importance, round_to, exclude, trials, threads,
        None if folder is None else Path(folder), on_candidate,
    )  # fmt: skip
    candidates = search.run()
    chosen = min(
        (c for c in candidates if c.passed and c.cost is not None),
        key=lambda c: (c.cost, c.limit), default=candidates[0],
    )  # fmt: skip
    network, settings = search.network(chosen)
    return Shrunk(
        network.train(model.training), settings, candidates[0], chosen, tuple(candidates),
        COSTS.get(minimise, "") if isinstance(minimise, str) else "", max_drop, search.judge.samples,
        search.shapes.dense, search.label, search.fits,
    )  # fmt: skip
