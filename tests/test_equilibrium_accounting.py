"""Cost of a step: as the paper counts, as executed, timed, and in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equilibrium_samples import OPTIMIZERS, batch, network, same, sgd, tensors, train
from seams.equilibrium import Probe, forward_use, paper_flops
from snello.equilibrium import (
    NEq,
    Prefix,
    SelectiveUpdate,
    StepFlops,
    Stochastic,
    backward_flops,
    measure_cost,
    step_flops,
    step_memory,
    time_backward,
    time_step,
)
from snello.errors import ConfigError, ModelError
from snello.store import build


def some(neq: SelectiveUpdate) -> dict[str, Tensor]:
    """Every second neuron of every layer."""
    return {name: torch.arange(len(mask)) % 2 == 0 for name, mask in neq.frozen.items()}


# --- the convention of the paper
# ------------------------------------------------------------------------


def resnet18() -> nn.Module:
    return torchvision().models.resnet18()


def deeplab() -> nn.Module:
    models = torchvision().models.segmentation
    return models.deeplabv3_resnet50(
        weights=None, weights_backbone=None, num_classes=21, aux_loss=True
    )


def swin_b() -> nn.Module:
    return torchvision().models.swin_b()


def torchvision() -> Any:
    return pytest.importorskip("torchvision")


@pytest.mark.parametrize(
    ("factory", "size", "flops"),
    [
        (lambda: build("resnet-32"), 32, "138.9 M"),
        (resnet18, 224, "3.638 G"),
        (deeplab, 480, "305.1 G"),
        (swin_b, 224, "30.28 G"),
    ],
    ids=["resnet-32", "resnet-18", "deeplabv3-r50", "swin-b"],
)
def test_the_table_of_the_paper_at_nothing_frozen(
    factory: Callable[[], nn.Module], size: int, flops: str
) -> None:
    with torch.device("meta"):  # shapes are all that counts
        model = factory()
        use = forward_use(model, Probe(model, torch.empty(1, 3, size, size)))
    number, unit = flops.split()
    digits = len(number.partition(".")[2])
    assert round(paper_flops(use.macs, {}) / {"M": 1e6, "G": 1e9}[unit], digits) == float(number)


def test_paper_flops_fall_with_the_frozen_share() -> None:
    model = build("resnet-32")
    neq = NEq(model, sgd(model), torch.randn(2, 3, 32, 32))
    dense = neq.status()
    assert dense.flops == dense.dense_flops
    assert round(dense.dense_flops / 1e6, 1) == 138.9
    neq.apply({name: torch.ones_like(mask) for name, mask in neq.frozen.items()})
    assert neq.status().flops == 2 * 640  # the head is never frozen
    neq.apply(some(neq))
    assert neq.status().flops == (dense.dense_flops - 1280) / 2 + 1280
    assert neq.status().total == 0.5


class Borrowed(nn.Module):
    """Uses the weights of one layer without calling it, as window attention does."""

    def __init__(self) -> None:
        super().__init__()
        self.own, self.lent, self.head = nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.linear(self.own(x), self.lent.weight, self.lent.bias))


def test_borrowed_weights_count_and_always_learn() -> None:
    model = Borrowed()
    neq = NEq(model, sgd(model), torch.randn(3, 7, 6))
    assert neq.left_alone["lent"] == "the forward never calls it as a module"
    assert neq.status().dense_flops == 2 * 7 * (30 + 20 + 8)
    neq.apply({"own": torch.ones(5, dtype=torch.bool)})
    assert neq.status().flops == 2 * 7 * (20 + 8)
    neq.remove()
    with pytest.raises(ConfigError, match=r"no layer is left to watch.*'lent'"):
        NEq(model, sgd(model), torch.randn(3, 7, 6), exclude=["own"])


def test_the_projections_of_attention_count() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.Sequential(layer, nn.Linear(8, 3))
    use = forward_use(model, Probe(model, torch.randn(2, 5, 8)))
    assert use.macs["0.self_attn.in_proj"] == 5 * 8 * 24
    assert use.macs["0.self_attn.out_proj"] == 5 * 8 * 8
    assert use.macs["0.linear1"] == 5 * 8 * 16
    assert use.called == ("0.norm1", "0.linear1", "0.linear2", "0.norm2", "1")


# --- what is executed
# -----------------------------------------------------------------------------------


def test_executed_flops_fall_with_the_frozen_share() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 40, 3),
        nn.ReLU(inplace=True),
        nn.Conv2d(40, 8, 3, groups=4),
        nn.Flatten(),
        nn.Linear(32, 5),
    )
    x = torch.randn(4, 3, 6, 6)
    model(x).sum().backward()
    kept = [p.grad for p in model.parameters()]
    neq = NEq(model, sgd(model), x, dispatch="fixed")
    first, grouped, head = 4 * 16 * 40 * 27, 4 * 4 * 8 * 90, 4 * 32 * 5
    dense = backward_flops(model, x)
    assert dense.weight_gradient == 2 * (first + grouped + head)
    assert dense.input_gradient == 2 * (grouped + head)  # the first layer's input wants no gradient
    neq.apply({"0": torch.arange(40) < 30})
    sparse = backward_flops(model, x, lambda output: output.square().sum())
    assert sparse.weight_gradient == 2 * (first // 4 + grouped + head)
    assert sparse.input_gradient == dense.input_gradient
    neq.apply({"0": torch.arange(40) < 4})  # too few to slice: the dense gradient, masked
    assert backward_flops(model, x) == dense
    assert all(p.grad is g for p, g in zip(model.parameters(), kept, strict=True))
    neq.apply({"0": torch.ones(40, dtype=torch.bool), "2": torch.ones(8, dtype=torch.bool)})
    assert backward_flops(model, x).weight_gradient == 2 * head
    assert backward_flops(model, x).input_gradient == 0
    # Parameters at rest have no gradient any more.
    assert [p.grad for p in model.parameters()] == [None] * 4 + kept[4:]


def test_step_flops_are_those_of_the_products() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(128, 5)
    )
    x = torch.randn(4, 3, 6, 6)
    convolution, head = 2 * 4 * 16 * 8 * 27, 2 * 4 * 128 * 5
    found = step_flops(model, x)
    assert found == StepFlops(convolution + head, head, convolution + head)
    assert (found.backward, found.total) == (convolution + 2 * head, 2 * convolution + 3 * head)
    assert backward_flops(model, x).total == found.backward
    with pytest.raises(ModelError, match="requires no gradient"):
        step_flops(model.requires_grad_(False), x)


# --- time -----------------------------------------------------------------------------------------------


def test_timing_measures_both_and_puts_everything_back() -> None:
    model = network()
    neq = NEq(model, sgd(model), batch()[0])
    neq.apply(some(neq))
    train(model, neq.optimizer, 1)
    before, gradients = tensors(model), [p.grad for p in model.parameters()]
    classes = [type(m) for m in model.modules()]
    timing = time_backward(neq, *batch(), F.cross_entropy, repeats=3)
    assert timing.repeats == 3
    assert 0 < timing.sparse_p10 <= timing.sparse_ms <= timing.sparse_p90
    assert 0 < timing.dense_p10 <= timing.dense_ms <= timing.dense_p90
    assert timing.ratio == timing.sparse_ms / timing.dense_ms
    assert same(before, tensors(model))
    assert all(p.grad is g for p, g in zip(model.parameters(), gradients, strict=True))
    assert classes == [type(m) for m in model.modules()]
    with pytest.raises(ConfigError, match="repeats"):
        time_backward(neq, *batch(), F.cross_entropy, repeats=0)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("warm", [False, True], ids=["before the first step", "in training"])
def test_a_timed_step_puts_weights_and_optimizer_back(name: str, warm: bool) -> None:
    model = network()
    optimizer = OPTIMIZERS[name](model.parameters())
    neq = NEq(model, optimizer, batch()[0])
    if warm:
        train(model, optimizer, 2)
    neq.apply(some(neq))
    before, classes = tensors(model), [type(m) for m in model.modules()]
    parameters = list(model.parameters())
    state = [
        {k: v.clone() if torch.is_tensor(v) else v for k, v in optimizer.state[p].items()}
        for p in parameters
        if p in optimizer.state
    ]
    timing = time_step(neq, *batch(), F.cross_entropy, repeats=2)
    assert same(before, tensors(model))
    assert [*model.parameters()] == parameters
    assert classes == [type(m) for m in model.modules()]
    after = [optimizer.state[p] for p in parameters if p in optimizer.state]
    assert len(state) == len(after) == (len(parameters) if warm else 0)
    for then, now in zip(state, after, strict=True):
        assert then.keys() == now.keys()
        assert all(
            torch.equal(torch.as_tensor(then[k]), torch.as_tensor(now[k]))
            for k in then
            if then[k] is not None
        )
    assert (timing.repeats, timing.batch, timing.threads) == (2, 8, torch.get_num_threads())
    for phase in (timing.forward, timing.backward, timing.optimizer, timing.step):
        assert 0 < phase.dense_p10 <= phase.dense_ms <= phase.dense_p90
        assert 0 < phase.sparse_p10 <= phase.sparse_ms <= phase.sparse_p90
        assert phase.ratio == phase.sparse_ms / phase.dense_ms
    assert timing.step.dense_p90 > timing.backward.dense_p10
    with pytest.raises(ConfigError, match="repeats"):
        time_step(neq, *batch(), F.cross_entropy, repeats=0)


class Named(nn.Module):
    """Two inputs that cannot be exchanged."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(3, 4), nn.Linear(5, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.head(self.first(x) + self.second(y))


def test_inputs_by_name_are_measured_as_those_by_position() -> None:
    model, x, y = Named(), torch.randn(4, 3), torch.randn(4, 5)
    named = {"y": y, "x": x}
    update = SelectiveUpdate(model, sgd(model), named, Prefix(0.5), only_if_faster=True)
    update.step()
    assert step_flops(model, named) == step_flops(model, (x, y))
    assert step_memory(model, named) == step_memory(model, (x, y))
    cost = measure_cost(update, named, torch.zeros(4, dtype=torch.long), F.cross_entropy, repeats=1)
    assert cost.timing.batch == 4
    with pytest.raises(ConfigError, match="must be a tensor, a tuple or list"):
        time_step(update, 1.0, None, F.cross_entropy)  # type: ignore[arg-type]


@pytest.mark.parametrize("measure", [time_backward, time_step, measure_cost])
def test_a_loss_without_gradient_is_refused(measure: Callable[..., Any]) -> None:
    model = network()
    neq = NEq(model, sgd(model), batch()[0])
    with pytest.raises(ModelError, match="the loss of Sequential requires no gradient"):
        measure(neq, *batch(), lambda output, targets: F.cross_entropy(output, targets).detach())


class Sleepy(nn.Module):
    """A layer whose forward and backward take a known time, told apart by whether something is
    frozen.
    """

    def __init__(self, seen: list[str]) -> None:
        super().__init__()
        self.hidden, self.head, self.seen = nn.Linear(3, 4), nn.Linear(4, 2), seen

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(type(self.hidden).__name__)
        return self.head(self.hidden(x))


def test_dense_and_sparse_steps_are_taken_in_turns() -> None:
    seen: list[str] = []
    model = Sleepy(seen)
    neq = NEq(model, sgd(model), torch.randn(2, 3))
    neq.apply({"hidden": torch.ones(4, dtype=torch.bool)})
    sparse = type(model.hidden).__name__
    assert sparse != "Linear"
    seen.clear()
    held: list[object] = []
    neq.optimizer.register_step_post_hook(lambda *_: held.append(None))
    time_step(neq, torch.randn(5, 3), torch.zeros(5, dtype=torch.long), F.cross_entropy, repeats=3)
    assert seen == ["Linear", sparse, sparse, "Linear"] * 2
    assert len(held) == 4  # the dense optimizer is a plain one


# --- memory
# ---------------------------------------------------------------------------------------------


def test_saved_activations_are_those_that_the_backward_needs() -> None:
    model = nn.Sequential(nn.Linear(10, 20), nn.Linear(20, 30), nn.Linear(30, 40)).double()
    x = torch.randn(16, 10, dtype=torch.float64)
    row = 16 * 8
    # The inputs of the second and the third layer; the first one's is the batch, which is there
    # anyway.
    assert step_memory(model, x).saved_bytes == row * (20 + 30)
    neq = NEq(model, sgd(model), x)
    neq.apply({"1": torch.ones(30, dtype=torch.bool)})
    assert step_memory(model, x).saved_bytes == row * 30  # the frozen layer keeps nothing
    neq.apply({"0": torch.ones(20, dtype=torch.bool), "1": torch.ones(30, dtype=torch.bool)})
    assert step_memory(model, x).saved_bytes == row * 30
    assert step_memory(model, x).peak_bytes is None
    shared = nn.Sequential(nn.Linear(10, 20), Twice(nn.Linear(20, 5))).double()
    assert step_memory(shared, x).saved_bytes == row * 20  # one storage, saved twice


class Twice(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.layer(x)


def test_the_whole_cost_in_one_record() -> None:
    model = network()
    neq = SelectiveUpdate(model, sgd(model), batch()[0], Stochastic(1.0))
    free = measure_cost(neq, *batch(), F.cross_entropy, repeats=2)
    counts = [k for k in free.ratios if "time" not in k]
    assert [free.ratios[k] for k in counts] == [1.0] * len(counts)
    neq.step()
    before = tensors(model)
    frozen = measure_cost(neq, *batch(), F.cross_entropy, repeats=2)
    assert same(before, tensors(model))
    assert frozen.dense_flops == free.flops
    assert frozen.dense_memory == free.memory
    assert frozen.status == neq.status()
    assert frozen.flops.forward == free.flops.forward
    assert all(0 < frozen.ratios[k] < 1 for k in counts)
    assert frozen.ratios["step time"] == frozen.timing.step.ratio
    assert all(p.grad is None for p in model.parameters())
