"""What a file may cost its reader."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass, fields

from snello.errors import ConfigError


@dataclass(frozen=True)
class Limits:
    """What decoding a file may cost, so that a damaged or hostile one ends in an error and nothing
    worse.

    What a file claims is compared with these before anything is allocated for it.

    Attributes:
        decoded_bytes: most bytes of all tensors together, in the larger of their own dtype and
            float32; 4 GiB is a network of a thousand million parameters.
        tensors: most tensors.
        manifest_bytes: most bytes of the inflated manifest; never more than 64 MiB, the cap of the
        format. memory_bytes: most memory that decoding may add to the child process; None derives
            it from the sizes of the stream and of its largest tensor. Linux only.
        seconds: most time that decoding may take; None derives it from the sizes (20 s, and 2 s for
            a million parameters).

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
        """The limits that this system can enforce on the child process, beside those of the claimed
        sizes.

        ``"seconds"`` everywhere, by the parent's clock; ``"cpu"`` where Python has the module
        ``resource``; ``"memory_bytes"`` on Linux.
        """
        cpu = ("cpu",) if importlib.util.find_spec("resource") else ()
        return ("seconds", *cpu, *(("memory_bytes",) if cpu and sys.platform == "linux" else ()))
