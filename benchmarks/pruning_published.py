"""Accuracy against pruned share under the papers' protocol: PWE, TWT, decay by sensitivity, full
MNIST.

    SNELLO_DATA=DATA python benchmarks/pruning_published.py --model lenet300 --out runs/published
    python benchmarks/pruning_published.py --out runs/published --page docs/results/pruning_potential.md
    python benchmarks/pruning_published.py --model lenet300 lenet5 --time

A run is one method with one seed. It writes one JSON file when it ends and a checkpoint after every
epoch: kill it at any time and start the same command again. ``--page`` runs nothing: it writes the
tables of whatever has finished between two marks of a page, and the plots beside the page.

Protocol
    All methods of a seed start from one dense network, trained until it stops improving. A method
    with a decay trains on at the full rate (SGD 0.1, no momentum, no weight decay, batches of 100)
    and shrinks the weights after every step by lambda times their insensitivity. After PWE epochs
    on a plateau of the validation loss the best weights are restored, and one pruning step removes
    all weights below the largest threshold that raises the validation loss by at most TWT.

    For equal sparsities, a pruning step never goes past the next rung of a fixed ladder. For an end
    in finite time, it removes at least LEAST of the weights that are left; the rows say for every
    step whether TWT alone would have allowed it ("within_twt"). At each rung a copy is fine-tuned
    without decay to convergence (rates 0.1, 0.01, 0.001, each until the validation loss has not
    improved by 1 % for PATIENCE epochs; best weights on validation) and measured: test accuracy,
    bytes of its bitstream, accuracy of the decoded network. Nothing looks at the test images.

    lobster, serene, output   the sensitivities, every fourth step where they need a pass of their own
    serene-full               all classes instead of one drawn class
    serene-released           full, divided by the batch size once more, as the released code does
    decay                     the control: insensitivity 1, w <- w - lambda w
    magnitude                 the same loop without a decay
    han                       without a decay, |w| / std of the layer: Han et al., train-prune-retrain
    oneshot, oneshot-han      from the dense network to every rung in one step, then the same fine-tuning

    Except for the two named han, a weight is scored by |w|, one threshold for all layers.

Plateaus (``--plateau``)
    "released" follows the code that the authors of both papers released: an epoch is bad if its
    loss is more than 1 % above the best one, and counting starts from nothing after a pruning step.
    "strict" is :class:`snello.pruning.Plateau`: an epoch is bad unless it improves on the best loss
    by 1 %, and counting starts from the loss of the network just pruned.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from pruning_published_report import write_page
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from snello.codec import encode, quantised
from snello.errors import ConfigError, SnelloError
from snello.files import write_file, write_text
from snello.graph import evaluation
from snello.lab.datasets import DataSplits, load_dataset
from snello.neurons import dead_neurons, neuron_count, weighted_layers
from snello.pruning import (
    LayerLimits,
    LossBound,
    Plateau,
    Pruner,
    Ratio,
    Schedule,
    ThresholdSearch,
    Trial,
    pin,
)
from snello.sensitivity import Lobster, OutputSensitivity, Sensitivity, SeReNe
from snello.store import build

RATES = (0.1, 0.01, 0.001)


@dataclass(frozen=True)
class Protocol:
    """Settings of all runs of one network.

    Attributes:
        network, data: names for :func:`build` and :func:`load_dataset`.
        rungs: shares of the prunable weights at which a copy is fine-tuned and measured.
        lr, batch: of SGD.
        lmbda: strength of the decays.
        twt, pwe: as published.
        least: share of the remaining weights that every pruning step removes.
        plateau: "released" or "strict".
        patience: bad epochs at one rate of the fine-tuning.
        longest: most epochs at one rate of the fine-tuning.
        epochs: most epochs of regularisation and pruning; rungs not reached by then are left out.
        bf16: train in bfloat16 where autocast does; measurements are in float32.
    """

    network: str
    data: str = "mnist"
    rungs: tuple[float, ...] = (0.9, 0.95, 0.98, 0.99, 0.995)
    lr: float = 0.1
    batch: int = 100
    lmbda: float = 1e-4
    twt: float = 0.05
    pwe: int = 20
    least: float = 0.1
    plateau: str = "released"
    patience: int = 4
    longest: int = 40
    epochs: int = 2000
    bf16: bool = False

    def __post_init__(self) -> None:
        # Refused here, not after the training that comes before their first use.
        Plateau(self.pwe)
        LossBound(self.twt)
        Ratio(self.least)
        Lobster(nn.Linear(1, 1), self.lmbda)
        if not (self.least > 0 and min(self.patience, self.longest) >= 1 and self.epochs >= 0):
            raise ConfigError(
                "least is above 0, patience and longest are at least 1, epochs are at least 0, not "
                f"{self.least}, {self.patience}, {self.longest}, {self.epochs}"
            )

    @property
    def dense(self) -> dict[str, Any]:
        """The settings that the dense network depends on."""
        names = ("network", "data", "lr", "batch", "patience", "longest", "bf16")
        return {name: getattr(self, name) for name in names}


PROTOCOLS = {
    "lenet300": Protocol("lenet-300-100"),
    "lenet5": Protocol("lenet-5", bf16=True),
}


class PlainDecay(Sensitivity):
    """The control: every weight and bias of Linear and convolution layers decays alike."""

    def __init__(self, model: nn.Module, lmbda: float) -> None:
        super().__init__(lmbda)
        self._parameters = {
            f"{name}.{key}": value
            for name, layer in weighted_layers(model).items()
            for key, value in layer.named_parameters(recurse=False)
        }
        self._ones = [torch.ones((), device=p.device) for p in self._parameters.values()]

    def sensitivity(self) -> dict[str, Tensor]:
        """Zero for all."""
        return {name: torch.zeros_like(p) for name, p in self._parameters.items()}

    def _weights_and_insensitivities(self) -> tuple[list[Tensor], list[Tensor]]:
        return list(self._parameters.values()), self._ones


class ReleasedSeReNe(SeReNe):
    """The full sensitivity divided by the batch size once more: gradients of a batch's mean."""

    def __init__(self, model: nn.Module, lmbda: float, batch: int, seed: int) -> None:
        super().__init__(model, lmbda, estimate="full", classes_per_pass=10, seed=seed, exclude=())
        self._batch = batch

    def sensitivity(self) -> dict[str, Tensor]:
        """Layer name -> sensitivity of its neurons."""
        divided = super().sensitivity()
        if not self._sums:  # the latest ones have been divided already
            return divided
        return {name: value / self._batch for name, value in divided.items()}


SAME_STEPS = (Lobster, PlainDecay)
"""Sensitivities that do the same in every step."""
WARM_UP = 3
"""Steps before one is captured in a CUDA graph."""


@dataclass(frozen=True)
class Method:
    """One curve.

    Attributes:
        decay: builds the sensitivity from model, protocol and seed; None without a decay.
        importance: scores of the weights.
        oneshot: from the dense network to each rung in one step.
    """

    decay: Callable[[nn.Module, Protocol, int], Sensitivity] | None = None
    importance: str = "l1"
    oneshot: bool = False


def _full(model: nn.Module, p: Protocol, seed: int) -> Sensitivity:
    return SeReNe(model, p.lmbda, estimate="full", classes_per_pass=10, seed=seed)


METHODS = {
    "lobster": Method(lambda m, p, seed: Lobster(m, p.lmbda)),
    "decay": Method(lambda m, p, seed: PlainDecay(m, p.lmbda)),
    "han": Method(importance="han"),
    "oneshot": Method(oneshot=True),
    "oneshot-han": Method(importance="han", oneshot=True),
    "serene": Method(lambda m, p, seed: SeReNe(m, p.lmbda, seed=seed)),
    "magnitude": Method(),
    "output": Method(lambda m, p, seed: OutputSensitivity(m, p.lmbda, seed=seed)),
    "serene-full": Method(_full),
    "serene-released": Method(lambda m, p, seed: ReleasedSeReNe(m, p.lmbda, p.batch, seed)),
}
"""The deciding rows first: a stopped series has them."""


@dataclass
class ReleasedPlateau:
    """PWE as in the released code: bad is an epoch more than the tolerance above the best loss.

    Source: the plateau schedulers in EIDOSLAB/LOBSTER and EIDOSLAB/SeReNe on GitHub.
    """

    pwe: int
    tolerance: float = 0.01
    best: float = math.inf
    bad: int = 0
    restores = True
    progress = 1.0
    done = False

    def update(self, loss: float) -> bool:
        """Count an epoch; return True if its loss is the lowest since the last step."""
        self.bad = 0 if loss < self.best * (1 + self.tolerance) else self.bad + 1
        improved = loss < self.best
        self.best = min(self.best, loss)
        return improved

    @property
    def reached(self) -> bool:
        """True after enough bad epochs in a row."""
        return self.bad >= self.pwe

    def reset(self, loss: float) -> None:
        """Forget the best loss: the first epoch after a pruning step is the new best."""
        self.best, self.bad = math.inf, 0

    def state_dict(self) -> dict[str, Any]:
        """The two counters."""
        return {"best": self.best, "bad": self.bad}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        self.best, self.bad = state["best"], state["bad"]


@dataclass
class WithinRung:
    """TWT, but at least a share of what is left and never past the next rung.

    Attributes:
        twt, least: see :class:`Protocol`.
        rung: share of the prunable weights.
        within_twt: whether TWT alone allowed the last step.
        reached: whether the last step reached the rung.
    """

    twt: float
    least: float
    rung: float = 1.0
    within_twt: bool = True
    reached: bool = False
    needs_loss = True

    def search(self, trial: Trial, progress: float) -> ThresholdSearch:
        """Bisect within the bound on the loss, then apply both limits."""
        whole = Ratio(self.rung).search(trial, progress)
        allowed = LossBound(self.twt).search(trial, progress)
        share = Ratio(self.least, of_rest=True).search(trial, progress)
        self.reached = max(allowed.threshold, share.threshold) >= whole.threshold
        chosen = whole if self.reached else max((allowed, share), key=lambda s: s.threshold)
        self.within_twt = chosen.threshold <= allowed.threshold
        return chosen


class Data:
    """A dataset as normalised tensors on one device, in one layout and precision."""

    def __init__(self, splits: DataSplits, batch: int, device: torch.device, bf16: bool) -> None:
        self.batch, self.device, self.bf16 = batch, device, bf16
        shape = (1, -1, 1, 1)
        mean, std = (torch.tensor(v).view(shape) for v in (splits.mean, splits.std))

        def ready(pixels: Tensor, dtype: torch.dtype) -> Tensor:
            images = (pixels.float() / 255 - mean) / std
            return images.to(device, dtype, memory_format=torch.channels_last)

        # The training images in the precision of training: a batch is then a copy and nothing else.
        self.images = ready(splits.train.pixels, torch.bfloat16 if bf16 else torch.float32)
        self.labels = splits.train.labels.to(device)
        self.validation, self.test = (
            (ready(part.pixels, torch.float32), part.labels.to(device))
            for part in (splits.validation, splits.test)
        )

    def epoch(self, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Shuffled training batches of equal size; the remainder is left out."""
        order = torch.randperm(len(self.labels), generator=generator).to(self.device)
        for start in range(0, len(order) - self.batch + 1, self.batch):
            chosen = order[start : start + self.batch]
            yield self.images[chosen], self.labels[chosen]

    @torch.no_grad()
    def measure(self, model: nn.Module, part: tuple[Tensor, Tensor]) -> tuple[float, float]:
        """Mean cross-entropy and accuracy, in float32."""
        loss, right = 0.0, 0
        with evaluation(model):
            for images, labels in zip(*(tensor.split(1000) for tensor in part), strict=True):
                outputs = model(images)
                loss += float(cross_entropy(outputs, labels, reduction="sum"))
                right += int((outputs.argmax(1) == labels).sum())
        return loss / len(part[1]), right / len(part[1])

    def loss(self, model: nn.Module) -> float:
        """Mean cross-entropy on the validation images."""
        return self.measure(model, self.validation)[0]


def train_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: Data,
    generator: torch.Generator,
    sensitivity: Sensitivity | None = None,
) -> float:
    """One epoch; returns the mean insensitivity of the non-zero weights in its last step."""
    model.train()

    def step(images: Tensor, labels: Tensor) -> None:
        with torch.autocast(data.device.type, torch.bfloat16, enabled=data.bf16):
            outputs = model(images)
        outputs = outputs.float()
        if sensitivity is not None:
            sensitivity.observe(outputs, labels)
        optimizer.zero_grad()
        cross_entropy(outputs, labels).backward()
        optimizer.step()
        if sensitivity is not None:
            sensitivity.step()

    batches = data.epoch(generator)
    # A method that draws classes, or measures at some steps only, has steps that differ.
    if data.device.type == "cuda" and (sensitivity is None or type(sensitivity) in SAME_STEPS):
        replayed(step, batches)
    else:
        for images, labels in batches:
            step(images, labels)
    return math.nan if sensitivity is None else mean_insensitivity(model, sensitivity)


def replayed(
    step: Callable[[Tensor, Tensor], None], batches: Iterator[tuple[Tensor, Tensor]]
) -> None:
    """Make the steps of an epoch on a GPU, whose kernels here are shorter than their launches.

    The first ones run as they are, the next is captured, and it and the others are replayed: the
    same kernels on the next batch.
    """
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for images, labels in itertools.islice(batches, WARM_UP):
            step(images, labels)
    torch.cuda.current_stream().wait_stream(aside)
    graph: torch.cuda.CUDAGraph | None = None
    for images, labels in batches:
        if graph is None:
            given = (images.clone(), labels.clone())
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                step(*given)
        given[0].copy_(images)
        given[1].copy_(labels)
        graph.replay()


def mean_insensitivity(model: nn.Module, sensitivity: Sensitivity) -> float:
    """Mean of ``max(0, 1 - S)`` over the non-zero weights that decay."""
    measured, total, count = sensitivity.sensitivity(), 0.0, 0
    for name, layer in weighted_layers(model).items():
        weight: Tensor = layer.weight  # type: ignore[assignment]
        found = measured.get(f"{name}.weight", measured.get(name))
        if found is None:
            continue
        shares = (1 - found).clamp_min(0).reshape(len(weight), -1).expand(len(weight), -1)
        alive = (weight != 0).reshape(len(weight), -1)
        total += float((shares * alive).sum())
        count += int(alive.sum())
    return total / count if count else math.nan


class FineTuning:
    """Training to convergence, one epoch per call: a falling rate, the best weights on validation.

    Args:
        model: trained in place.
        masks: parameter name -> kept entries.
    """

    def __init__(self, model: nn.Module, masks: dict[str, Tensor], p: Protocol, data: Data) -> None:
        self.model, self._data, self._p = model, data, p
        self.masks = dict(masks)
        self._optimizer = torch.optim.SGD(model.parameters(), RATES[0])
        self._pin = pin(model, self._optimizer, self.masks)
        self.rate = self.bad = self.epochs = self.at_rate = 0
        self._rest(data.loss(model))

    def _rest(self, loss: float) -> None:
        self.best, self.reference = loss, loss
        self.weights = copy.deepcopy(self.model.state_dict())

    @property
    def done(self) -> bool:
        """True once the last rate brings nothing more; the model then has the best weights."""
        return self.rate == len(RATES)

    def step(self, generator: torch.Generator) -> None:
        """One epoch, and a lower rate when this one brings nothing more."""
        for group in self._optimizer.param_groups:
            group["lr"] = self._p.lr * RATES[self.rate] / RATES[0]
        train_epoch(self.model, self._optimizer, self._data, generator)
        self.epochs, self.at_rate = self.epochs + 1, self.at_rate + 1
        loss = self._data.loss(self.model)
        self.bad = 0 if loss < 0.99 * self.reference else self.bad + 1
        self.reference = min(self.reference, loss) if self.bad == 0 else self.reference
        if loss < self.best:
            self.best, self.weights = loss, copy.deepcopy(self.model.state_dict())
        if self.bad >= self._p.patience or self.at_rate >= self._p.longest:
            self.model.load_state_dict(self.weights)
            self.rate, self.bad, self.at_rate, self.reference = self.rate + 1, 0, 0, self.best

    def state_dict(self) -> dict[str, Any]:
        """Everything but the data."""
        kept = ("rate", "bad", "epochs", "at_rate", "best", "reference", "weights", "masks")
        return {"model": self.model.state_dict(), **{name: getattr(self, name) for name in kept}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict` into one built with the same masks."""
        self.model.load_state_dict(state["model"])
        for name, value in state.items():
            if name not in ("model", "masks"):
                setattr(self, name, value)


@dataclass
class Progress:
    """Progress of a run in plain values: the JSON row and the counters of the loop.

    Attributes:
        epochs: of regularisation and pruning.
        rung: index of the next rung.
        steps: one record per pruning step.
        points: one record per rung.
        seconds: CPU seconds of the process.
        shares: mean insensitivity at the end of every epoch.
    """

    epochs: int = 0
    rung: int = 0
    steps: list[dict[str, Any]] = field(default_factory=list)
    points: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    shares: list[float] = field(default_factory=list)


class Run:
    """One method with one seed, resumable after any epoch.

    Args:
        method: name in :data:`METHODS`.
        seed: of the order of the images and of drawn classes.
        dense: weights of the dense network.
        protocol, data: of the network.
        checkpoint: file of the state.
    """

    def __init__(
        self, method: str, seed: int, dense: dict[str, Tensor], protocol: Protocol, data: Data,
        checkpoint: Path,
    ) -> None:  # fmt: skip
        self.name, self.method, self.seed = method, METHODS[method], seed
        self._p, self._data, self._dense, self._checkpoint = protocol, data, dense, checkpoint
        self.progress = Progress()
        self._generator = torch.Generator().manual_seed(seed)
        self._tuning: FineTuning | None = None
        self._fresh()

    def _fresh(self) -> None:
        """The dense network, with nothing pruned."""
        p = self._p
        self._model = new_model(p, self._dense, self._data.device)
        self._amount = WithinRung(p.twt, p.least)
        # mypy's view of a protocol with properties; both classes fit.
        schedule: Schedule = (
            Plateau(p.pwe) if p.plateau == "strict" else ReleasedPlateau(p.pwe)  # type: ignore[assignment]
        )
        self._pruner = Pruner(
            self._model, None, self._data.loss, importance=self.method.importance, normalise=None,
            amount=self._amount, schedule=schedule, exclude=(), limits=LayerLimits(1),
        )  # fmt: skip
        self._optimizer = torch.optim.SGD(self._model.parameters(), p.lr)
        self._pruner.attach(self._optimizer)
        build_decay = self.method.decay
        self._decay = None if build_decay is None else build_decay(self._model, p, self.seed)

    def finish(self, stop_after: int | None = None) -> bool:
        """Run to the end, or stop after some epochs; returns whether the end was reached."""
        if self._checkpoint.is_file():
            self._load()
        if not self.progress.points:
            self.progress.points.append(self._point(self._model, 0.0, 0))
        count = 0
        while not self._ended:
            if stop_after is not None and count >= stop_after:
                return False
            started = time.process_time()
            self._epoch()
            self.progress.seconds += time.process_time() - started
            self._save()
            count += 1
        return True

    @property
    def _ended(self) -> bool:
        spent = self.progress.epochs >= self._p.epochs and self._tuning is None
        return self.progress.rung == len(self._p.rungs) or spent

    def _epoch(self) -> None:
        """One epoch of whatever is due, and what follows from it."""
        if self._tuning is not None:
            self._tuning.step(self._generator)
            if self._tuning.done:
                self._land(self._tuning)
        elif self.method.oneshot:
            self._fresh()
            self._amount.least = 1.0
            self._prune_to_rung()
        else:
            self._regularise()

    def _regularise(self) -> None:
        share = train_epoch(self._model, self._optimizer, self._data, self._generator, self._decay)
        self.progress.shares.append(round(share, 5))
        self.progress.epochs += 1
        self._amount.rung = self._p.rungs[self.progress.rung]
        loss = self._data.loss(self._model)
        with warnings.catch_warnings(action="ignore"):  # layers that lose nearly all: the subject
            search = self._pruner.step(loss).search
        if search is not None:
            self._note(search)

    def _prune_to_rung(self) -> None:
        self._amount.rung = self._p.rungs[self.progress.rung]
        with warnings.catch_warnings(action="ignore"):
            self._note(self._pruner.prune())

    def _note(self, search: ThresholdSearch) -> None:
        """Record a pruning step; at a rung, start the fine-tuning of a copy."""
        self.progress.steps.append(
            {
                "epoch": self.progress.epochs, "sparsity": round(sparsity(self._model), 6),
                "threshold": search.threshold, "loss": round(search.loss, 5),
                "within_twt": self._amount.within_twt,
            }
        )  # fmt: skip
        if self._amount.reached:
            twin = new_model(self._p, self._model.state_dict(), self._data.device)
            self._tuning = FineTuning(twin, self._pruner.masks, self._p, self._data)

    def _land(self, tuning: FineTuning) -> None:
        rung = self._p.rungs[self.progress.rung]
        self.progress.points.append(self._point(tuning.model, rung, tuning.epochs))
        self.progress.rung += 1
        self._tuning = None

    def _point(self, model: nn.Module, rung: float, tuned: int) -> dict[str, Any]:
        tensors = {name: value.detach().cpu() for name, value in model.state_dict().items()}
        decoded = new_model(self._p, dict(quantised(tensors)), self._data.device)
        layers = weighted_layers(model).values()
        neurons = sum(map(neuron_count, layers))
        loss, seen = self._data.measure(model, self._data.validation)
        return {
            "ratio": rung, "sparsity": round(sparsity(model), 6),
            "test": self._data.measure(model, self._data.test)[1], "validation": seen,
            "loss": round(loss, 5), "bytes": len(encode(tensors)),
            "decoded": self._data.measure(decoded, self._data.test)[1],
            "dead_neurons": sum(int(dead_neurons(layer).sum()) for layer in layers) / neurons,
            "epochs": self.progress.epochs, "tuned": tuned,
        }  # fmt: skip

    def row(self) -> dict[str, Any]:
        """The run as JSON."""
        return {
            "method": self.name, "seed": self.seed, "protocol": asdict(self._p),
            **asdict(self.progress), "shares": summary(self.progress.shares),
            "device": str(self._data.device), "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }  # fmt: skip

    def _save(self) -> None:
        state = {
            "protocol": json.dumps(asdict(self._p)),
            "progress": asdict(self.progress),
            "generator": self._generator.get_state(),
            "model": self._model.state_dict(),
            "pruner": self._pruner.state_dict(),
            "decay": {} if self._decay is None else self._decay.state_dict(),
            "tuning": None if self._tuning is None else self._tuning.state_dict(),
        }
        write_file(self._checkpoint, lambda path: torch.save(state, path))

    def _load(self) -> None:
        state = torch.load(self._checkpoint, map_location=self._data.device, weights_only=True)
        check_settings(self._checkpoint, json.loads(state["protocol"]), asdict(self._p))
        self.progress = Progress(**state["progress"])
        self._generator.set_state(state["generator"].cpu())
        self._model.load_state_dict(state["model"])
        self._pruner.load_state_dict(state["pruner"])
        if self._decay is not None:
            self._decay.load_state_dict(state["decay"])
        if state["tuning"] is not None:
            twin = new_model(self._p, state["tuning"]["model"], self._data.device)
            self._tuning = FineTuning(twin, state["tuning"]["masks"], self._p, self._data)
            self._tuning.load_state_dict(state["tuning"])


def new_model(p: Protocol, weights: Mapping[str, Tensor], device: torch.device) -> nn.Module:
    """The network with some weights."""
    model = build(p.network, **LAYOUTS.get(p.data, {}))
    model.load_state_dict({name: value.clone() for name, value in weights.items()})
    return model.to(device, memory_format=torch.channels_last)


LAYOUTS: dict[str, dict[str, Any]] = {"digits": {"image_size": 8}}


def sparsity(model: nn.Module) -> float:
    """Share of the weights of Linear and convolution layers that are zero."""
    weights: list[Tensor] = [m.weight for m in weighted_layers(model).values()]  # type: ignore[misc]
    return sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)


def summary(values: list[float]) -> dict[str, float]:
    """Smallest, mean and largest value; empty without numbers."""
    known = [v for v in values if not math.isnan(v)]
    if not known:
        return {}
    return {"min": min(known), "mean": round(sum(known) / len(known), 5), "max": max(known)}


def dense_weights(p: Protocol, data: Data, seed: int, folder: Path) -> dict[str, Tensor]:
    """The dense network of a seed, trained once to convergence and kept in the folder.

    Raises:
        SystemExit: if the folder has one of other settings.
    """
    path = folder / f"{p.network}-dense-s{seed}.pt"
    if not path.is_file():
        torch.manual_seed(seed)
        initial = build(p.network, **LAYOUTS.get(p.data, {})).state_dict()
        tuning = FineTuning(new_model(p, initial, data.device), {}, p, data)
        generator = torch.Generator().manual_seed(1000 + seed)
        while not tuning.done:
            tuning.step(generator)
        kept = {"settings": p.dense, "weights": tuning.model.state_dict()}
        write_file(path, lambda file: torch.save(kept, file))
    found = torch.load(path, map_location=data.device, weights_only=True)
    check_settings(path, found.get("settings"), p.dense)
    weights: dict[str, Tensor] = found["weights"]
    return weights


def check_settings(path: Path, found: object, expected: object) -> None:
    """Refuse a file of other settings, which would be taken for one of these.

    Raises:
        SystemExit: if it is one.
    """
    if json.loads(json.dumps(found)) != json.loads(json.dumps(expected)):
        raise SystemExit(f"{path} belongs to other settings: remove it or choose another --out")


def protocol_of(name: str, options: argparse.Namespace) -> Protocol:
    """The settings of a network, with those of the command line.

    Raises:
        ConfigError: for numbers outside their range.
    """
    given = {key: getattr(options, key) for key in OVERRIDES if getattr(options, key) is not None}
    return Protocol(**{**asdict(PROTOCOLS[name]), **given})


def run_all(options: argparse.Namespace) -> bool:
    """Run what is missing; returns whether everything is finished."""
    device = torch.device(options.device)
    finished = True
    for name in options.model:
        p = protocol_of(name, options)
        data: Data | None = None
        for seed in options.seeds:
            for method in options.methods:
                tag = f"{name}-{method}-l{p.lmbda:g}-{p.plateau}-s{seed}"
                path = options.out / f"{tag}.json"
                if path.is_file():
                    check_settings(path, json.loads(path.read_text())["protocol"], asdict(p))
                    continue
                data = data or Data(load_dataset(p.data, seed=0), p.batch, device, p.bf16)  # type: ignore[arg-type]
                dense = dense_weights(p, data, seed, options.out)
                checkpoint = options.out / f"{tag}.pt"
                run = Run(method, seed, dense, p, data, checkpoint)
                if not run.finish(options.stop_after):
                    finished = False
                    continue
                write_text(path, json.dumps({"network": name, **run.row()}, indent=1) + "\n")
                checkpoint.unlink(missing_ok=True)
                curve = "  ".join(f"{q['ratio']:.1%} {q['test']:.2%}" for q in run.progress.points)
                print(f"{tag}, {run.progress.seconds:.0f} s CPU: {curve}", flush=True)
    return finished


def time_epochs(options: argparse.Namespace) -> None:
    """Seconds per epoch of every network and method, in float32 and bfloat16."""
    device = torch.device(options.device)
    for name in options.model:
        p = protocol_of(name, options)
        splits = load_dataset(p.data, seed=0)  # type: ignore[arg-type]
        for bf16 in (False, True):
            data = Data(splits, p.batch, device, bf16)  # type: ignore[arg-type]
            torch.manual_seed(0)
            initial = build(p.network, **LAYOUTS.get(p.data, {})).state_dict()
            for method in options.methods:
                decay = METHODS[method].decay
                if decay is None and method != "magnitude":
                    continue
                model = new_model(p, initial, device)
                optimizer = torch.optim.SGD(model.parameters(), p.lr)
                sensitivity = None if decay is None else decay(model, p, 0)
                started = time.process_time(), time.perf_counter()
                train_epoch(model, optimizer, data, torch.Generator().manual_seed(0), sensitivity)
                cpu, wall = time.process_time() - started[0], time.perf_counter() - started[1]
                kind = "bf16" if bf16 else "float32"
                print(
                    f"{name} {kind} {method}: {cpu:.2f} s CPU, {wall:.2f} s per epoch", flush=True
                )


OVERRIDES = (
    "data", "lmbda", "twt", "pwe", "least", "plateau", "patience", "longest", "epochs", "bf16",
)  # fmt: skip


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", nargs="+", choices=PROTOCOLS, default=["lenet300"])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--lmbda", type=float, help="strength of the decays; default: 1e-4")
    parser.add_argument("--twt", type=float)
    parser.add_argument("--pwe", type=int)
    parser.add_argument("--least", type=float, help="share that every step removes at least")
    parser.add_argument("--plateau", choices=("released", "strict"))
    parser.add_argument("--patience", type=int, help="of the fine-tuning, in epochs")
    parser.add_argument("--longest", type=int, help="epochs at one rate of the fine-tuning")
    parser.add_argument("--epochs", type=int, help="most epochs of regularisation and pruning")
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction)
    parser.add_argument("--data", help="instead of MNIST, for a quick try: digits")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--stop-after", type=int, help="epochs per run, then stop; for tests")
    parser.add_argument("--time", action="store_true", help="only measure seconds per epoch")
    parser.add_argument("--page", type=Path, help="only write tables and plots of what is finished")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/published"), help="folder of the runs"
    )
    return parser.parse_args(given)


def main(given: list[str] | None = None) -> int:
    """Run what is missing, or report; returns 0 if everything is finished."""
    options = arguments(given)
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.page is not None:
        write_page(options.out, options.page, list(METHODS))
        return 0
    try:
        if options.time:
            time_epochs(options)
            return 0
        return 0 if run_all(options) else 1
    except SnelloError as error:
        raise SystemExit(f"pruning_published.py: {error}") from error


if __name__ == "__main__":
    raise SystemExit(main())
