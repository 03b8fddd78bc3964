"""Rank, world size and synchronisation of the processes of a run.

`torchrun` starts the processes and passes rank and world size in environment variables;
Lightning initialises the process group.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from torch import distributed

from snello.errors import ConfigError
from snello.processes import rank_and_size


@dataclass(frozen=True)
class World:
    """The processes of a run.

    Attributes:
        rank: global index of this process, from 0.
        size: number of processes (world size).
        local_size: number of processes on this machine.
    """

    rank: int = 0
    size: int = 1
    local_size: int = 1

    @property
    def nodes(self) -> int:
        """Number of machines."""
        return self.size // self.local_size

    @property
    def is_first(self) -> bool:
        """True for the process that writes files and reports."""
        return self.rank == 0


def world() -> World:
    """The processes that torchrun started; a single process without torchrun.

    Raises:
        ConfigError: if the machines run different numbers of processes.
    """
    if not distributed.is_available() or not distributed.is_torchelastic_launched():
        return World()
    found = World(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")))
    if found.size % found.local_size:
        raise ConfigError(
            f"{found.size} processes, {found.local_size} of them on this machine: start equally "
            "many on every machine (torchrun --nproc-per-node)"
        )
    return found


def restarted() -> bool:
    """Return True if torchrun has restarted these processes after one of them failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def rejoin(device: str) -> None:
    """Initialise the process group under a new key prefix, after a restart by torchrun.

    torchrun keeps one key-value store for all its attempts. It still holds the addresses of the
    failed processes, and a new process that reads them may wait for a peer that no longer exists.
    """
    if not restarted() or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return
    if not distributed.is_initialized():
        found = world()
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = distributed.TCPStore(address, port, found.size, is_master=False)  # type: ignore[attr-defined]
        name = f"restart {os.environ['TORCHELASTIC_RESTART_COUNT']}"
        own = distributed.PrefixStore(name, store)  # type: ignore[attr-defined]
        backend = "gloo" if device == "cpu" else "nccl"
        distributed.init_process_group(backend, store=own, rank=found.rank, world_size=found.size)


def wait_for_all() -> None:
    """Block until every process has reached this point; do nothing in a single process."""
    if rank_and_size()[1] > 1:
        distributed.barrier()


def share_of(batch_size: int, processes: int) -> int:
    """Number of images per process in a batch that all processes share.

    Args:
        batch_size: images of all processes together.
        processes: number of processes.

    Raises:
        ConfigError: if the batch cannot be split evenly, which would weight gradients unequally.
    """
    if batch_size % processes:
        raise ConfigError(
            f"data.batch_size={batch_size} counts the images of all processes together and cannot be split "
            f"evenly over {processes}: choose a multiple of {processes}"
        )
    return batch_size // processes
