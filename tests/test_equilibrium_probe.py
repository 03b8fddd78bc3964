"""Contents of the probe: sketches of positions, kinds of layers, transposed and shared layers."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from equilibrium_samples import batch, network, same, sgd, tensors, train
from seams.equilibrium import Probe, by_channel, monitored_layers
from snello.equilibrium import NEq, SelectiveUpdate, Stochastic, Velocity, similarity, sketch
from snello.errors import ConfigError
from snello.neurons import neuron_count

# --- sketches
# -------------------------------------------------------------------------------------------


@given(
    samples=st.integers(1, 9),
    channels=st.integers(1, 4),
    available=st.integers(1, 90),
    positions=st.integers(1, 90),
)
@settings(max_examples=60, deadline=None)
def test_a_sketch_keeps_the_same_positions_of_every_channel(
    samples: int, channels: int, available: int, positions: int
) -> None:
    numbered = torch.arange(available, dtype=torch.float64)
    outputs = numbered + 1000.0 * torch.arange(samples * channels, dtype=torch.float64).view(
        samples, -1, 1
    )
    kept = sketch(outputs, positions)
    assert kept.shape == (samples, channels, min(positions, available))
    index = kept % 1000
    assert torch.equal(kept, outputs.gather(2, index.long()))
    assert (index == index[:, :1]).all()
    assert torch.equal(kept, sketch(outputs, positions))
    assert kept.data_ptr() != outputs.data_ptr()
    if (
        available > positions
    ):  # evenly spread: every window of the sequence meets all parts of the image
        gaps = torch.diff(index[:, 0].sort().values, dim=1)
        assert gaps.numel() == 0 or gaps.max() <= 2.7 * available / positions + 1
    else:
        assert torch.equal(kept, outputs)


@pytest.mark.parametrize("positions", [0, -1, 2.5, True])
def test_a_sketch_of_no_whole_number_of_positions_is_refused(positions: Any) -> None:
    with pytest.raises(ConfigError, match=f"positions: .* at least 1, not {positions}"):
        sketch(torch.ones(2, 3, 4), positions)


@pytest.mark.parametrize("other", [(1, 3, 4), (5, 3, 1), (5, 1, 4), (5, 3, 5)])
def test_outputs_of_other_shapes_are_not_compared(other: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"shape \(5, 3, 4\) and"):
        similarity(torch.ones(5, 3, 4), torch.ones(other))


def images(seed: int) -> Tensor:
    """Noise of several scales, as outputs are: shape (samples, channels, positions)."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(40, 8, 4, 4, generator=generator, dtype=torch.float64)
    fine = torch.randn(40, 8, 16, 16, generator=generator, dtype=torch.float64)
    return (F.interpolate(coarse, size=(16, 16), mode="bilinear") + 0.5 * fine).flatten(2)


@pytest.mark.parametrize(
    ("positions", "bound", "relative"), [(128, 0.005, 0.02), (64, 0.015, 0.04), (16, 0.03, 0.2)]
)
def test_the_error_of_a_sketch(positions: int, bound: float, relative: float) -> None:
    now, noise = images(0), images(1)
    for change in (0.01, 0.3, 1.0, 3.0):
        before = now + change * noise
        exact = similarity(now, before)
        found = similarity(sketch(now, positions), sketch(before, positions))
        assert (found - exact).abs().mean() < bound
        assert ((1 - found) / (1 - exact) - 1).abs().mean() < relative
    assert (similarity(sketch(now, positions), sketch(now, positions)) - 1).abs().max() < 1e-12


@pytest.mark.parametrize("positions", [4, 9])
def test_a_sketched_run_is_small_and_resumes(positions: int) -> None:
    model = network()
    model[8].p = 0.0
    optimizer = sgd(model)
    neq = NEq(model, optimizer, batch()[0], eps=2e-2, positions=positions, dispatch="fixed")
    train(model, optimizer, 1)
    neq.step()
    file = io.BytesIO()
    states = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "neq": neq.state_dict(),
    }
    torch.save(states, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    kept = {name: x.shape[2] for name, x in saved["neq"]["reference"].items()}
    assert kept == {"0": positions, "1": positions, "3": min(positions, 9), "4": 1, "7": 1}
    twin = network()
    twin[8].p = 0.0
    other = sgd(twin)
    resumed = NEq(twin, other, batch()[0], eps=2e-2, positions=positions, dispatch="fixed")
    twin.load_state_dict(saved["model"])
    other.load_state_dict(saved["optimizer"])
    resumed.load_state_dict(saved["neq"])
    for _ in range(2):
        train(model, optimizer, 1)
        train(twin, other, 1)
        assert neq.step() == resumed.step()
    assert same(tensors(model), tensors(twin))
    fresh = network()
    everything = NEq(fresh, sgd(fresh), batch()[0])
    with pytest.raises(ConfigError, match=f"keeps {positions} positions, not all"):
        everything.load_state_dict(saved["neq"])


def test_a_sketched_decision_is_that_of_the_kept_positions() -> None:
    model = network()
    optimizer = sgd(model)
    neq = NEq(model, optimizer, batch()[0], positions=5, eps=2e-2)
    probe = Probe(model, batch()[0])
    layers, _ = monitored_layers(model)
    before = {name: sketch(outputs, 5) for name, outputs in probe.outputs(layers).items()}
    train(model, optimizer, 2)
    now = {name: sketch(outputs, 5) for name, outputs in probe.outputs(layers).items()}
    neq.step()
    assert isinstance(neq.selection, Velocity)
    for name, phi in neq.selection.phi.items():
        torch.testing.assert_close(phi, similarity(now[name], before[name]))


# --- kinds of layers
# ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kinds", "watched"),
    [
        (None, {"0", "1", "3", "4", "7"}),
        (["conv"], {"0", "3"}),
        ("batchnorm", {"1"}),
        (("layernorm", "linear"), {"4", "7"}),
    ],
)
def test_kinds_of_layers(kinds: object, watched: set[str]) -> None:
    model = network()
    method = SelectiveUpdate(model, sgd(model), batch()[0], Stochastic(1.0), kinds=kinds)  # type: ignore[arg-type]
    assert method.step().total == 0
    assert set(method.frozen) == watched
    unwatched = {"0", "1", "3", "4", "7"} - watched
    assert {
        n for n, why in method.left_alone.items() if why == "of a kind that is not watched"
    } == unwatched
    assert "head" in method.left_alone["9"]
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train(model, method.optimizer, 2)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) is (name.rpartition(".")[0] in watched)


# --- transposed and shared layers
# -----------------------------------------------------------------------


@pytest.mark.parametrize(("dimensions", "groups"), [(1, 1), (2, 1), (2, 2), (3, 2)])
def test_the_neurons_of_a_transposed_convolution(dimensions: int, groups: int) -> None:
    kind = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dimensions - 1]
    layer = kind(4, 6, 3, stride=2, groups=groups).double()
    x = torch.randn(2, 4, *[5] * dimensions, dtype=torch.float64)
    assert neuron_count(layer) == 6
    found = by_channel(layer, layer(x))
    assert torch.equal(found, layer(x).flatten(2))
    assert torch.equal(by_channel(layer, layer(x[0])), layer(x[:1]).flatten(2))
    # Neuron i is what silences channel i: its bias and its weights, grouped.
    i, per_group = 4, 6 // groups
    group = slice(i // per_group * 4 // groups, (i // per_group + 1) * 4 // groups)
    with torch.no_grad():
        layer.weight[group, i % per_group] = 0
        layer.bias[i] = 0  # type: ignore[index]
    silent = (by_channel(layer, layer(x)) == 0).all(dim=2).all(dim=0)
    assert silent.nonzero().flatten().tolist() == [i]


def test_transposed_convolutions_are_watched_and_frozen() -> None:
    model = nn.Sequential(
        nn.ConvTranspose2d(2, 4, 3),
        nn.ReLU(),
        nn.ConvTranspose2d(4, 4, 2, groups=2),
        nn.Flatten(),
        nn.Linear(196, 3),
    ).double()
    x, y = torch.randn(6, 2, 4, 4, dtype=torch.float64), torch.randint(3, (6,))
    neq = NEq(model, sgd(model), x, kinds=["conv"])
    assert set(neq.frozen) == {"0"}
    assert "grouped" in neq.left_alone["2"]
    assert neq.status().dense_flops == 2 * (2 * 16 * 4 * 9 + 4 * 36 * 2 * 4 + 196 * 3)
    mask = torch.tensor([True, False, False, True])
    neq.apply({"0": mask})
    before = model[0].weight.detach().clone()
    for _ in range(3):
        neq.optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        neq.optimizer.step()
    moved = (model[0].weight != before).transpose(0, 1).flatten(1)
    assert not moved[mask].any()
    assert moved[~mask].all()


class Pyramid(nn.Module):
    """One head on feature maps of two sizes, as detectors have it."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.last = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        large, small = self.shared(x), self.shared(F.avg_pool2d(x, 2))
        return self.last(large).mean() + self.last(small).mean()


def test_a_layer_shared_by_two_sizes_is_compared_over_all_its_calls() -> None:
    model = Pyramid().double()
    x = torch.randn(4, 2, 8, 8, dtype=torch.float64)
    neq = NEq(model, sgd(model), x)
    before = [model.shared(x), model.shared(F.avg_pool2d(x, 2))]
    with torch.no_grad():
        model.shared.weight += 0.3
    now = [model.shared(x), model.shared(F.avg_pool2d(x, 2))]
    neq.step()
    assert isinstance(neq.selection, Velocity)
    expected = (
        sum(similarity(a.flatten(2), b.flatten(2)) for a, b in zip(now, before, strict=True)) / 2
    )
    assert (expected < 0.99).any()
    torch.testing.assert_close(neq.selection.phi["shared"], expected)
