"""One run, several processes: who am I, how many are we, and what must all of us agree on.

``torchrun`` starts the processes and says in the environment which one each is; Lightning joins
them.
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
        rank: the number of this process among all, from 0.
        size: how many there are.
        local_size: how many of them run on this machine.
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
    """The processes that torchrun started; a world of one without torchrun.

    Raises:
        ConfigError: if the machines run different numbers of processes.
    """
    if not distributed.is_available() or not distributed.is_torchelastic_launched():
        return World()
    found = World(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")))
    if found.size % found.local_size:
        raise ConfigError(
            f"{found.size} processes, {found.local_size} of them here: start as many on every machine "
            "(torchrun --nproc-per-node)"
        )
    return found


def restarted() -> bool:
    """Return True if torchrun has started these processes again, after one was lost."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def rejoin(device: str) -> None:
    """Rejoin the other processes under a new name, after a restart by torchrun.

    torchrun keeps one store for all its attempts, in which the addresses of the processes that are
    gone still stand: those that meet there again may wait for the dead.
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
    """Go on when every process has come to this point."""
    if rank_and_size()[1] > 1:
        distributed.barrier()


def share_of(batch_size: int, processes: int, name: str = "data.batch_size") -> int:
    """The images of one process in a batch of all.

    Raises:
        ConfigError: if they cannot be dealt out evenly: gradients would be weighted unevenly.
    """
    if batch_size % processes:
        raise ConfigError(
            f"{name}={batch_size} counts the images of all processes together and cannot be dealt out to "
            f"{processes}: choose a multiple of {processes}"
        )
    return batch_size // processes
