"""Models on a GPU, from the trained network to its files: every verb of the package."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import snello
from device_samples import (
    CPU,
    Found,
    assert_same,
    assert_zero,
    batches,
    held_out,
    images,
    momentum,
    network,
    state,
    train,
)  # fmt: skip
from snello import Keep, Record
from snello.deploy import FileModel, profile_layers, quantise
from snello.errors import ModelError
from snello.graph.coupled import coupling
from snello.neurons import apply_masks
from snello.pruning import Pruner, Ratio, taylor
from snello.pruning.channels import group_taylor
from snello.search import search_rate
from snello.sensitivity import GroupDecay, Lobster
from snello.store import ModelSpec, build

SHAPES = {"lenet-5": (1, 28, 28), "resnet-20": (3, 16, 16), "vit": (3, 32, 32)}


def made(name: str, device: torch.device, dtype: torch.dtype = torch.float32) -> tuple[Any, Tensor]:
    """A network by name, in evaluation mode, and two images."""
    torch.manual_seed(0)
    if name == "vit":
        library = pytest.importorskip("torchvision")
        model = library.models.VisionTransformer(32, 16, 1, 2, 16, 24, num_classes=5)
        nn.init.normal_(model.heads.head.weight)  # zero at first
    else:
        if name.startswith("timm:"):
            pytest.importorskip("timm")
        model = build(name)
    model = model.to(dtype).eval()
    x = torch.randn(2, *SHAPES.get(name, (3, 32, 32)), generator=torch.Generator().manual_seed(3))
    return model.to(device), x.to(device, dtype)


def masked(model: nn.Module, x: Tensor) -> nn.Module:
    """Half of its neurons pruned."""
    Pruner(model, None, amount=Ratio(0.5), granularity="neuron").prune()
    return model


# Smaller networks


@pytest.mark.parametrize("name", [*SHAPES, "timm:resnet10t"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_simplified_and_planned_as_on_the_cpu(
    device: torch.device, name: str, dtype: torch.dtype
) -> None:
    """In single precision, too, where convolutions on a GPU round to ten bits (TF32)."""
    plans, outputs = [], []
    tolerance = 1e-9 if dtype is torch.float64 else 2e-2
    for where in (device, CPU):
        model, x = made(name, where, dtype)
        masked(model.cpu(), x.cpu())
        lean = snello.simplify(model.to(where), x)
        assert {t.device for t in lean.state_dict().values()} == {where}
        plan = snello.plan_of(lean)
        assert plan is not None
        plans.append(plan.to_json())
        with torch.no_grad():
            outputs.append({"": lean(x).cpu()})
            assert_same(outputs[-1], {"": model(x)}, tolerance)
    assert plans[0] == plans[1]
    assert_same(*outputs, tolerance=tolerance)  # type: ignore[misc]


@pytest.mark.parametrize("name", SHAPES)
def test_coupled_as_on_the_cpu(device: torch.device, name: str) -> None:
    found, expected = (coupling(*made(name, where)) for where in (device, CPU))
    assert found == expected
    assert found.free


@pytest.mark.parametrize("images_on", ["device", "cpu"])
def test_channels_pruned_as_on_the_cpu(device: torch.device, images_on: str) -> None:
    """Calibration images may be on the CPU."""
    found: list[Found] = []
    for where in (device, CPU):
        model, x = made("resnet-20", where, torch.float64)
        pairs = [(x, torch.tensor([1, 2])), (x.flip(0), torch.tensor([0, 3]))]
        if images_on == "cpu":
            pairs = [(a.cpu(), b) for a, b in pairs]
        pruned = snello.prune(
            model, x, Keep(macs=0.5), importance=group_taylor(pairs), calibration=[a for a, _ in pairs],
            reconstruction="biases",
        ).model  # fmt: skip
        assert {t.device for t in pruned.state_dict().values()} == {where}
        found.append(state(pruned) | {"outputs": pruned(x).detach()})
    assert_same(*found, tolerance=1e-6)  # type: ignore[misc]


@pytest.mark.parametrize("measured", [{"measured": True}, {"measured": True, "branches": True}])
def test_channels_chosen_by_measurement(device: torch.device, measured: dict[str, bool]) -> None:
    found = []
    for where in (device, CPU):
        model, x = made("resnet-20", where, torch.float64)
        pruned = snello.prune(model, x, Keep(macs=0.7), calibration=[x], round_to=8, **measured)
        found.append(state(pruned.model))
    assert_same(*found, tolerance=1e-6)  # type: ignore[misc]


def test_pruner_of_channels_and_group_decay(device: torch.device) -> None:
    found = []
    for where in (device, CPU):
        model = network(where)
        x, y = next(batches(model, 1))
        optimizer = momentum(model)
        pruner = Pruner(
            model, optimizer, held_out, granularity="channel", example_inputs=x, amount=Ratio(0.4)
        )
        decay = GroupDecay(Lobster(model, 1e-2), model, coupling(model, x))
        pruner.prune()
        train(model, optimizer, 3, decay)
        assert_zero(model, pruner.masks)
        weights = Pruner(
            model, optimizer, importance=taylor([(x.cpu(), y.cpu())]), amount=Ratio(0.7)
        )
        weights.prune()
        found.append(state(model) | weights.masks)
    assert_same(*found)  # type: ignore[misc]


def test_group_decay_of_a_model_on_two_devices(device: torch.device) -> None:
    """The channels of one layer are read by the next, which is on another device."""
    found = []
    for where in (device, CPU):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)
        )
        groups = coupling(model.double(), torch.randn(2, 4, dtype=torch.float64))
        assert len(groups.free) == 2
        for parameter in model.parameters():
            parameter.grad = torch.rand_like(parameter)
        before = state(model)
        model[2:].to(where)
        GroupDecay(Lobster(model, 0.1), model, groups).step()
        found.append(state(model))
        assert not torch.equal(found[-1]["0.weight"], before["0.weight"])
        assert not torch.equal(found[-1]["2.weight"].cpu(), before["2.weight"])
    assert_same(*found)  # type: ignore[misc]


def test_shrunk_and_coded(device: torch.device) -> None:
    pytest.importorskip("nncodec")
    model = network(device, torch.float32).eval()
    x, y = (t.to(device) for t in images(64, 3))
    x = x.float()
    for _ in range(2):
        train(model, momentum(model), 4)
    model.eval()

    def right(other: nn.Module) -> Tensor:
        with torch.no_grad():
            return (other(x).argmax(1) == y).double()

    found = snello.shrink(
        model, x[:1], right, minimise="bytes", allow=("channels", "nnc"), max_drop=0.3, calibration=[x],
        trials=2,
    )  # fmt: skip
    assert found.chosen.passed
    assert {p.device for p in found.model.parameters()} == {device}
    bits = search_rate(model, lambda m: float(1 - right(m).mean()), max_drop=0.5, calibration=x)
    assert {t.device for t in bits.decoded().state_dict().values()} == {device}


def test_shrunk_in_int8(device: torch.device) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = network(device, torch.float32).eval()
    x = images(16, 3)[0].float().to(device)
    with torch.no_grad():
        labels = model(x).argmax(1)
    found = snello.shrink(
        model, x[:1], lambda m: (m(x).argmax(1) == labels).double(), minimise="macs",
        allow=("channels", "int8"), max_drop=0.5, calibration=[x], trials=2,
    )  # fmt: skip
    assert found.chosen.passed


# Counts, times and files


@pytest.mark.parametrize("name", SHAPES)
def test_counted_as_on_the_cpu(device: torch.device, name: str) -> None:
    """Also attention, which every device computes by other operators."""
    assert snello.footprint(*made(name, device)) == snello.footprint(*made(name, CPU))


def test_counted_and_timed_on_the_device(device: torch.device) -> None:
    model, x = made("resnet-20", device)
    there, images_there = made("resnet-20", CPU)
    profile = snello.measure(model, x, repeats=3, warmup=1)
    assert profile.latencies["pytorch"].device == str(device)
    rows = profile_layers({"net": (model, x)}, repeats=2, warmup=1)["net"]
    expected = profile_layers({"net": (there, images_there)}, repeats=2, warmup=1)["net"]
    assert [(r.name, r.macs) for r in rows] == [(r.name, r.macs) for r in expected]
    assert sum(row.median_ms for row in rows) > 0


@pytest.mark.parametrize(
    "verb",
    [
        lambda m, x: snello.measure(m, x, repeats=1),
        snello.footprint,
        snello.simplify,
        coupling,
        lambda m, x: snello.prune(m, x, Keep(macs=0.5)),
    ],
    ids=["measure", "footprint", "simplify", "coupling", "prune"],
)
def test_images_elsewhere_are_refused_by_name(
    device: torch.device, verb: Callable[..., Any]
) -> None:
    model, x = made("lenet-5", device)
    if device.type == "cpu":
        pytest.skip("one device")
    with pytest.raises(ModelError, match=r"cuda"):
        verb(model, x.cpu())


def test_exported_from_the_device(device: torch.device, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model, x = made("resnet-20", device)
    masked(model, x)
    lean = snello.simplify(model, x)
    path = snello.export(lean, x, tmp_path / "lean.onnx")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.cpu().numpy()})
    assert_same({"": torch.from_numpy(found)}, {"": lean(x).detach()}, 2e-2)

    assert quantise(path, tmp_path / "int8.onnx", [x]).samples == 2
    timed = snello.measure(lean, x, onnx=path, repeats=2, warmup=1).latencies
    assert timed["onnxruntime"].device == "cpu"
    program = snello.export(lean, x, tmp_path / "lean.pt2")
    (latency,) = snello.measure(program, x, repeats=2, warmup=1).latencies.values()
    assert latency.device == "cpu", "files run on the CPU, also on inputs that are not there"
    for file in (path, program):
        assert_same({"": FileModel(file)(x)}, {"": lean(x).detach()}, 2e-2)
    assert {p.device for p in lean.parameters()} == {device}, "the model stays where it is"


@pytest.mark.parametrize("suffix", ["pt", "safetensors", "snello"])
def test_saved_from_the_device_and_loaded_on_the_cpu(
    device: torch.device, suffix: str, tmp_path: Path
) -> None:
    if suffix != "pt":
        pytest.importorskip("safetensors" if suffix == "safetensors" else "nncodec")
    model, x = made("resnet-20", device)
    lean = snello.simplify(masked(model, x), x)
    path = snello.save(
        tmp_path / f"lean.{suffix}", lean, Record(ModelSpec("resnet-20"), (3, 16, 16))
    )
    loaded, record = snello.load(path)
    assert {t.device for t in loaded.state_dict().values()} == {CPU}
    assert_same(state(loaded), state(lean), 0 if suffix != "snello" else 0.1)
    again = loaded.to(device)
    x = record.example_inputs(2).to(device)
    assert again(x).device.type == device.type
    snello.save(tmp_path / f"again.{suffix}", again, record)


def test_masks_follow_a_model_to_the_device(device: torch.device) -> None:
    """Pruned on the CPU, then moved: the masks still hold, and a simplified copy is where it is."""
    model, x = made("lenet-5", CPU)
    pruner = Pruner(model, None, amount=Ratio(0.5), granularity="neuron")
    pruner.prune()
    model.to(device)
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    for _ in range(2):
        F.cross_entropy(model(x.to(device)), torch.tensor([1, 2], device=device)).backward()
        optimizer.step()
    assert_zero(model, {n: mask.to(device) for n, mask in pruner.masks.items()})
    pruner.amount = Ratio(0.7)
    pruner.prune()
    apply_masks(model, pruner.masks)
    lean = snello.simplify(model.eval(), x.to(device))
    assert {p.device for p in lean.parameters()} == {device}
