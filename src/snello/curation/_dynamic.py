"""A dataset of which every epoch leaves out other samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, Dataset, default_collate

from snello.errors import ConfigError, DataError, check_option, check_state
from snello.processes import meet, rank_and_size

from ._arguments import check_index, length_of, mask_of
from ._collate import Collate
from ._losses import LossScores
from ._plan import Plan, planned
from ._progress import Progress
from ._samplers import SubsetBatchSampler, SubsetSampler
from ._seeds import generator
from ._source import Source, place_of, places_of


class DynamicSubset(Dataset[Any]):
    """A dataset with the choice of the samples that each epoch trains on.

    An element is `(sample, index)`, so a batch is `(batch, index)`. The choice is a function of
    the seed, the epoch and the losses seen: no global random state is read or changed.

    The epochs are counted: the next iteration of a sampler is the next epoch if the last one was
    gone through or trained on, and the same again if it was not. `set_epoch` overrides the count.

    With several processes all decide alike, and each gets as many samples as any other and none of
    another's. A remainder, smaller than the number of processes, comes first in the next epoch.

    Args:
        dataset: any map-style dataset of N samples.
        seed: decides the draws.
        always: indices that are never left out, such as those of NEq's probe.
        smoothing: share of the past in a running average of each sample's loss, in [0, 1); None:
            0 for losses of samples (the last loss), 0.8 for mean losses of batches.

    Raises:
        DataError: for an iterable or empty dataset, or one without a length.
        ConfigError: for options out of range.
    """

    _window: int | None = None
    _by_loss = True

    def __init__(
        self,
        dataset: Dataset[Any] | Sequence[Any],
        *,
        seed: int = 0,
        always: Iterable[int] | Tensor = (),
        smoothing: float | None = None,
    ) -> None:
        samples = length_of(dataset)
        check_option(
            smoothing is None or 0 <= smoothing < 1, f"smoothing must be in [0, 1), not {smoothing}"
        )
        self.dataset, self.seed = dataset, seed
        self._always = mask_of(always, samples)
        self._scores = LossScores(samples, smoothing, self._window)
        self._uses = torch.zeros(samples, dtype=torch.int64)
        self._source = Source(None, samples, shuffle=True, seed=seed)
        self._multiple = 1  # samples of a process are so many, or two times, three times …
        self._now: Progress | None = None
        self._carried = torch.empty(0, dtype=torch.int64)
        self._asked: int | None = None
        self._rounds = self._kept = self._offered = 0
        self._on_device: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def _choose(self, places: Tensor, epoch: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """The samples to train on.

        Args:
            places: indices of the samples offered, int64 `(M,)`.
            epoch: number of the epoch.
            random: for all draws.

        Returns:
            bool `(M,)`, true for those to keep, and the weights of all samples, float64 `(N,)`.
        """
        raise NotImplementedError

    # The dataset

    def __len__(self) -> int:
        return len(self._always)

    def __getitem__(self, key: Any) -> tuple[Any, int]:
        return self.dataset[key], place_of(key)

    def __getitems__(self, keys: Sequence[Any]) -> Any:
        fetch = getattr(self.dataset, "__getitems__", None)
        if fetch is None:
            return [self[key] for key in keys]
        found, places = fetch(keys), [place_of(key) for key in keys]
        if isinstance(found, list):
            return list(zip(found, places, strict=True))
        return found, torch.tensor(places)  # a batch that the dataset has put together itself

    def collate(self, collate_fn: Callable[[list[Any]], Any] = default_collate) -> Any:
        """A `collate_fn` for the DataLoader around one that is written for the dataset.

        Returns:
            A function of a list of `(sample, index)` that returns `(collate_fn(samples),
            indices)`, int64 `(B,)`.
        """
        return Collate(collate_fn)

    def sampler(
        self,
        inner: Iterable[Any] | None = None,
        *,
        shuffle: bool = True,
        replicas: int | None = None,
        rank: int | None = None,
    ) -> SubsetSampler:
        """The `sampler=` of a DataLoader.

        Args:
            inner: a sampler whose order is kept, also a `DistributedSampler`; it may yield an
                index many times, or not at all, or tuples that end with the index. None: all
                samples.
            shuffle: without `inner`, whether every epoch has a new order.
            replicas: processes among which the samples are dealt out; None: those of the
                `DistributedSampler` or of `torch.distributed`. Fewer where some processes share
                their samples, as with tensor parallelism.
            rank: this process, 0 … replicas − 1; given with `replicas`.

        Raises:
            ConfigError: for an impossible rank, or a batch sampler.
        """
        if isinstance(inner, BatchSampler):
            raise ConfigError("that is a batch sampler: use batch_sampler=keep.batch_sampler(…)")
        self._source = Source(
            inner, len(self), shuffle=shuffle, seed=self.seed, replicas=replicas, rank=rank
        )
        self._multiple = 1
        return SubsetSampler(self)

    def batch_sampler(
        self,
        inner: Iterable[Sequence[Any]],
        *,
        regroup: bool = True,
        replicas: int | None = None,
        rank: int | None = None,
    ) -> SubsetBatchSampler:
        """The `batch_sampler=` of a DataLoader.

        Args:
            inner: yields the batches of one process as lists.
            regroup: form batches of the full size from what is kept. False: only shrink each batch,
                so that samples that were not together do not meet; for one process.
            replicas: as for [`sampler`][snello.curation.DynamicSubset.sampler].
            rank: likewise.

        Raises:
            ConfigError: for an impossible rank, or batches that are not regrouped with several
                processes, whose batches would have different sizes.
        """
        places = {"replicas": replicas, "rank": rank}
        common: dict[str, Any] = {"shuffle": False, "seed": self.seed, **places}
        if type(inner) is BatchSampler and regroup:
            # Its batches are no more than pieces of its sampler's order.
            self._source = Source(inner.sampler, len(self), **common)
            return self._in_batches(inner.batch_size, inner.drop_last)
        self._source = Source(inner, len(self), batches=True, **common)
        if not regroup:
            if self._source.place()[1] > 1:
                raise ConfigError(
                    "regroup=False with several processes would give them batches of different sizes: leave it out"
                )
            return self._in_batches(None, drop_last=False)
        size = getattr(inner, "batch_size", None) or self._source.first_batch()
        return self._in_batches(size, bool(getattr(inner, "drop_last", False)))

    def _in_batches(self, size: int | None, drop_last: bool) -> SubsetBatchSampler:
        self._multiple = size if size is not None and drop_last else 1
        return SubsetBatchSampler(self, size)

    # Training

    def weigh(self, losses: Tensor, index: Tensor) -> Tensor:
        """The loss to minimise, and a record of the losses; once for every batch.

        A second pass over a batch, as of SAM, takes the [`weights`][snello.curation.DynamicSubset.weights].

        Args:
            losses: `(B,)`, one per sample, as with `reduction="none"`; or `()`, the mean of
                the batch, where there is no loss per sample (Fu et al., 2026, arXiv:2604.04681).
            index: `(B,)`, as the DataLoader gives it.

        Returns:
            `()`: mean of weight × loss over the batch, not divided by the sum of the weights. A
            mean loss is multiplied with the mean weight.

        Raises:
            ConfigError: for other shapes, indices outside of the dataset, or before an epoch was
                begun by a sampler of this subset.
        """
        self.record(losses, index)
        weights = self.weights(index, losses)
        return losses * weights.mean() if losses.dim() == 0 else (losses * weights).mean()

    def record(self, losses: Tensor, index: Tensor) -> None:
        """Note the losses of a batch, as [`weigh`][snello.curation.DynamicSubset.weigh] does."""
        check_index(index)
        if not isinstance(losses, Tensor):
            raise ConfigError(f"losses must be a tensor, (B,) or (), not {type(losses).__name__}")
        if losses.dim() and losses.shape != index.shape:
            raise ConfigError(
                f"losses of shape {tuple(losses.shape)} for {len(index)} samples: reduce them to one per sample, as by "
                "losses.flatten(1).mean(1), or give the mean of the batch"
            )
        if self._now is None or not self._now.begun:
            raise ConfigError(
                "no epoch was begun, so that nothing is left out: make the loader with this object and its sampler, "
                "DataLoader(keep, sampler=keep.sampler())"
            )
        self._scores.add(losses, index)
        self._now.restored = False
        self._now.done += len(index)
        if self._now.done >= self._length(self._now.plan):
            self.finish()

    def weights(self, index: Tensor, like: Tensor | None = None) -> Tensor:
        """Weights of samples in this epoch, `(B,)`.

        Args:
            index: `(B,)`.
            like: a tensor whose dtype and device the weights get; default: float64 on the CPU.

        Raises:
            ConfigError: for an index that is not of integers.
        """
        check_index(index)
        like = torch.empty(0, dtype=torch.float64) if like is None else like
        if self._now is None:
            return torch.ones(len(index), dtype=like.dtype, device=like.device)
        place = (like.device, like.dtype)
        if place not in self._on_device:
            self._on_device[place] = self._now.plan.weights.to(like)
        return self._on_device[place][index.to(like.device)]

    def finish(self) -> None:
        """End the epoch; for loops that leave it early, and loaders that drop their last batch.

        Not needed where every sample of the epoch is weighed.
        """
        if self._now is None or not self._now.begun:
            return  # the next epoch may have been drawn already, for its length
        self._now.finished = True
        # Named after the workers of a loader had begun it, as by Lightning: not to be begun again.
        if self._asked == self._now.plan.epoch:
            self._asked = None

    def set_epoch(self, epoch: int) -> None:
        """Make the next iteration that of an epoch, from its start.

        An epoch that was restored goes on behind the samples that it was trained on.
        """
        self._asked = epoch

    # Epochs

    def begin(self) -> tuple[Tensor, Tensor | None]:
        """Begin an epoch, or go on with one that was restored; samplers call it.

        Returns:
            Keys of this process, and the numbers of their batches, if they come in batches.
        """
        self._fit_processes()
        now, asked, self._asked = self._now, self._asked, None
        if now is None or now.finished or (now.over if asked is None else now.plan.epoch != asked):
            now = self._renew(self._following if asked is None else asked)
        start, plan = now.begin(), now.plan
        self._source.set_epoch(plan.epoch)
        batch = None if plan.batch is None else plan.batch[start:]
        return plan.share(*self._source.place())[start : self._length(plan)], batch

    def _fit_processes(self) -> None:
        """Draw an epoch again if it was restored from a run on another number of processes.

        Their shares differ in length.
        """
        now = self._now
        if now is None or now.over or now.plan.processes == self._source.place()[1]:
            return
        now.begun = False
        self._renew(now.plan.epoch)

    @property
    def _following(self) -> int:
        return 0 if self._now is None else self._now.plan.epoch + 1

    def _length(self, plan: Plan) -> int:
        """Samples of this process, without a last incomplete batch that is dropped."""
        share = len(plan) // self._source.place()[1]
        return share - share % self._multiple

    def exhausted(self) -> None:
        """Note that a sampler has come to its end; it calls this."""
        if self._now is not None:
            self._now.exhausted = True

    def coming(self, *, rest: bool = False) -> int:
        """Samples of this process in the epoch under way, or after its end in the next one.

        Args:
            rest: without those that a restored epoch was trained on before.
        """
        now = self._coming()
        return self._length(now.plan) - (now.done if rest and now.restored else 0)

    def _coming(self) -> Progress:
        self._fit_processes()
        if self._now is None or self._now.finished:
            return self._renew(self._following if self._asked is None else self._asked)
        return self._now

    def coming_batches(self) -> int:
        """Batches in the same epoch, where they are not regrouped."""
        batch = self._coming().plan.batch
        assert batch is not None
        return len(torch.unique(batch))

    def _renew(self, epoch: int) -> Progress:
        """Draw the samples of an epoch; every process has to."""
        what, (_, size) = f"{type(self).__name__}, epoch {epoch}", self._source.place()
        check_option(
            size <= rank_and_size()[1] or not self._by_loss,
            f"{type(self).__name__} on {size} processes exchanges their losses: call init_process_group of "
            "torch.distributed first",
        )
        meet(what)
        self._settle()
        self._scores.end_epoch()
        offer = self._source.offer(epoch)
        random = generator(self.seed, f"{type(self).__name__} of epoch {epoch}")
        kept, weights = self._choose(offer.places, epoch, random)
        plan = planned(
            epoch, offer, kept | self._forced[offer.places], weights, self._carried, size
        )
        if len(plan) < size * self._multiple:
            raise DataError(
                f"epoch {epoch} has {len(plan) + len(plan.left)} samples for {size} process(es), each of which needs "
                f"{self._multiple}: leave out fewer, use fewer processes, or smaller batches"
            )
        meet(what, f"samples {plan.digest()}")
        self._now, self._on_device = Progress(plan), {}
        return self._now

    def _settle(self) -> None:
        """Count the epoch that is over; one that was only looked at leaves no trace."""
        if self._now is None or not self._now.begun:
            return
        plan = self._now.plan
        trained = self._trained(plan)
        self._uses[torch.unique(trained)] += 1
        self._carried = plan.left
        self._rounds += 1
        self._kept, self._offered = self._kept + len(trained), self._offered + plan.offered

    def _trained(self, plan: Plan) -> Tensor:
        """Samples of all processes, without last incomplete batches that are dropped."""
        return plan.places[: self._length(plan) * self._source.place()[1]]

    @property
    def _forced(self) -> Tensor:
        """Samples that must not be left out in this epoch, bool `(N,)`."""
        forced = self._always.clone()
        forced[places_of(self._carried)] = True
        return forced

    @property
    def _ones(self) -> Tensor:
        return torch.ones(len(self), dtype=torch.float64)

    # Results

    @property
    def scores(self) -> Tensor:
        """Last loss of every sample that this process knows, float64 `(N,)`; NaN: not seen yet."""
        return self._scores.values.clone()

    @property
    def kept(self) -> float:
        """Share of the samples offered so far that were trained on, in (0, 1]; 1 before training."""
        kept, offered, now = self._kept, self._offered, self._now
        if now is not None and now.begun:
            kept, offered = kept + len(self._trained(now.plan)), offered + now.plan.offered
        return kept / offered if offered else 1.0

    @property
    def share(self) -> float:
        """Share of the samples offered that the present epoch trains on; 1 before the first."""
        if self._now is None:
            return 1.0
        plan = self._now.plan
        return len(self._trained(plan)) / plan.offered

    @property
    def moment(self) -> float:
        """Epochs trained so far, with the share of the real steps of this one.

        A learning rate that is a function of `moment / epochs` ends where the training ends,
        whatever number of steps each epoch has.
        """
        now = self._now
        if now is None:
            return 0.0
        share = 1.0 if now.finished else min(now.done / self._length(now.plan), 1.0)
        return now.plan.epoch + share

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next epochs depend on; with several processes each has to call it.

        An epoch under way goes on behind the samples whose losses were recorded.
        """
        if rank_and_size()[1] > 1:
            meet(f"{type(self).__name__}.state_dict")
        now = self._now
        return {
            "method": type(self).__name__,
            "scores": self._scores.state_dict(),
            "uses": self._uses.clone(),
            "carried": self._carried.clone(),
            "plan": None if now is None else now.plan.state_dict(),
            "source": self._source.state_dict(),
            "done": 0 if now is None else now.done,
            "begun": now is not None and now.begun,
            "finished": now is not None and now.finished,
            "counts": [self._rounds, self._kept, self._offered],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state; the next iteration goes on where it was taken.

        Raises:
            ConfigError: for a state of another method or of another number of samples.
        """
        check_state(state, _STATE, type(self).__name__)
        check_option(
            state["method"] == type(self).__name__,
            f"the state is of {state['method']}, not of {type(self).__name__}: resume with that method",
        )
        check_option(
            state["uses"].shape == self._uses.shape and len(state["counts"]) == 3,
            f"the state counts the uses of {len(state['uses'])} samples, the dataset has {len(self._uses)}: "
            "resume with the dataset that the run began with",
        )
        plan = None if state["plan"] is None else Plan.from_state(state["plan"])
        self._scores.load_state_dict(state["scores"])
        self._uses, self._carried = state["uses"].cpu().clone(), state["carried"].cpu().clone()
        self._now = None
        if plan is not None:
            done, finished = state["done"], state["finished"]
            going_on = not finished and done > 0
            self._now = Progress(plan, done, state["begun"], False, finished, going_on)
        self._source.load_state_dict(state["source"])
        self._rounds, self._kept, self._offered = state["counts"]
        self._asked, self._on_device = None, {}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_on_device": {}}  # worker processes have no use for it


_STATE = {
    "method": str, "scores": dict, "uses": Tensor, "carried": Tensor,
    "plan": dict | None, "source": dict, "done": int, "begun": bool,
    "finished": bool, "counts": list[int],
}  # fmt: skip
