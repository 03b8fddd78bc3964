"""Latency of dense, masked, simplified and quantised networks, all in turns in one run.

    python benchmarks/latency.py --out runs/bench/latency.json

LeNet-5 (1×28²), ResNet-32 (3×32²), ResNet-18 (3×224²) and VGG-16 for CIFAR (torchvision's vgg16_bn
without its classifier, then 512-512-10), with random weights: none of these times depends on what
was learnt.

- dense: as it is.
- masked: 90 % of the single weights of every layer but the head at zero, at random, as LOBSTER
  leaves a network. No neuron dies of it, so nothing can be removed: what a dense runtime makes of
  scattered zeros.
- simplified: half of the neurons of every layer but the head dead, at random, as SeReNe would leave
  them, and taken out by ``snello.simplify``.
- plain: the same, simplified with ``prefer="plain"``: neurons whose removal would need an index
  operation at a residual join are left.
- coupled: coupled channels cut to half of the MACs, by magnitude.

Each of them in PyTorch, in ONNX Runtime, and in ONNX Runtime after int8 quantisation (ranges from
random inputs: this is about time). The table gives the median in ms with its 10th and 90th
percentile, and the ratio to the dense network in the same runtime beside the ratio of MACs.
"""

from __future__ import annotations

import argparse
import platform
from pathlib import Path

import torch
from masked_zoo import zero
from simplify_latency import dead_neurons
from torch import nn

from snello import simplify
from snello.deploy import Profile, Subject, compare
from snello.files import write_text
from snello.lab.reporting import Table, as_json, markdown
from snello.neurons import head, weighted_layers
from snello.pruning.channels import Keep
from snello.search import prune
from snello.store import build

RUNTIMES = ("pytorch", "onnxruntime", "onnxruntime int8")  # the last two on the CPU only
INPUTS = {
    "lenet-5": (1, 28, 28),
    "resnet-32": (3, 32, 32),
    "resnet18": (3, 224, 224),
    "vgg-16-cifar": (3, 32, 32),
}
MASKED, DEAD = 0.9, 0.5


def network(name: str) -> nn.Module:
    """A network of the table, randomly initialised."""
    if name != "vgg-16-cifar":
        return build(name).eval()
    features = build("vgg16_bn").features
    classifier = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
    return nn.Sequential(features, nn.Flatten(), classifier).eval()


@torch.no_grad()
def mask(model: nn.Module, share: float, generator: torch.Generator) -> nn.Module:
    """Zero a random share of the single weights of each layer but the head."""
    for name, layer in weighted_layers(model).items():
        if name != head(model):
            layer.weight.mul_(torch.rand(layer.weight.shape, generator=generator) >= share)
    return model


def subjects(
    name: str, batch: int, generator: torch.Generator, device: str = "cpu"
) -> list[Subject]:
    """The five variants of a network."""
    x = torch.randn(batch, *INPUTS[name], generator=generator)
    masked = mask(network(name), MASKED, generator)
    dying = network(name)
    zero(dying, dead_neurons(dying, DEAD, generator), with_norms=True)
    nets = {
        "dense": network(name),
        "masked": masked,
        "simplified": simplify(dying, x),
        "plain": simplify(dying, x, prefer="plain"),
        "coupled": prune(network(name), x, Keep(macs=0.5)).model,
    }
    return [
        Subject(f"{name} {variant}", net.to(device), (x.to(device),))
        for variant, net in nets.items()
    ]


def table(profiles: tuple[Profile, ...], note: str) -> Table:
    """One row per network and variant."""
    dense = {p.name.split()[0]: p for p in profiles if p.name.endswith(" dense")}
    rows = []
    for profile in profiles:
        base = dense[profile.name.split()[0]]
        paper = profile.footprint
        assert paper is not None
        assert base.footprint is not None
        cells = [str(paper.parameters), f"{paper.macs / base.footprint.macs:.2f}x"]
        for runtime in profile.latencies:
            time, ratio = profile.latencies[runtime], profile.latencies[runtime].median_ms
            ratio /= base.latencies[runtime].median_ms
            cells += [
                f"{time.median_ms:.3f} ({time.p10_ms:.3f}-{time.p90_ms:.3f})",
                f"{ratio:.2f}x",
            ]
        rows.append((profile.name, *cells))
    header = ["Network", "Params", "MACs"]
    for runtime in profiles[0].latencies:
        header += [f"{runtime} [ms]", "to dense"]
    return Table("Latency", tuple(header), tuple(rows), note)


def place(device: str) -> str:
    """Name of the GPU, or the kind of the CPU."""
    return torch.cuda.get_device_name() if device.startswith("cuda") else platform.machine()


def main(given: list[str] | None = None) -> None:
    """Print a table, write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--warmup", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--models", nargs="+", choices=tuple(INPUTS), default=list(INPUTS))
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--runtimes", nargs="+", choices=RUNTIMES, help="default: all on the CPU, else PyTorch"
    )
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(given)
    generator = torch.Generator().manual_seed(options.seed)
    torch.manual_seed(options.seed)
    nets = [
        subject
        for name in options.models
        for subject in subjects(name, options.batch, generator, options.device)
    ]
    conditions = {key: getattr(options, key) for key in ("threads", "repeats", "warmup")}
    runtimes = options.runtimes or (RUNTIMES if options.device == "cpu" else RUNTIMES[:1])
    profiles = compare(nets, runtimes=runtimes, **conditions)
    note = (
        f"Median (p10-p90); batch {options.batch}, {options.threads} thread(s), {options.warmup} warm-up and "
        f"{options.repeats} timed calls, everything in turns in one run; {place(options.device)}, "
        f"torch {torch.__version__}."
    )
    print(markdown(table(profiles, note)))
    if options.out:
        write_text(options.out, as_json({"note": note, "models": profiles}))


if __name__ == "__main__":
    main()
