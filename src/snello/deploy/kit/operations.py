"""Operations and narrowed networks of a kit, for the profile of a device."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from torch import nn

from snello.deploy import _device_bench as bench
from snello.deploy.measure.compare import Subject
from snello.deploy.operations import Operation, operations_of
from snello.deploy.operations.operation import Precision
from snello.deploy.operations.table import kit_entries
from snello.graph import coupling, cut

from .models import KitModel

SHARES = (0.75, 0.5, 0.25)
"""Shares of the widths of the networks that offset and slope of the latency are fitted to."""

BLOCK = 8
"""Number of which tabulated widths are multiples; runtimes compute in blocks of channels."""

STEPS = 8
"""Widths per axis of the table, at most: times between them are interpolated."""


def with_narrowed(subjects: Sequence[Subject]) -> list[Subject]:
    """The subjects, and behind each model the same one with a share of every width."""
    found = []
    for subject in subjects:
        found.append(subject)
        if subject.model is not None:
            found += [
                replace(subject, name=f"{subject.name}-w{round(share * 100)}", model=lean, file=None)
                for share, lean in _narrowed(subject.model, subject)
            ]  # fmt: skip
    return found


def write_operations(
    path: Path, subjects: Sequence[Subject], models: Sequence[KitModel], *, int8: bool
) -> None:
    """Write the operations to time, and which of them every model runs.

    Args:
        path: the JSON file.
        subjects: the subjects, narrowed ones included.
        models: their files.
        int8: true to time the operations in int8, too.
    """
    own = {s.name: _one_sample(s) for s in subjects if s.model is not None}
    grid = [o for operations in own.values() for one in operations for o in _grid(one)]
    precisions: tuple[Precision, ...] = ("float32", "int8") if int8 else ("float32",)
    both = [o.at(precision) for o in grid for precision in precisions]
    keys: Mapping[str, list[str]] = {
        m.file: [o.at(m.precision).key for o in own[m.name]] for m in models if m.name in own
    }
    content: dict[str, Any] = {
        "format": bench.OPERATIONS, "operations": kit_entries(both), "models": keys
    }  # fmt: skip
    path.write_text(json.dumps(content))


def _one_sample(subject: Subject) -> tuple[Operation, ...]:
    assert subject.model is not None
    return operations_of(subject.model, tuple(x[:1] for x in subject.inputs))


def _narrowed(model: nn.Module, subject: Subject) -> Iterator[tuple[float, nn.Module]]:
    groups = coupling(model, subject.inputs)
    for share in SHARES:
        gone = {}
        for dimension in groups.free:
            step = BLOCK if dimension.width >= 2 * BLOCK else 1
            kept = max(step, round(share * dimension.width / step) * step)
            if kept < dimension.width:  # any channels: only the time matters
                gone[dimension.name] = range(kept, dimension.width)
        if gone:
            yield share, cut(model, groups, gone, subject.inputs)


def _grid(operation: Operation) -> list[Operation]:
    """An operation at narrower widths, itself included."""
    if operation.kind == "matmul":
        return [operation]
    into, out = operation.shape[1:3]  # (samples, in, out, groups, ...) and (rows, in, out)
    if operation.kind == "conv" and operation.shape[3] > 1:
        groups = operation.shape[3]
        return [
            _with(operation, n, n * out // into, n * groups // into)
            for n in _widths(into)
            if n * groups % into == 0 and n * out % into == 0
        ]
    return [_with(operation, a, b) for a, b in product(_widths(into), _widths(out))]


def _with(operation: Operation, into: int, out: int, groups: int | None = None) -> Operation:
    shape = list(operation.shape)
    shape[1:3] = into, out
    if groups is not None:
        shape[3] = groups
    return replace(operation, shape=tuple(shape))


def _widths(width: int) -> list[int]:
    """Multiples of the block up to a width, evenly spaced; the width alone if it is narrow."""
    if width < 2 * BLOCK:
        return [width]
    step = -(-width // (STEPS * BLOCK)) * BLOCK
    return sorted({*range(step, width, step), width})
