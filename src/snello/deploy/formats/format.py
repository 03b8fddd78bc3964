"""Base class of file formats and their runtimes."""

from __future__ import annotations

import functools
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar, TypeAlias, final

from torch import Tensor, nn

from snello.deploy._footprint import Footprint
from snello.deploy._memory import PeakMemory
from snello.deploy._runners import Runner, check_threads, runner
from snello.deploy._verify import (
    check_batch_sizes,
    checked_inputs,
    compare_outputs,
    flat,
    on_cpu,
    one_more,
)
from snello.errors import ConfigError, ModelError, require
from snello.files import check_no_folder, check_writable, sha256_of, writing
from snello.graph import Example, as_inputs, positional

Inputs: TypeAlias = tuple[Tensor, ...]
Files: TypeAlias = tuple[Path, ...]
Bind: TypeAlias = Callable[[Inputs], Callable[[], object]]
"""A loaded file: maps inputs to a function that runs them once and returns the outputs."""


class Format(ABC):
    """A file format to export models to, with the runtime of its files.

    To add a format, write a subclass in a file of this folder
    ([`write`][snello.deploy.formats.Format.write], `load` and
    [`inputs_of`][snello.deploy.formats.Format.inputs_of]; also the counts if the runtime allows it)
    and list an instance in [`snello.deploy.FORMATS`][snello.deploy.formats.FORMATS]. Export,
    verification, timing and the commands then support it. Options of a format are the fields of its
    class.

    Attributes:
        name: short name, for `snello export --format`.
        label: name in messages.
        suffix: suffix of its files.
        runtime: name of the runtime, as shown in results.
        extra: extra of snello that installs the packages; None if torch is sufficient.
        writes_with: modules needed for exporting.
        runs_with: modules needed for running.
        any_batch: True if an exported file accepts any batch size, False for the example's only.
    """

    name: ClassVar[str]
    label: ClassVar[str]
    suffix: ClassVar[str]
    runtime: ClassVar[str]
    extra: ClassVar[str | None] = None
    writes_with: ClassVar[tuple[str, ...]] = ()
    runs_with: ClassVar[tuple[str, ...]] = ()
    any_batch: ClassVar[bool] = True

    @abstractmethod
    def write(self, model: nn.Module, inputs: Inputs, files: Files) -> None:
        """Write a model to temporary files, one for each of
        [`files`][snello.deploy.formats.Format.files].

        Args:
            model: a copy on the CPU, in evaluation mode.
            inputs: example inputs on the CPU.
            files: paths of the temporary files, with another suffix.

        Raises:
            ModelError: if the model cannot be exported.
        """

    @abstractmethod
    def load(self, files: Files, threads: int) -> Bind:
        """Load files on the CPU, to be run on inputs there, without gradients.

        Args:
            files: the files, as listed by [`files`][snello.deploy.formats.Format.files].
            threads: number of threads of the runtime.

        Raises:
            ModelError: if the files cannot be loaded.
        """

    @abstractmethod
    def inputs_of(self, path: Path, batch: int | None = None) -> Inputs:
        """Return random inputs with the shapes and dtypes recorded in a file.

        Args:
            path: the file.
            batch: batch size; None for the file's own, or 1 if it accepts any.

        Raises:
            ModelError: if the file cannot be loaded, or has a dynamic dimension other than the
                batch.
            ConfigError: for a batch size that the file does not accept.
        """

    def footprint(self, path: Path) -> Footprint | None:
        """Count parameters, operations and bytes; None if only the runtime can read the file."""
        return None

    def metadata(self, path: Path) -> dict[str, Any]:
        """Read facts stored in a file, such as the normalisation of images; none by default."""
        return {}

    def add_metadata(self, path: Path, facts: Mapping[str, Any]) -> bool:
        """Store facts in a file; return False if the format cannot."""
        return False

    def peak_memory(self, path: Path, inputs: Inputs, threads: int) -> PeakMemory | None:
        """Measure the memory of one forward pass; None if that is not possible."""
        return None

    def files(self, path: Path) -> Files:
        """List all files of an export; the first one is the file that refers to the others."""
        return (path,)

    def check(self, path: Path) -> None:
        """Check that a file exists and is safe to load.

        Raises:
            ModelError: if not, with the path of the file.
        """
        if not path.is_file():
            raise ModelError(f"there is no {self.label} file {path}")

    @final
    def export(
        self,
        model: nn.Module,
        example_inputs: Example,
        path: str | os.PathLike[str],
        *,
        verify: bool = True,
    ) -> Path:
        """Write a model; see [`snello.deploy.export`][snello.deploy.formats.export]."""
        path = self.writable(path)
        files = self.files(path)
        for module in (*self.writes_with, *(self.runs_with if verify else ())):
            self.require(module, "export")
        called, tensors = positional(model, example_inputs)
        inputs, clone = checked_inputs(tensors), on_cpu(called)
        batches = (inputs, one_more(inputs)) if self.any_batch else (inputs,)
        check_batch_sizes(clone, batches)
        with ExitStack() as stack:
            # Contexts exit in reverse order: the first file appears after those it refers to.
            temporaries = tuple(stack.enter_context(writing(file)) for file in files)
            self.write(clone, inputs, temporaries)
            if verify:
                self._verify(clone, batches, temporaries)
        return path

    @final
    def writable(self, path: str | os.PathLike[str]) -> Path:
        """Check the suffix of a file and that it can be written, before any work is done.

        Raises:
            ConfigError: for the suffix of another format.
            OutputError: if the file cannot be written.
        """
        path = Path(path)
        check_no_folder(path)  # before its suffix, which folders have none of
        if path.suffix != self.suffix:
            raise ConfigError(f"{self.label} files are named *{self.suffix}, got {path}")
        for file in self.files(path):
            check_writable(file)
        return path

    @final
    def runner(
        self,
        path: str | os.PathLike[str],
        inputs: Inputs | Tensor | None = None,
        threads: int = 1,
        *,
        runtime: str | None = None,
    ) -> Runner:
        """Load a file for timing; see `snello.deploy.file_runner`."""
        path = Path(path)
        if isinstance(inputs, Mapping):
            raise ConfigError(
                f"{path}: inputs are a tuple of tensors, in the order of the file's inputs, not a dictionary"
            )
        arguments = self.inputs_of(path) if inputs is None else as_inputs(inputs)
        call = self.opened(path, threads)(arguments)
        return runner(runtime or self.runtime, arguments, threads, call, str(path), device="cpu")

    @final
    def opened(self, path: Path, threads: int = 1) -> Bind:
        """Check and load a file, to be run on the CPU on inputs from any device.

        Raises:
            ModelError: if the file is missing, damaged or refused.
            ConfigError: for a number of threads below one.
            MissingExtraError: without the runtime.
        """
        check_threads(threads)
        self.check(path)
        for module in self.runs_with:
            self.require(module, "running")
        bind = self.load(self.files(path), threads)
        return lambda inputs: bind(tuple(x.detach().cpu() for x in inputs))

    @final
    def size(self, path: Path) -> int:
        """Total size in bytes of the files of an export."""
        return sum(file.stat().st_size for file in self.files(path) if file.is_file())

    @final
    def inspect(self, path: Path) -> dict[str, Any]:
        """Describe a file in plain values: format, bytes, digests, inputs and footprint.

        Raises:
            ModelError: if the file is damaged.
            MissingExtraError: without the packages that read it.
        """
        inputs = self.inputs_of(path)
        files = [file for file in self.files(path) if file.is_file()]
        return {
            "file": str(path),
            "format": self.label,
            "bytes": {file.name: file.stat().st_size for file in files}
            | {"total": self.size(path)},
            "sha256": {file.name: sha256_of(file) for file in files},
            "inputs": [
                {"shape": tuple(x.shape), "dtype": str(x.dtype).removeprefix("torch.")}
                for x in inputs
            ],
            "footprint": self.footprint(path),
            "metadata": self.metadata(path),
        }

    @final
    def require(self, module: str, purpose: str) -> Any:
        """Import a module of the runtime.

        Raises:
            MissingExtraError: with the extra to install.
        """
        return require(module, self.extra or self.name, f"{purpose} of {self.label} files")

    def _verify(self, model: nn.Module, batches: tuple[Inputs, ...], files: Files) -> None:
        # Loaded inside the first call, so that an error is reported with model and batch size.
        bind = functools.cache(lambda: self.load(files, threads=1))
        for batch in batches:
            compare_outputs(model, batch, lambda x: flat(bind()(x)()), self.runtime)
