"""One process or many, started by torchrun: who indexes which images, and how the first hears of all.

Processes share nothing but the store, so each may be killed at any time; they meet only before and after the work.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Share:
    """This process among its equals: it takes every `size`-th image from `rank` on."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process removes, optimizes and prints."""
        return self.rank == 0

    def of(self, count: int) -> range:
        """Which of 0 .. count - 1 are this process's."""
        return range(self.rank, count, self.size)

    def device(self, name: str) -> str:
        """Where this process computes: of several GPUs of one machine, each takes its own."""
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if name == "cuda" and self.size > 1 else name

    def gather(self, own: Any) -> list[Any]:
        """Plain values of all processes, in the order of ranks, when all have come here."""
        if self.size == 1:
            return [own]
        import torch.distributed as dist

        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, own)
        return found


@contextlib.contextmanager
def join_share() -> Iterator[Share]:
    """Join the processes that torchrun started, if it did; leave them at the end."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Share()
        return
    import torch.distributed as dist

    # The slowest share may take long, and the others have nothing to do but wait for it.
    dist.init_process_group("gloo", timeout=datetime.timedelta(days=7))
    try:
        yield Share(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
