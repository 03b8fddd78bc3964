"""Whole layers at rest: what settles, what a cut network computes, what a cache returns."""

from __future__ import annotations

import copy
import itertools
import tempfile
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from snello.curation import InfoBatch
from snello.equilibrium import (
    FeatureCache,
    Prefix,
    SelectiveUpdate,
    Settled,
    Velocity,
    WatchedLayer,
)
from snello.errors import ConfigError, ModelError
from snello.graph import tensors_of
from zoo import CifarResNet

pytestmark = pytest.mark.usefixtures("one_thread")


class Fixed:
    """A rule that returns given masks, one after the other."""

    observes = False

    def __init__(self, *shares: dict[str, float]) -> None:
        self.shares = list(shares)

    def select(self, layers, similarities):  # type: ignore[no-untyped-def]
        shares = self.shares.pop(0)
        counts = {name: layer.neurons for name, layer in layers.items()}
        return {name: torch.arange(n) < round(shares[name] * n) for name, n in counts.items()}

    def state_dict(self):  # type: ignore[no-untyped-def]
        return {"shares": copy.deepcopy(self.shares)}

    def load_state_dict(self, state):  # type: ignore[no-untyped-def]
        self.shares = copy.deepcopy(state["shares"])


LAYERS = {name: WatchedLayer(10, 5) for name in "abc"}


def test_layers_settle_in_order_and_thaw_with_hysteresis() -> None:
    rule = Fixed(
        {"a": 1.0, "b": 0.5, "c": 1.0},  # c waits for b
        {"a": 0.8, "b": 0.9, "c": 1.0},  # a stays: 0.8 is above 0.9 - 0.2
        {"a": 0.6, "b": 1.0, "c": 1.0},  # a thaws, and with it all above
        {"a": 0.9, "b": 1.0, "c": 0.0},
    )
    settled = Settled(rule)
    found = []
    for _ in range(4):
        masks = settled.select(LAYERS, {})
        found.append((settled.settled, {n: int(m.sum()) for n, m in masks.items()}))
    assert found == [
        (("a",), {"a": 10, "b": 5, "c": 10}),
        (("a", "b", "c"), {"a": 10, "b": 10, "c": 10}),
        ((), {"a": 6, "b": 10, "c": 10}),
        (("a", "b"), {"a": 10, "b": 10, "c": 0}),
    ]


def test_patience_scattered_learning_rate_and_state() -> None:
    shares = [{"a": 1.0, "b": 0.5, "c": 0.0}] * 6
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    options = {"patience": 2, "scattered": False, "optimizer": optimizer}
    settled = Settled(Fixed(*shares), **options)
    assert settled.select(LAYERS, {}) == {}
    again = Settled(Fixed(), **options)
    again.load_state_dict(copy.deepcopy(settled.state_dict()))
    for one in (settled, again):
        assert set(one.select(LAYERS, {})) == {"a"}
    optimizer.param_groups[0]["lr"] = 0.1
    assert settled.select(LAYERS, {}) == {}  # the learning rate fell
    assert settled.select(LAYERS, {}) == {}  # it rests again for the first time
    assert set(settled.select(LAYERS, {})) == {"a"}


@pytest.mark.parametrize("bad", [{"share": 0}, {"share": 1.5}, {"slack": 1.0}, {"patience": 0}])
def test_impossible_options_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        Settled(Velocity(), **bad)


class Branches(nn.Module):
    """Two features at once, functional operations in between, sizes and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.drop = nn.Dropout(0.5)
        self.b, self.c = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 4, 1)
        self.late = nn.Dropout(0.2)
        self.head = nn.Linear(4 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.drop(F.relu(self.norm(self.a(x))))
        z = self.c(F.relu(self.b(y)) + y)
        z = F.adaptive_avg_pool2d(z, 4)
        return self.head(self.late(z.view(z.size(0), -1)))


def _training(model: nn.Module, **options: object) -> tuple[list[float], object]:
    torch.manual_seed(0)
    images, labels = torch.randn(23, 3, 8, 8), torch.randint(0, 5, (23,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    steps = iter((0.0, 0.4, 0.4, 0.7, 0.7))
    neq = SelectiveUpdate(
        model, optimizer, images[:4], Prefix(lambda _: next(steps)), dispatch="fixed"
    )
    cache = FeatureCache(neq, len(images), measured=False, **options)  # type: ignore[arg-type]
    losses, status = [], []
    for epoch in range(5):
        model.train()
        order = torch.randperm(23, generator=torch.Generator().manual_seed(epoch))
        for where in order.split(6):
            torch.manual_seed(epoch)  # dropout behind the cut draws alike
            outputs = cache(images[where], where)
            loss = F.cross_entropy(outputs, labels[where])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        status.append(cache.status)
        neq.step()
    cache.close()
    return losses, status


class Block(nn.Module):
    def __init__(self, last: int, width: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(last, width, 3, padding=1), nn.BatchNorm2d(width)
        self.drop = nn.Dropout(0.3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"hidden": self.drop(F.relu(self.norm(self.conv(x))))}


class Untraced(nn.Module):
    """Blocks in a row, with a branch on values that torch.fx cannot trace.

    `early` is a path from the first block to the outputs, whose weights are zero at first.
    """

    def __init__(self, early: bool = False) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(3, 6), Block(6, 6), Block(6, 4)])
        self.between = nn.BatchNorm2d(6, affine=False)
        self.early = nn.Conv2d(6, 4, 1, bias=False) if early else None
        if self.early is not None:
            nn.init.zeros_(self.early.weight)
        self.late = nn.Dropout(0.2)
        self.head = nn.Linear(4 * 16, 5)
        self.layerdrop = False

    def forward(self, x: Tensor) -> Tensor:
        if float(x.detach().abs().max()) > 1e6:
            raise ValueError("too large")
        first = x
        for number, block in enumerate(self.blocks):
            if number == 1 and self.training and self.layerdrop:
                continue
            x = block(self.between(x) if number == 1 else x)["hidden"]
            first = x if number == 0 else first
        x = x if self.early is None else x + self.early(first)
        return self.head(self.late(F.adaptive_avg_pool2d(x, 4).flatten(1)))


@pytest.mark.parametrize(
    "build",
    [Branches, lambda: CifarResNet(8, 5), Untraced],
    ids=["branches", "resnet", "untraced"],
)
@pytest.mark.parametrize("in_memory", [False, True])
def test_a_run_with_cache_is_the_run_without_it(build: type[nn.Module], in_memory: bool) -> None:
    """With a limit of no bytes the front is cut off in the same steps, and run every time."""
    torch.manual_seed(1)
    first = build()
    second = copy.deepcopy(first)
    losses, status = _training(first, in_memory=in_memory)
    plain, _ = _training(second, limit=0)
    assert losses == plain
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    assert [s.stored for s in status][:2] == [0, 0]  # one epoch of warm-up, then layers rest
    assert status[3].stored == 23
    assert status[-1].layers != status[2].layers  # it was cut again, deeper


def test_features_in_memory_leave_no_files_and_may_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    torch.manual_seed(0)
    images = torch.randn(10, 3, 8, 8)
    neq = SelectiveUpdate(Branches(), None, images[:2], Prefix(0.5))
    neq.step()
    with pytest.raises(ConfigError, match="in_memory: features in memory need no folder"):
        FeatureCache(neq, 10, folder=tmp_path, in_memory=True)
    cache = FeatureCache(neq, 2**50, in_memory=True, limit=2**63)
    cache(images, range(10))
    assert "MiB in the memory of cpu: Cannot allocate" in (cache.status.reason or "")
    cache = FeatureCache(neq, 10, in_memory=True, measured=False)
    cache(images, range(10))
    assert cache.status.stored == 10
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_features_in_bfloat16_are_rounded_alike_in_every_epoch() -> None:
    torch.manual_seed(1)
    model = Branches()
    other = copy.deepcopy(model)
    losses, status = _training(model, dtype=torch.bfloat16)
    exact, _ = _training(other)
    assert status[3].bytes_per_sample == 2 * 6 * 64
    assert losses != exact


def test_limits_changed_weights_and_random_samples(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Branches()
    images = torch.randn(10, 3, 8, 8)
    neq = SelectiveUpdate(model, None, images[:2], Prefix(0.5))
    neq.step()
    small = FeatureCache(neq, 10, limit=100, folder=tmp_path)
    small(images, range(10))
    assert "more than the limit" in (small.status.reason or "")
    cache = FeatureCache(neq, 10, measured=False)
    cache(images, range(10))
    assert cache.status.stored == 10
    with torch.no_grad():
        model.a.weight.mul_(2)  # somebody loads other weights
    cache(images[:3], range(3))
    assert cache.status.stored == 3
    with pytest.raises(ConfigError, match="needs as many indices"):
        cache(images, range(4))
    with pytest.raises(ConfigError, match="do not all lie among the 10"):
        cache(images, range(1, 11))
    model.eval()
    assert torch.equal(cache(images, range(10)), model(images))
    small.close()
    assert not list(tmp_path.iterdir())

    class Noisy:
        def __len__(self) -> int:
            return 10

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            return torch.rand(3), index

    nan = torch.tensor([float("nan"), 1.0])
    FeatureCache.check(
        [(torch.ones(3), nan, {"name": f"image {i}", "label": i}) for i in range(10)]
    )
    with pytest.raises(ConfigError, match="sample 0 is another one each time"):
        FeatureCache.check(Noisy())
    with pytest.raises(ConfigError, match="samples: must be a whole number, at least 1, not 0"):
        FeatureCache.check(Noisy(), samples=0)


@pytest.mark.parametrize(("length", "samples"), [(15, 8), (100, 8), (8, 8), (3, 8), (0, 8)])
def test_a_check_reads_as_many_samples_as_asked_for(length: int, samples: int) -> None:
    read: list[int] = []

    class Counted:
        def __len__(self) -> int:
            return length

        def __getitem__(self, index: int) -> Tensor:
            read.append(index)
            return torch.ones(1)

    FeatureCache.check(Counted(), samples)
    places = sorted(set(read))
    assert len(places) == min(samples, length)
    assert all(0 <= place < length for place in places)
    gaps = {after - before for before, after in itertools.pairwise(places)}
    assert not gaps or max(gaps) - min(gaps) <= 1


def test_nothing_of_the_front_is_run_once_its_features_are_there() -> None:
    model = Branches()
    images = torch.randn(10, 3, 8, 8)
    neq = SelectiveUpdate(model, None, images[:2], Prefix(0.5))
    neq.step()
    cache = FeatureCache(neq, 10, measured=False)
    calls: list[str] = []
    for name in "abc":
        getattr(model, name).register_forward_hook(lambda *_, name=name: calls.append(name))
    cache(images, range(10))
    first = list(calls)
    calls.clear()
    cache(images.flip(0), range(9, -1, -1)).sum().backward()
    assert "a" in first
    assert "a" not in calls
    assert calls
    assert model.a.weight.grad is None
    assert model.c.weight.grad is not None


@pytest.mark.parametrize("early", [False, True])
def test_only_what_the_layers_behind_the_cut_read_is_stored(early: bool) -> None:
    """A path around the second block is noticed even while its weights are zero."""
    torch.manual_seed(0)
    model, images = Untraced(early), torch.randn(10, 3, 8, 8)
    neq = SelectiveUpdate(model, None, images[:2], Prefix(0))
    resting = [name for name in neq.frozen if name.startswith(("blocks.0", "blocks.1"))]
    neq.apply({name: torch.ones_like(neq.frozen[name]) for name in resting})
    cache = FeatureCache(neq, 10, measured=False)
    statistics = model.between.running_mean.clone()
    outputs = [cache(images, range(10)) for _ in range(2)]
    assert cache.status.layers == ("blocks.0", "blocks.1")
    assert cache.status.bytes_per_sample == (2 if early else 1) * 4 * 6 * 64
    outputs[1].sum().backward()
    assert all(p.grad is None for p in model.blocks[0].parameters())
    assert model.blocks[2].conv.weight.grad is not None
    assert torch.equal(model.between.running_mean, statistics)
    assert all("forward" not in vars(module) for module in model.modules())
    model.layerdrop = True
    with pytest.raises(ModelError, match="layerdrop"):
        cache(images, range(10))
    assert all("forward" not in vars(module) for module in model.modules())


class Chain(nn.Module):
    """Blocks in a row that torch.fx cannot trace, of which the first two rest."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(4, 4) for _ in range(3))
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        if float(x.detach().abs().max()) > 1e6:
            raise ValueError("too large")
        return self.blocks(x)

    def blocks(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return self.third(self.second(self.first(x)))


def _rested(model: nn.Module, inputs: Tensor) -> FeatureCache:
    update = SelectiveUpdate(model, None, inputs[:2].clone(), Prefix(0), dispatch="fixed")
    resting = ("first", "second")
    update.apply({name: torch.ones_like(update.frozen[name]) for name in resting})
    return FeatureCache(update, len(inputs), measured=False)


class Moved(Chain):
    """A parameter, a buffer and a table of its own in front of the cut."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(4), requires_grad=False)
        self.register_buffer("mean", torch.randn(4))
        self.norm = nn.BatchNorm1d(4, affine=False)
        self.table = nn.Embedding(1, 4).requires_grad_(False)  # never called

    def blocks(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return super().blocks(self.norm(x - self.mean) + self.position + self.table.weight)


@pytest.mark.parametrize("name", ["position", "mean", "norm.running_mean", "table.weight"])
def test_features_follow_every_tensor_in_front_of_the_cut(name: str) -> None:
    torch.manual_seed(0)
    model, inputs = Moved(), torch.randn(6, 4)
    cache = _rested(model, inputs)
    cache(inputs, range(6))
    assert cache.status.stored == 6
    with torch.no_grad():
        model.state_dict()[name].add_(1)
    found = cache(inputs, range(6))
    assert cache.status.stored == 6
    assert torch.equal(found, model.eval()(inputs))


class Penalty(Chain):
    def blocks(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        first = self.first(x)
        found = self.third(self.second(first))
        return (found, first.square().mean()) if self.training else found


class Twice(Chain):
    def blocks(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        found = self.third(self.second(self.first(x)))
        return (found, self.second(-x)) if self.training else found


class Checkpointed(Chain):
    """Its backward pass would run the dropout of layers at rest."""

    def blocks(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return checkpoint(self.inner, x, use_reentrant=False)  # type: ignore[no-any-return]

    def inner(self, x: Tensor) -> Tensor:
        return self.third(self.second(self.drop(self.first(x)))).relu()


class SharedNorm(Chain):
    """Statistics in front of the cut that a training behind it changes."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4, affine=False)

    def blocks(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return self.third(self.norm(self.second(self.norm(self.first(x)))))


class InPlace(Chain):
    def blocks(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return super().blocks(x.mul_(2))


@pytest.mark.parametrize("build", [Penalty, Twice, Checkpointed, SharedNorm, InPlace])
def test_where_a_training_takes_other_ways_nothing_is_cut_off(build: type[Chain]) -> None:
    torch.manual_seed(0)
    model, inputs = build(), torch.randn(6, 4)
    cache = _rested(model, inputs)
    other, batches = copy.deepcopy(model), (inputs.clone(), inputs.clone())
    found = []
    for network, batch in zip((lambda x: cache(x, range(6)), other), batches, strict=True):
        torch.manual_seed(1)
        found.append(tensors_of(network(batch)))
        sum(x.square().sum() for x in found[-1]).backward()
    assert not cache.status.layers
    assert all(map(torch.equal, *found))
    assert torch.equal(*batches)
    assert torch.equal(model.third.weight.grad, other.third.weight.grad)
    state = other.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_hooks_of_modules_at_rest_get_their_outputs() -> None:
    torch.manual_seed(0)
    model, inputs = Chain(), torch.randn(6, 4)
    seen: list[Tensor] = []
    model.first.register_forward_hook(lambda _module, _args, output: seen.append(output))
    model.second.register_forward_hook(lambda _module, _args, output: 2 * output + 1)
    cache = _rested(model, inputs)
    for part in (slice(3), slice(6), slice(6)):
        found = cache(inputs[part], range(6)[part])
        assert torch.equal(seen[-1], nn.functional.linear(inputs[part], *model.first.parameters()))
        assert torch.equal(found, model(inputs[part]))
    assert cache.status.bytes_per_sample == 2 * 4 * 4


@pytest.mark.parametrize(
    "wrong",
    [
        {"x": 1},
        torch.tensor(1.0),
        (),
        (torch.ones(6, 4), torch.ones(1)),
        {"x": torch.ones(6, 4), "more": [torch.ones(6)]},
    ],
)
def test_inputs_that_are_no_tensors_of_samples_are_refused(wrong: object) -> None:
    cache = _rested(Chain(), torch.randn(6, 4))
    with pytest.raises(ConfigError, match="one entry per sample"):
        cache(wrong, range(6))  # type: ignore[arg-type]


@pytest.mark.parametrize("to_none", [True, False])
def test_gradients_set_to_zero_do_not_cut_again(to_none: bool) -> None:
    """The optimizer would step weights at rest with a gradient of zero, by weight decay."""
    model = Branches()
    images = torch.randn(6, 3, 8, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    model(images).sum().backward()
    optimizer.step()
    neq = SelectiveUpdate(model, optimizer, images[:2], Prefix(0.5))
    neq.step()
    cache = FeatureCache(neq, 6, measured=False)
    calls: list[int] = []
    model.a.register_forward_hook(lambda *_: calls.append(1))
    for _ in range(3):
        cache(images, range(6)).sum().backward()
        first = list(calls)
        optimizer.step()
        optimizer.zero_grad(set_to_none=to_none)
    cache(images, range(6))
    assert calls == first


def _curated(limit: int) -> tuple[list[float], list[int], int, dict[str, Tensor]]:
    """A training on a subset that changes with every epoch, and how often the front ran."""
    torch.manual_seed(1)
    model = Branches().double()
    images = torch.randn(40, 3, 8, 8, dtype=torch.float64)
    labels = torch.randint(0, 5, (40,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    neq = SelectiveUpdate(model, optimizer, images[:4], Prefix(0.5), dispatch="fixed")
    neq.step()
    cache = FeatureCache(neq, len(images), measured=False, limit=limit)
    keep = InfoBatch(range(len(images)), 0.8, seed=3)
    sampler, losses, sizes, runs = keep.sampler(), [], [], []
    model.a.register_forward_hook(lambda *_: runs.append(1))
    model.train()
    for epoch in range(6):
        index = torch.tensor(list(sampler))
        sizes.append(len(index))
        for where in index.split(8):
            torch.manual_seed(epoch)
            found = F.cross_entropy(cache(images[where], where), labels[where], reduction="none")
            loss = keep.weigh(found, where)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    cache.close()
    return losses, sizes, len(runs), model.state_dict()


def test_cached_features_survive_a_changing_subset() -> None:
    losses, sizes, runs, weights = _curated(2**30)
    plain, _, every, others = _curated(0)
    # Not to the bit: a sample meets others, in batches of other sizes, when its features are stored.
    assert losses == pytest.approx(plain, rel=1e-10)
    assert all(torch.allclose(value, others[name]) for name, value in weights.items())
    assert sizes[0] == 40
    assert min(sizes) < 40
    assert len(set(sizes[1:])) > 1  # the subset changes
    assert every > runs
    assert runs <= 5 + 5  # the five batches of the first epoch; the cut is tried on some more


def test_a_compiled_front_is_compiled_once_per_cut() -> None:
    """Masks of the layers behind the cut change in every step, and nothing is compiled again."""
    torch.compiler.reset()
    torch.manual_seed(1)
    model = Branches()
    images = torch.randn(8, 3, 8, 8)
    shares = [{"a": 1.0, "norm": 1.0, "b": 0.5, "c": 0.25 * i} for i in range(4)]
    names = {"a", "norm", "b", "c", "head"}
    rule = Fixed(*[{**dict.fromkeys(names, 0.0), **share} for share in shares])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    update = SelectiveUpdate(model, optimizer, images[:4], rule, dispatch="fixed")
    compiled: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: object) -> object:
        compiled.append(len(graph.graph.nodes))
        return graph.forward

    cache = FeatureCache(
        update, 8, limit=0, compile=lambda front: torch.compile(front, backend=backend)
    )  # fmt: skip
    found = []
    for _ in range(3):
        update.step()
        found.append(cache(images, torch.arange(8)))
        optimizer.zero_grad()
        found[-1].square().sum().backward()
        optimizer.step()
    assert len(compiled) == 1
    assert cache.status.layers[0] == "a"
    torch.manual_seed(0)
    got = cache(images, torch.arange(8))
    plain = FeatureCache(update, 8, limit=0)
    torch.manual_seed(0)
    assert torch.equal(got, plain(images, torch.arange(8)))
    assert len(compiled) == 1
    torch.compiler.reset()


class Switched(Chain):
    def forward(self, x: Tensor, *, twice: bool = False) -> Tensor:  # type: ignore[override]
        hidden = self.first(x)
        return self.third(self.second(hidden + hidden if twice else hidden))


def test_inputs_by_name_with_a_constant_have_features_of_their_own() -> None:
    torch.manual_seed(0)
    model, inputs = Switched().eval(), torch.randn(6, 4)
    cache = _rested(model, inputs)
    cache({"x": inputs}, range(6))
    assert "evaluation mode" in (cache.status.reason or "")
    model.train()
    for last, twice in pairwise((False, False, False, True, True, False)):
        with pytest.warns(match="pad all samples") if last != twice else nullcontext():
            found = cache({"x": inputs[:3], "twice": twice}, range(3))
        assert torch.equal(found, model(inputs[:3], twice=twice))
        assert cache.status.layers == ("first", "second")
        assert cache.status.stored == 3
    model.eval()
    assert torch.equal(cache({"x": inputs, "twice": True}, ()), model(inputs, twice=True))
