"""Features in files: layout, other samples, changed weights, full disks and killed trainings."""

from __future__ import annotations

import errno
import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seams.equilibrium import cache_module
from snello.equilibrium import FeatureCache, Prefix, SelectiveUpdate
from snello.errors import ConfigError

pytestmark = pytest.mark.usefixtures("one_thread")


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(96, 5),
    )  # fmt: skip


def images(count: int = 10) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(3))


def resting(model: nn.Module, share: float, **options: object) -> FeatureCache:
    """A cache of a network of which a share of the layers rests."""
    update = SelectiveUpdate(model, None, images(2), Prefix(share), dispatch="fixed")
    update.step()
    return FeatureCache(update, 10, measured=False, **options)  # type: ignore[arg-type]


def counted(layer: nn.Module) -> list[int]:
    """A list that grows with every call of a layer."""
    calls: list[int] = []
    layer.register_forward_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize("share", [0.34, 0.7], ids=["before BatchNorm", "before a convolution"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_features_keep_their_layout(layout: torch.memory_format, share: float) -> None:
    """BatchNorm in training rounds otherwise in another layout, and is slower."""
    found = []
    for limit in (2**20, 0):
        model = network().to(memory_format=layout)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        cache = resting(model, share, limit=limit)
        x = images().to(memory_format=layout)
        seen: list[tuple[int, ...]] = []
        behind = model[1] if share < 0.5 else model[3]
        behind.register_forward_hook(lambda _m, args, _o, seen=seen: seen.append(args[0].stride()))
        for _ in range(3):
            cache(x, range(10)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        assert cache.status.layers
        found.append((seen[-3:], [p.detach().clone() for p in model.parameters()]))
    (strides, weights), (others, plain) = found
    assert strides == others
    assert (strides[0][1] == 1) is (layout is torch.channels_last)
    assert all(map(torch.equal, weights, plain))


@pytest.mark.parametrize(
    "other",
    [
        lambda x: x.flip(-1),
        lambda x: x.roll(1, dims=2),
        lambda x: torch.cat([x[:9], x[9:] * 1.01]),
        lambda x: x.flip(0),
    ],
    ids=["mirrored", "shifted", "brighter", "other indices"],
)
def test_another_sample_than_the_stored_one_is_refused(other: object) -> None:
    cache = resting(network(), 0.7)
    x = images()
    cache(x, range(10))
    cache(x[:4].to(memory_format=torch.channels_last), range(4))  # the same in another layout
    with pytest.raises(ConfigError, match="another one than when its features were stored"):
        cache(other(x), range(10))  # type: ignore[operator]
    resting(network(), 0.7, limit=0)(other(x), range(10))  # type: ignore[operator]


def test_two_samples_with_one_index_are_refused() -> None:
    """As two views of an image in one batch are; the features of one would be those of both."""
    cache, x = resting(network(), 0.7), images()
    same = cache(torch.cat([x, x[:1]]), [*range(10), 0])
    assert torch.equal(same[0], same[10])
    cache, where = resting(network(), 0.7), [*range(9), 0]
    with pytest.raises(ConfigError, match="sample 0 is another one than when its features"):
        cache(x, where)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float64, torch.bool])
def test_samples_of_every_dtype_are_told_apart(dtype: torch.dtype) -> None:
    class Cast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x.float())

    model = Cast()
    x = (images() * 50).clamp(0).to(dtype)
    update = SelectiveUpdate(model, None, x[:2], Prefix(0.7))
    update.step()
    cache = FeatureCache(update, 10, measured=False)
    assert torch.equal(cache(x, range(10)), cache(x, range(10)))
    with pytest.raises(ConfigError, match="sample 9 is another one"):
        cache(torch.cat([x[:9], x[:1]]), range(10))


class Numbered(nn.Module):
    """Looks up whole numbers, computed in front of the cut, behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.table = nn.Embedding(1000, 4)

    def forward(self, x: Tensor, number: Tensor) -> Tensor:
        return self.head(self.second(self.first(x)) + self.table(number + 1))


def test_whole_numbers_are_not_rounded() -> None:
    torch.manual_seed(0)
    model, inputs = Numbered(), (torch.ones(10, 4), torch.arange(501, 511))
    update = SelectiveUpdate(model, None, inputs, Prefix(0.5), dispatch="fixed")
    update.step()
    cache = FeatureCache(update, 10, dtype=torch.bfloat16, measured=False)
    found = cache(inputs, range(10))
    assert cache.status.layers == ("first",)
    assert cache.status.bytes_per_sample == 4 * 2 + 8
    torch.testing.assert_close(found, model(*inputs), rtol=0, atol=0.02)


class Mixed(nn.Module):
    """Subtracts the mean of the batch."""

    def __init__(self, keepdim: bool) -> None:
        super().__init__()
        self.keepdim, self.inner = keepdim, network()
        self.inner[0] = nn.Conv2d(2, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x - x.mean(0, keepdim=self.keepdim))


@pytest.mark.parametrize("first", [1, 10])
@pytest.mark.parametrize("keepdim", [True, False])
def test_features_that_depend_on_the_batch_are_not_stored(keepdim: bool, first: int) -> None:
    """Also where the mean has as many channels as there are samples on which the cut is tried."""
    model, x = Mixed(keepdim), images()[:, :2]
    update = SelectiveUpdate(model, None, x[:4], Prefix(0.7))
    update.step()
    cache = FeatureCache(update, 10, measured=False)
    cache(x[:first], range(first))
    assert cache.status.stored == 0
    assert cache.status.reason


class Placed(nn.Module):
    """Adds the place of each sample in its batch."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = network()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x + torch.arange(x.shape[0])[:, None, None, None])


def test_features_that_depend_on_the_place_in_the_batch_are_not_stored() -> None:
    model = Placed()
    update = SelectiveUpdate(model, None, images(4), Prefix(0.7))
    update.step()
    cache = FeatureCache(update, 10, measured=False)
    cache(images(), range(10))
    assert cache.status.stored == 0
    assert cache.status.reason


def test_wrong_arguments() -> None:
    cache = resting(network(), 0.7)
    for wrong, says in (
        ({"samples": 2.5}, "samples: must be a whole number"), ({"samples": 0}, "at least 1, not 0"),
        ({"dtype": torch.int32}, "dtype: must be"), ({"dtype": "bf16"}, "dtype: must be"),
        ({"update": network()}, "must be a SelectiveUpdate, not a Sequential"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=says):
            FeatureCache(**{"update": cache._update, "samples": 10, **wrong})  # type: ignore[arg-type]
    for index in (None, ["a"] * 10):
        with pytest.raises(ConfigError, match="index: must be whole numbers"):
            cache(images(), index)  # type: ignore[arg-type]


@pytest.mark.parametrize("index", [torch.arange(10) + 0.5, torch.ones(10, dtype=torch.bool)])
def test_an_index_is_a_whole_number(index: Tensor) -> None:
    with pytest.raises(ConfigError, match="must be whole numbers"):
        resting(network(), 0.7)(images(), index)


def test_a_layer_that_is_to_learn_again_is_behind_the_cut() -> None:
    """Gradual unfreezing by requires_grad, of a layer that is not watched."""
    model = network()
    model[0].requires_grad_(False)
    update = SelectiveUpdate(model, None, images(2), Prefix(1.0), exclude=["0"])
    update.step()
    cache = FeatureCache(update, 10, measured=False)
    cache(images(), range(10))
    assert cache.status.layers == ("0", "1", "3")
    model[0].requires_grad_(True)
    cache(images(), range(10)).sum().backward()
    assert cache.status.layers == ()
    assert model[0].weight.grad is not None


def test_features_of_another_precision_are_computed_again() -> None:
    model = nn.Sequential(*network()[:2], nn.LayerNorm((8, 6, 6)), *network()[2:])
    update = SelectiveUpdate(model, None, images(2), Prefix(0.76), dispatch="fixed")
    update.step()
    cache = FeatureCache(update, 10, measured=False)
    plain = cache(images(), range(10))
    assert cache.status.layers[-1] == "2"  # whose outputs are float32 under autocast, too
    with torch.autocast("cpu", torch.bfloat16):
        cache(images()[:3], range(3))
    assert cache.status.stored == 3
    assert torch.equal(cache(images(), range(10)), plain)


def test_weights_that_are_written_again_keep_the_features() -> None:
    model = network()
    cache = resting(model, 0.7)
    calls = counted(model[0])
    cache(images(), range(10))
    first = list(calls)
    with torch.no_grad():
        model[0].weight.mul_(1)  # as masks of pruning do after every step
    model.load_state_dict(model.state_dict())
    before = cache(images(), range(10))
    assert calls == first
    with torch.no_grad():
        model[0].weight.mul_(2)
    assert not torch.equal(cache(images(), range(10)), before)
    assert len(calls) == len(first) + 1  # computed again, without another cut


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EOPNOTSUPP])
def test_a_full_disk_leaves_the_network_trainable(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "posix_fallocate", refuse, raising=False)
    cache = resting(network(), 0.7, folder=tmp_path)
    outputs = cache(images(), range(10))
    full = code == errno.ENOSPC
    assert (os.strerror(code) in (cache.status.reason or "")) is full
    assert cache.status.stored == (0 if full else 10)
    assert torch.equal(outputs, cache(images(), range(10)))
    assert bool(list(tmp_path.rglob("*.bin"))) is not full


def test_features_that_are_not_worth_it_leave_no_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resumed training measures again, and does not go on with those of one batch."""
    seconds = itertools.cycle([1.0, 2.0])  # to compute the features, and to read them
    monkeypatch.setattr(cache_module, "timed", lambda call, _device: (call(), next(seconds)))
    update = SelectiveUpdate(network(), None, images(2), Prefix(0.7), dispatch="fixed")
    update.step()
    for _ in range(2):
        cache = FeatureCache(update, 10, folder=tmp_path)
        outputs = cache(images(), range(10))
        assert cache.status.reason == "computing the features is faster than reading them"
        assert not list(tmp_path.rglob("*.bin"))
        assert torch.equal(outputs, cache(images(), range(10)))


def test_a_folder_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "snello-features-0").touch()
    with pytest.raises(ConfigError, match="cannot write"):
        resting(network(), 0.7, folder=tmp_path)
    with pytest.raises(ConfigError, match="there is no folder"):
        resting(network(), 0.7, folder=tmp_path / "missing")


def train(folder: Path, kill_at: int) -> None:
    """A training whose layers rest after one epoch, with a checkpoint after each."""
    torch.set_num_threads(1)
    model, x, y = network(), images(), torch.arange(10) % 5
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    update = SelectiveUpdate(model, optimizer, x[:4], Prefix(0.7), dispatch="fixed")
    cache = FeatureCache(update, 10, folder=folder, measured=False)
    parts, saved = (model, optimizer, update), folder / "checkpoint.pt"
    start = steps = 0
    if saved.exists():
        start, *states = torch.load(saved, weights_only=True)
        for part, state in zip(parts, states, strict=True):
            part.load_state_dict(state)  # type: ignore[attr-defined]
    for epoch in range(start, 5):
        order = torch.randperm(10, generator=torch.Generator().manual_seed(epoch))
        for where in order.split(3):
            if (steps := steps + 1) == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            loss = F.cross_entropy(cache(x[where], where), y[where])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        update.step()
        torch.save([epoch + 1, *(part.state_dict() for part in parts)], folder / "new.pt")
        (folder / "new.pt").replace(saved)


def test_a_killed_training_goes_on_to_the_bit(tmp_path: Path) -> None:
    """With the features that its first process stored, in batches of other samples."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    code = "import sys, pathlib, test_equilibrium_stored as t; t.train(pathlib.Path(sys.argv[1]), int(sys.argv[2]))"
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    for folder, kill_at in ((whole, 0), (killed, 11), (killed, 0)):
        folder.mkdir(exist_ok=True)
        done = subprocess.run(
            [sys.executable, "-c", code, str(folder), str(kill_at)],
            env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == (-signal.SIGKILL if kill_at else 0), done.stderr
        (file,) = folder.rglob("samples.bin")
        stored = torch.from_file(str(file), size=10, dtype=torch.int64)
        assert int(stored.count_nonzero()) == 10
    one, other = (torch.load(f / "checkpoint.pt", weights_only=True)[1] for f in (whole, killed))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
