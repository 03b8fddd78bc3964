"""Outputs of resting layers (layers that are frozen as a whole), kept from epoch to epoch."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from weakref import finalize

import torch
from torch import Tensor, nn

from snello.errors import ConfigError, ModelError

from ._neq import SelectiveUpdate
from ._parallel import in_parallel
from ._prefix import RestingPrefix, resting_prefix


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


class FeatureCache:
    """Store the outputs of the resting layers, computed once per sample instead of in every epoch.

    Call it instead of the model, with the indices of the samples:

        neq = SelectiveUpdate(model, optimizer, probe, Settled(Velocity()))
        cache = FeatureCache(neq, len(dataset))
        for index, inputs, targets in loader:            # the dataset returns its index, too
            loss = criterion(cache(inputs, index), targets)

    A layer rests if all of its neurons are frozen. The front, the first part of the network, is cut
    off if all of its layers rest. It runs in evaluation mode (BatchNorm statistics are fixed,
    dropout is off), because a feature must not depend on the epoch or on the other samples of its
    batch. When the set of resting layers changes, the features are computed again.

    With several processes, call it instead of the model in `DistributedDataParallel` that the
    update was given. Gradients are averaged over the processes for the layers after the cut only,
    and each process stores the features of the samples that it gets.

    Samples must be the same in each epoch: without random augmentation, or with one that depends on
    the index alone. [`check`][snello.equilibrium.FeatureCache.check] raises an error if a sample of
    a dataset differs when read twice.

    Args:
        update: the selective update, which decides which layers rest.
        samples: number of samples; indices are in [0, samples).
        folder: folder for the temporary files, on a fast disk; None for the system's. The files are
            removed with the cache.
        limit: largest size of the files in bytes; if the features need more, none are stored.
        dtype: dtype of the stored features, such as `torch.bfloat16` for half the size; None for
            the dtype in which they are computed, for bit-identical results with and without cache.
        measured: whether to store features only if reading them is faster than computing them,
            which is timed once per cut.
        compile: function that compiles the front, such as `torch.compile`; None: it runs as it is.
            The front is a graph of its own: new masks of the layers after the cut do not compile it
            again, a new cut does.

    Raises:
        ConfigError: for a number of samples below one, or a folder that does not exist.

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
        limit: int = 2**32,
        dtype: torch.dtype | None = None,
        measured: bool = True,
        compile: Callable[[nn.Module], Callable[..., Any]] | None = None,
    ) -> None:
        if samples < 1:
            raise ConfigError(f"samples: must be at least 1, not {samples}")
        if folder is not None and not Path(folder).is_dir():
            raise ConfigError(f"folder: there is no folder {folder}")
        self._update, self._samples, self._limit = update, samples, limit
        self._dtype, self._measured, self._compile = dtype, measured, compile
        self._folder = Path(tempfile.mkdtemp(prefix="snello-features-", dir=folder))
        self._remove = finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._prefix: RestingPrefix | None = None
        self._stores: tuple[Tensor, ...] = ()
        self._there = torch.zeros(samples, dtype=torch.bool)
        self._key: tuple[Any, ...] = ()
        self._reason: str | None = "no layer in front rests whole yet"

    def __call__(self, inputs: Tensor | tuple[Tensor, ...], index: Tensor | Sequence[int]) -> Any:
        """Compute the outputs of the model, with gradients only for the layers after the cut.

        In evaluation mode the model itself is run, and `index` is ignored.

        Args:
            inputs: a batch, or the model's positional arguments.
            index: index of each sample of the batch in the dataset, shape (B,).

        Raises:
            ConfigError: for another number of indices than samples, or one outside the dataset.
        """
        args = inputs if isinstance(inputs, tuple) else (inputs,)
        model = self._update.model
        if not model.training:
            return model(*args)
        where = self._checked(index, len(args[0]))
        self._look(args)
        if self._prefix is None:
            return self._update.wrapped(*args)
        return self._prefix.run_rest(self._features(args, where), args)

    @property
    def status(self) -> CacheStatus:
        """The layers whose features are stored now, or the reason why none are."""
        if self._prefix is None:
            return CacheStatus(reason=self._reason)
        size = sum(store[0].numel() * store.itemsize for store in self._stores)
        stored = int(self._there.sum()) if self._stores else 0
        return CacheStatus(self._prefix.modules, size, stored, self._reason)

    @staticmethod
    def check(dataset: Any, samples: int = 8) -> None:
        """Check that the samples of a dataset are the same when they are read twice.

        Args:
            dataset: an object with `len` and integer keys.
            samples: number of samples to check, evenly spread.

        Raises:
            ConfigError: for a sample that differs, with its index.
        """
        for index in range(0, len(dataset), max(1, len(dataset) // samples)):
            first, second = (torch.utils._pytree.tree_leaves(dataset[index]) for _ in range(2))
            pairs = zip(first, second, strict=True)
            if not all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in pairs):
                raise ConfigError(
                    f"sample {index} is another one each time, by a random augmentation as it seems: features "
                    "can be kept only if a sample depends on its index alone; turn the augmentation off or seed it "
                    "by the index"
                )

    def close(self) -> None:
        """Remove the files."""
        self._stores, self._prefix, self._key = (), None, ()
        self._remove()

    def _checked(self, index: Tensor | Sequence[int], batch: int) -> Tensor:
        where = torch.as_tensor(index).cpu().long()
        if where.shape != (batch,):
            raise ConfigError(
                f"index: a batch of {batch} samples needs as many indices, not the shape {tuple(where.shape)}"
            )
        if batch and not 0 <= int(where.min()) <= int(where.max()) < self._samples:
            raise ConfigError(
                f"index: samples {int(where.min())} to {int(where.max())} do not all lie among the {self._samples}"
            )
        return where

    def _look(self, args: Sequence[Tensor]) -> None:
        """Cut again if the resting layers, their weights or the input shapes have changed."""
        if self._state(args) == self._key:
            return
        self._drop()
        resting = self._update.freezer.resting_parameters()
        if resting:
            try:
                with self._update.freezer.dense():
                    self._prefix = resting_prefix(
                        self._update.model, resting, [arg[:2] for arg in args]
                    )
            except ModelError as error:
                self._reason = str(error)
        if self._prefix is not None:
            self._prefix = in_parallel(self._prefix, self._update.wrapped)
            if self._compile is not None:
                compiled = self._compile(self._prefix.front)
                self._prefix = replace(self._prefix, compiled=compiled)
            self._open(self._prefix)
        self._key = self._state(args)

    def _state(self, args: Sequence[Tensor]) -> tuple[Any, ...]:
        """Key of the cut: resting layers, input shapes, and versions of the tensors before it."""
        freezer = self._update.freezer
        if self._prefix is None:  # without buffers: statistics change with every batch
            tensors: list[Tensor] = freezer.resting_parameters()
        else:
            front = self._prefix.front
            tensors = [*front.parameters(), *front.buffers()]
        shapes = tuple(tuple(arg.shape[1:]) for arg in args)
        return freezer.resting, shapes, tuple(t._version for t in tensors)

    def _drop(self) -> None:
        self._prefix, self._stores = None, ()
        self._reason = "no layer in front rests whole yet"
        for file in self._folder.glob("*"):
            file.unlink()

    def _open(self, prefix: RestingPrefix) -> None:
        kinds = [(shape, self._dtype or dtype) for shape, dtype in prefix.features]
        size = self._samples * sum(d.itemsize * torch.Size(s).numel() for s, d in kinds)
        self._reason = None
        if size > min(self._limit, shutil.disk_usage(self._folder).free):
            self._reason = f"the features would take {size / 2**20:.0f} MiB, more than the limit or the disk has"
            return
        self._there.zero_()
        self._stores = tuple(
            torch.from_file(
                str(self._folder / f"{i}.bin"), shared=True,
                size=self._samples * torch.Size(shape).numel(), dtype=dtype,
            ).view(self._samples, *shape)
            for i, (shape, dtype) in enumerate(kinds)
        )  # fmt: skip

    def _features(self, args: Sequence[Tensor], where: Tensor) -> tuple[Tensor, ...]:
        prefix = self._prefix
        assert prefix is not None
        if not self._stores:
            return prefix.run_front(args)
        if bool(self._there[where].all()):
            return self._read(where, args[0].device)
        started = time.perf_counter()
        found = prefix.run_front(args)
        computed = time.perf_counter() - started
        for store, values in zip(self._stores, found, strict=True):
            store[where] = values.to(device="cpu", dtype=store.dtype)
        first = not bool(self._there.any())
        self._there[where] = True
        if first and self._measured:
            started = time.perf_counter()
            self._read(where, args[0].device)
            if time.perf_counter() - started > computed:
                self._stores = ()
                self._reason = "computing the features is faster than reading them"
                return found
        # Read back, so that the first epoch has the same rounding as the later ones.
        return found if self._dtype is None else self._read(where, args[0].device)

    def _read(self, where: Tensor, device: torch.device) -> tuple[Tensor, ...]:
        assert self._prefix is not None
        return tuple(
            store[where].to(device=device, dtype=dtype)
            for store, (_, dtype) in zip(self._stores, self._prefix.features, strict=True)
        )
