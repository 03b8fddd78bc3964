"""Decoding in a child process, with limits on time and memory.

The decoder is native code that does not check its input. If it crashes, loops or exhausts memory in
a child process, the parent only sees that the child has ended, and raises an error. This protects
against accidents and exhaustion; it is not a sandbox against code that takes over the decoder.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from snello.errors import BitstreamError, ConfigError, require

from . import _worker
from ._install import require_nncodec
from ._limits import Limits
from ._worker import BudgetError, Claim

TRUST = "if the stream is trusted, decode with isolated=False"
_START_SECONDS = 60.0  # to start Python and to load numpy, on a slow and busy machine
_SCRIPT = Path(_worker.__file__)


def decode_isolated(stream: bytes, limits: Limits) -> Iterator[tuple[str, int | None, Tensor]]:
    """Name, quantisation parameter and float32 tensor of each tensor, decoded by a child process.

    Raises:
        BitstreamError: for a stream that cannot be decoded within the limits.
        ConfigError: if no child process can be started.
        MissingExtraError: without nncodec.
    """
    with _child() as child:
        clock = _Clock(child, limits)
        try:
            yield from _converse(child, clock, stream, limits)
        except (_EndOfReplies, BrokenPipeError):
            raise BitstreamError(_obituary(child, clock)) from None
        finally:
            clock.stop()


class _EndOfReplies(Exception):  # noqa: N818 - control flow: the child has ended
    pass


class _Clock:
    """A timer that kills the child at the end of its time."""

    def __init__(self, child: subprocess.Popen[bytes], limits: Limits) -> None:
        self._child = child
        self._limits = limits
        self.expired = False
        self.seconds = 0.0
        self._timer: threading.Timer | None = None
        self.start(_START_SECONDS + (limits.seconds or 20))

    def start(self, seconds: float) -> None:
        self.stop()
        self.seconds = seconds
        self._timer = threading.Timer(seconds, self._expire)
        self._timer.daemon = True
        self._timer.start()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _expire(self) -> None:
        self.expired = True
        _kill(self._child)


@contextmanager
def _child() -> Iterator[subprocess.Popen[bytes]]:
    if not sys.executable:
        raise ConfigError(f"there is no Python executable to start a decoder process with; {TRUST}")
    # The libraries under numpy reserve memory for each thread; the decoder uses one.
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
    }
    try:
        # Isolated (-I, -S): only the folders of _paths() are on its import path. A session of its
        # own lets _kill end its subprocesses, too.
        child = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", str(_SCRIPT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )
    except OSError as error:
        raise ConfigError(
            f"no decoder process can be started: {error.strerror or error}; {TRUST}"
        ) from error
    try:
        yield child
    finally:
        _kill(child)
        for pipe in (child.stdin, child.stdout):
            _close(pipe)
        child.wait()


def _close(pipe: IO[bytes] | None) -> None:
    try:
        if pipe is not None:
            pipe.close()
    except BrokenPipeError:
        pass  # the child ended before it read everything


def _kill(child: subprocess.Popen[bytes]) -> None:
    """Kill the child and its subprocesses."""
    if child.poll() is not None:
        return
    try:
        os.killpg(child.pid, signal.SIGKILL)
    # There are no process groups on this system, or this one has ended.
    except (AttributeError, ProcessLookupError, PermissionError):
        child.kill()


def _converse(
    child: subprocess.Popen[bytes], clock: _Clock, stream: bytes, limits: Limits
) -> Iterator[tuple[str, int | None, Tensor]]:
    assert child.stdin is not None
    assert child.stdout is not None
    request = {
        "paths": _paths(),
        "stream_bytes": len(stream),
        "decoded_bytes": limits.decoded_bytes,
        "memory_bytes": limits.memory_bytes,
        "seconds": limits.seconds,
    }
    text = json.dumps(request).encode()
    child.stdin.write(len(text).to_bytes(4, "little") + text)
    child.stdin.write(stream)
    child.stdin.close()
    # A reply contains names and shapes of the stream, so that the stream's size bounds its size.
    cap = 2**16 + 32 * len(stream)
    reply = _read_reply(child.stdout, cap, "claims")
    claims = _checked_claims(reply)
    check_claims(claims, limits)
    clock.start(limits.seconds or _worker.seconds_for(claims, len(stream)))
    left = sum(claim.values for claim in claims)
    while (reply := _read_reply(child.stdout, cap, "tensor", "done"))["kind"] == "tensor":
        name, shape, qp = _checked_tensor(reply)
        # The limits were checked for the claimed values, so that there must not be more of them.
        left -= prod(shape)
        if left < 0:
            raise _garbage(f"more values than were claimed, at tensor {name[:80]!r}")
        yield name, qp, _read_values(child.stdout, shape)


def check_claims(claims: list[Claim], limits: Limits) -> None:
    """Raise an error if the claims of a stream exceed the limits.

    Raises:
        BitstreamError: with the number and the limit.
    """
    if len(claims) > limits.tensors:
        raise BitstreamError(
            f"the NNC stream has {len(claims)} tensors, more than the limit of {limits.tensors}"
        )
    try:
        _worker.check_budget(claims, limits.decoded_bytes)
    except BudgetError as error:
        raise BitstreamError(
            f"{error}; if that is what you expect, raise Limits.decoded_bytes"
        ) from error


def _paths() -> list[str]:
    """The folders from which the child imports numpy and nncodec."""
    modules = (require("numpy", "nnc", "NNC coding"), require_nncodec())
    found = {str(Path(module.__file__ or "").absolute().parents[1]) for module in modules}
    return sorted(found)


def _read_reply(pipe: IO[bytes], cap: int, *kinds: str) -> dict[str, Any]:
    size = int.from_bytes(_read(pipe, 4), "little")
    if size > cap:
        raise _garbage(f"a reply of {size} bytes")
    try:
        reply = json.loads(_read(pipe, size))
    except (ValueError, RecursionError) as error:
        raise _garbage("a reply that is no JSON") from error
    if isinstance(reply, dict) and reply.get("kind") == "error":
        raise BitstreamError(
            _explained(str(reply.get("error"))[:80], str(reply.get("message"))[:300])
        )
    if not isinstance(reply, dict) or reply.get("kind") not in kinds:
        raise _garbage(f"no {' or '.join(kinds)}")
    return reply


def _explained(kind: str, message: str) -> str:
    if kind == "MemoryError":
        return (
            "decoding the NNC stream needs more memory than its size and its claims allow: it is damaged, or "
            "hostile; if not, set Limits(memory_bytes=...)"
        )
    if kind == "BudgetError":
        return f"{message}; if that is what you expect, raise Limits.decoded_bytes"
    return f"decoding the stream, which is damaged or no NNC stream, failed in nncodec ({kind}): {message}"


def _read(pipe: IO[bytes], size: int) -> bytearray:
    buffer = bytearray(size)
    view = memoryview(buffer)
    done = 0
    while done < size:
        count = pipe.readinto(view[done:])  # type: ignore[attr-defined]
        if not count:
            raise _EndOfReplies
        done += count
    return buffer


def _read_values(pipe: IO[bytes], shape: tuple[int, ...]) -> Tensor:
    return torch.frombuffer(_read(pipe, 4 * prod(shape)), dtype=torch.float32).reshape(shape)


def _checked_claims(reply: dict[str, Any]) -> list[Claim]:
    try:
        return [_checked_claim(*unit) for unit in reply["units"]]
    except (KeyError, TypeError, ValueError) as error:
        raise _garbage("claims of another form") from error


def _checked_claim(names: Any, shape: Any, values: Any) -> Claim:
    if (
        not names
        or not all(isinstance(name, str) for name in names)
        or type(values) is not int
        or values < 1
    ):
        raise ValueError
    return Claim(tuple(names), None if shape is None else _checked_shape(shape), values)


def _checked_shape(shape: Any) -> tuple[int, ...]:
    if not isinstance(shape, list) or not shape or not all(type(n) is int and n > 0 for n in shape):
        raise ValueError
    return tuple(shape)


def _checked_tensor(reply: dict[str, Any]) -> tuple[str, tuple[int, ...], int | None]:
    name, qp = reply.get("name"), reply.get("qp")
    if not isinstance(name, str) or not (qp is None or type(qp) is int):
        raise _garbage("a tensor without a name")
    try:
        return name, _checked_shape(reply.get("shape")), qp
    except ValueError as error:
        raise _garbage(f"tensor {name[:80]!r} without a shape") from error


def _garbage(what: str) -> BitstreamError:
    return BitstreamError(
        f"the decoder process sent an invalid reply ({what}): the NNC stream is damaged"
    )


def _obituary(child: subprocess.Popen[bytes], clock: _Clock) -> str:
    """The reason for which a child ended without a reply: time, processor time, a signal or an exit status."""
    if clock.expired:
        return (
            f"decoding the NNC stream took longer than {clock.seconds:.0f} s, which its size and its claims do "
            "not explain: it is damaged, or hostile; if not, set Limits(seconds=...)"
        )
    try:
        status = child.wait(timeout=5)
    except subprocess.TimeoutExpired:
        status = None
    if status == -getattr(signal, "SIGXCPU", 0):
        return (
            "decoding the NNC stream took more processor time than its size and its claims explain: it is "
            "damaged, or hostile; if not, set Limits(seconds=...)"
        )
    if status is not None and status < 0:
        return f"the decoder died of {_signal_name(-status)}: the NNC stream is damaged, or hostile"
    return f"the decoder ended with status {status} and without an answer: the NNC stream is damaged, or hostile"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
