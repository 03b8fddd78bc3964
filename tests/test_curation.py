"""Dynamic subsets: unbiased, exact in number, resumable, around any sampler."""

from __future__ import annotations

import copy
import io
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from curation_samples import METHODS, SAMPLES, dataset, epoch_of, network
from snello.curation import DynamicSubset, InfoBatch, OrderDP, RandomSubset
from snello.errors import ConfigError, DataError

ALL = torch.arange(SAMPLES)


def _sgd(model: Any) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def _run(keep: DynamicSubset, epochs: int, **options: Any) -> list[list[int]]:
    """Indices of every epoch of a training."""
    model = network()
    options.setdefault("sampler", keep.sampler())
    if "batch_sampler" in options:
        del options["sampler"]
    else:
        options.setdefault("batch_size", 16)
    loader, optimizer = DataLoader(keep, **options), _sgd(model)
    return [torch.cat(epoch_of(keep, loader, model, optimizer)).tolist() for _ in range(epochs)]


def _seen_once(keep: DynamicSubset, losses: Tensor) -> list[int]:
    """Give a subset the losses of a whole first epoch, and return the second's indices."""
    list(keep.sampler())
    keep.record(losses, ALL)
    keep.finish()
    return list(keep.sampler())


# The rules


def test_the_weighted_gradient_of_infobatch_is_unbiased() -> None:
    """Its mean over n draws converges to the gradient of all samples as 1 / √n."""
    torch.manual_seed(0)
    losses, gradients = torch.rand(SAMPLES).double(), torch.randn(SAMPLES, 7).double()
    full = gradients.mean(0)

    def drawn(seed: int) -> Tensor:
        keep = InfoBatch(dataset(), 0.5, seed=seed)
        index = torch.tensor(_seen_once(keep, losses))
        return (keep.weights(index)[:, None] * gradients[index]).sum(0) / SAMPLES

    estimates = torch.stack([drawn(seed) for seed in range(1024)])
    spread = estimates.var(0).sum().sqrt()
    for count in (16, 64, 256, 1024):
        errors = (estimates.view(-1, count, 7).mean(1) - full).norm(dim=1)
        # The mean squared error of a mean of n independent draws is the variance over n.
        rms = float(errors.pow(2).mean().sqrt() / (spread / math.sqrt(count)))
        assert 0.5 < rms < 2.0, count
    # Without the weights it is not: the error stays.
    assert (estimates.mean(0) - full).norm() < 0.2 * spread


def test_infobatch_leaves_out_its_share_below_the_mean_alone() -> None:
    losses = torch.rand(SAMPLES)
    keep = InfoBatch(dataset(), 0.5)
    kept = set(_seen_once(keep, losses))
    easy = set((losses < losses.mean()).nonzero().flatten().tolist())
    assert set(range(SAMPLES)) - easy <= kept
    count = round(len(easy) / 2)
    assert len(kept & easy) == count
    weights = keep.weights(ALL)
    assert torch.equal(
        weights.unique(), torch.tensor([1.0, len(easy) / count], dtype=torch.float64)
    )
    expected = sum(float(weights[i] * losses[i]) for i in kept) / len(kept)
    index = torch.tensor(sorted(kept))
    assert float(keep.weigh(losses[index].double(), index)) == pytest.approx(expected, abs=1e-12)


def test_annealing_ends_with_all_samples_unweighted() -> None:
    keep = InfoBatch(dataset(), 0.5, epochs=8, anneal=0.75)
    counts = [len(epoch) for epoch in _run(keep, 8)]
    assert counts[0] == SAMPLES
    assert all(count < SAMPLES for count in counts[1:6])
    assert counts[6:] == [SAMPLES] * 2
    assert torch.equal(keep.weights(ALL), torch.ones(SAMPLES).double())


def test_a_window_compares_with_the_mean_of_its_batches() -> None:
    """Losses of each batch are far from those of the others, so a global mean would err."""
    losses = torch.empty(SAMPLES).double()
    keep = InfoBatch(dataset(), 0.99, window=1, always=())
    batches = list(BatchSampler(keep.sampler(), 16, drop_last=False))
    easy = set()
    for level, batch in enumerate(batches):
        losses[batch] = 10.0 * level + torch.arange(len(batch)).double() / 16
        keep.weigh(losses[batch], torch.tensor(batch))
        easy |= {i for i in batch if losses[i] < losses[batch].mean()}
    kept = set(keep.sampler())
    assert set(range(SAMPLES)) - easy <= kept
    assert len(kept & easy) == max(1, round(0.01 * len(easy)))


def test_cumulative_weights_are_epochs_over_uses() -> None:
    keep = InfoBatch(dataset(), 0.5, rescaling="cumulative")
    uses = torch.zeros(SAMPLES, dtype=torch.float64)
    model = network()
    loader, optimizer = DataLoader(keep, 16, sampler=keep.sampler()), _sgd(model)
    for epoch in range(4):
        index = torch.cat(epoch_of(keep, loader, model, optimizer))
        uses[index] += 1
        assert torch.equal(keep.weights(index), (epoch + 1) / uses[index])


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.5, 0.85])
def test_random_and_orderdp_keep_an_exact_number(ratio: float) -> None:
    expected = round((1 - ratio) * SAMPLES)
    for keep in (RandomSubset(dataset(), ratio), OrderDP(dataset(), ratio)):
        assert [len(set(epoch)) for epoch in _run(keep, 4)] == [expected] * 4


def test_without_replacement_all_are_used_before_one_is_used_again() -> None:
    keep, uses = RandomSubset(dataset(), 0.7), torch.zeros(SAMPLES)
    for epoch in _run(keep, 12):
        uses[epoch] += 1
        assert uses.max() - uses.min() <= 1
    uses.zero_()
    for epoch in _run(RandomSubset(dataset(), 0.7, replacement=True), 12):
        uses[epoch] += 1
    assert uses.max() - uses.min() > 1


def test_orderdp_takes_the_largest_losses_of_its_pool() -> None:
    losses = torch.rand(SAMPLES)
    every = OrderDP(dataset(), 0.0)  # the first epoch of any other does not see all
    state = every.state_dict()
    _seen_once(every, losses)
    pooled = OrderDP(dataset(), 0.7, pool=1.0)
    scores = every.state_dict()["scores"]
    pooled.load_state_dict({**state, "scores": scores})
    count = round(0.3 * SAMPLES)
    assert set(pooled.sampler()) == set(torch.topk(losses, count).indices.tolist())
    part = OrderDP(dataset(), 0.7)
    part.load_state_dict({**state, "scores": scores})
    kept = list(part.sampler())
    assert len(set(kept)) == count
    # Half of the samples are the pool: the mean of the largest 60 % of it.
    assert losses.mean() < losses[kept].mean() < torch.topk(losses, count).values.mean()


@pytest.mark.parametrize("name", METHODS)
def test_probe_samples_are_never_left_out(name: str) -> None:
    always = [3, 50, 102]
    keep = METHODS[name](dataset(), always=always)
    for epoch in _run(keep, 5):
        assert set(always) <= set(epoch)
        assert len(epoch) == len(set(epoch))


def test_a_mean_loss_stands_for_those_of_its_batch() -> None:
    keep = InfoBatch(dataset(), smoothing=0.75)
    list(keep.sampler())
    first, second = torch.tensor(2.0).double(), torch.tensor(4.0).double()
    index = torch.tensor([1, 4])
    assert keep.weigh(first, index) == first
    keep.weigh(second, index)
    assert keep.scores[[1, 4]].tolist() == [2.5, 2.5]
    assert keep.scores.isfinite().sum() == 2


def test_losses_that_are_not_finite_leave_the_scores_alone() -> None:
    keep = RandomSubset(dataset(), 0.3)
    list(keep.sampler())
    keep.record(torch.tensor([1.0, 2.0]), torch.tensor([0, 1]))
    keep.record(torch.tensor([math.nan, math.inf]), torch.tensor([0, 1]))
    assert keep.scores[:2].tolist() == [1.0, 2.0]


def test_losses_are_kept_though_their_buffers_are_used_again() -> None:
    """As by CUDA graphs, whose outputs are overwritten by the next batch."""
    keep = RandomSubset(dataset(), 0.3)
    list(keep.sampler())
    losses, index = torch.empty(1), torch.empty(1, dtype=torch.int64)
    for sample in range(5):
        keep.record(losses.fill_(sample), index.fill_(sample))
    assert keep.scores[:5].tolist() == [0, 1, 2, 3, 4]


# Samplers and loaders


class _Batched(Dataset[Any]):
    """Puts batches together itself, as the lab's datasets do."""

    def __init__(self) -> None:
        self.inputs, self.labels = dataset().tensors

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> Any:
        return self.inputs[index], self.labels[index]

    def __getitems__(self, indices: list[int]) -> Any:
        return self.inputs[indices], self.labels[indices]


class _Keys(DistributedSampler[Any]):
    """Yields (epoch, index)."""

    def __iter__(self) -> Any:
        return ((self.epoch, index) for index in super().__iter__())


class _Reversed(Sampler[int]):
    def __iter__(self) -> Any:
        return iter(range(SAMPLES - 1, -1, -2))

    def __len__(self) -> int:
        return SAMPLES // 2


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(5)


SAMPLERS: dict[str, Any] = {
    "sequential": lambda: SequentialSampler(dataset()),
    "random": lambda: RandomSampler(dataset(), generator=_seeded()),
    "with replacement": lambda: RandomSampler(
        dataset(), replacement=True, num_samples=90, generator=_seeded()
    ),
    "weighted": lambda: WeightedRandomSampler(torch.rand(SAMPLES), 80, generator=_seeded()),
    "subset": lambda: SubsetRandomSampler(range(10, 60), generator=_seeded()),
    "own": _Reversed,
    "list": lambda: [5, 3, 3, 99],
    "distributed": lambda: DistributedSampler(dataset(), num_replicas=1, rank=0),
}


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("method", ["random", "infobatch", "orderdp"])
def test_any_sampler_of_indices_works(sampler: str, method: str) -> None:
    """The kept samples are a part of the sampler's own order."""
    keep, inner = METHODS[method](dataset()), SAMPLERS[sampler]()
    if hasattr(inner, "set_epoch"):
        inner.set_epoch(0)
    before = copy.deepcopy(inner)
    curated = keep.sampler(inner)
    model = network()
    seen = epoch_of(keep, DataLoader(keep, 16, sampler=curated), model, _sgd(model))
    offered, kept = iter(list(before)), torch.cat(seen).tolist()
    assert kept
    assert all(any(index == other for other in offered) for index in kept)


def test_batch_samplers_are_regrouped_or_shrunk() -> None:
    groups = [list(range(start, min(start + 8, SAMPLES))) for start in range(0, SAMPLES, 8)]
    keep = RandomSubset(dataset(), 0.5)
    full = [
        batch.tolist() for _, batch in DataLoader(keep, batch_sampler=keep.batch_sampler(groups))
    ]
    assert [len(batch) for batch in full[:-1]] == [8] * (len(full) - 1)
    assert sum(map(len, full)) == round(SAMPLES / 2)
    keep = RandomSubset(dataset(), 0.5)
    sampler = keep.batch_sampler(groups, regroup=False)
    shrunk = list(sampler)
    assert len(shrunk) == len(sampler)
    assert all(len({index // 8 for index in batch}) == 1 for batch in shrunk)
    assert sum(map(len, shrunk)) == round(SAMPLES / 2)
    keep = RandomSubset(dataset(), 0.5)
    plain = BatchSampler(DistributedSampler(dataset(), 1, 0), 10, drop_last=True)
    sampler = keep.batch_sampler(plain)
    assert [len(batch) for batch in sampler] == [10] * 5 == [10] * len(sampler)
    model = network()
    epoch_of(keep, DataLoader(keep, batch_sampler=sampler), model, _sgd(model))
    assert keep.moment == 2.0  # what is dropped is not waited for
    assert keep.kept == keep.share == 50 / SAMPLES  # nor counted
    few = RandomSubset(dataset(), 0.5).batch_sampler(BatchSampler(range(SAMPLES), 64, True))
    with pytest.raises(DataError, match="needs 64"):
        list(few)


@pytest.mark.parametrize("options", [
    {"num_workers": 0}, {"num_workers": 2}, {"num_workers": 2, "persistent_workers": True},
], ids=str)  # fmt: skip
def test_workers_change_nothing(options: dict[str, Any]) -> None:
    reference = _run(METHODS["infobatch"](dataset()), 3)
    assert _run(METHODS["infobatch"](dataset()), 3, **options) == reference


def test_drop_last_drops_less_than_a_batch() -> None:
    epochs = _run(METHODS["infobatch"](dataset()), 4, drop_last=True)
    assert len(epochs[0]) == SAMPLES // 16 * 16
    assert all(len(epoch) % 16 == 0 for epoch in epochs)
    assert len(epochs[1]) < len(epochs[0])  # the epochs are counted all the same


def test_datasets_that_make_batches_and_own_collate_functions() -> None:
    reference = _run(METHODS["orderdp"](dataset()), 3)
    keep = METHODS["orderdp"](_Batched())
    assert _run(keep, 3, collate_fn=lambda batch: batch) == reference
    keep = METHODS["orderdp"](dataset())
    collate = keep.collate(lambda pairs: [torch.stack(part) for part in zip(*pairs, strict=True)])
    assert _run(keep, 3, collate_fn=collate) == reference


def test_keys_that_end_with_the_index() -> None:
    class Keyed(Dataset[Any]):
        def __len__(self) -> int:
            return SAMPLES

        def __getitem__(self, key: tuple[int, int]) -> Any:
            return torch.tensor(key)

    keep = RandomSubset(Keyed(), 0.3)
    loader = DataLoader(keep, 16, sampler=keep.sampler(_Keys(Keyed(), 1, 0)))
    for epoch in range(3):
        for key, index in loader:
            assert key[:, 0].tolist() == [epoch] * len(index)
            assert torch.equal(key[:, 1], index)


def test_the_global_random_state_is_neither_read_nor_changed() -> None:
    for name in METHODS:
        orders = []
        for seed in (1, 2):
            keep = METHODS[name](dataset())
            torch.manual_seed(seed)
            before = torch.get_rng_state()
            orders.append(list(keep.sampler()))
            assert torch.equal(torch.get_rng_state(), before)
        assert orders[0] == orders[1]


def test_looking_does_not_advance() -> None:
    """An iteration without training is repeated; a length is that of the next epoch."""
    keep = InfoBatch(dataset(), 0.5)
    sampler = keep.sampler()
    keep.set_epoch(0)
    first = next(iter(sampler))
    assert next(iter(sampler)) == first
    model = network()
    loader = DataLoader(keep, 16, sampler=sampler)
    assert len(loader) == 7
    epoch_of(keep, loader, model, _sgd(model))
    assert keep.moment == 1.0
    expected = len(sampler)
    assert expected < SAMPLES
    assert len(list(sampler)) == expected
    keep.set_epoch(1)
    assert len(list(sampler)) == expected
    keep.set_epoch(5)
    list(sampler)
    assert keep.moment == 5.0


# Resuming


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("stop", [None, 1], ids=["between epochs", "within an epoch"])
def test_resumed_equals_uninterrupted(name: str, stop: int | None) -> None:
    """Orders, weights and trained parameters, bit for bit, also from a file without pickled code."""

    def made() -> tuple[DynamicSubset, DataLoader[Any], Any, Any]:
        keep, model = METHODS[name](dataset(), seed=3), network()
        inner = RandomSampler(dataset(), generator=_seeded())
        return keep, DataLoader(keep, 16, sampler=keep.sampler(inner)), model, _sgd(model)

    keep, loader, model, optimizer = made()
    whole = [torch.cat(epoch_of(keep, loader, model, optimizer)) for _ in range(6)]
    reference = [p.detach().clone() for p in model.parameters()]

    keep, loader, model, optimizer = made()
    for _ in range(3):
        epoch_of(keep, loader, model, optimizer)
    begun = [] if stop is None else epoch_of(keep, loader, model, optimizer, stop)
    file = io.BytesIO()
    torch.save([keep.state_dict(), model.state_dict(), optimizer.state_dict()], file)
    file.seek(0)
    states = torch.load(file, weights_only=True)

    keep, loader, model, optimizer = made()
    for part, state in zip((keep, model, optimizer), states, strict=True):
        part.load_state_dict(state)
    rest = [torch.cat(epoch_of(keep, loader, model, optimizer)) for _ in range(3)]
    rest[0] = torch.cat([*begun, rest[0]])
    assert all(torch.equal(a, b) for a, b in zip(rest, whole[3:], strict=True))
    for found, expected in zip(model.parameters(), reference, strict=True):
        assert torch.equal(found, expected)
    assert keep.kept == pytest.approx(sum(map(len, whole)) / (6 * SAMPLES))


def test_a_restored_epoch_goes_on_where_the_loop_names_it() -> None:
    keep = METHODS["infobatch"](dataset())
    model = network()
    loader = DataLoader(keep, 16, sampler=keep.sampler())
    epoch_of(keep, loader, model, _sgd(model))
    whole = len(loader)
    begun = torch.cat(epoch_of(keep, loader, model, _sgd(model), 2)).tolist()
    other = METHODS["infobatch"](dataset())
    again = DataLoader(other, 16, sampler=other.sampler())
    other.load_state_dict(keep.state_dict())
    other.set_epoch(1)
    assert len(again) == whole
    assert len(list(again)) == whole - 2
    rest = torch.cat(epoch_of(other, again, model, _sgd(model))).tolist()  # looking did not advance
    assert len(set(begun) | set(rest)) == len(begun) + len(rest) == keep.coming()
    assert other.moment == 2.0


def test_an_epoch_that_was_only_drawn_is_not_ended() -> None:
    keep, model = METHODS["infobatch"](dataset()), network()
    loader = DataLoader(keep, 16, sampler=keep.sampler())
    for epoch in range(3):
        epoch_of(keep, loader, model, _sgd(model))
        coming = len(loader)
        keep.finish()
        assert keep.moment == epoch + 1
        assert len(loader) == coming


@pytest.mark.parametrize("stop", [2, 7], ids=["within an epoch", "after an epoch"])
def test_resumed_on_more_processes_the_epoch_begins_again_in_equal_shares(stop: int) -> None:
    keep, model = RandomSubset(dataset(), 0.0), network()
    loader = DataLoader(keep, 16, sampler=keep.sampler())
    epoch_of(keep, loader, model, _sgd(model), stop)
    shares = []
    for rank in range(2):
        other = RandomSubset(dataset(), 0.0)
        sampler = other.sampler(replicas=2, rank=rank)
        other.load_state_dict(keep.state_dict())
        assert other.coming(rest=True) == SAMPLES // 2
        shares.append(list(sampler))
        assert other.moment == (0.0 if stop == 2 else 1.0)
    assert [len(set(share)) for share in shares] == [SAMPLES // 2] * 2
    assert not set(shares[0]) & set(shares[1])


# Mistakes


class _Endless(IterableDataset[int]):
    def __iter__(self) -> Any:
        return iter(range(3))


@pytest.mark.parametrize("method", METHODS)
def test_iterable_datasets_are_refused_with_the_reason(method: str) -> None:
    with pytest.raises(DataError, match=r"iterable dataset.*no index.*map-style"):
        METHODS[method](_Endless())
    with pytest.raises(DataError, match="empty"):
        METHODS[method](Subset(dataset(), []))
    with pytest.raises(DataError, match="__len__"):
        METHODS[method](iter([1]))


def _begun(data: Any) -> DynamicSubset:
    keep = InfoBatch(data)
    list(keep.sampler())
    return keep


def _without(state: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda d: RandomSubset(d, 1.0), r"\[0, 1\)"),
        (lambda d: InfoBatch(d, -0.1), r"\[0, 1\)"),
        (lambda d: InfoBatch(d, anneal=2), "anneal"),
        (lambda d: InfoBatch(d, epochs=0), "epochs"),
        (lambda d: InfoBatch(d, window=0), "window"),
        (lambda d: InfoBatch(d, rescaling="none"), "share, cumulative"),
        (lambda d: OrderDP(d, 0.5, pool=0.2), "pool"),
        (lambda d: RandomSubset(d, 0.5, smoothing=1.0), "smoothing"),
        (lambda d: RandomSubset(d, 0.5, always=[SAMPLES]), "always"),
        (lambda d: RandomSubset(d, 0.5, always=torch.ones(SAMPLES).bool()), "no integers"),
        (lambda d: RandomSubset(d, 0.5, always=torch.tensor([1.5])), "no integers"),
        (lambda d: RandomSubset(d, 0.5, always=3), "no integers"),
        (lambda d: RandomSubset(d, 0.5).sampler(5), "cannot be iterated"),
        (lambda d: list(RandomSubset(d, 0.5).sampler([1.5, 2.5])), "no integers"),
        (lambda d: list(RandomSubset(d, 0.5).sampler([True, False])), "no integers"),
        (lambda d: list(RandomSubset(d, 0.5).sampler([[1, 2], [3, 4]])), r"batch_sampler="),
        (lambda d: RandomSubset(d, 0.5).batch_sampler([1, 2]), r"sampler=keep\.sampler"),
        (lambda d: InfoBatch(d).weigh(torch.zeros(2), torch.arange(2)), "no epoch was begun"),
        (lambda d: _begun(d).weigh(torch.ones(2), torch.ones(2).bool()), "index must be integers"),
        (lambda d: _begun(d).weights([0, 1]), "index must be a tensor of integers"),
        (lambda d: _begun(d).weigh(torch.zeros(2), torch.tensor([0, SAMPLES])), f"0 … {SAMPLES}"),
        (lambda d: _begun(d).record(torch.zeros(2), torch.tensor([-1, 0])), "-1 … 0"),
        (lambda d: _begun(d).weigh(torch.zeros(2), [0, 1]), "not list"),
        (lambda d: _begun(d).weigh(torch.zeros(2), torch.zeros(2)), "integers"),
        (lambda d: _begun(d).weigh(0.5, torch.arange(2)), "not float"),
        (lambda d: list(InfoBatch(d).sampler(replicas=2, rank=0)), "init_process_group"),
        (lambda d: RandomSubset(d, 0.5).sampler(BatchSampler([1], 1, False)), "batch_sampler"),
        (lambda d: RandomSubset(d, 0.5).sampler(replicas=2), "both"),
        (lambda d: RandomSubset(d, 0.5).sampler(replicas=2, rank=2), "rank"),
        (lambda d: list(RandomSubset(d, 0.5).sampler([SAMPLES])), "indices"),
        (lambda d: list(RandomSubset(d, 0.5).sampler(["a"])), "integers"),
        (lambda d: RandomSubset(d, 0.5).weigh(torch.zeros(2, 3), torch.arange(2)), "one per sample"),
        (lambda d: RandomSubset(d, 0.5).weigh(torch.zeros(2), torch.tensor(1)), r"\(B,\)"),
        (lambda d: RandomSubset(d, 0.5).load_state_dict({}), "not a state"),
        (lambda d: InfoBatch(d).load_state_dict(_without(InfoBatch(d).state_dict(), "source")), "source"),
        (lambda d: RandomSubset(d, 0.5).load_state_dict(InfoBatch(d).state_dict()), "InfoBatch"),
        (
            lambda d: InfoBatch(d).load_state_dict(InfoBatch(dataset(7)).state_dict()),
            "7 samples",
        ),
    ],
)  # fmt: skip
def test_mistakes_are_named(wrong: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        wrong(dataset())
