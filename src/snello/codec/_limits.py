"""Limits on the resources that decoding a file may take."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass, fields

from snello.errors import ConfigError


@dataclass(frozen=True)
class Limits:
    """Limits on the resources for decoding; a file that exceeds them raises an error.

    The sizes that a file claims are compared with them before any memory is allocated.

    Attributes:
        decoded_bytes: maximum bytes of all tensors together, in the larger of their own dtype and
            float32; 4 GiB is a network of a billion (10^9) parameters.
        tensors: maximum number of tensors.
        manifest_bytes: maximum bytes of the inflated manifest; the format's own limit is 64 MiB.
        memory_bytes: maximum memory that decoding may add to the child process; None derives it
            from the sizes of the stream and of its largest tensor. Linux only.
        seconds: maximum time of decoding; None derives it from the sizes (20 s, and 2 s for a
            million parameters).

    Raises:
        ConfigError: for a limit that is not a positive number.
    """

    decoded_bytes: int = 4 * 2**30
    tensors: int = 100_000
    manifest_bytes: int = 64 * 2**20
    memory_bytes: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        for name in (field.name for field in fields(self)):
            value = getattr(self, name)
            if value is None and name in ("memory_bytes", "seconds"):
                continue
            kinds = (int, float) if name == "seconds" else (int,)
            if isinstance(value, bool) or not isinstance(value, kinds) or not 0 < value < 2**62:
                raise ConfigError(f"Limits({name}={value!r}): choose a positive number")

    @staticmethod
    def enforced() -> tuple[str, ...]:
        """Limits on the child process that this system can enforce; those on sizes always hold.

        `"seconds"` everywhere, by the parent's clock; `"cpu"` where Python has the module
        `resource`; `"memory_bytes"` on Linux.
        """
        cpu = ("cpu",) if importlib.util.find_spec("resource") else ()
        return ("seconds", *cpu, *(("memory_bytes",) if cpu and sys.platform == "linux" else ()))


def checked_input(data: object, limits: object) -> bytes:
    """The bytes to be read.

    Raises:
        ConfigError: for anything but bytes, and anything but limits.
    """
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise ConfigError(
            f"coded data are bytes, not {type(data).__name__}: pass those of a file, Path(name).read_bytes()"
        )
    if not isinstance(limits, Limits):
        raise ConfigError(f"limits={limits!r}: pass Limits, such as Limits(seconds=60)")
    return bytes(data)
