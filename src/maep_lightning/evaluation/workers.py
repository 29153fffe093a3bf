"""Who takes which chunk when several processes evaluate together.

Processes talk before the first attack and after the last one, never in between: attacks on different samples take
very different times, and a collective in the middle would end in a time-out.
"""

import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Protocol

import torch.distributed as dist
from torch.distributed import ProcessGroup, TCPStore  # type: ignore[attr-defined]


class Workers(Protocol):
    """The processes of an evaluation, seen from one of them."""

    rank: int
    world_size: int

    def chunks(self, count: int) -> Iterator[int]:
        """The chunks that this process takes of `count`."""
        ...

    def join(self) -> None:
        """Wait until every process is here."""
        ...


class Alone:
    """One process takes everything."""

    rank = 0
    world_size = 1

    def chunks(self, count: int) -> Iterator[int]:
        """All chunks in their order."""
        return iter(range(count))

    def join(self) -> None:
        """Return at once."""


_PATIENCE = timedelta(days=7)
"""How long a process waits at the end for the slowest."""


class Together:
    """The processes of `torch.distributed`, which take chunk after chunk from a shared counter."""

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()
        # gloo: NCCL's own watchdog would end processes that wait long.
        self._group: ProcessGroup = dist.new_group(backend="gloo", timeout=_PATIENCE)  # type: ignore[assignment]
        self._store: TCPStore | None = None

    def chunks(self, count: int) -> Iterator[int]:
        """The next chunk that nobody has taken, until none is left."""
        store = self._counter()
        while (chunk := store.add("taken", 1) - 1) < count:
            yield chunk

    def join(self) -> None:
        """Wait for all processes; a process that died ends the wait with an error."""
        dist.barrier(group=self._group)

    def _counter(self) -> TCPStore:
        host = os.environ.get("MASTER_ADDR", "127.0.0.1")
        port = [0]
        store = None
        if self.rank == 0:
            store = TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=_PATIENCE)
            port = [store.port]
        dist.broadcast_object_list(port, src=0, group=self._group)
        self._store = store or TCPStore(host, port[0], is_master=False, timeout=_PATIENCE)
        return self._store


def find_workers() -> Workers:
    """The processes of `torch.distributed` when it runs, else this one alone."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        return Together()
    return Alone()
