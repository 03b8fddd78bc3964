"""Samples in a file of arrays, for networks that take no images, or several inputs."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

from snello.errors import ConfigError, DataError, ModelError, require

if TYPE_CHECKING:
    from torch import Tensor, nn

    from snello.store import Record

LABELS = "labels"
BATCH = 250


@dataclass(frozen=True)
class Samples:
    """Inputs of a network, and the right answers.

    Attributes:
        inputs: one tensor per input, with the samples on dimension 0.
        labels: class of each sample; None to compare with the dense network's answers.
    """

    inputs: tuple[Tensor, ...]
    labels: Tensor | None

    def __len__(self) -> int:
        return len(self.inputs[0])

    def batches(self) -> list[tuple[Tensor, ...]]:
        """Batches of inputs."""
        import torch

        split = [torch.split(x, BATCH) for x in self.inputs]
        return list(zip(*split, strict=True))

    def drawn(self, count: int) -> list[tuple[Tensor, ...]]:
        """Batches of inputs drawn at random: a file may be sorted by class."""
        import torch

        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(0))[:count]
        return Samples(tuple(x[order] for x in self.inputs), None).batches()

    def answers(self, model: nn.Module) -> Tensor:
        """Class with the largest output of each sample, or the outputs themselves if there are no
        classes.

        Raises:
            ModelError: if the network returns no tensor with a row per sample and a column per class.
            DataError: if a label is none of its classes.
        """
        import torch

        from snello.graph import scores_of

        found: list[Tensor] = []
        with torch.no_grad():
            for batch in self.batches():
                outputs: Any = model(*batch)
                with suppress(ConfigError):  # without scores, refused below
                    outputs = scores_of(outputs)
                # The largest of one output is always the same: no answer would ever change.
                if (
                    not isinstance(outputs, torch.Tensor)
                    or outputs.dim() != 2
                    or outputs.shape[1] < 2
                ):
                    found_shape = tuple(getattr(outputs, "shape", ())) or type(outputs).__name__
                    raise ModelError(
                        f"--samples needs a classifier, whose output has the shape (samples, classes), with two "
                        f"classes or more: {type(model).__name__} returns {found_shape}; for others call "
                        "snello.shrink, with a measure of your own"
                    )  # fmt: skip
                if not found:
                    self._check_labels(outputs.shape[1])
                found.append(outputs.argmax(1))
        return torch.cat(found)

    def _check_labels(self, classes: int) -> None:
        if self.labels is None:
            return
        outside = self.labels[(self.labels < 0) | (self.labels >= classes)]
        if len(outside):
            raise DataError(
                f"--samples: the labels contain {int(outside[0])}, but the model has {classes} outputs"
            )


def read_samples(path: str, record: Record) -> Samples:
    """Read the samples of an `.npz` file: one array per input, in order, and `labels`.

    Args:
        path: the file.
        record: record of the model, with the shapes of its inputs.

    Raises:
        DataError: if the file cannot be read.
        ConfigError: if its arrays do not fit the model.
    """
    import torch

    numpy = require("numpy", "onnx", "--samples")
    try:
        with numpy.load(Path(path), allow_pickle=False) as file:
            arrays = {name: torch.from_numpy(file[name]) for name in file.files}
    # A truncated archive raises BadZipFile or EOFError, one file of numpy.save AttributeError.
    except FileNotFoundError as error:
        raise DataError(f"there is no file {path}") from error
    except (OSError, ValueError, TypeError, EOFError, AttributeError, BadZipFile) as error:
        raise DataError(
            f"{path} is no .npz file of plain arrays, as numpy.savez writes it, or it is damaged"
        ) from error
    labels = arrays.pop(LABELS, None)
    wanted = record.inputs(1)
    shapes = [tuple(x.shape[1:]) for x in arrays.values()]
    if shapes != [tuple(x.shape[1:]) for x in wanted]:
        found = ", ".join(f"{n} {tuple(x.shape)}" for n, x in arrays.items())
        raise ConfigError(
            f"{path} has {f'the arrays {found}' if found else 'no arrays but labels'}; the model "
            f"takes {len(wanted)} input(s) of shape {', '.join(str(tuple(x.shape[1:])) for x in wanted)}, "
            "in this order, with the samples first"
        )  # fmt: skip
    counts = {len(x) for x in (*arrays.values(), *([] if labels is None else [labels]))}
    if len(counts) != 1 or not min(counts):
        raise ConfigError(f"{path}: the arrays have {sorted(counts)} samples; they must be equal")
    if labels is not None and (labels.dim() != 1 or labels.is_floating_point()):
        raise ConfigError(
            f"{path}: labels is an array of shape {tuple(labels.shape)} and {labels.dtype}; it must hold one whole "
            "number per sample, the class"
        )  # fmt: skip
    inputs = tuple(x.to(w.dtype) for x, w in zip(arrays.values(), wanted, strict=True))
    for name, x in zip(arrays, inputs, strict=True):
        if not x.isfinite().all():
            raise DataError(f"{path}: the array {name!r} has values that are NaN or infinite")
    return Samples(inputs, None if labels is None else labels.long())
