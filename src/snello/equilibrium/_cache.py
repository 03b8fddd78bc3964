"""Outputs of resting layers (layers that are frozen as a whole), kept from epoch to epoch."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple
from weakref import finalize

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from snello.errors import ConfigError, ModelError, check_count
from snello.graph import Example, Inputs, Positional, positional
from snello.processes import rank_and_size
from snello.timing import timed

from ._features import FeatureStore, checksums_of, digest_of, system_start
from ._module_cut import module_prefix
from ._neq import SelectiveUpdate
from ._parallel import in_parallel
from ._prefix import RestingPrefix, resting_prefix

_NOTHING = "no layer in front rests whole yet"
_EVALUATED = "so far the model was in evaluation mode, in which it runs whole"


@dataclass(frozen=True)
class CacheStatus:
    """The present state of a [`FeatureCache`][snello.equilibrium.FeatureCache].

    Attributes:
        layers: names of the layers before the cut.
        bytes_per_sample: size of the stored features of one sample.
        stored: number of samples whose features are stored.
        reason: why no features are stored; None if they are.
    """

    layers: tuple[str, ...] = ()
    bytes_per_sample: int = 0
    stored: int = 0
    reason: str | None = None


class _Conditions(NamedTuple):
    """The facts that decide where the network is cut.

    Attributes:
        resting: names of the layers that are frozen whole.
        learning: which parameters require a gradient.
        inputs: shapes, dtypes and devices of the inputs of one sample, as text.
        cast: dtype of autocast; False without.
    """

    resting: tuple[str, ...]
    learning: tuple[bool, ...]
    inputs: str
    cast: torch.dtype | bool


class FeatureCache:
    """Store the outputs of the resting layers, computed once per sample instead of in every epoch.

    Call it instead of the model, with the indices of the samples:

        neq = SelectiveUpdate(model, optimizer, probe, Settled(Velocity()))
        cache = FeatureCache(neq, len(dataset))
        for index, inputs, targets in loader:            # the dataset returns its index, too
            loss = criterion(cache(inputs, index), targets)

    A layer rests if all of its neurons are frozen. The front, the first part of the network, is cut
    off if all of its layers rest; behind a whole module, if torch.fx cannot trace the model, as with
    those of transformers. It runs in evaluation mode (BatchNorm statistics are fixed,
    dropout is off), because a feature must not depend on the epoch or on the other samples of its
    batch. When the set of resting layers changes, or one of their weights, the features are computed
    again; not when a weight is written through its `.data`, which torch does not count as a change.

    With several processes, call it instead of the model in `DistributedDataParallel` that the
    update was given. Gradients are averaged over the processes for the layers after the cut only,
    and each process stores the features of the samples that it gets.

    Samples must be the same in each epoch: without random augmentation, or with one that depends on
    the index alone. A sample that differs from the one whose features are stored is refused; it is
    recognised by a checksum of up to 1024 of its entries.
    [`check`][snello.equilibrium.FeatureCache.check] finds it before the training.

    Args:
        update: the selective update, which decides which layers rest.
        samples: number of samples; indices are in [0, samples).
        folder: existing folder on a fast disk, for this training alone. The features are kept in it
            until `close`, so that a training that was killed and is resumed on the same machine
            finds them again if weights and cut are the same. None: a temporary folder, removed with
            the cache.
        in_memory: whether to keep the features in the memory of the device that computes them, not in
            files: on a GPU, which would otherwise wait for each batch to be copied to it.
        limit: largest size of the features in bytes; if they need more, none are stored.
        dtype: dtype of the stored features, such as `torch.bfloat16` for half the size; whole
            numbers among them keep theirs. None for the dtype in which they are computed. Results
            are then bit-identical with and without cache, except where the last bits of a feature
            depend on the size of the batch.
        measured: whether to store features only if reading them is faster than computing them,
            which is timed once per cut.
        compile: function that compiles the front, such as `torch.compile`; None: it runs as it is.
            The front is a graph of its own: new masks of the layers after the cut do not compile it
            again, a new cut does.

    Raises:
        ConfigError: for a number of samples below one, a dtype for whole numbers, or a folder that
            does not exist, cannot be written to, or is given with `in_memory`.

    Source: Liu et al., "AutoFreeze: automatically freezing model blocks to accelerate fine-tuning",
    2021, section 4.3, https://arxiv.org/abs/2102.01386; He et al., "PipeTransformer", ICML 2021,
    section 3.4.
    """

    def __init__(
        self,
        update: SelectiveUpdate,
        samples: int,
        *,
        folder: str | Path | None = None,
        in_memory: bool = False,
        limit: int = 2**32,
        dtype: torch.dtype | None = None,
        measured: bool = True,
        compile: Callable[[nn.Module], Callable[..., Any]] | None = None,
    ) -> None:
        if not isinstance(update, SelectiveUpdate):
            raise ConfigError(f"update: must be a SelectiveUpdate, not a {type(update).__name__}")
        check_count("samples", samples)
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise ConfigError(f"dtype: must be a floating-point dtype of torch, not {dtype!r}")
        if folder is not None and not Path(folder).is_dir():
            raise ConfigError(f"folder: there is no folder {folder}")
        if folder is not None and in_memory:
            raise ConfigError("in_memory: features in memory need no folder; leave one of them out")
        self._update, self._samples, self._limit = update, samples, limit
        self._dtype, self._measured, self._compile = dtype, measured, compile
        self._in_memory = in_memory
        if folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="snello-features-"))
            finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        else:
            self._folder = _made(Path(folder, f"snello-features-{rank_and_size()[0]}"))
        self._parameters = list(update.model.parameters())
        self._prefix: RestingPrefix | None = None
        self._store: FeatureStore | None = None
        self._digest = ""
        self._conditions: _Conditions | None = None
        self._versions: tuple[Any, ...] = ()
        self._reason: str | None = _NOTHING

    def __call__(self, inputs: Example, index: Tensor | Sequence[int]) -> Any:
        """Compute the outputs of the model, with gradients only for the layers after the cut.

        In evaluation mode the model itself is run, and `index` is ignored.

        Args:
            inputs: a batch: one tensor, a tuple of the model's positional arguments, or a mapping of
                its keyword arguments. Each tensor has the batch on its first axis. Where the
                shape of a sample changes from call to call, or what is no tensor, all features are
                computed again, with a warning.
            index: index of each sample of the batch in the dataset, shape (B,).

        Raises:
            ConfigError: for tensors that are not of as many samples, another number of indices than
                samples, one outside the dataset, or a sample that is not the one whose features are
                stored.
        """
        given = Inputs.of(inputs)
        if not self._update.model.training:
            self._reason = self._reason if self._conditions else _EVALUATED
            return given.call(self._update.model)
        args = given.tensors()
        if not _of_samples(given):
            raise ConfigError(
                "inputs: must be tensors, not in lists, with one entry per sample on the first axis; wrap a "
                "model that takes others in a module that does not"
            )
        where = self._checked(index, len(args[0]))
        self._look(given)
        if self._prefix is None:
            return given.call(self._update.wrapped)
        return self._prefix.run_rest(self._features(args, where), args)

    @property
    def status(self) -> CacheStatus:
        """The layers whose features are stored now, or the reason why none are."""
        if self._prefix is None:
            return CacheStatus(reason=self._reason)
        if self._store is None:
            return CacheStatus(self._prefix.modules, reason=self._reason)
        size = self._prefix.bytes_per_sample(self._dtype)
        return CacheStatus(self._prefix.modules, size, self._store.stored)

    @staticmethod
    def check(dataset: Any, samples: int = 8) -> None:
        """Check that the samples of a dataset are the same when they are read twice.

        Args:
            dataset: an object with `len` and integer keys.
            samples: number of samples to check, evenly spread; all if there are fewer.

        Raises:
            ConfigError: for a sample that differs, with its index, or a number below one.
        """
        check_count("samples", samples)
        count = min(samples, len(dataset))
        for index in (len(dataset) * i // count for i in range(count)):
            first, second = (tree_leaves(dataset[index]) for _ in range(2))
            if len(first) != len(second) or not all(map(_alike, first, second)):
                raise ConfigError(
                    f"sample {index} is another one each time, by a random augmentation as it seems: features "
                    "can be kept only if a sample depends on its index alone; turn the augmentation off or seed it "
                    "by the index"
                )

    def close(self) -> None:
        """Forget the features, and remove their files."""
        self._store, self._prefix, self._conditions = None, None, None
        shutil.rmtree(self._folder, ignore_errors=True)

    def _checked(self, index: Tensor | Sequence[int], batch: int) -> Tensor:
        try:
            where = torch.as_tensor(index).cpu()
        except (TypeError, ValueError, RuntimeError) as error:
            raise ConfigError(f"index: must be whole numbers: {error}") from error
        if where.dtype.is_floating_point or where.dtype.is_complex or where.dtype is torch.bool:
            raise ConfigError(f"index: must be whole numbers, not {where.dtype}")
        where = where.long()
        if where.shape != (batch,):
            raise ConfigError(
                f"index: a batch of {batch} samples needs as many indices, not the shape {tuple(where.shape)}"
            )
        if batch and not 0 <= int(where.min()) <= int(where.max()) < self._samples:
            raise ConfigError(
                f"index: samples {int(where.min())} to {int(where.max())} do not all lie among the {self._samples}"
            )
        return where

    def _look(self, given: Inputs) -> None:
        """Cut again if the resting layers, their weights or the kind of inputs have changed."""
        now, before = self._conditions_of(given), self._conditions
        if now == before and self._versions_now() == self._versions:
            return
        cut = now != before
        if self._store is not None and before is not None and now.inputs != before.inputs:
            warnings.warn(
                "FeatureCache: inputs of another shape, dtype or option than those whose features are stored; these "
                "are computed again, at each such change: pad all samples to one length",
                stacklevel=3,
            )
        if cut:
            self._cut(given)
        # Versions also change where the same values are written again, as masks of pruning are.
        digest = self._digest_of((now.inputs, now.cast))
        other = digest != self._digest
        if other and not cut and self._prefix is not None and self._prefix.constants:
            self._cut(given)  # the constants are those of the old weights
        if other or cut:
            self._open(digest, given.tensors()[0].device)
        self._conditions, self._versions = now, self._versions_now()

    def _conditions_of(self, given: Inputs) -> _Conditions:
        device = given.tensors()[0].device.type
        kinds = given.map(lambda arg: (tuple(arg.shape[1:]), arg.dtype, arg.device))
        return _Conditions(
            resting=self._update.freezer.resting,
            learning=tuple(p.requires_grad for p in self._parameters),
            inputs=repr((kinds.args, dict(kinds.kwargs))),
            cast=torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device),
        )

    def _versions_now(self) -> tuple[Any, ...]:
        # Not of statistics behind the cut, which change with every batch.
        tensors = [] if self._prefix is None else self._prefix.tensors
        return tuple((t._version, t.data_ptr()) for t in tensors)

    def _cut(self, given: Inputs) -> None:
        self._prefix, self._reason = None, _NOTHING
        freezer = self._update.freezer
        around = ""
        if resting := freezer.resting_parameters():
            model, args = positional(self._update.model, given.map(_two))
            around = "model." if isinstance(model, Positional) else ""
            parts = model, resting, args
            with freezer.dense():
                try:
                    self._prefix = resting_prefix(*parts)
                except ModelError as error:
                    self._prefix, self._reason = module_prefix(*parts), str(error)
        if self._prefix is not None:
            modules = tuple(name.removeprefix(around) for name in self._prefix.modules)
            self._prefix = in_parallel(replace(self._prefix, modules=modules), self._update.wrapped)
            if self._compile is not None:
                compiled = self._compile(self._prefix.front)
                self._prefix = replace(self._prefix, compiled=compiled)

    def _digest_of(self, inputs: tuple[Any, ...]) -> str:
        """Name of the features: those of other weights, inputs or cuts have another one."""
        prefix = self._prefix
        if prefix is None:
            return ""
        facts = prefix.modules, prefix.features, inputs, self._dtype, self._samples, system_start()
        return digest_of(facts, prefix.tensors)

    def _open(self, digest: str, device: torch.device) -> None:
        """Open the store of the present cut, and remove all others."""
        self._store, self._digest = None, digest
        for old in self._folder.glob("*"):
            if old.name != self._digest:
                shutil.rmtree(old, ignore_errors=True)
        if self._prefix is None:
            return
        self._reason = None
        size = self._samples * self._prefix.bytes_per_sample(self._dtype)
        if size > self._limit:
            self._refuse(f"the features would take {size / 2**20:.0f} MiB, more than the limit")
            return
        place = device if self._in_memory else self._folder / self._digest
        try:
            self._store = FeatureStore(place, self._samples, self._prefix.features, self._dtype)
        except OSError as error:
            where = f"the memory of {device}" if self._in_memory else self._folder
            self._refuse(
                f"the features would take {size / 2**20:.0f} MiB in {where}: {error.strerror}"
            )

    def _refuse(self, reason: str) -> None:
        """Store no features of the present cut, and leave no files for a resumed training."""
        shutil.rmtree(self._folder / self._digest, ignore_errors=True)
        self._store, self._reason = None, reason

    def _features(self, args: Sequence[Tensor], where: Tensor) -> tuple[Tensor, ...]:
        prefix, store = self._prefix, self._store
        assert prefix is not None
        if store is None:
            return prefix.run_front(args)
        device, checksums = args[0].device, checksums_of(args)
        if store.has(where, checksums):
            return store.read(where, device)
        timing = self._measured and not store.stored
        found = prefix.run_front(args)
        store.write(where, checksums, found)
        if timing:
            _, computed = timed(lambda: prefix.run_front(args), device)  # the first call was slower
            _, reading = timed(lambda: store.read(where, device), device)
            if reading > computed:
                self._refuse("computing the features is faster than reading them")
                return found
        # Read back, so that the first epoch has the same rounding as the later ones.
        return store.read(where, device)


def _of_samples(given: Inputs) -> bool:
    """Return true for tensors with the same number of entries on their first axis, in no list."""
    own = [arg for arg in (*given.args, *given.kwargs.values()) if isinstance(arg, Tensor)]
    return (
        len(own) == len(given.tensors())
        and all(arg.dim() for arg in own)
        and len({len(arg) for arg in own}) == 1
    )


def _alike(one: Any, other: Any) -> bool:
    """Return true if two parts of a sample have the same values; other objects than numbers may."""
    try:
        pair = torch.as_tensor(one), torch.as_tensor(other)
    except (TypeError, ValueError, RuntimeError):  # texts, images of PIL
        return bool(one == other)
    return pair[0].shape == pair[1].shape and torch.allclose(*pair, rtol=0, atol=0, equal_nan=True)


def _two(batch: Tensor) -> Tensor:
    """Copies of two samples: with one alone, a sum over the batch would look like a sample."""
    return torch.cat([batch, torch.zeros_like(batch)])[:2] if len(batch) < 2 else batch[:2].clone()


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise ConfigError(f"folder: cannot write {folder}: {error.strerror}") from error
    return folder
