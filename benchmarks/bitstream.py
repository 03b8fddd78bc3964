"""Bytes of a model file at equal accuracy: zip, int8 in a zip, nncodec's defaults, and snello's
rate search.

    SNELLO_DATA=DATA python benchmarks/bitstream.py resnet32 --weights resnet32.th --imagenet-statistics
    SNELLO_DATA=DATA python benchmarks/bitstream.py lenet5 --journey runs/mnist
    python benchmarks/bitstream.py speed

Protocol
    A search sees the validation images alone (cut from the training part), and calibrates on other
    training images, without labels. Every variant is then decoded and measured once on the test
    images; "kept" says whether it lost no more than MAX_DROP of accuracy there. The search is held
    to the same MAX_DROP of *soft* accuracy on the validation images: the mean of sigmoid(margin /
    TAU), margin being the score of the right class over the best other one. With TAU -> 0 that is
    the accuracy. Of a few thousand images, a few change sides at any quantisation, and to and fro:
    the accuracy of 5 000 images wavers by 0.2 points, and a search in small steps would find where
    it wavers up.

    float32 zip            the tensors' bytes, deflated
    int8 zip               weights as symmetric int8 with one scale per tensor, or per channel (first dimension);
                           vectors in float32; deflated
    nncodec defaults       qp -32, nonweight qp -75, dependent quantisation, row skipping
    one qp                 bisection over one quantisation parameter, dependent and uniform, model as it is
    one qp, corrected      the same with biases and BatchNorm statistics corrected, BatchNorms folded or not
    per tensor             and one quantisation parameter per tensor
    per tensor, zeros kept for pruned networks: uniform quantisation only

    Bytes are those of the NNC stream or of the zip; "container" is the .snello file, with manifest
    and digests.

    lenet5 takes the model files of ``snello journey mnist_lenet5 --out=FOLDER``, and takes the dead
    neurons out of the pruned ones; without --journey it trains them first, as that recipe does
    (--epochs shortens it). speed codes a ResNet-18 with random weights.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import statistics
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from snello import CodecSettings, compress, simplify
from snello.codec import decode, encode, quantised
from snello.files import write_text
from snello.lab.datasets import DataSplits, Images, load_dataset, loader
from snello.lab.training import evaluate
from snello.search.rate import RateSearch, search_rate
from snello.search.rate._trial import coded_tensors, with_tensors
from snello.store import build, load, load_weights
from snello.timing import timed

MAX_DROP = 0.002
TAU = 2.0
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@dataclass(frozen=True)
class Row:
    """One variant of one network."""

    network: str
    variant: str
    bytes: int
    container: int | None
    accuracy: float
    drop: float
    kept: bool
    evaluations: int
    seconds: float
    choice: str


class SoftAccuracy:
    """The protocol's measure on validation images. Remembers weights it has seen, since searches
    meet some again.
    """

    def __init__(self, images: Images, splits: DataSplits, bf16: bool) -> None:
        self.bf16, self.batches = bf16, list(loader(images, splits, 500))
        self.seen: dict[bytes, float] = {}

    def __call__(self, model: nn.Module) -> float:
        digest = hashlib.sha256()
        for name, value in model.state_dict().items():
            digest.update(
                name.encode() + value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            )
        key = digest.digest()
        if key not in self.seen:
            self.seen[key] = self.measure(model)
        return self.seen[key]

    def measure(self, model: nn.Module) -> float:
        layout = torch.channels_last if self.bf16 else torch.contiguous_format
        total = 0.0
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            for images, labels in self.batches:
                scores = model(images.contiguous(memory_format=layout)).double()
                right = scores.gather(1, labels[:, None])
                other = scores.scatter(1, labels[:, None], -torch.inf).amax(1, keepdim=True)
                total += float(((right - other) / TAU).sigmoid().sum())
        return total / sum(len(labels) for _, labels in self.batches)


def accuracy_on_test(model: nn.Module, splits: DataSplits, bf16: bool) -> float:
    batches = loader(splits.test, splits, 500)
    return evaluate(model, batches, autocast=bf16, channels_last=bf16).accuracy


def zipped(parts: dict[str, bytes]) -> int:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    return len(file.getvalue())


def raw(tensor: Tensor) -> bytes:
    return tensor.contiguous().numpy().tobytes()


def int8(weight: Tensor, per_channel: bool) -> tuple[Tensor, Tensor]:
    """Levels and scales: symmetric, the largest value becomes 127."""
    largest = weight.abs().flatten(1).amax(1) if per_channel else weight.abs().max().view(1)
    scale = (largest / 127).clamp_min(1e-30).view(-1, *[1] * (weight.dim() - 1))
    return (weight / scale).round().to(torch.int8), scale


def int8_zip(tensors: dict[str, Tensor], per_channel: bool) -> tuple[int, dict[str, Tensor]]:
    parts, values = {}, {}
    for name, tensor in tensors.items():
        if tensor.dim() < 2:
            parts[name], values[name] = raw(tensor), tensor
            continue
        levels, scale = int8(tensor, per_channel)
        parts[name], parts[f"{name}.scale"] = raw(levels), raw(scale)
        values[name] = levels * scale
    return zipped(parts), values


class Subject:
    """A network, its data, and its rows."""

    def __init__(
        self,
        name: str,
        model: nn.Module,
        splits: DataSplits,
        options: argparse.Namespace,
        pruned: bool = False,
    ) -> None:
        self.name, self.model, self.pruned, self.options = name, model.eval(), pruned, options
        held_out = splits.validation
        if len(held_out) > options.validation:
            held_out = held_out.subset(torch.arange(options.validation))
        self.validate, self.splits = SoftAccuracy(held_out, splits, options.bf16), splits
        others = loader(splits.train, splits, 250, shuffle=True, seed=0)
        self.calibration = next(iter(replace_batch(others, options.calibration)))
        self.before = accuracy_on_test(self.model, splits, options.bf16)
        self.rows: list[Row] = []
        self.searches: dict[str, Any] = {}

    def run(self) -> list[Row]:
        tensors = coded_tensors(self.model)
        print(
            f"{self.name}: {sum(t.numel() for t in tensors.values())} values, test {self.before:.4f}"
        )
        self.add("float32 zip", zipped({n: raw(t) for n, t in tensors.items()}), self.model)
        for per_channel in (False, True):
            size, values = int8_zip(tensors, per_channel)
            variant = f"int8 zip, per {'channel' if per_channel else 'tensor'}"
            self.add(variant, size, with_tensors(self.model, values))
        default = CodecSettings()
        self.add(
            "nncodec defaults",
            len(encode(tensors, default)),
            with_tensors(self.model, quantised(tensors, default)),
            container=len(compress(self.model.state_dict(), default)),
        )
        self.search("one qp")
        self.search("one qp, corrected", calibration=self.calibration, per_tensor=False)
        self.search("per tensor", calibration=self.calibration)
        if self.pruned:
            self.search("per tensor, zeros kept", calibration=self.calibration, keep_zeros=True)
        return self.rows

    def search(self, variant: str, **arguments: Any) -> None:
        found, seconds = timed(
            lambda: search_rate(
                self.model, self.validate, max_drop=MAX_DROP, higher_is_better=True, **arguments
            )
        )
        self.searches[variant] = describe(found)
        self.add(
            variant,
            found.bytes,
            found.decoded(),
            container=len(compress(found.model.state_dict(), found.settings)),
            evaluations=found.evaluations,
            seconds=seconds,
            choice=choice(found),
        )

    def add(
        self,
        variant: str,
        size: int,
        decoded: nn.Module,
        *,
        container: int | None = None,
        evaluations: int = 0,
        seconds: float = 0.0,
        choice: str = "",
    ) -> None:
        accuracy = accuracy_on_test(decoded, self.splits, self.options.bf16)
        drop = self.before - accuracy
        kept = drop <= MAX_DROP + 1e-9
        row = Row(
            self.name,
            variant,
            size,
            container,
            accuracy,
            drop,
            kept,
            evaluations,
            round(seconds, 1),
            choice,
        )
        print(show(row), flush=True)
        self.rows.append(row)


def replace_batch(batches: Any, limit: int) -> list[Tensor]:
    """The first inputs of a loader, as one batch."""
    found: list[Tensor] = []
    for images, _ in batches:
        found.append(images)
        if sum(map(len, found)) >= limit:
            break
    return [torch.cat(found)[:limit]]


def choice(found: RateSearch) -> str:
    kind = "dependent" if found.settings.dependent_quantisation else "uniform"
    where = f"qp {found.settings.qp}" if found.method == "one qp" else "qp per tensor"
    return f"{where}, {kind}{', folded' if found.folded else ''}"


def describe(found: RateSearch) -> dict[str, Any]:
    """The result and its trail as JSON."""
    trail = [
        {
            "method": trial.method,
            "folded": trial.folded,
            "dependent": trial.settings.dependent_quantisation,
            "qp": None if trial.settings.qp_of else trial.settings.qp,
            "bytes": trial.bytes,
            "value": trial.value,
            "passed": trial.passed,
        }
        for trial in found.trail
    ]
    return {
        "bytes": found.bytes,
        "before": found.before,
        "after": found.after,
        "bound": found.bound,
        "choice": choice(found),
        "settings": found.settings.to_dict(),
        "trail": trail,
    }


def show(row: Row) -> str:
    container = "" if row.container is None else f"{row.container:9d}"
    return (
        f"  {row.variant:24s}{row.bytes:9d} {container:9s} {row.accuracy:.4f} ({0.0 - row.drop:+.4f}) "
        f"{'kept' if row.kept else 'LOST'}  {row.evaluations:3d} evaluations {row.seconds:7.1f} s  {row.choice}"
    )


def resnet32(options: argparse.Namespace) -> list[Subject]:
    if options.weights is None:
        raise SystemExit("resnet32 needs --weights FILE")
    splits = load_dataset("cifar10")
    if options.imagenet_statistics:
        splits = replace(splits, **IMAGENET)
    return [
        Subject("resnet-32", load_weights(build("resnet-32"), options.weights), splits, options)
    ]


def lenet5(options: argparse.Namespace) -> list[Subject]:
    from snello.lab.training import load_recipe, train

    splits = load_dataset("mnist")
    folder = options.journey or options.out.parent / "bitstream_lenet5"
    subjects = []
    for method in ("baseline", "lobster", "serene"):
        if options.journey is None:
            changes = [] if options.epochs is None else [f"--epochs={options.epochs}"]
            train(
                load_recipe("mnist_lenet5", changes),
                method,
                folder / method,
                splits=splits,
                resume=True,
            )
        model, record = load(folder / method / "model.pt")
        if method != "baseline":
            model = simplify(model, record.example_inputs())
        name = {
            "baseline": "lenet-5 dense",
            "lobster": "lenet-5 LOBSTER",
            "serene": "lenet-5 SeReNe",
        }[method]
        subjects.append(Subject(name, model, splits, options, pruned=method != "baseline"))
    return subjects


def speed(options: argparse.Namespace) -> dict[str, Any]:
    """Encode and decode a ResNet-18 with random weights: Mweights/s."""
    torch.manual_seed(0)
    tensors = coded_tensors(build("resnet18"))
    count = sum(t.numel() for t in tensors.values())
    result: dict[str, Any] = {
        "weights": count,
        "threads": torch.get_num_threads(),
        "repeats": options.repeats,
    }
    for name, settings in (
        ("dependent", CodecSettings()),
        ("uniform", CodecSettings(dependent_quantisation=False)),
    ):
        stream = encode(tensors, settings)
        timed = {
            "encode": rates(
                lambda settings=settings: encode(tensors, settings), count, options.repeats
            ),
            "decode": rates(lambda stream=stream: decode(stream), count, options.repeats),
        }
        result[name] = {"bytes": len(stream), **timed}
        for what, found in timed.items():
            print(
                f"resnet18, {name:9s} {what}: {statistics.median(found):.2f} Mweights/s, median of {len(found)} "
                f"({min(found):.2f} to {max(found):.2f}); {len(stream)} bytes"
            )
    return result


def rates(action: Callable[[], object], count: int, repeats: int) -> list[float]:
    return [count / 1e6 / timed(action)[1] for _ in range(repeats)]


def main() -> None:
    """Print rows, write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="+", choices=("resnet32", "lenet5", "speed"))
    parser.add_argument("--weights", type=Path, help="state_dict file of the ResNet-32")
    parser.add_argument(
        "--imagenet-statistics",
        action="store_true",
        help="normalise CIFAR-10 as the public checkpoints do",
    )
    parser.add_argument("--journey", type=Path, help="folder of a finished journey mnist_lenet5")
    parser.add_argument("--epochs", type=int, help="of each LeNet-5 that is trained here")
    parser.add_argument(
        "--validation", type=int, default=5000, help="images to search on; default: 5000"
    )
    parser.add_argument(
        "--calibration", type=int, default=512, help="images without labels; default: 512"
    )
    parser.add_argument(
        "--bf16", action="store_true", help="evaluate in bfloat16 (also the uncompressed model)"
    )
    parser.add_argument("--repeats", type=int, default=3, help="of each timing; default: 3")
    parser.add_argument("--threads", type=int, default=1, help="of torch; default: 1")
    parser.add_argument("--out", type=Path, default=Path("runs/bench/bitstream.json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    result: dict[str, Any] = {
        "torch": torch.__version__,
        "threads": options.threads,
        "max_drop": MAX_DROP,
        "tau": TAU,
        "validation": options.validation,
        "calibration": options.calibration,
        "bf16": options.bf16,
        "rows": [],
        "searches": {},
    }

    def save() -> None:
        write_text(options.out, json.dumps(result, indent=1))

    for part in options.parts:
        if part == "speed":
            result["speed"] = speed(options)
            continue
        for subject in {"resnet32": resnet32, "lenet5": lenet5}[part](options):
            result["rows"] += [asdict(row) for row in subject.run()]
            result["searches"][subject.name] = subject.searches
            save()
    save()
    print(f"written: {options.out}")


if __name__ == "__main__":
    main()
