"""Equality of every path that depends on the device: the same computation on the CPU and on a GPU.

    python benchmarks/gpu_equality.py --device cuda --out equality.json

Each check runs twice, in float64 except where its name says otherwise, and returns named numbers
and tensors. Reported is the largest difference of any of them, relative to its largest magnitude;
masks, classes drawn and bytes of bitstreams have to be equal. What is random on the device itself
(dropout) is not compared.
"""

from __future__ import annotations

import argparse
import json
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from masked_zoo import zero
from neq_backward import Everything
from simplify_latency import dead_neurons
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from snello import simplify
from snello.codec import encode
from snello.curation import InfoBatch
from snello.equilibrium import (
    FeatureCache,
    NEq,
    Prefix,
    SelectiveUpdate,
    Stochastic,
    step_memory,
    time_backward,
)
from snello.files import write_text
from snello.graph.coupled import coupling
from snello.pruning import Pruner, Ratio, taylor
from snello.pruning.channels import Keep, group_fisher, group_taylor, magnitude
from snello.pruning.recovery import recalibrate
from snello.search import prune
from snello.search.rate._fisher import fisher
from snello.sensitivity import (
    GroupDecay,
    Lobster,
    OutputSensitivity,
    Sensitivity,
    SeReNe,
    lobster_scores,
    serene_scores,
)
from snello.store import build

Found = dict[str, Tensor]
NETWORK, STEPS, BATCH = "resnet-20", 3, 8
SIZE = {"side": 32}
"""Side of the images; smaller in a quick run."""


@dataclass(frozen=True)
class Check:
    """One comparison.

    Attributes:
        run: computes on a device.
        bound: largest relative difference.
    """

    run: Callable[[torch.device], Found]
    bound: float = 1e-9


@dataclass(frozen=True)
class Result:
    """The outcome of a check.

    Attributes:
        name: of the check.
        difference: largest relative difference; infinite if something is missing or not finite.
        bound: its limit.
        worst: name of what differs most.
        tensors: number of things compared.
        seconds: on both devices together.
        error: why it could not run; empty if it ran.
    """

    name: str
    difference: float
    bound: float
    worst: str
    tensors: int
    seconds: float
    error: str = ""

    @property
    def passed(self) -> bool:
        """True if it ran and the difference is within the bound."""
        return not self.error and self.difference <= self.bound


def network(device: torch.device, dtype: torch.dtype = torch.float64) -> nn.Module:
    """The same network on any device, in channels_last."""
    torch.manual_seed(0)
    model = build(NETWORK).to(dtype)
    return model.to(device, memory_format=torch.channels_last)


def batches(device: torch.device, steps: int = STEPS) -> Iterator[tuple[Tensor, Tensor]]:
    """The same batches on any device."""
    generator, side = torch.Generator().manual_seed(1), SIZE["side"]
    for _ in range(steps):
        x = torch.randn(BATCH, 3, side, side, generator=generator, dtype=torch.float64)
        y = torch.randint(10, (BATCH,), generator=generator)
        yield x.to(device), y.to(device)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    """SGD with everything that could revive a frozen or a pruned weight."""
    return torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=1e-3)


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, sensitivity: Sensitivity | None = None
) -> Found:
    """Some steps; the state of the model after them."""
    device = next(model.parameters()).device
    for x, y in batches(device):
        outputs = model(x)
        if sensitivity is not None:
            sensitivity.observe(outputs, y)
        optimizer.zero_grad()
        cross_entropy(outputs, y).backward()
        optimizer.step()
        if sensitivity is not None:
            sensitivity.step()
    return state(model)


def state(model: nn.Module) -> Found:
    """Everything that a checkpoint holds."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def named(prefix: str, tensors: Mapping[str, Tensor]) -> Found:
    """Tensors under a common prefix."""
    return {f"{prefix} {name}": value for name, value in tensors.items()}


# Equilibrium


def sparse_backward(device: torch.device) -> Found:
    """Half of the neurons of every layer frozen; every frozen row is left out."""
    model = network(device)
    optimizer = sgd(model)
    method = SelectiveUpdate(model, optimizer, next(batches(device))[0][:2], Stochastic(0.0))
    method.freezer.dispatch = Everything()
    generator = torch.Generator().manual_seed(2)
    method.apply(
        {n: torch.rand(len(m), generator=generator) < 0.5 for n, m in method.frozen.items()}
    )
    found = train(model, optimizer)
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return found | named("gradient", gradients)


def sparse_backward_bf16(device: torch.device) -> Found:
    """Under autocast: the sparse gradients against the dense ones with their frozen rows at zero."""
    model = network(device, torch.float32)
    x, y = next(batches(device))
    x = x.float().to(memory_format=torch.channels_last)
    method = SelectiveUpdate(model, sgd(model), x[:2], Stochastic(0.0))
    method.freezer.dispatch = Everything()
    generator = torch.Generator().manual_seed(2)
    masks = {n: torch.rand(len(m), generator=generator) < 0.5 for n, m in method.frozen.items()}

    def gradients(frozen: Mapping[str, Tensor]) -> Found:
        method.apply(frozen)
        model.zero_grad()
        with torch.autocast(device.type, torch.bfloat16):
            loss = cross_entropy(model(x), y)
        loss.backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    dense = gradients({n: torch.zeros_like(m) for n, m in masks.items()})
    sparse = gradients(masks)
    off = 0.0
    for name, mask in masks.items():
        key = f"{name}.weight"
        wanted = dense[key].clone()
        wanted[mask.to(device)] = 0
        got = sparse.get(key, torch.zeros_like(wanted))
        off = max(off, float((got - wanted).abs().max() / wanted.abs().max().clamp_min(1e-12)))
    # Compared with zero: one plus the difference, so that the scale of the comparison is one.
    return {"one plus the difference": torch.tensor(1.0 if off < 0.02 else 1.0 + off)}


def neq(device: torch.device) -> Found:
    """NEq over three decisions: similarities, velocities, masks and weights."""
    model = network(device)
    optimizer = sgd(model)
    x = next(batches(device))[0]
    method = NEq(model, optimizer, probe=x, eps=0.02, dispatch="fixed")
    for _ in range(3):
        train(model, optimizer)
        method.step()
    kept = method.state_dict()["selection"]
    masks = named("mask", {n: m.double() for n, m in method.frozen.items()})
    return state(model) | masks | named("phi", kept["phi"]) | named("velocity", kept["velocity"])


def feature_cache(device: torch.device) -> Found:
    """Features of a resting front, stored and read again."""
    model = network(device)
    optimizer = sgd(model)
    x = torch.cat([images for images, _ in batches(device)])
    method = SelectiveUpdate(model, optimizer, x[:2], Prefix(0.5), dispatch="fixed")
    method.step()
    cache = FeatureCache(method, len(x), measured=False)
    model.train()
    outputs = []
    for _ in range(2):
        for index in torch.arange(len(x)).split(BATCH):
            scores = cache(x[index.to(device)], index.to(device))
            optimizer.zero_grad()
            cross_entropy(scores, index.to(device) % 10).backward()
            optimizer.step()
            outputs.append(scores.detach())
    return state(model) | {
        "outputs": torch.cat(outputs),
        "stored": torch.tensor(cache.status.stored),
    }


def clocks_and_memory(device: torch.device) -> Found:
    """Timing and memory of a step run and are positive; their values depend on the device."""
    model = network(device, torch.float32)
    x, y = next(batches(device))
    x = x.float()
    method = SelectiveUpdate(model, sgd(model), x[:2], Stochastic(0.5))
    method.step()
    timing = time_backward(method, x, y, cross_entropy, 2)
    memory = step_memory(model, x, lambda outputs: cross_entropy(outputs, y))
    return {
        "ran": torch.tensor(float(timing.dense_ms > 0 and timing.sparse_ms > 0)),
        "saved": torch.tensor(float(memory.saved_bytes > 0)),
    }


# Sensitivities

DECAYS: dict[str, Callable[[nn.Module], Sensitivity]] = {
    "LOBSTER": lambda m: Lobster(m, 0.01),
    "SeReNe sampled": lambda m: SeReNe(m, 0.01, every=2),
    "SeReNe full": lambda m: SeReNe(m, 0.01, estimate="full", every=1, classes_per_pass=4),
    "SeReNe lower bound": lambda m: SeReNe(m, 0.01, estimate="lower-bound", every=1),
    "SeReNe local": lambda m: SeReNe(m, 0.01, estimate="local", every=1),
    "SeReNe, some examples": lambda m: SeReNe(m, 0.01, examples=4, every=1),
    "output sensitivity": lambda m: OutputSensitivity(m, 0.01, every=2),
    "output sensitivity, specific": lambda m: OutputSensitivity(m, 0.01, kind="specific", every=1),
}


def decaying(builder: Callable[[nn.Module], Sensitivity]) -> Callable[[torch.device], Found]:
    """A check of one sensitivity."""

    def check(device: torch.device) -> Found:
        model = network(device)
        method = builder(model)
        found = train(model, sgd(model), method)
        return found | named("sensitivity", method.sensitivity())

    return check


def group_decay(device: torch.device) -> Found:
    """Whole channels of residual streams."""
    model = network(device)
    groups = coupling(model, next(batches(device))[0])
    method = GroupDecay(SeReNe(model, 0.01, every=1), model, groups)
    return train(model, sgd(model), method) | named("sensitivity", method.sensitivity())


def overflow(device: torch.device) -> Found:
    """A gradient scaler that overflows: neither optimizer nor decay changes a weight."""
    model = network(device, torch.float32)
    optimizer, before = sgd(model), state(model)
    scaler, method = torch.amp.GradScaler(device.type, init_scale=2.0**120), Lobster(model, 0.01)
    x, y = next(batches(device))
    scaler.scale(cross_entropy(model(x.float()), y) * 1e30).backward()
    scaler.step(optimizer)
    method.step()
    trained = dict(model.named_parameters())
    changed = max(float((trained[n] - before[n].to(device)).abs().max()) for n in trained)
    return {"unchanged": torch.tensor(float(changed == 0))}


# Pruning


def calibrated(device: torch.device) -> Found:
    """Scores of a trained network."""
    model, given = network(device), list(batches(device))
    scores = {
        "lobster": lobster_scores(given),
        "serene": serene_scores(given),
        "taylor": taylor(given),
    }
    return {
        key: value
        for kind, score in scores.items()
        for grain in ("weight", "neuron")
        for key, value in named(f"{kind} {grain}", score(model, grain)).items()
    }


def pinned(device: torch.device) -> Found:
    """Pruned weights, random and by magnitude, stay zero through training."""
    model = network(device)
    optimizer = sgd(model)
    for importance in ("random", "han"):
        share = 0.3 if importance == "random" else 0.6
        pruner = Pruner(model, optimizer, importance=importance, amount=Ratio(share))
        pruner.prune()
    masks = named("mask", {name: mask.double() for name, mask in pruner.masks.items()})
    return train(model, optimizer) | masks


def channels(device: torch.device) -> Found:
    """Coupled channels cut by three importances, with least squares and new statistics."""
    model, given = network(device).eval(), list(batches(device))
    images = [x for x, _ in given]
    found: Found = {}
    for name, score in {
        "magnitude": magnitude(2), "taylor": group_taylor(given), "fisher": group_fisher(given),
    }.items():  # fmt: skip
        cut = prune(
            model, images[0], Keep(macs=0.5), importance=score, calibration=images,
            reconstruction=True,
        ).model  # fmt: skip
        recalibrate(cut, images)
        found |= named(name, state(cut)) | {f"{name} outputs": cut.eval()(images[0]).detach()}
    return found


# Simplification, codec, data


def lean(name: str, side: int, with_norms: bool) -> Callable[[torch.device], Found]:
    """A check of a simplified network, made and run on the device."""

    def check(device: torch.device) -> Found:
        torch.manual_seed(0)
        arguments = {} if name in ("lenet-5", NETWORK) else {"weights": None}
        dying = build(name, **arguments).double().eval()
        generator = torch.Generator().manual_seed(3)
        zero(dying, dead_neurons(dying, 0.5, generator), with_norms=with_norms)
        shape = (2, 1 if name == "lenet-5" else 3, side, side)
        x = torch.randn(shape, generator=generator, dtype=torch.float64).to(device)
        dying = dying.to(device, memory_format=torch.channels_last)
        with torch.no_grad():
            outputs, expected = simplify(dying, x)(x), dying(x)
        return {"simplified": outputs, "dense": expected, "twice": torch.cat([outputs, expected])}

    return check


def bitstream(device: torch.device) -> Found:
    """The same bytes from tensors on any device."""
    tensors = state(network(device, torch.float32))
    data = encode({name: value for name, value in tensors.items() if value.is_floating_point()})
    return {"bytes": torch.frombuffer(bytearray(data), dtype=torch.uint8).double()}


def rate_fisher(device: torch.device) -> Found:
    """Curvature for the search of quantisation parameters."""
    return fisher(network(device).eval(), [x for x, _ in batches(device)], seed=0)


def weights_of_samples(device: torch.device) -> Found:
    """Losses on the device, a plan and weights of the samples."""
    subset = InfoBatch(range(40), epochs=3)
    generator = torch.Generator().manual_seed(0)
    found: Found = {}
    for epoch in range(2):
        keys, _ = subset.begin()
        losses = torch.rand(40, generator=generator, dtype=torch.float64)[keys].to(device)
        found[f"weighed {epoch}"] = subset.weigh(losses, keys.to(device))
        found[f"keys {epoch}"] = keys.double()
    return found


def generators(device: torch.device) -> Found:
    """Measurements leave the random numbers of the device as they were."""
    model = network(device, torch.float32)
    x, y = next(batches(device))
    x = x.float()
    torch.manual_seed(5)
    expected = torch.rand(4, device=device)
    torch.manual_seed(5)
    method = NEq(model, sgd(model), probe=x)
    method.step()
    coupling(model, x)
    simplify(network(device, torch.float32).eval(), x)
    time_backward(method, x, y, cross_entropy, 1)
    kept = torch.equal(torch.rand(4, device=device), expected)
    return {"kept": torch.tensor(float(kept))}


CHECKS: dict[str, Check] = {
    "sparse backward": Check(sparse_backward),
    "sparse backward, bf16, channels_last": Check(sparse_backward_bf16),
    "NEq: probe, velocities, masks": Check(neq),
    "feature cache": Check(feature_cache),
    "time and memory of a step": Check(clocks_and_memory),
    **{name: Check(decaying(builder)) for name, builder in DECAYS.items()},
    "GroupDecay": Check(group_decay),
    "overflow of a gradient scaler, float32": Check(overflow),
    "scores: LOBSTER, SeReNe, Taylor": Check(calibrated),
    "pruner: random and Han, pinned": Check(pinned),
    "channels: three importances, least squares": Check(channels, 1e-6),
    "simplified, zero neurons": Check(lean(NETWORK, 32, True)),
    "simplified, constant neurons": Check(lean(NETWORK, 32, False)),
    "simplified LeNet-5": Check(lean("lenet-5", 28, False)),
    "simplified MobileNetV2": Check(lean("mobilenet_v2", 64, False)),
    "simplified ViT-B/32": Check(lean("vit_b_32", 224, False)),
    "bitstream": Check(bitstream, 0.0),
    "curvature of the rate search": Check(rate_fisher),
    "weights of samples": Check(weights_of_samples),
    "random numbers of the device": Check(generators),
}
QUICK = (
    "sparse backward", "NEq: probe, velocities, masks", "LOBSTER", "pruner: random and Han, pinned",
    "bitstream", "weights of samples",
)  # fmt: skip
"""Those of a dry run, which is about the script, not about the device."""


def compared(name: str, device: torch.device) -> Result:
    """Run a check on the CPU and on the device."""
    check, started = CHECKS[name], time.perf_counter()
    try:
        with warnings.catch_warnings(action="ignore"):
            expected, found = check.run(torch.device("cpu")), check.run(device)
    except Exception as error:  # a failure of one path must not hide the others
        text = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        return Result(name, math.inf, check.bound, "", 0, time.perf_counter() - started, text)
    off = {key: difference(found.get(key), value) for key, value in expected.items()}
    worst = max(off, key=off.__getitem__)
    seconds = round(time.perf_counter() - started, 2)
    return Result(name, off[worst], check.bound, worst, len(off), seconds)


def difference(found: Tensor | None, expected: Tensor) -> float:
    """Largest absolute difference over the largest magnitude; infinite for another shape or NaN."""
    if found is None or found.shape != expected.shape:
        return math.inf
    if not expected.numel():
        return 0.0
    a, b = found.detach().cpu().double(), expected.detach().double()
    off, scale = float((a - b).abs().max()), float(b.abs().max())
    if math.isnan(off):
        return math.inf
    return off / scale if scale else (0.0 if off == 0 else math.inf)


def main(given: list[str] | None = None) -> int:
    """Print a line per check, write JSON; returns 1 if one of them fails."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--checks", nargs="+", choices=CHECKS, default=list(CHECKS))
    parser.add_argument("--quick", action="store_true", help="a few checks, smaller images")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(given)
    names = QUICK if options.quick else options.checks
    SIZE["side"] = 8 if options.quick else 32
    # TF32 would round the single-precision checks of a GPU to ten bits.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    results = []
    for name in names:
        result = compared(name, torch.device(options.device))
        results.append(result)
        verdict = "equal" if result.passed else "DIFFERS"
        detail = (
            result.error or f"{result.difference:.1e} (bound {result.bound:.0e}), {result.worst}"
        )
        print(f"{name:45} {verdict:8} {detail}", flush=True)
    if options.out:
        write_text(options.out, json.dumps([asdict(r) for r in results], indent=1) + "\n")
    return 0 if all(result.passed for result in results) else 1


if __name__ == "__main__":
    raise SystemExit(main())
